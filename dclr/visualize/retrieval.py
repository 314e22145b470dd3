"""Retrieval: a video beside the k gallery videos nearest to it, and which of these are of its class.

V videos with features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dclr.visualize.drawing import GREEN, GREY, RED, WIDTH, class_name, short

COLUMNS = 3


@dataclass(frozen=True)
class Shown:
    """A video in a panel: its middle frame, uint8 (H, W, 3), its label (-1: none), its cosine with the query."""

    frame: np.ndarray
    label: int
    cosine: float = 1.0


def choose(labels: Tensor, count: int) -> list[int]:
    """Numbers of `count` (at most V) videos, evenly over the classes of `labels` (V,): each class' first, then second.

    Where there are more classes than videos to choose, every so many-th class has one.
    """
    order: dict[int, list[int]] = {}
    for number, label in enumerate(labels.tolist()):
        order.setdefault(label, []).append(number)
    classes = [order[label] for label in sorted(order)]
    if count < len(classes):
        return [classes[i * len(classes) // count][0] for i in range(count)]
    turns = [(turn, place, number) for place, own in enumerate(classes) for turn, number in enumerate(own)]
    return [number for _, _, number in sorted(turns)[:count]]


def draw_retrieval(query: Shown, neighbours: Sequence[Shown], classes: tuple[str, ...]) -> Figure:
    """The query, then its k neighbours, most similar first, three in a row.

    A neighbour of the same class has a solid green frame and a check mark, another a dashed orange frame and a cross.
    """
    rows = -(-(1 + len(neighbours)) // COLUMNS)
    figure = Figure(figsize=(WIDTH, 1.75 * rows), layout="constrained")
    places = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    _panel(places[0], query, f"query\n{_name(classes, query.label)}", GREY, "solid", 1)
    for axes, video in zip(places[1:], neighbours):
        same = video.label == query.label
        mark, color, line = ("✓", GREEN, "solid") if same else ("✗", RED, "dashed")
        if min(video.label, query.label) < 0:
            mark, color, line = "", GREY, "solid"
        _panel(axes, video, f"{mark} {video.cosine:.3f}\n{_name(classes, video.label)}", color, line, 4)
    for axes in places[1 + len(neighbours) :]:
        axes.set_visible(False)
    return figure


def _name(classes: tuple[str, ...], label: int) -> str:
    return short(class_name(classes, label), 18)


def _panel(axes: Axes, video: Shown, title: str, color: str, line: str, width: float) -> None:
    axes.imshow(video.frame)
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(color=color, linestyle=line, linewidth=width)
