"""Checkpoints: one file holds a whole run, is replaced in one piece and loads without running code.

A file is a dict with "config", "method" (`state_dict()`: encoder, heads, queues, slow encoder), "optimizer",
"position" (epoch, step within it, and the videos' digest), "failures", "meter" and "environment". Random numbers and
the learning rate need no entry: every step draws from generators seeded by the run's seed and the step's number.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from dclr.config import PretrainConfig, of_saved_run, update
from dclr.errors import RunError
from dclr.files import damaged_zip, intact_zip, write_whole
from dclr.methods import Method, build_method
from dclr.methods.renamed import current_state
from dclr.models import build_encoder
from dclr.models.weights import LAST_CHECKPOINT

# `PretrainConfig.encoder` of a run whose encoder is no entry of `ENCODERS`, before the name of its class.
OWN = "own:"


def own_name(encoder: nn.Module) -> str:
    """What stands for a module of the caller's in a configuration.

    Raises:
        ValueError: it does not say its number of channels.
    """
    channels = getattr(encoder, "feature_dim", None)
    if not isinstance(channels, int) or channels < 1:
        raise ValueError(f"encoder: got {type(encoder).__name__} with feature_dim {channels}, expected its channels C")
    return OWN + type(encoder).__name__


class CheckpointError(RunError):
    """A checkpoint that cannot be read, written or used: one line that names the file and the reason."""


def find_checkpoint(path: Path | str) -> Path:
    """The last checkpoint of a run folder; any other path stands for itself."""
    path = Path(path).expanduser()
    return path / LAST_CHECKPOINT if path.is_dir() else path


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
        CheckpointError: no such file, truncated, damaged, not a checkpoint, or one that would run code.
    """
    path = find_checkpoint(path)
    try:
        with open(path, "rb") as file:
            state = _unpickle(file, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    parts = ("config", "method", "position")
    if not isinstance(state, dict) or not all(isinstance(state.get(part), dict) for part in parts):
        raise CheckpointError(f"{path}: not a checkpoint of dclr, which holds config, method and position")
    return state


def _unpickle(file: BinaryIO, path: Path) -> Any:
    try:
        if damaged_zip(file):
            raise ValueError
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        code = str(error).partition("GLOBAL ")[2].split() if isinstance(error, pickle.UnpicklingError) else ()
        if code:
            raise CheckpointError(f"{path}: holds code ({code[0]}) besides weights; it is not run") from error
        raise CheckpointError(f"{path}: truncated, damaged, or not a checkpoint{_intact_one(path)}") from error


def _intact_one(path: Path) -> str:
    """Advice that names the newest intact checkpoint beside a damaged one, where there is one."""
    for other in sorted(path.parent.glob("epoch_*.pt"), reverse=True):
        with open(other, "rb") as file:
            if other != path and intact_zip(file):
                return f"; {other} is intact: copied over {path.name}, it is what --resume goes on from"
    return ""


def load_state(path: Path | str, module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a module's state, all of it.

    Raises:
        CheckpointError: the state is another architecture's: names the first keys or the shape that differ; or it
            holds a value that is none.
    """
    path = find_checkpoint(path)
    state = current_state(state)
    reason = mismatch(module.state_dict(), state)
    if reason:
        raise CheckpointError(f"{path}: of another architecture: {reason}")
    for key, value in state.items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise CheckpointError(f"{path}: {key} holds NaN or infinity")
    try:
        module.load_state_dict(state)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be used ({error})") from error


def mismatch(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """How two state dicts differ in keys, kinds and shapes, in words; empty where they do not."""
    missing = [key for key in expected if key not in found]
    strange = [key for key in found if key not in expected]
    reasons = [
        f"{len(keys)} keys are {what}, first {keys[0]}"
        for what, keys in (("missing", missing), ("not known", strange))
        if keys
    ]
    for key, value in expected.items():
        if key in found and _kind(found[key]) != _kind(value):
            reasons.append(f"{key} is {_kind(found[key])}, expected {_kind(value)}")
            break
    return "; ".join(reasons)


def _kind(value: Any) -> str:
    """What a value of a state dict must agree in: shape, and whether floating, or the type of what is no tensor."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)}{'' if value.is_floating_point() else ' of integers'}"
    return type(value).__name__


class Pretrained(NamedTuple):
    """A method as a run left it, the run's configuration, and the `position` (epoch, step) that it had reached."""

    method: Method
    config: PretrainConfig
    position: dict[str, Any]

    @property
    def encoder(self) -> nn.Module:
        """What evaluation takes."""
        return self.method.encoder


def saved_config(path: Path | str, state: Mapping[str, Any]) -> PretrainConfig:
    """The configuration of a checkpoint's run.

    Raises:
        CheckpointError: it is none.
    """
    try:
        return update(PretrainConfig(), of_saved_run(state["config"]))
    except ValueError as error:
        raise CheckpointError(f"{find_checkpoint(path)}: {error}") from error


def load_method(path: Path | str, encoder: nn.Module | None = None) -> Pretrained:
    """The method of a checkpoint; `path` is a file or a run folder.

    Args:
        encoder: one like that of the run, to take its weights; needed where the run was given one of its own.

    Raises:
        CheckpointError: see `load_checkpoint` and `load_state`.
    """
    state = load_checkpoint(path)
    config = saved_config(path, state)
    if encoder is None and config.encoder.startswith(OWN):
        raise CheckpointError(
            f"{find_checkpoint(path)}: its encoder was handed to pretrain() as a module, {config.encoder[len(OWN) :]}; "
            f"expected one like it in load_method(path, encoder)"
        )
    try:
        method = build_method(config.method, encoder or build_encoder(config.encoder), config.augment)
    except ValueError as error:
        raise CheckpointError(f"{find_checkpoint(path)}: {error}") from error
    load_state(path, method, state["method"])
    return Pretrained(method, config, state["position"])
