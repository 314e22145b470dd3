"""The videos of an evaluation, and the clips that stand for each."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Literal

from dclr.config import ConfigError, DataConfig, at_least, default_workers
from dclr.data import EvaluationClips, VideoDataset
from dclr.data.clips import TestCrop
from dclr.distributed import is_first
from dclr.training.setup import configured_videos

# What stands for the pretraining's own where it is not given; the source only where no dataset is given.
CLIP_FIELDS = ("frames", "stride", "size")
SOURCE_FIELDS = ("dataset", "root", "annotations", "label", "split")


@dataclass
class EvaluationDataConfig:
    """Videos of an evaluation, and the clips of each; by default of the dataset and the shape of the pretraining."""

    dataset: str | None = None
    """A dataset's name, or `folder` for any videos; `dclr check` lists them."""
    root: str | None = None
    """Folder of the dataset."""
    annotations: str | None = None
    """Split file or its folder, where it does not lie beside the videos."""
    label: str | None = None
    """Column of a `folder` dataset's list with the class."""
    split: int | None = None
    """Number of the official split."""
    holdout: float = 0.2
    """Share of each class that is for testing, in a `folder` that says nothing of a split."""
    holdout_seed: int = 0
    """Chooses which videos those are."""
    train_subset: Literal["train", "val", "test"] = "train"
    """Videos to train on, or to search in."""
    train_where: str | None = None
    """Rows of a `folder` dataset's list to train on, or to search in, as COLUMN=VALUE."""
    test_subset: Literal["train", "val", "test"] = "test"
    """Videos to test."""
    test_where: str | None = None
    """Rows of the list to test."""
    frames: int | None = None
    """Frames that the encoder sees."""
    stride: int | None = None
    """Raw frames from one frame of a clip to the next."""
    size: int | None = None
    """Height and width of a clip, pixels."""
    clips: int = 10
    """Evenly spaced clips of each video."""
    test_crop: TestCrop = "square_resize"
    """Of each frame the largest centred square, resized; its centre as it is; or that of a short side of 128."""
    workers: int = field(default_factory=default_workers)
    """Loader processes on each rank; by default as many as it has cores, at most 4."""
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

    def of_subset(self, subset: Literal["train", "val", "test"], where: str | None) -> DataConfig:
        """The configuration of these videos alone, as pretraining takes it; of a `completed` one."""
        own = {each.name for each in dataclasses.fields(self)}
        shared = {each.name: getattr(self, each.name) for each in dataclasses.fields(DataConfig) if each.name in own}
        return DataConfig(**{**shared, "subset": subset, "where": where, "split": self.split or 1})


def load_subsets(data: EvaluationDataConfig) -> tuple[VideoDataset, VideoDataset]:
    """The training and the test videos, of the same classes; says on stderr what was left out."""
    train = configured_videos(data.of_subset(data.train_subset, data.train_where))
    test = configured_videos(data.of_subset(data.test_subset, data.test_where))
    for note in dict.fromkeys((*train.notes, *test.notes)) if is_first() else ():
        print(note, file=sys.stderr)
    if train.classes != test.classes:
        alone = [name for name in (*train.classes, *test.classes) if (name in train.classes) != (name in test.classes)]
        raise ValueError(
            f"{data.dataset}: the training and the test videos do not have the same classes: {len(train.classes)} and "
            f"{len(test.classes)}{f', {alone[0]!r} in one of them alone' if alone else ', in another order'}"
        )
    return train, test


def require_labels(videos: VideoDataset, purpose: str) -> None:
    """Raises ConfigError where a video has no label or there is one class: `purpose` ("knn") tells classes apart."""
    unlabelled = [path for path, label in zip(videos.paths, videos.labels) if label < 0]
    if unlabelled:
        raise ConfigError(
            f"{videos.name}: {purpose} needs a class for each video, but {len(unlabelled)} of {len(videos)} have none, "
            f"such as {unlabelled[0]}; expected a folder a class, or a list with a column of classes (data.label)"
        )
    if len(videos.classes) < 2:
        raise ConfigError(
            f"{videos.name}: {purpose} tells classes apart, but all videos are of one, {videos.classes[0]}; expected "
            "two or more"
        )


def evaluation_clips(videos: VideoDataset, data: EvaluationDataConfig) -> EvaluationClips:
    """The clips that stand for each video."""
    shape = {"frames": data.frames, "stride": data.stride, "size": data.size, "clips": data.clips}
    return EvaluationClips(videos, **shape, test_crop=data.test_crop)


def clip_protocol(data: EvaluationDataConfig, train: VideoDataset, test: VideoDataset) -> str:
    """Which videos, and which clips of them, in words."""
    return (
        f"{data.dataset}{f', label {data.label}' if data.label else ''}; training videos: {train.split}; "
        f"test videos: {test.split}; {data.clips} evenly spaced clips of {data.frames} frames, stride {data.stride}, "
        f"crop {data.test_crop} to {data.size} x {data.size}"
    )
