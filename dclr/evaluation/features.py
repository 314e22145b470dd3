"""Pooled backbone features of the clips of a dataset, computed once for every evaluation.

Shapes: V videos, n clips a video, T frames, H x W pixels, D = `encoder.feature_dim`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dclr.data import Batch, EvaluationClips, VideoDataset, VideoError, build_evaluation_loader
from dclr.models import average_pool


class Features(NamedTuple):
    """Features of the videos of a dataset that could be read, in its order.

    Attributes:
        clips: (V, n, D) float32 on the CPU, average-pooled over time and space, not normalised.
        labels: (V,) int64 class indices, -1 unknown.
        failures: the videos that could not be read, which have no row.
        paths: of each row's video; empty where nothing says.
    """

    clips: Tensor
    labels: Tensor
    failures: Sequence[VideoError] = ()
    paths: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, videos: VideoDataset, numbers: Sequence[int], clips: Tensor, failures: Sequence[VideoError] = ()
    ) -> Features:
        """Features `clips` of the videos with these numbers in a dataset."""
        labels = torch.tensor([videos.labels[number] for number in numbers], dtype=torch.int64)
        return cls(clips, labels, tuple(failures), tuple(videos.paths[number] for number in numbers))


class Encoded(NamedTuple):
    """A batch as it was encoded: pooled features (v, n, D), the videos' numbers (v,), and what could not be read."""

    clips: Tensor
    video_id: Tensor
    failures: Sequence[VideoError]


@dataclass(frozen=True)
class Encoding:
    """How clips become features: by which encoder, on which device, normalised and computed how.

    Attributes:
        encoder: (B, 3, T, H, W) float32 -> (B, D, T', H', W').
        mean, std: of each channel, for frames in [0, 1]: those of the pretraining.
        precision: "bf16" computes under autocast; "auto" does so on GPUs that can.
    """

    encoder: nn.Module
    device: torch.device | str
    mean: Sequence[float]
    std: Sequence[float]
    precision: str = "fp32"

    @property
    def bf16(self) -> bool:
        """Whether the encoder computes in bfloat16."""
        able = torch.device(self.device).type == "cuda" and torch.cuda.is_bf16_supported()
        return self.precision == "bf16" or (self.precision == "auto" and able)

    def run(self, loader: Iterable[Batch], take: Callable[[Encoded], None], progress: bool = True) -> None:
        """Hand the features of each of a loader's batches to `take`; the encoder is in evaluation mode.

        It is moved to `device`; its parameters, buffers and modes, and torch's CPU generator, are afterwards as before.

        Raises:
            ValueError: a video's features are not finite.
        """
        device = torch.device(self.device)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)
        # A loader draws a seed from the global generator even though nothing is shuffled.
        with torch.random.fork_rng(devices=[]), torch.inference_mode(), _evaluating(self.encoder.to(device)):
            for batch in tqdm(loader, "features", unit="batch", disable=not progress):
                pooled_vnd = torch.empty(0)
                if len(batch.video_id):
                    with autocast:
                        clips = batch.clips.to(device, non_blocking=True)
                        pooled_vnd = _pooled(self.encoder, clips, self.mean, self.std).cpu()
                    _require_finite(pooled_vnd, batch.video_id)
                take(Encoded(pooled_vnd, batch.video_id, batch.failures))


def check_features(train: Features, test: Features, classes: int | None = None) -> int:
    """The number of classes, by default the largest label + 1, of features that fit together.

    Raises:
        ValueError: they do not, there are none, a video has no label, or one outside of the classes.
    """
    for name, features in (("train", train), ("test", test)):
        clips, labels = features.clips, features.labels
        if clips.ndim != 3 or 0 in clips.shape or labels.shape != clips.shape[:1]:
            shapes = f"{tuple(clips.shape)} and {tuple(labels.shape)}"
            raise ValueError(f"{name} must have features (V, n, D), not empty, and labels (V,), got {shapes}")
    if train.clips.shape[2] != test.clips.shape[2]:
        raise ValueError(f"train has {train.clips.shape[2]} features a clip, test {test.clips.shape[2]}")
    for name, labels in (("train", train.labels), ("test", test.labels)):
        unknown = int((labels < 0).sum())
        if unknown:
            raise ValueError(f"{unknown} of the {len(labels)} {name} videos have no label, expected a class for each")
    if classes is None:
        classes = 1 + int(max(train.labels.max(), test.labels.max()))
    for name, labels in (("train", train.labels), ("test", test.labels)):
        if labels.max() >= classes:
            span = f"{labels.min()}..{labels.max()}"
            raise ValueError(f"{name} labels must be class indices in 0..{classes - 1}, got {span}")
    return classes


def extract_features(
    encoding: Encoding,
    clips: EvaluationClips,
    *,
    batch_videos: int = 4,
    workers: int = 0,
    progress: bool = True,
    max_failures: float = 0.01,
) -> Features:
    """Features of n clips a video, uint8 (n, T, H, W, 3) each.

    Args:
        batch_videos: videos in one forward, so n times as many clips.
        workers: processes that decode; 0 decodes in this one.
        max_failures: share of the videos that may be unreadable; they are left out.

    Raises:
        ValueError: there are no videos, more videos are unreadable than `max_failures` or all of them, or a
            video's features are not finite.
    """
    if len(clips) == 0:
        raise ValueError("dataset has no videos: there is nothing to extract features of")
    loader = build_evaluation_loader(clips, batch_videos, workers=workers)
    found: list[Encoded] = []
    encoding.run(loader, found.append, progress)
    failures = [failure for batch in found for failure in batch.failures]
    require_few(failures, len(clips), max_failures)
    pooled, video_id, _ = zip(*(batch for batch in found if len(batch.clips)))
    return Features.of(clips.dataset, torch.cat(video_id).tolist(), torch.cat(pooled), failures)


def own_rows(train: Features, test: Features) -> Tensor:
    """(Q,) int64: the row among the training videos that is each test row's own file, -1 none; links are followed."""
    rows = {os.path.realpath(path): row for row, path in enumerate(train.paths)}
    return torch.tensor([rows.get(os.path.realpath(path), -1) for path in test.paths], dtype=torch.int64)


def _pooled(encoder: nn.Module, clips_nvthwc: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    clips, videos = clips_nvthwc.shape[:2]
    clip_bcthw = clips_nvthwc.transpose(0, 1).flatten(0, 1).permute(0, 4, 1, 2, 3).float() / 255
    mean_c111, std_c111 = (clip_bcthw.new_tensor(values)[:, None, None, None] for values in (mean, std))
    features_bcthw = encoder((clip_bcthw - mean_c111) / std_c111)
    return average_pool(features_bcthw).unflatten(0, (videos, clips))


def _require_finite(features_vnd: Tensor, video_id: Tensor) -> None:
    finite = features_vnd.isfinite().flatten(1).all(1)
    if not finite.all():
        raise ValueError(f"the encoder's features of video {int(video_id[~finite][0])} are not finite")


def require_few(failures: Sequence[VideoError], videos: int, max_failures: float) -> None:
    if len(failures) > max_failures * videos or len(failures) == videos:
        listed = "; ".join(map(str, failures))
        count = f"{len(failures)} of {videos} videos could not be read"
        raise ValueError(f"{count}, more than the share of {max_failures:g} that is allowed: {listed}")


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each submodule is in the mode in which it was."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training
