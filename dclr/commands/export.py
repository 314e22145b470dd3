"""`dclr export`: the encoder of a checkpoint as a file that other programs read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

import dclr
from dclr.config import ConfigError, PretrainConfig, to_dict
from dclr.evaluation.checkpoint import run_folder
from dclr.files import write_or_explain
from dclr.methods import method_name
from dclr.training import load_method


@dataclass
class ExportConfig:
    """Write the encoder of a checkpoint as one safetensors file."""

    checkpoint: str
    """Run folder (its last checkpoint), or checkpoint file."""
    output: str | None = None
    """File *.safetensors, replaced where there is one; by default <run>/encoder.safetensors."""


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
    write_or_explain(path, safetensors.torch.save(method.encoder.state_dict(), metadata))
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
