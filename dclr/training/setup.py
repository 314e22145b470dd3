"""From a configuration to a trainer that is ready to run: videos, loader, encoder, method, and what torch is told."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from dclr.config import ConfigError, PretrainConfig
from dclr.data import PretrainClips, build_pretrain_loader, load_dataset
from dclr.distributed import is_first, largest_over_ranks, rank, world
from dclr.methods import build_method
from dclr.models import build_encoder
from dclr.training.checkpoint import LAST, CheckpointError, load_checkpoint
from dclr.training.trainer import Trainer


def ready_trainer(
    config: PretrainConfig, device: torch.device, resume: bool = False, encoder: nn.Module | None = None
) -> Trainer:
    """The trainer of a run, at its start or where its last checkpoint is; as `pretrain`, which then runs it."""
    state = _saved_state(Path(config.output).expanduser(), resume)
    trainer = build_trainer(config, device, encoder)
    if state is not None:
        trainer.load(state)
    return trainer


def build_trainer(config: PretrainConfig, device: torch.device, encoder: nn.Module | None = None) -> Trainer:
    """The trainer of a run, at its start, as `pretrain`; sets what torch keeps for the whole process."""
    train = config.train
    if train.threads:
        torch.set_num_threads(train.threads)
    if device.type == "cpu":
        keep_freed_memory()
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or else cuBLAS refuses
    torch.use_deterministic_algorithms(train.deterministic)
    torch.backends.cudnn.benchmark = not train.deterministic
    loader = _build_loader(config, planes=device.type == "cuda")
    torch.manual_seed(train.seed)
    method = build_method(config.method, encoder or build_encoder(config.encoder), config.augment)
    return Trainer(config, method, loader, device)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next tensors; glibc only, without effect elsewhere.

    Without this, glibc returns large freed blocks to the operating system, and the kernel must zero new pages at each
    step: about a sixth of the demo's step. The process then holds on to its peak memory until it ends.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt, trim_threshold, mmap_max = ctypes.CDLL(None).mallopt, -1, -4  # numbers of <malloc.h>
        mallopt(trim_threshold, -1)
        mallopt(mmap_max, 0)


def _saved_state(folder: Path, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from, if there is one."""
    path = folder / "checkpoints" / LAST
    there = path.exists()
    if there and not resume:
        raise ConfigError(f"{folder} already holds a run; expected --resume to go on with it, or another --output")
    if not there and largest_over_ranks(int(there))[0]:
        raise CheckpointError(f"{path}: other processes find it, this one does not; it must be on a shared file system")
    return load_checkpoint(path) if there else None


def _build_loader(config: PretrainConfig, planes: bool) -> DataLoader:
    data, train = config.data, config.train
    if not data.root:
        raise ConfigError(f"data.root: expected the folder of the dataset {data.dataset}")
    videos = load_dataset(
        data.dataset,
        data.root,
        split=data.split,
        subset=data.subset,
        allow_missing=data.allow_missing,
        annotations=data.annotations,
        label=data.label,
        where=data.where,
    )
    if videos.missing and is_first():
        print(f"{data.dataset}: going on without {len(videos.missing)} missing videos", file=sys.stderr)
    if train.batch > len(videos):
        raise ConfigError(f"train.batch: got {train.batch}, expected at most the {len(videos)} videos of the dataset")
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
