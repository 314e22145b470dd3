"""What every classification of videos is measured by: top-1, top-5, chance, accuracy by class, confusions.

V videos, K classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Classified(NamedTuple):
    """Guesses for videos: the class of each (V,) int64, -1 none; and figures in percent, their chance and protocol."""

    guesses: Tensor
    figures: dict[str, Any]


def classified(scores_vk: Tensor, labels_v: Tensor, protocol: str, **more: float) -> Classified:
    """The guesses that scores (V, K) make, and how many are right.

    Equal scores go to the lower class; a score of -inf is never a guess.

    Args:
        more: figures that stand beside "top1" and, with more than five classes, "top5".
    """
    classes = scores_vk.shape[1]
    tops = [k for k in (1, 5) if k < classes or k == 1]
    rank_v = ranks(scores_vk, labels_v)
    figures = {f"top{k}": 100 * (rank_v < k).double().mean().item() for k in tops}
    chance = {f"top{k}": 100 * k / classes for k in tops}
    best_v = scores_vk.max(1)
    guesses_v = (scores_vk == best_v.values[:, None]).int().argmax(1).where(best_v.values > -torch.inf, -1)
    return Classified(guesses_v, {**figures, **more, "chance": chance, "protocol": protocol})


def ranks(scores_vk: Tensor, labels_v: Tensor) -> Tensor:
    """How many classes are guessed before the right one, (V,); K where that one is no guess."""
    classes = scores_vk.shape[1]
    own_v1 = scores_vk.gather(1, labels_v[:, None])
    tied_before = (scores_vk == own_v1) & (torch.arange(classes) < labels_v[:, None])
    rank_v = ((scores_vk > own_v1) | tied_before).sum(1)
    return rank_v.where(own_v1[:, 0] > -torch.inf, classes)


def confusion(guesses_v: Tensor, labels_v: Tensor, classes: int) -> Tensor:
    """(K, K + 1) int64: videos of each class (row) by their guess (column); the last column had none."""
    column_v = guesses_v.where(guesses_v >= 0, classes)
    counts = torch.bincount(labels_v * (classes + 1) + column_v, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1)


def class_accuracy(confusion_kk: Tensor) -> Tensor:
    """(K,) percent of each class' videos that were guessed right; NaN of a class without videos."""
    return 100 * confusion_kk.diagonal().double() / confusion_kk.sum(1)
