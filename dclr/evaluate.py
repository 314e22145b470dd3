"""Evaluations of a checkpoint on a dataset by its features: `dclr linear`, `dclr retrieve` and `dclr knn`."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dclr.augment import AugmentConfig
from dclr.config import ConfigError, DataConfig, PretrainConfig, at_least
from dclr.data import EvaluationClips, VideoDataset, load_dataset
from dclr.distributed import is_first
from dclr.evaluation import Features, LinearConfig, extract_features, knn_classification, linear_probe, retrieval
from dclr.training import append_metrics, find_checkpoint, load_method
from dclr.training.distributed import choose_device

# What stands for the pretraining's own where it is not given; the source only where no dataset is given.
CLIP_FIELDS = ("frames", "stride", "size")
SOURCE_FIELDS = ("dataset", "root", "annotations", "label", "split")


@dataclass
class EvaluationDataConfig:
    """Videos of an evaluation, and the clips of each; by default of the dataset and the shape of the pretraining."""

    dataset: str | None = None
    """ucf101, hmdb51, kinetics400, diving48, or folder."""
    root: str | None = None
    """Folder of the dataset."""
    annotations: str | None = None
    """Split file or its folder, where it does not lie beside the videos."""
    label: str | None = None
    """Column of a `folder` dataset's list with the class."""
    split: int | None = None
    train_subset: Literal["train", "test"] = "train"
    train_where: str | None = None
    """Rows of a `folder` dataset's list to train on, or to search in, as COLUMN=VALUE."""
    test_subset: Literal["train", "test"] = "test"
    test_where: str | None = None
    """Rows of the list to test."""
    frames: int | None = None
    stride: int | None = None
    size: int | None = None
    clips: int = 10
    """Evenly spaced clips of each video."""
    test_crop: Literal["square_resize", "native", "short128"] = "square_resize"
    workers: int = 4
    batch_videos: int = 4
    """Videos in one forward of the encoder."""
    allow_missing: bool = False
    """Go on without the videos that are not there, and report their number."""
    max_failed_share: float = 0.01
    """Stop when more than this share of the videos cannot be decoded."""

    def __post_init__(self) -> None:
        least = {"split": 1, "frames": 1, "stride": 1, "size": 1, "clips": 1, "workers": 0, "batch_videos": 1}
        given = {name: low for name, low in least.items() if getattr(self, name) is not None}
        at_least("data", self, **given, max_failed_share=0)

    def completed(self, pretraining: DataConfig) -> EvaluationDataConfig:
        """With the pretraining's values where there are none."""
        names = CLIP_FIELDS if self.dataset else CLIP_FIELDS + SOURCE_FIELDS
        missing = {name: getattr(pretraining, name) for name in names if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)


@dataclass
class EvaluationConfig:
    """What every evaluation of a checkpoint needs."""

    checkpoint: str
    """Run folder (its last checkpoint), or checkpoint file."""
    output: str | None = None
    """Folder whose metrics.jsonl gets the result; by default <run>/<evaluation>_<dataset>."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: EvaluationDataConfig = field(default_factory=EvaluationDataConfig)


@dataclass
class LinearProbeConfig(EvaluationConfig):
    """Train a linear classifier on the features of a frozen encoder (cached: each clip is encoded once)."""

    linear: LinearConfig = field(default_factory=LinearConfig)
    seed: int = 0


@dataclass
class RetrieveConfig(EvaluationConfig):
    """Find the nearest training videos of each test video: R@k."""

    ks: tuple[int, ...] = (1, 5, 10, 20, 50)
    clip_l2: bool = True
    """Normalise each clip's feature before the mean over clips."""
    center: Literal["per_split", "train", "none"] = "per_split"

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ConfigError(f"ks: got {self.ks}, expected numbers of at least 1")


@dataclass
class KnnConfig(EvaluationConfig):
    """Classify each test video by a weighted vote of the nearest training videos."""

    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """A neighbour's vote weighs exp(cosine / temperature)."""
    clip_l2: bool = True
    """Normalise each clip's feature before the mean over clips."""
    center: Literal["per_split", "train", "none"] = "none"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k: got {self.k}, expected at least 1")
        if not self.temperature > 0:
            raise ConfigError(f"temperature: got {self.temperature}, expected a temperature above 0")


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


def linear(config: LinearProbeConfig) -> dict[str, Any]:
    """Linear probe of a checkpoint (DCLR Sec. 4.1); see `dclr.evaluation.linear_probe`.

    Returns:
        The record that was appended to <output>/metrics.jsonl: "top1" and so on in percent, and the protocol.
    """

    def probe(features: Evaluated) -> dict[str, Any]:
        device, classes = choose_device(config.device), len(features.classes)
        return linear_probe(
            features.train, features.test, config.linear, classes=classes, seed=config.seed, device=device
        )

    return _evaluate("linear", config, probe)


def retrieve(config: RetrieveConfig) -> dict[str, Any]:
    """Retrieval by the features of a checkpoint (DCLR Tab. 3); see `dclr.evaluation.retrieval`.

    Returns:
        The record that was appended to <output>/metrics.jsonl: "R@1" and so on in percent, and the protocol.
    """

    def search(features: Evaluated) -> dict[str, Any]:
        train, test = features.train, features.test
        return retrieval(train.clips, train.labels, test.clips, test.labels, config.ks, config.clip_l2, config.center)

    return _evaluate("retrieve", config, search)


def knn(config: KnnConfig) -> dict[str, Any]:
    """Nearest-neighbour classification by the features of a checkpoint; see `dclr.evaluation.knn_classification`.

    Returns:
        The record that was appended to <output>/metrics.jsonl: "top1" and so on in percent, and the protocol.
    """

    def vote(features: Evaluated) -> dict[str, Any]:
        options = {"k": config.k, "temperature": config.temperature, "clip_l2": config.clip_l2, "center": config.center}
        return knn_classification(features.train, features.test, classes=len(features.classes), **options)

    return _evaluate("knn", config, vote)


def _evaluate(name: str, config: EvaluationConfig, figures: Callable[[Evaluated], dict[str, Any]]) -> dict[str, Any]:
    """Features, figures, one record of both."""
    features = features_of(name, config)
    record = {
        **figures(features),
        "checkpoint": str(find_checkpoint(config.checkpoint)),
        "epoch": features.position["epoch"],
        "encoder": features.pretraining.encoder,
    }
    return add_record(features.folder, name, features.data, record, features.train, features.test)


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


def load_subsets(data: EvaluationDataConfig) -> tuple[VideoDataset, VideoDataset]:
    """The training and the test videos, of the same classes."""
    train = load_videos(data, data.train_subset, data.train_where)
    test = load_videos(data, data.test_subset, data.test_where)
    if train.classes != test.classes:
        raise ValueError(f"{data.dataset}: the training and the test videos do not have the same classes")
    return train, test


def encode(
    encoder: nn.Module,
    videos: VideoDataset,
    data: EvaluationDataConfig,
    augment: AugmentConfig,
    device: torch.device,
) -> Features:
    """Features of the clips of videos, normalised with the mean and standard deviation of `augment`."""
    shape = {"frames": data.frames, "stride": data.stride, "size": data.size, "clips": data.clips}
    return extract_features(
        encoder,
        EvaluationClips(videos, **shape, test_crop=data.test_crop),
        device=device,
        mean=augment.mean,
        std=augment.std,
        batch_videos=data.batch_videos,
        workers=data.workers,
        max_failures=data.max_failed_share,
    )


def load_videos(data: EvaluationDataConfig, subset: str, where: str | None) -> VideoDataset:
    """The videos of a subset; says on stderr how many are missing."""
    if not data.root:
        raise ConfigError(f"data.root: expected the folder of the dataset {data.dataset}")
    videos = load_dataset(
        data.dataset,
        data.root,
        split=data.split or 1,
        subset=subset,
        allow_missing=data.allow_missing,
        annotations=data.annotations,
        label=data.label,
        where=where,
    )
    if videos.missing:
        print(f"{data.dataset}: going on without {len(videos.missing)} missing {subset} videos", file=sys.stderr)
    return videos


def clip_protocol(data: EvaluationDataConfig) -> str:
    """Which videos, and which clips of them, in words."""
    subsets = [
        f"{role} {subset}{f' where {where}' if where else ''}"
        for role, subset, where in (
            ("training videos", data.train_subset, data.train_where),
            ("test videos", data.test_subset, data.test_where),
        )
    ]
    source = data.dataset if data.dataset == "folder" else f"{data.dataset} split {data.split or 1}"
    return (
        f"{source}{f', label {data.label}' if data.label else ''}, {', '.join(subsets)}; "
        f"{data.clips} evenly spaced clips of {data.frames} frames, stride {data.stride}, "
        f"crop {data.test_crop} to {data.size} x {data.size}"
    )


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
