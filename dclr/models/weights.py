"""Weights in: an encoder from a file of ours or of others, recognised by the names and shapes of its tensors.

No code of a file is run: pickles are read as weights alone.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dclr.augment.draws import IMAGENET_MEAN, IMAGENET_STD, KINETICS_MEAN, KINETICS_STD
from dclr.files import damaged_zip
from dclr.models.encoders import ENCODERS, build_encoder
from dclr.models.layouts import LAYOUTS, PREFIXES, renaming

# The last checkpoint of a run, below its folder.
LAST_CHECKPOINT = Path("checkpoints", "last.pt")
# Entries under which checkpoints keep their tensors, ours first.
STATES = ("method", "state_dict", "model", "model_state_dict", "module", "encoder")


class WeightsError(ValueError):
    """A file that gives no encoder: one line that names the file and the reason."""


@dataclass(frozen=True)
class Preprocessing:
    """What an encoder was trained on: clips (B, 3, T, H, W) in [0, 1], minus `mean`, over `std`.

    frames: T. stride: raw frames from one frame of a clip to the next. size: H and W, pixels.
    """

    frames: int = 16
    stride: int = 2
    size: int = 112
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


# Names of what a file can say of its preprocessing.
SEEN = tuple(each.name for each in fields(Preprocessing))

#: Whose weights a file holds, where it does not say: `SOURCE:FILE`.
SOURCES: dict[str, Preprocessing] = {
    "torchvision": Preprocessing(mean=KINETICS_MEAN, std=KINETICS_STD),
    "dclr_release": Preprocessing(),
    "fame": Preprocessing(mean=KINETICS_MEAN, std=KINETICS_STD),
    "dualvar": Preprocessing(stride=4),
    "videomoco": Preprocessing(frames=32, stride=1),
}


class EncoderFile(NamedTuple):
    """An encoder as a file gives it, on the CPU and in evaluation mode.

    Attributes:
        about: what the file says of itself: `config` of the pretraining, `epoch` and `step`; empty of others' files.
        matched: which tensors of the file it is, in words.
    """

    path: Path
    name: str
    encoder: nn.Module
    preprocessing: Preprocessing
    about: dict[str, Any]
    matched: str


def load_encoder(path: str | os.PathLike) -> nn.Module:
    """The encoder of a file or a run folder, in evaluation mode on the CPU.

    Its `preprocessing` says what it takes: clips (B, 3, T, H, W) in [0, 1], minus `mean`, over `std`, of `frames`
    frames, every `stride`-th, `size` pixels high and wide.

    Args:
        path: a run folder, a checkpoint, a file of `dclr export`, or a state dict of others as safetensors or of
            `torch.save`; `SOURCE:FILE` says of whom, so that the preprocessing is theirs (SOURCES).

    Raises:
        OSError: the file cannot be read.
        WeightsError: damaged, holds code, or its tensors are no encoder's.
    """
    return read_encoder(path).encoder


def read_encoder(path: str | os.PathLike, name: str | None = None) -> EncoderFile:
    """As `load_encoder`, with what the file says of itself.

    Args:
        name: the encoder that is wanted; by default the one that the file says, or that its tensors are.
    """
    file, given = split_source(path)
    entries, about = _read_entries(file)
    said = (about.get("config") or {}).get("encoder") or about.get("encoder")
    name, tensors, matched = recognise(file, entries, name or said)
    encoder = build_encoder(name)
    encoder.load_state_dict(tensors)
    preprocessing = _preprocessing(about, given, name)
    encoder.preprocessing = preprocessing
    return EncoderFile(file, name, encoder.eval(), preprocessing, about, matched)


def split_source(path: str | os.PathLike) -> tuple[Path, str | None]:
    """The file of `SOURCE:FILE`, in a run folder its last checkpoint, and the source; None where none is named."""
    source, colon, rest = os.fspath(path).partition(":")
    given = source if colon and source in SOURCES else None
    file = Path(rest if given else path).expanduser()
    if file.is_dir():
        file = file / LAST_CHECKPOINT
    return file, given


def absolute(path: str | os.PathLike) -> str:
    """What means the same in any working directory."""
    file, given = split_source(path)
    return f"{given}:{os.path.abspath(file)}" if given else os.path.abspath(file)


def _preprocessing(about: Mapping[str, Any], source: str | None, name: str) -> Preprocessing:
    """What the file says of it, or else what is known of its source."""
    config = about.get("config") or {}
    said = {**config.get("data", {}), **config.get("augment", {}), **about.get("preprocessing", {})}
    known = {key: tuple(said[key]) if isinstance(said[key], list) else said[key] for key in SEEN if key in said}
    if known:
        return Preprocessing(**known)
    found = SOURCES[source] if source else Preprocessing()
    # FAME pretrained its I3D, and only that, on larger clips.
    return replace(found, size=224) if source == "fame" and name == "i3d" else found


def _read_entries(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file by name, and what it says of itself."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError as error:
        raise OSError(f"{path}: cannot be read ({error.strerror or error})") from error
    # A safetensors file begins with the length of its header, and the header with a brace.
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _read_safetensors(path)
    content = _unpickled(path)
    about = {"config": content.get("config"), **(content.get("position") or {})}
    about = {key: about[key] for key in ("config", "epoch", "step") if about.get(key) is not None}
    state = next((content[key] for key in STATES if isinstance(content.get(key), Mapping)), content)
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}, about


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{path}: truncated, or not a safetensors file ({error})") from error
    about = {key: metadata[key] for key in ("encoder",) if key in metadata}
    with contextlib.suppress(json.JSONDecodeError):
        about["preprocessing"] = {key: json.loads(metadata[key]) for key in SEEN if key in metadata}
        about["config"] = json.loads(metadata["config"]) if "config" in metadata else {}
        about["epoch"] = int(metadata["epoch"]) if metadata.get("epoch", "").isdecimal() else None
    return tensors, {key: value for key, value in about.items() if value}


def _unpickled(path: Path) -> Mapping[str, Any]:
    """What `torch.save` wrote, of which nothing is run; a file in zip form is checked for damage."""
    # Of the settings of a run, which lie beside the weights in many checkpoints.
    harmless = [argparse.Namespace]
    try:
        with open(path, "rb") as file:
            if damaged_zip(file):
                raise WeightsError(f"{path}: truncated, or damaged: it is not what was saved")
            with torch.serialization.safe_globals(harmless):
                content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = str(error).partition("GLOBAL ")[2].split()
        held = f"holds code ({code[0]}) besides weights; it is not run" if code else "truncated, or holds no weights"
        raise WeightsError(f"{path}: {held}") from error
    except (OSError, RuntimeError, EOFError, KeyError) as error:
        raise WeightsError(f"{path}: truncated, or holds no weights") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds {type(content).__name__}, expected tensors by name")
    return content


def recognise(path: Path, entries: Mapping[str, Tensor], name: str | None = None) -> tuple[str, dict[str, Tensor], str]:
    """Which encoder the tensors of a file are: of those whose every tensor is there, the one with most.

    Args:
        name: the encoder, where the file says.

    Returns:
        Its name, its `state_dict()`, and in words what of the file it is.

    Raises:
        WeightsError: none fits; names the one that comes nearest and what it lacks.
    """
    if name is not None and name not in ENCODERS:
        raise WeightsError(f"{path}: of the encoder {name!r}, expected one of {', '.join(ENCODERS)}")
    expected = {each: _shapes(each) for each in ([name] if name else ENCODERS)}
    best, nearest = None, (0, "", "")
    for prefix, layout, found in _readings(entries):
        for each, shapes in expected.items():
            needed = [key for key in shapes if not _is_count(key)]
            lacking = [key for key in needed if key not in found or found[key].shape != shapes[key]]
            present = len(needed) - len(lacking)
            if not lacking and (best is None or present > best[0]):
                best = present, each, prefix, layout, found
            elif lacking and present > nearest[0]:
                nearest = present, each, _difference(lacking[0], shapes, found, len(lacking))
    if best is None:
        raise WeightsError(f"{path}: {_nothing(len(entries), expected, *nearest)}")
    _, each, prefix, layout, found = best
    state = {key: found.get(key, torch.zeros((), dtype=torch.int64)) for key in expected[each]}
    _require_numbers(path, state)
    return each, _as_float(state), _match_in_words(each, prefix, layout, entries, found, state)


def _readings(entries: Mapping[str, Tensor]) -> Iterable[tuple[str, str, dict[str, Tensor]]]:
    """The tensors below each prefix, by our names if they are named as in each layout."""
    plain = {key.removeprefix("module."): value for key, value in entries.items()}
    for prefix in PREFIXES:
        below = {key.removeprefix(prefix): value for key, value in plain.items() if key.startswith(prefix)}
        for layout, rules in LAYOUTS.items() if below else ():
            rename = renaming(rules)
            yield prefix, layout, {rename(key): value for key, value in below.items()}


def _is_count(key: str) -> bool:
    """Whether a tensor is BatchNorm's count of batches, which older files lack and evaluation ignores."""
    return key.endswith("num_batches_tracked")


@functools.cache
def _shapes(name: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in build_encoder(name).state_dict().items()}


def _difference(key: str, shapes: Mapping[str, torch.Size], found: Mapping[str, Tensor], count: int) -> str:
    here = tuple(found[key].shape) if key in found else "nothing"
    needed = sum(not _is_count(key) for key in shapes)
    lacking = f"{count} of its {needed} tensors are missing or of another shape"
    return f"{lacking}, first {key}: got {here}, expected {tuple(shapes[key])}"


def _nothing(count: int, wanted: Iterable[str], present: int, name: str, difference: str) -> str:
    if not count:
        return "holds no tensors by name"
    if not present:
        return f"none of its {count} tensors is one of {', '.join(wanted)}"
    return f"its {count} tensors are no encoder's; nearest is {name}, but {difference}"


def _require_numbers(path: Path, state: Mapping[str, Tensor]) -> None:
    for key, value in state.items():
        if _is_count(key):
            continue
        if not value.is_floating_point():
            raise WeightsError(f"{path}: {key} is of {value.dtype}, expected floating point")
        if not value.isfinite().all():
            raise WeightsError(f"{path}: {key} has values that are NaN or infinite")


def _as_float(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _match_in_words(name: str, prefix: str, layout: str, entries: Mapping, found: Mapping, state: Mapping) -> str:
    left = len(entries) - len(found.keys() & state.keys())
    where = f" below {prefix.rstrip('.')}" if prefix else ""
    named = f", named as in {layout}" if layout else ""
    return f"{len(state)} tensors of {name}{where}{named}; {left} others left out"
