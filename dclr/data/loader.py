"""Loaders whose batches depend on seed, epoch and step alone, not on the number of workers or ranks."""

import multiprocessing
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from dclr.data.clips import EvaluationClips, PretrainClips, collate


class EpochSampler(Sampler):
    """Batches of (epoch, index): each epoch shuffles the dataset once, and the last partial batch is dropped.

    All ranks share the order. A global batch is `batch_size` consecutive videos of it, of which rank r takes
    the r-th of `world` equal runs. Call `set_epoch` before each epoch.
    """

    def __init__(self, length: int, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1):
        if not 1 <= batch_size <= length:
            raise ValueError(f"a batch of {batch_size} does not fit a dataset of {length} videos")
        if batch_size % world:
            raise ValueError(f"a batch of {batch_size} does not divide among {world} processes")
        self.length, self.batch_size = length, batch_size
        self.seed, self.rank, self.world = seed, rank, world
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """The epoch that the next iteration runs, from batch `start_step`; what comes before is never loaded."""
        self.epoch, self.start_step = epoch, start_step

    def __len__(self) -> int:
        return max(self.length // self.batch_size - self.start_step, 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        own = self.batch_size // self.world
        for step in range(self.start_step, self.length // self.batch_size):
            first = step * self.batch_size + self.rank * own
            yield [(epoch, int(index)) for index in order[first : first + own]]


def build_pretrain_loader(
    clips: PretrainClips, batch_size: int, *, workers: int = 0, rank: int = 0, world: int = 1
) -> DataLoader:
    """Loader of `Batch`es of batch_size / world videos; `loader.batch_sampler.set_epoch` picks epoch and step.

    batch_size: of all ranks together. workers: 0 loads in this process.
    Raises `ValueError` where the batch is larger than the dataset, and `DatasetError` where every video is
    shorter than a clip.
    """
    sampler = EpochSampler(len(clips), batch_size, seed=clips.seed, rank=rank, world=world)
    clips.check_span()
    return DataLoader(clips, batch_sampler=sampler, **_options(workers))


def build_evaluation_loader(
    clips: EvaluationClips, batch_size: int, *, workers: int = 0, rank: int = 0, world: int = 1
) -> DataLoader:
    """Loader of `Batch`es of up to `batch_size` videos in order; rank r takes every world-th video from r on."""
    return DataLoader(clips, batch_size=batch_size, sampler=range(rank, len(clips), world), **_options(workers))


def _options(workers: int) -> dict[str, Any]:
    options = {"collate_fn": collate, "num_workers": workers, "pin_memory": torch.cuda.is_available()}
    if workers:
        options |= {
            "multiprocessing_context": _context(),
            "persistent_workers": True,
            "worker_init_fn": _start_worker,
        }
    return options


def _context() -> multiprocessing.context.BaseContext:
    """Never fork: the trainer has threads and a CUDA context. A fork server imports torch once for all workers."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches the whole process group, but the trainer finishes its step and saves before it stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
