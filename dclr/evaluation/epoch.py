"""Evaluation while an encoder is pretrained: nearest neighbours of a few labelled videos, after an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from dclr.config import ConfigError, PretrainConfig
from dclr.data import VideoDataset, build_evaluation_loader
from dclr.distributed import gather_objects, is_first, rank, world
from dclr.evaluation.dataset import EvaluationDataConfig, evaluation_clips, load_subsets
from dclr.evaluation.features import Encoded, Encoding, Features, own_rows
from dclr.evaluation.knn import VOTERS, knn_classification
from dclr.evaluation.retrieval import retrieval

# Few, as they are decoded anew each time.
FEW_CLIPS = 2


class EpochEvaluation:
    """Figures of an encoder on labelled training and test videos of its own pretraining's dataset.

    The encoder, and every random number of the run, are afterwards as before.

    Args:
        config: of the run, whose `train.eval_videos` of each subset are drawn once.

    Raises:
        ConfigError: too few of them have labels.
        DatasetError: the dataset has no test videos.
    """

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        data = replace(EvaluationDataConfig(clips=FEW_CLIPS), train_where=config.data.where).completed(config.data)
        if config.data.holdout is not None:
            data = replace(data, holdout=config.data.holdout, holdout_seed=config.data.holdout_seed)
        self.data = replace(data, workers=config.data.workers, allow_missing=config.data.allow_missing)
        subsets = load_subsets(self.data)
        self.classes = len(subsets[0].classes)
        self.train, self.test = (_some_labelled(videos, config.train.eval_videos) for videos in subsets)

    def __call__(self, encoder: nn.Module) -> dict[str, float]:
        """`eval/knn` (top-1), `eval/R@1` and their chance, in percent; on the first process, else nothing."""
        train, test = self._features(encoder, self.train), self._features(encoder, self.test)
        if not is_first() or not len(train.labels) or not len(test.labels):
            return {}
        own = own_rows(train, test)
        voters = min(VOTERS, len(train.labels))
        voted = knn_classification(train, test, classes=self.classes, k=voters, own=own).figures
        found = retrieval(train.clips, train.labels, test.clips, test.labels, (1,), own=own)
        return {
            "eval/knn": voted["top1"],
            "eval/R@1": found["R@1"],
            "chance/eval/knn": voted["chance"]["top1"],
            "chance/eval/R@1": found["chance"]["R@1"],
        }

    def _features(self, encoder: nn.Module, videos: VideoDataset) -> Features:
        """Features of the videos that can be read, each encoded by one of the processes."""
        augment, precision = self.config.augment, self.config.train.precision
        clips = evaluation_clips(videos, self.data)
        loader = build_evaluation_loader(
            clips, self.data.batch_videos, workers=self.data.workers, rank=rank(), world=world()
        )
        found: list[Encoded] = []
        Encoding(encoder, self.device, augment.mean, augment.std, precision).run(loader, found.append, progress=False)
        rows = [row for part in gather_objects(_encoded_rows(found)) for row in part]
        rows.sort(key=lambda row: row[0])
        clips = torch.stack([row for _, row in rows]) if rows else torch.empty(0)
        return Features.of(videos, [number for number, _ in rows], clips)


def _encoded_rows(found: Sequence[Encoded]) -> list[tuple[int, torch.Tensor]]:
    return [row for batch in found for row in zip(batch.video_id.tolist(), batch.clips.clone())]


def _some_labelled(videos: VideoDataset, count: int) -> VideoDataset:
    """At most `count` of the videos with a label, the same each time."""
    labelled = [number for number, label in enumerate(videos.labels) if label >= 0]
    if len(labelled) < 2:
        raise ConfigError(
            f"train.eval_every: {len(labelled)} of the {len(videos)} videos of {videos.name} ({videos.split}) have a "
            f"label, expected at least 2 to train on and to test; 0 leaves the evaluations out"
        )
    order = np.random.default_rng(0).permutation(len(labelled))[:count]
    chosen = sorted(labelled[place] for place in order.tolist())
    paths, labels = zip(*((videos.paths[number], videos.labels[number]) for number in chosen))
    return replace(videos, paths=paths, labels=labels)
