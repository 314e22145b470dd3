"""What every evaluation of a checkpoint shares: its configuration, features, folder and record."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dclr.config import ConfigError, PretrainConfig
from dclr.distributed import choose_device, is_first
from dclr.evaluation.dataset import EvaluationDataConfig, clip_protocol, encode, load_subsets
from dclr.evaluation.features import Features
from dclr.training import append_metrics, find_checkpoint, load_method


@dataclass
class EvaluationConfig:
    """What every evaluation of a checkpoint needs."""

    checkpoint: str
    """Run folder (its last checkpoint), or checkpoint file."""
    output: str | None = None
    """Folder whose metrics.jsonl gets the result; by default <run>/<evaluation>_<dataset>."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: EvaluationDataConfig = field(default_factory=EvaluationDataConfig)


@dataclass(frozen=True)
class Evaluated:
    """Features of both subsets, the path of each of their rows' videos, how they came about, and the output folder."""

    train: Features
    test: Features
    classes: tuple[str, ...]
    data: EvaluationDataConfig
    pretraining: PretrainConfig
    position: dict[str, Any]
    train_paths: tuple[str, ...]
    test_paths: tuple[str, ...]
    folder: Path


def features_of(name: str, config: EvaluationConfig) -> Evaluated:
    """Features of the training and the test videos of the evaluation `name`, by the encoder of its checkpoint."""
    device = choose_device(config.device)
    method, pretraining, position = load_method(config.checkpoint)
    data = config.data.completed(pretraining.data)
    videos = load_subsets(data)
    folder = output_folder(name, config.checkpoint, config.output, data)
    train, test = (encode(method.encoder, subset, data, pretraining.augment, device) for subset in videos)
    train_paths, test_paths = (
        tuple(subset.paths[index] for index in features.video_id.tolist())
        for subset, features in zip(videos, (train, test))
    )
    return Evaluated(train, test, videos[0].classes, data, pretraining, position, train_paths, test_paths, folder)


def add_record(
    folder: Path, name: str, data: EvaluationDataConfig, record: dict[str, Any], *parts: Features
) -> dict[str, Any]:
    """Print the record of an evaluation, and append it to the folder's metrics.jsonl; returns it, completed.

    Its protocol gets that of the clips in front, and the unreadable videos of `parts` are named.
    """
    unreadable = [str(failure) for part in parts for failure in part.failures]
    protocol = f"{clip_protocol(data)}; {record['protocol']}"
    record = {"evaluation": name, **record, "protocol": protocol, "unreadable_videos": unreadable}
    if is_first():
        append_metrics(folder, record)
        _print(record)
    return record


def output_folder(name: str, checkpoint: str, output: str | None, data: EvaluationDataConfig) -> Path:
    """Folder of the results of the evaluation `name`: `output`, or one in the run's."""
    return usable_folder(output or run_folder(checkpoint) / f"{name}_{data.dataset}")


def usable_folder(path: Path | str) -> Path:
    """The folder at `path`, which may be missing.

    Raises:
        ConfigError: nothing can be written there; what takes long comes after this.
    """
    folder = Path(path).expanduser()
    present = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not present.is_dir() or not os.access(present, os.W_OK):
        raise ConfigError(f"output: got {folder}, but {present} is no folder that can be written to")
    return folder


def run_folder(checkpoint: str) -> Path:
    """Folder of the run that a checkpoint is of, given itself or a checkpoint, which may be missing."""
    path = Path(os.path.abspath(find_checkpoint(checkpoint)))
    if path.parent.name == "checkpoints":
        return path.parent.parent
    return path.parent if path.exists() else path


def _print(record: dict[str, Any]) -> None:
    figures = [f"{key} {value:.2f}%" for key, value in record.items() if isinstance(value, float)]
    print("  ".join(figures))
    print(f"protocol: {record['protocol']}")
    print(f"checkpoint: {record['checkpoint']}, {record['epoch']} epochs, {record['encoder']}")
    if record["unreadable_videos"]:
        print(f"left out, unreadable: {'; '.join(record['unreadable_videos'])}")
