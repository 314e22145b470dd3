"""Checkpoints that are either whole or not there, and load without running code from the file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

LAST = "last.pt"


class CheckpointError(Exception):
    """A checkpoint that cannot be saved or used, in one line with its path."""


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write beside the target, flush to the disk, then rename: a crash or a full disk leaves the old file as it was.

    Raises:
        CheckpointError: nothing could be written; the previous file, if any, is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as RuntimeError
        kept = f"; the previous {path.name} is kept" if path.exists() else ""
        raise CheckpointError(f"{path}: cannot be saved: {' '.join(str(error).split())}{kept}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Make the rename itself survive a power loss; Windows cannot open folders and does not need it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def find(path: str | Path) -> Path:
    """The checkpoint file of a run folder (its last), or the file itself.

    Raises:
        CheckpointError: there is none, with where it was looked for.
    """
    path = Path(path)
    candidates = [path / "checkpoints" / LAST, path / LAST] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(f"no checkpoint: looked for {' and '.join(map(str, candidates))}")


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU. Only tensors and plain values are accepted; code in a pickle is not run.

    Raises:
        CheckpointError: not there, truncated, not a checkpoint of ours, or with code in it.
    """
    path = find(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused, it holds more than tensors and plain values, or is damaged") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: truncated or not a checkpoint ({str(error).splitlines()[0]})") from error
    if not isinstance(state, dict) or not {"method", "config"} <= state.keys():
        raise CheckpointError(f"{path}: not a checkpoint of dclr, expected the keys method and config")
    return state


def restore(module: nn.Module, state: dict[str, Any], path: str | Path, what: str = "method") -> None:
    """Load `state` into `module`; every name and shape must agree.

    Raises:
        CheckpointError: another architecture, with the first difference and how many there are.
    """
    own = module.state_dict()
    different = [f"{name} is missing" for name in own if name not in state]
    different += [f"{name} is not of this {what}" for name in state if name not in own]
    for name, value in own.items():
        if isinstance(value, torch.Tensor) and name in state and state[name].shape != value.shape:
            shapes = f"{tuple(state[name].shape)}, expected {tuple(value.shape)}"
            different.append(f"{name} has shape {shapes}")
    if different:
        raise CheckpointError(f"{path}: of another {what}: {different[0]} ({len(different)} differences)")
    module.load_state_dict(state)
