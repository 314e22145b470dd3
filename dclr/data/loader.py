"""Loaders whose batches depend on seed, epoch and step alone, not on the number of workers or ranks."""

import atexit
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from multiprocessing import forkserver, resource_tracker
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from dclr.data.clips import REPLACEMENTS, Batch, EvaluationClips, PretrainClips, collate
from dclr.data.planes import PackedCrops

# They reach the whole process group; the trainer finishes its step and saves before it stops. Windows has two of them.
STOP_SIGNALS = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}


class EpochSampler(Sampler):
    """Batches of (epoch, index, *stand_ins): each epoch shuffles the dataset, and the last partial batch is dropped.

    All ranks share the order. A global batch is `batch_size` consecutive videos of it, of which rank r takes
    the r-th of `world` equal runs. Stand-ins are not of the batch, lest a video be its own negative; where the
    dataset has two batches or more, no two videos of a batch share any. Call `set_epoch` before each epoch.
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

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        epoch = self.epoch
        order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        own = self.batch_size // self.world
        others = self.length - self.batch_size
        hands = max(min(self.batch_size, others), 1)

        def stand_ins(place: int) -> range:
            """Of the others, which follow the batch in turn, those dealt out to one of its places."""
            return range(place % hands, others, hands)[: REPLACEMENTS - 1]

        for step in range(self.start_step, self.length // self.batch_size):
            first, end = step * self.batch_size, (step + 1) * self.batch_size
            yield [
                (epoch, int(order[first + place]), *(int(order[(end + i) % self.length]) for i in stand_ins(place)))
                for place in range(self.rank * own, (self.rank + 1) * own)
            ]


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
    if clips.videos.whole is not None and rank == 0:
        gigabytes = clips.videos.memory_needed() / 1e9
        each = f" in each of {workers} workers" if workers else ""
        print(f"data.cache = memory: the videos will take about {gigabytes:.2f} GB{each}", file=sys.stderr)
    return DataLoader(clips, batch_sampler=sampler, **_options(workers))


def build_evaluation_loader(
    clips: EvaluationClips, batch_size: int, *, workers: int = 0, rank: int = 0, world: int = 1
) -> DataLoader:
    """Loader of `Batch`es of up to `batch_size` videos in order; rank r takes every world-th video from r on."""
    return DataLoader(clips, batch_size=batch_size, sampler=range(rank, len(clips), world), **_options(workers))


def as_ready(videos: Dataset, workers: int, task: str, progress: bool = True) -> tqdm:
    """Items of a dataset of videos, under a bar, in the order in which the workers have them ready."""
    loader = DataLoader(videos, batch_size=None, in_order=False, **worker_options(workers))
    return tqdm(loader, task, unit="video", disable=not progress, mininterval=0.1 if sys.stderr.isatty() else 30)


def to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches with their tensors on `device`; there, clips in planes are resized and turned into RGB.

    A GPU copies on a stream of its own, from pinned memory: the copy runs beside the step before, which the GPU is
    still busy with when the next batch is asked for. Whatever is launched after that waits for the copy.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    for batch in batches:
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            clips = batch.clips.to_rgb(device) if isinstance(batch.clips, PackedCrops) else batch.clips
            tensors = [tensor.to(device, non_blocking=True) for tensor in (clips, *batch[1:3])]
        if stream is not None:
            current = torch.cuda.current_stream(device)
            current.wait_stream(stream)
            for tensor in tensors:
                # Its memory belongs to the side stream, which must not reuse it while the step reads.
                tensor.record_stream(current)
        yield Batch(*tensors, batch.failures)


def _options(workers: int) -> dict[str, Any]:
    return {"collate_fn": collate, "pin_memory": torch.cuda.is_available(), **worker_options(workers)}


def worker_options(workers: int) -> dict[str, Any]:
    """Arguments of a `DataLoader` whose worker processes leave stopping to this one; 0 loads in this process."""
    if not workers:
        return {"num_workers": 0}
    return {
        "num_workers": workers,
        "multiprocessing_context": _context(),
        "persistent_workers": True,
        "worker_init_fn": partial(_start_worker, _exiting(), os.getpid()),
    }


def _context() -> multiprocessing.context.BaseContext:
    """Never fork: the trainer has threads and a CUDA context. A fork server imports torch once for all workers."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        # The server and its workers inherit what is blocked: were it to die of a signal, so would they.
        resource_tracker.ensure_running()
        # Starting the tracker has unblocked some.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return context


@cache
def _exiting() -> Tensor:
    """A shared bool, true from when this process begins to exit."""
    flag = torch.zeros((), dtype=torch.bool).share_memory_()
    atexit.register(flag.fill_, True)
    return flag


def _start_worker(exiting: Tensor, trainer: int, worker: int) -> None:
    # A child of the fork server, which waits for its workers to end: neither would see that the trainer was killed.
    threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()

    def terminated(number: int, frame: FrameType | None) -> None:
        # Python at exit terminates what workers are left, and waits for them to obey.
        if exiting:
            os._exit(0)

    for number in STOP_SIGNALS:
        signal.signal(number, terminated if number == signal.SIGTERM else signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _end_with(process: int) -> None:
    """End this process as soon as the other one has, however that ended."""
    try:
        select.select([os.pidfd_open(process)], [], [])
    except ProcessLookupError:
        pass
    except (AttributeError, OSError):  # no such call on this system
        while _is_alive(process):
            time.sleep(1)
    os._exit(1)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
