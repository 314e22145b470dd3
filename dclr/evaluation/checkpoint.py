"""What every evaluation of a checkpoint shares: its encoder, features, folder and record."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dclr.config import ConfigError, PretrainConfig, of_saved_run, update
from dclr.data import VideoDataset
from dclr.distributed import choose_device, is_first, process_group
from dclr.evaluation.cache import FeatureCache, weights_digest
from dclr.evaluation.dataset import (
    EvaluationDataConfig,
    clip_protocol,
    evaluation_clips,
    load_subsets,
    require_labels,
)
from dclr.evaluation.features import Encoding, Features, own_rows
from dclr.models import read_encoder
from dclr.models.weights import split_source

CACHE = "features"


@dataclass
class EvaluationConfig:
    """What every evaluation of a checkpoint needs."""

    checkpoint: str
    """Run folder (its last checkpoint), checkpoint, file of `dclr export`, or weights of others: SOURCE:FILE with
    torchvision, dclr_release, fame, dualvar or videomoco."""
    output: str | None = None
    """Folder whose metrics.jsonl gets the result; by default <run>/<evaluation>_<dataset>."""
    cache: str | None = None
    """Folder of the features, which are computed once; by default <run>/features."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the encoder runs; auto is a GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 runs the encoder under autocast; auto is bf16 on GPUs."""
    data: EvaluationDataConfig = field(default_factory=EvaluationDataConfig)
    """Videos and the clips of each."""


class Subject(NamedTuple):
    """The encoder that is evaluated, and what is known of it.

    Attributes:
        pretraining: the run's configuration; of others' weights, their clips and normalisation alone.
        epoch, step: how long it was pretrained; None and 0 of others' weights.
        matched: which tensors of the file it is, in words.
    """

    file: Path
    name: str
    encoder: nn.Module
    pretraining: PretrainConfig
    epoch: int | None
    step: int
    matched: str

    @property
    def record(self) -> dict[str, Any]:
        """What a record of an evaluation says of it."""
        return {"checkpoint": str(self.file), "epoch": self.epoch, "encoder": self.name}

    @property
    def pretrained_on(self) -> str:
        """The dataset of the pretraining; empty where the file does not say."""
        return "" if self.epoch is None else self.pretraining.data.dataset

    @property
    def words(self) -> str:
        """The file, and how long it was pretrained."""
        if self.epoch is None:
            return str(self.file)
        return f"{self.file}, after {self.epoch} epochs" + (f" and {self.step} steps" if self.step else "")


@dataclass(frozen=True)
class Evaluated:
    """Features of both subsets, and what they are of.

    Attributes:
        videos: both subsets.
        own: (Q,) int64, the training row that a test row's own video is; -1 none.
    """

    train: Features
    test: Features
    videos: tuple[VideoDataset, VideoDataset]
    data: EvaluationDataConfig
    subject: Subject
    own: Tensor
    config: EvaluationConfig

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.videos[0].classes

    @property
    def protocol(self) -> str:
        """Which videos, and which clips of them, in words."""
        return clip_protocol(self.data, *self.videos)

    def folder(self, name: str) -> Path:
        """Folder of the results of the evaluation `name`."""
        return output_folder(name, self.config.checkpoint, self.config.output, self.data)


def load_subject(checkpoint: str) -> Subject:
    """The encoder of a checkpoint as `EvaluationConfig.checkpoint` names it.

    Raises:
        OSError, WeightsError: as `load_encoder`.
        ConfigError: its configuration is not one of this version.
    """
    file = read_encoder(checkpoint)
    values = file.about.get("config")
    pretraining = PretrainConfig(encoder=file.name)
    if values:
        try:
            pretraining = update(PretrainConfig(), of_saved_run(values))
        except ConfigError as error:
            raise ConfigError(f"{file.path}: {error}") from error
    seen = file.preprocessing
    data = replace(pretraining.data, frames=seen.frames, stride=seen.stride, size=seen.size)
    augment = replace(pretraining.augment, mean=seen.mean, std=seen.std)
    pretraining = replace(pretraining, data=data, augment=augment)
    if not values and is_first():
        print(f"{file.path}: {file.matched}")
    position = file.about.get("epoch"), file.about.get("step", 0)
    return Subject(file.path, file.name, file.encoder, pretraining, *position, file.matched)


def features_of(
    names: Sequence[str],
    config: EvaluationConfig,
    *,
    labelled: bool = False,
    leave_one_out: bool = False,
    subject: Subject | None = None,
) -> Evaluated | None:
    """Features of the training and the test videos of the evaluations `names`, by the encoder of their checkpoint.

    Under torchrun all processes encode; the first gets the features, the others None.

    Args:
        labelled: whether every video must have a label.
        leave_one_out: the videos of both subsets are the training and the test videos.
        subject: of the checkpoint, where it is loaded already.
    """
    device = choose_device(config.device)
    with process_group(device):
        subject = subject or load_subject(config.checkpoint)
        data = config.data.completed(subject.pretraining.data)
        videos = load_subsets(data)
        for subset in videos if labelled else ():
            require_labels(subset, " and ".join(names))
        if leave_one_out:
            videos = (_union(*videos),) * 2
        for name in names:
            output_folder(name, config.checkpoint, config.output, data)  # refused before what takes long
        encode = _cached_encoder(subject, config, data, device)
        train = encode(videos[0])
        test = train if leave_one_out else encode(videos[1])
    if train is None or test is None:
        return None
    return Evaluated(train, test, videos, data, subject, own_rows(train, test), config)


def _cached_encoder(
    subject: Subject, config: EvaluationConfig, data: EvaluationDataConfig, device: torch.device
) -> Callable[[VideoDataset], Features | None]:
    """The function from videos to their features, which are kept in the cache of the run; None off the first process.

    The cache is of these weights, these clips and this precision; another's is never read.
    """
    augment = subject.pretraining.augment
    encoding = Encoding(subject.encoder, device, augment.mean, augment.std, config.precision)
    shape = {name: getattr(data, name) for name in ("frames", "stride", "size", "clips", "test_crop")}
    settings = {"encoder": subject.name, "weights": weights_digest(subject.encoder), **shape}
    settings |= {"mean": augment.mean, "std": augment.std, "bf16": encoding.bf16}
    folder = usable_folder(config.cache or run_folder(config.checkpoint) / CACHE, "cache")
    cache = FeatureCache(folder, settings, subject.file)

    def encode(videos: VideoDataset) -> Features | None:
        return cache.features(
            encoding,
            evaluation_clips(videos, data),
            batch_videos=data.batch_videos,
            workers=data.workers,
            max_failures=data.max_failed_share,
        )

    return encode


def _union(train: VideoDataset, test: VideoDataset) -> VideoDataset:
    """The videos of both, each once."""
    labels = {os.path.realpath(path): (path, label) for path, label in zip(train.paths, train.labels)}
    for path, label in zip(test.paths, test.labels):
        labels.setdefault(os.path.realpath(path), (path, label))
    paths, numbers = zip(*labels.values())
    words = train.split if train.split == test.split else f"{train.split} and {test.split}"
    return replace(train, paths=paths, labels=numbers, missing=train.missing + test.missing, split=words)


def output_folder(name: str, checkpoint: str, output: str | None, data: EvaluationDataConfig) -> Path:
    """Folder of the results of the evaluation `name`: `output`, or one in the run's."""
    return usable_folder(output or run_folder(checkpoint) / f"{name}_{data.dataset}")


def usable_folder(path: Path | str, setting: str = "output") -> Path:
    """The folder at `path`, which may be missing.

    Raises:
        ConfigError: nothing can be written there; what takes long comes after this.
    """
    folder = Path(path).expanduser()
    present = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not present.is_dir() or not os.access(present, os.W_OK):
        raise ConfigError(f"{setting}: got {folder}, but {present} is no folder that can be written to")
    return folder


def run_folder(checkpoint: str) -> Path:
    """Folder of the run that a checkpoint is of, given itself or a checkpoint, which may be missing."""
    path = Path(os.path.abspath(split_source(checkpoint)[0]))
    if path.parent.name == "checkpoints":
        return path.parent.parent
    return path if path.is_dir() or not path.exists() else path.parent
