"""Small multiples of a run's losses, statistics, learning rate and speed over its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from dclr.visualize.drawing import BLUE, ORANGE, short

COLUMNS = 3
# Position and machine, which are no curve of the training.
LEFT_OUT = ("step", "epoch", "data_wait_share", "memory_mib")
LAST = ("learning_rate", "clips_per_second")
TITLES = {"loss": "loss, weighted sum", "learning_rate": "learning rate", "clips_per_second": "clips/s"}
ENDINGS = ("_positive", "_negative")
FEW = 30


def draw_curves(records: Sequence[dict[str, Any]]) -> Figure:
    """One panel a quantity, all over the same steps; positive and negative similarities share one.

    Losses and the learning rate have a logarithmic scale where they are positive and span a factor of ten. A gap is a
    step at which the quantity was not finite.

    Args:
        records: of training steps, at least one, each of a later step than the one before.
    """
    panels = _panels(records)
    rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure(figsize=(3.5 * COLUMNS, 2.1 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, sharex=True, squeeze=False).flatten()
    for axes, (title, names) in zip(grid, panels.items()):
        _draw(axes, title, names, records)
    for number, axes in enumerate(grid):
        axes.set_visible(number < len(panels))
        below_is_empty = number + COLUMNS >= len(panels)
        axes.tick_params(labelbottom=below_is_empty)
        axes.set_xlabel("step" if below_is_empty else "")
    grid[0].xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    return figure


def _panels(records: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Title of each panel -> names of its quantities: the losses, their sum first, then statistics, rate and speed."""
    names = dict.fromkeys(
        name
        for record in records
        for name, value in record.items()
        if name not in LEFT_OUT and (value is None or isinstance(value, (int, float)))
    )
    panels: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (name in LAST, not name.startswith("loss"), name != "loss")):
        base = next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)
        panels.setdefault(TITLES.get(base, base.replace("/", " ").replace("_", " ")), []).append(name)
    return panels


def _draw(axes: Axes, title: str, names: list[str], records: Sequence[dict[str, Any]]) -> None:
    values = []
    # Dashed, so that of two equal curves both are seen.
    for name, color, line in zip(names, (BLUE, ORANGE), ("-", "--")):
        points = [(record["step"], record[name]) for record in records if name in record]
        steps, heights = zip(*((step, math.nan if height is None else height) for step, height in points))
        # Few points would be a line of no length, or a corner that could be anywhere.
        marker = "o" if len(points) < FEW else ""
        label = name.rpartition("_")[2]
        axes.plot(steps, heights, line, color=color, linewidth=1.4, marker=marker, markersize=3, label=label)
        values += [height for height in heights if math.isfinite(height)]
    if len(names) > 1:
        axes.legend(fontsize=8, frameon=False)
    if _spans_decades(values) and (names[0].startswith("loss") or names[0] == "learning_rate"):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if names[0] == "clips_per_second":
        axes.set_ylim(bottom=0)
    axes.set_title(short(title, 36), fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _spans_decades(values: list[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) >= 10 * min(values)
