"""Curves of a run over its steps, a picture each: losses beside chance, similarities, statistics, rate and speed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from dclr.visualize.drawing import BLUE, GREY, ORANGE, WIDTH, short

# Position and machine, which are no curve of the training.
LEFT_OUT = ("step", "epoch", "data_wait_share", "memory_mib")
LAST = ("learning_rate", "clips_per_second")
TITLES = {"loss": "loss, weighted sum", "learning_rate": "learning rate", "clips_per_second": "clips/s"}
ENDINGS = ("_positive", "_negative")
CHANCE_PREFIX = "chance/"
FEW_POINTS = 30
# Share of a curve's points that are averaged into one of the smooth line.
WINDOW = 0.05

# Beginning of a quantity's name -> how to read its curve; the first that fits.
READINGS = {
    "loss/sd": "How badly a clip's static frame and its frame difference find each other. It is maximised, up to "
    "chance: below, the two still share something.",
    "loss/ac": "How far the clip's activation map is from those of static frame and difference together "
    "(DCLR Eq. 12). 0 is equal.",
    "loss/": "At chance a clip finds its partner no better than by guessing. Learning takes the curve below; a term "
    "that stays there learns nothing.",
    "loss": "What training descends: its terms below, times their weights. On its own it says little.",
    "similarity/": "Mean cosine of a clip with its partner, and with other videos. Learning takes them apart; equal "
    "ones mean that nothing is told apart.",
    "features/rank": "How many directions the features of a batch use. Near 1 they have collapsed.",
    "features/std": "Spread of the features over a batch. Near 0 they have collapsed.",
    "gradient_norm": "Length of the gradient before clipping. Where it rises and stays up, the run may diverge.",
    "search/": "Of the retrieved entries, those of the clip's own class (labels serve this figure alone), or how full "
    "the queue is.",
    "learning_rate": "As the schedule has it.",
    "clips_per_second": "Speed. Where it falls, look at the share of time spent waiting for data in metrics.jsonl.",
}


class Curve(NamedTuple):
    """A quantity over the steps, or the pair of a positive and a negative similarity.

    Attributes:
        title: of its picture.
        names: of its one or two quantities in the records.
        reading: a line on how to read it; may be empty.
    """

    title: str
    names: tuple[str, ...]
    reading: str


def curves_of(records: Sequence[dict[str, Any]]) -> list[Curve]:
    """The curves of records of training steps: the losses, their sum first, then statistics, rate and speed."""
    names = dict.fromkeys(
        name
        for record in records
        for name, value in record.items()
        if name not in LEFT_OUT
        and not name.startswith(CHANCE_PREFIX)
        and (value is None or isinstance(value, (int, float)))
    )
    together: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (name in LAST, not name.startswith("loss"), name != "loss")):
        base = next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)
        together.setdefault(base, []).append(name)
    return [Curve(_title(base), tuple(names), _reading(base)) for base, names in together.items()]


def _title(name: str) -> str:
    return TITLES.get(name, name.replace("/", " ").replace("_", " "))


def _reading(name: str) -> str:
    return next((text for start, text in READINGS.items() if name.startswith(start)), "")


def draw_curve(curve: Curve, records: Sequence[dict[str, Any]]) -> Figure:
    """What was logged, faint, and its running mean; for a loss also the value of chance, where the records have it.

    A loss or the learning rate has a logarithmic scale where it is positive and spans a factor of ten. A gap is a step
    at which the quantity was not finite.
    """
    figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
    axes = figure.subplots()
    values: list[float] = []
    # Dashed, so that of two equal curves both are seen.
    for name, color, line in zip(curve.names, (BLUE, ORANGE), ("-", "--")):
        values += _draw_line(axes, *_points(name, records), color, line, re.split("[/_]", name)[-1])
    _draw_chance(axes, curve.names[0], records)
    if len(axes.get_legend_handles_labels()[1]) > 1 or len(curve.names) > 1:
        axes.legend(fontsize=9, frameon=False)
    _scale(axes, curve.names[0], values)
    axes.set_title(short(curve.title, 40), fontsize=10, parse_math=False)
    axes.set_xlabel("step", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    return figure


def _points(name: str, records: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, NaN where a value was not finite."""
    points = [(record["step"], record[name]) for record in records if name in record]
    return np.array([step for step, _ in points]), np.array([math.nan if y is None else y for _, y in points], float)


def _draw_line(axes: Axes, steps: np.ndarray, heights: np.ndarray, color: str, line: str, label: str) -> list[float]:
    """Draw one quantity; returns its finite values."""
    # Few points would be a line of no length, or a corner that could be anywhere.
    marker = "o" if len(steps) < FEW_POINTS else ""
    window = max(1, round(WINDOW * len(steps)))
    if window > 1:
        axes.plot(steps, heights, color=color, linewidth=0.8, alpha=0.3)
    axes.plot(
        steps, smoothed(heights, window), line, color=color, linewidth=1.6, marker=marker, markersize=3, label=label
    )
    return heights[np.isfinite(heights)].tolist()


def smoothed(heights: np.ndarray, window: int) -> np.ndarray:
    """Mean of the finite values within half a window on either side; NaN stays."""
    finite = np.isfinite(heights)
    half = window // 2
    places = np.arange(len(heights))
    low, high = (places - half).clip(0), (places + half + 1).clip(max=len(heights))
    sums = np.concatenate([[0], np.cumsum(np.where(finite, heights, 0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    mean = (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1)
    return np.where(finite, mean, math.nan)


def _draw_chance(axes: Axes, name: str, records: Sequence[dict[str, Any]]) -> None:
    if not name.startswith("loss/"):
        return
    steps, heights = _points(CHANCE_PREFIX + name.removeprefix("loss/"), records)
    # Of as many candidates throughout, a level; also where a single step was logged.
    if len(steps) and (heights == heights[0]).all():
        axes.axhline(heights[0], linestyle=":", color=GREY, linewidth=1.6, label="chance")
    elif len(steps):
        axes.plot(steps, heights, ":", color=GREY, linewidth=1.6, label="chance")


def _scale(axes: Axes, name: str, values: list[float]) -> None:
    if name == "clips_per_second":
        axes.set_ylim(bottom=0)
    positive = bool(values) and min(values) > 0
    if positive and max(values) >= 10 * min(values) and (name.startswith("loss") or name == "learning_rate"):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
