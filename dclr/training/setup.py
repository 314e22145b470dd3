"""From a configuration to a trainer that is ready to run: videos, loader, encoder, method, and what torch is told."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader

from dclr.config import ConfigError, DataConfig, PretrainConfig
from dclr.data import PretrainClips, VideoDataset, build_pretrain_loader, load_dataset
from dclr.distributed import is_first, largest_over_ranks, rank, world
from dclr.methods import build_method
from dclr.models import build_encoder, read_encoder
from dclr.models.weights import LAST_CHECKPOINT
from dclr.training.checkpoint import CheckpointError, load_checkpoint
from dclr.training.faults import explained
from dclr.training.lock import FolderTaken, RunLock
from dclr.training.progress import description, say
from dclr.training.resume import check_resume
from dclr.training.sizing import fitted
from dclr.training.trainer import Trainer

Resume = Literal["or_start"] | bool


def ready_trainer(
    config: PretrainConfig,
    device: torch.device,
    resume: Resume = False,
    encoder: nn.Module | None = None,
    allow_changes: bool = False,
) -> Trainer:
    """The trainer of a run, at its start or where its last checkpoint is; as `pretrain`, which then runs it.

    The run's folder is then this process' own, until the trainer has run.
    """
    folder = Path(config.output).expanduser()
    state = _saved_state(folder, resume)
    videos = configured_videos(config.data)
    config, sized = fitted(config, len(videos))
    if encoder is None and config.encoder_weights and state is None:
        started = read_encoder(config.encoder_weights, config.encoder)
        encoder = started.encoder.train()
        sized = [*sized, f"starts from {config.encoder_weights}: {started.matched}"]
    trainer = _trainer(config, videos, device, encoder)
    notes = [*sized, *(check_resume(trainer, state, allow_changes) if state else ())]
    lock = _locked(folder)
    if state is not None:
        trainer.load(state)
        notes.insert(0, f"resumed at step {trainer.global_step}")
    trainer.lock = lock
    if is_first():
        steps = trainer.steps_per_epoch
        say(description(config, videos, trainer.method, trainer.failures, device, steps))
        for note in [*videos.notes, *notes, *filter(None, [lock.warning])]:
            say(note)
    return trainer


def build_trainer(config: PretrainConfig, device: torch.device) -> Trainer:
    """The trainer of a run, at its start, as `pretrain`; sets what torch keeps for the whole process."""
    videos = configured_videos(config.data)
    config, _ = fitted(config, len(videos))
    return _trainer(config, videos, device)


def _trainer(
    config: PretrainConfig, videos: VideoDataset, device: torch.device, encoder: nn.Module | None = None
) -> Trainer:
    train = config.train
    if train.threads:
        torch.set_num_threads(train.threads)
    if device.type == "cpu":
        keep_freed_memory()
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or else cuBLAS refuses
    torch.use_deterministic_algorithms(train.deterministic)
    torch.backends.cudnn.benchmark = not train.deterministic
    with explained():
        loader = _build_loader(config, videos, planes=device.type == "cuda")
    torch.manual_seed(train.seed)
    method = build_method(config.method, encoder or build_encoder(config.encoder), config.augment)
    return Trainer(config, method, loader, device, videos.digest)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next tensors; glibc only, without effect elsewhere.

    Without this, glibc returns large freed blocks to the operating system, and the kernel must zero new pages at each
    step: about a sixth of the demo's step. The process then holds on to its peak memory until it ends.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt, trim_threshold, mmap_max = ctypes.CDLL(None).mallopt, -1, -4  # numbers of <malloc.h>
        mallopt(trim_threshold, -1)
        mallopt(mmap_max, 0)


def _saved_state(folder: Path, resume: Resume) -> dict[str, Any] | None:
    """The checkpoint to go on from, if there is one."""
    path = folder / LAST_CHECKPOINT
    there = path.exists()
    if there and not resume:
        raise ConfigError(f"{folder} already holds a run; expected --resume to go on with it, or another --output")
    if not there and largest_over_ranks(int(there)):
        raise CheckpointError(f"{path}: other processes find it, this one does not; it must be on a shared file system")
    if not there and resume is True:
        raise ConfigError(f"no run in {folder}, which has no {LAST_CHECKPOINT}; --resume-or-start would start one")
    return load_checkpoint(path) if there else None


def _locked(folder: Path) -> RunLock | None:
    """The folder's lock, which the first process holds for all."""
    lock, refusal = None, None
    if is_first():
        try:
            lock = RunLock(folder)
        except FolderTaken as error:
            refusal = error
    if largest_over_ranks(int(refusal is not None)):
        raise refusal or FolderTaken(f"{folder}: another run is writing there")
    return lock


def configured_videos(data: DataConfig) -> VideoDataset:
    """The videos that a configuration names.

    Raises:
        ConfigError: it names no folder.
        DatasetError: as `load_dataset`.
    """
    if not data.root:
        raise ConfigError(f"data.root: got none, expected the folder of the videos (data.dataset is {data.dataset})")
    return load_dataset(
        data.dataset,
        data.root,
        split=data.split,
        subset=data.subset,
        allow_missing=data.allow_missing,
        annotations=data.annotations,
        label=data.label,
        where=data.where,
        holdout=None if data.where else data.holdout,
        seed=data.holdout_seed,
    )


def _build_loader(config: PretrainConfig, videos: VideoDataset, planes: bool) -> DataLoader:
    data, train = config.data, config.train
    batch = train.batch // train.accumulate
    if batch % world():
        parts = f"train.accumulate x processes = {train.accumulate} x {world()}"
        raise ConfigError(f"train.batch: got {train.batch}, expected a multiple of {parts}")
    clips = PretrainClips(
        videos,
        frames=data.frames,
        stride=data.stride,
        size=data.size,
        scale=data.scale,
        ratio=data.ratio,
        views=config.method.views,
        crops=config.method.crops,
        seed=train.seed,
        cache=data.cache,
        planes=planes,
    )
    return build_pretrain_loader(clips, batch, workers=data.workers, rank=rank(), world=world())
