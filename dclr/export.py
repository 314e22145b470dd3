"""What a checkpoint gives to other programs: features of videos, `dclr extract`, and the encoder, `dclr export`."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

import dclr
from dclr.config import ConfigError, PretrainConfig, to_dict
from dclr.evaluate import EvaluationConfig, clip_protocol, features_of, run_folder
from dclr.evaluation import Features
from dclr.files import write_whole
from dclr.methods import method_name
from dclr.training import find_checkpoint, load_method


@dataclass
class ExtractConfig(EvaluationConfig):
    """Write the features of the training and the test videos to train.npz and test.npz."""

    output: str | None = None
    """Folder for the two files; by default <run>/extract_<dataset>."""


@dataclass
class ExportConfig:
    """Write the encoder of a checkpoint as one safetensors file."""

    checkpoint: str
    """Run folder (its last checkpoint), or checkpoint file."""
    output: str | None = None
    """File *.safetensors, replaced where there is one; by default <run>/encoder.safetensors."""


def extract(config: ExtractConfig) -> Path:
    """Write a checkpoint's features of the videos of a dataset to train.npz and test.npz.

    Each holds "clips" (V, n, D) float32 as of `Features`, "labels" (V,) int64, -1 unknown, "paths" (V,), "classes"
    (K,), and "protocol": a string. Videos that cannot be read have no row, and are named on the terminal.

    Returns:
        The folder of both.
    """
    found = features_of("extract", config)
    folder = found.folder
    protocol = (
        f"{clip_protocol(found.data)}; features of {found.pretraining.encoder} in evaluation mode, averaged over time "
        f"and space, not normalised; {find_checkpoint(config.checkpoint)}, {found.position['epoch']} epochs"
    )
    for name, features, paths in (("train", found.train, found.train_paths), ("test", found.test, found.test_paths)):
        _write(folder / f"{name}.npz", _archive(features, paths, found.classes, protocol))
        videos, clips, dim = features.clips.shape
        print(f"{folder / name}.npz: {videos} videos x {clips} clips x {dim} features")
        if features.failures:
            print(f"left out, unreadable ({len(features.failures)}): {'; '.join(map(str, features.failures))}")
    print(f"protocol: {protocol}")
    return folder


def _archive(features: Features, paths: Sequence[str], classes: Sequence[str], protocol: str) -> memoryview:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        clips=features.clips.numpy(),
        labels=features.labels.numpy(),
        paths=np.array(paths, dtype=np.str_),
        classes=np.array(classes, dtype=np.str_),
        protocol=np.array(protocol),
    )
    return buffer.getbuffer()


def export(config: ExportConfig) -> Path:
    """Write the encoder of a checkpoint as one safetensors file, which `dclr.models.load_encoder` reads.

    Keys are those of the encoder's `state_dict()`: for r2plus1d_18, r3d_18 and mc3_18 torchvision's without `fc.*`.

    Returns:
        The file.
    """
    default = run_folder(config.checkpoint) / "encoder.safetensors"
    path = Path(config.output).expanduser() if config.output else default
    # Whatever lies there is replaced, which nobody wants of a checkpoint.
    if path.suffix != ".safetensors":
        raise ConfigError(f"output: got {config.output}, expected a file *.safetensors")
    method, pretraining, position = load_method(config.checkpoint)
    metadata = _metadata(pretraining, position, method.encoder.feature_dim)
    _write(path, safetensors.torch.save(method.encoder.state_dict(), metadata))
    print(f"{path}: {pretraining.encoder}, {metadata['feature_dim']} features, {metadata['epoch']} epochs")
    return path


def _metadata(pretraining: PretrainConfig, position: dict[str, Any], feature_dim: int) -> dict[str, str]:
    """What the file says of itself; safetensors takes strings alone, so lists are JSON."""
    data, augment = pretraining.data, pretraining.augment
    return {
        "encoder": pretraining.encoder,
        "feature_dim": str(feature_dim),
        "frames": str(data.frames),
        "stride": str(data.stride),
        "size": str(data.size),
        "mean": json.dumps(augment.mean),
        "std": json.dumps(augment.std),
        "epoch": str(position["epoch"]),
        "method": method_name(pretraining.method),
        "dclr": dclr.__version__,
        "config": json.dumps(to_dict(pretraining)),
    }


def _write(path: Path, data: bytes | memoryview) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error
