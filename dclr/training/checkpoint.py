"""Checkpoints: one file holds a whole run, is replaced in one piece and loads without running code.

A file is a dict with "config", "method" (`state_dict()`: encoder, heads, queues, slow encoder), "optimizer",
"position" (epoch, step within it), "failures", "meter" and "environment". Random numbers and the learning rate need no
entry: every step draws from generators seeded by the run's seed and the step's number.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from dclr.config import PretrainConfig, update
from dclr.errors import RunError
from dclr.files import write_whole
from dclr.methods import Method, build_method
from dclr.methods.renamed import current_state
from dclr.models import build_encoder

LAST = "last.pt"


class CheckpointError(RunError):
    """A checkpoint that cannot be read, written or used: one line that names the file and the reason."""


def find_checkpoint(path: Path | str) -> Path:
    """The last checkpoint of a run folder; any other path stands for itself."""
    path = Path(path).expanduser()
    return path / "checkpoints" / LAST if path.is_dir() else path


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that at any moment `path` is either the previous one or the whole new one.

    Raises:
        CheckpointError: it cannot be written (a full disk); the previous one is as it was, nothing else is left.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    try:
        write_whole(path, buffer.getbuffer())
    except OSError as error:
        kept = "; the previous one is kept" if path.exists() else ""
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error}){kept}") from error


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU; `path` is a file or a run folder.

    Raises:
        CheckpointError: no such file, truncated, not a checkpoint, or one that would run code.
    """
    path = find_checkpoint(path)
    try:
        with open(path, "rb") as file:
            state = _unpickle(file, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not isinstance(state, dict) or not {"config", "method", "position"} <= state.keys():
        raise CheckpointError(f"{path}: not a checkpoint of dclr, which holds config, method and position")
    return state


def _unpickle(file: BinaryIO, path: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = str(error).partition("GLOBAL ")[2].split()
        if code:
            raise CheckpointError(f"{path}: holds code ({code[0]}) besides weights; it is not run") from error
        raise CheckpointError(f"{path}: truncated, or not a checkpoint") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: truncated, or not a checkpoint") from error


def load_state(path: Path | str, module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a module's state, all of it.

    Raises:
        CheckpointError: the state is another architecture's: names the first keys or the shape that differ.
    """
    state = current_state(state)
    reason = mismatch(module.state_dict(), state)
    if reason:
        raise CheckpointError(f"{find_checkpoint(path)}: of another architecture: {reason}")
    module.load_state_dict(state)


def mismatch(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """How two state dicts differ in keys and shapes, in words; empty where they do not."""
    missing = [key for key in expected if key not in found]
    strange = [key for key in found if key not in expected]
    reasons = [
        f"{len(keys)} keys are {what}, first {keys[0]}"
        for what, keys in (("missing", missing), ("not known", strange))
        if keys
    ]
    for key, value in expected.items():
        other = found.get(key)
        if isinstance(value, Tensor) and isinstance(other, Tensor) and value.shape != other.shape:
            reasons.append(f"{key} is {tuple(other.shape)}, expected {tuple(value.shape)}")
            break
    return "; ".join(reasons)


class Pretrained(NamedTuple):
    """A method as a run left it, the run's configuration, and the `position` (epoch, step) that it had reached."""

    method: Method
    config: PretrainConfig
    position: dict[str, Any]

    @property
    def encoder(self) -> nn.Module:
        """What evaluation takes."""
        return self.method.encoder


def load_method(path: Path | str) -> Pretrained:
    """The method of a checkpoint; `path` is a file or a run folder.

    Raises:
        CheckpointError: see `load_checkpoint` and `load_state`.
    """
    state = load_checkpoint(path)
    try:
        config = update(PretrainConfig(), state["config"])
        method = build_method(config.method, build_encoder(config.encoder), config.augment)
    except ValueError as error:
        raise CheckpointError(f"{find_checkpoint(path)}: {error}") from error
    load_state(path, method, state["method"])
    return Pretrained(method, config, state["position"])
