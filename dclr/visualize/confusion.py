"""Which classes are taken for which: a confusion matrix and the accuracy of each class.

K classes.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from dclr.evaluation.classification import class_accuracy, confusion
from dclr.files import write_or_explain
from dclr.visualize.drawing import BLUE, png_bytes, short

# Names of more classes than this would stand on each other.
NAMED = 60


def draw_confusion(counts: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """The share of each class' videos by what they were taken for, and beside it the share that was right.

    Args:
        counts: (K, K + 1) videos by class (row) and guess (column); the last column had no guess.
        classes: their names, K.
    """
    number = len(classes)
    videos = counts.sum(1)
    shares = counts / np.maximum(videos, 1)[:, None]
    side = min(max(0.22 * number, 3.5), 14)
    figure = Figure(figsize=(1.35 * side + 1.5, side + 1.2), layout="constrained")
    matrix, bars = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    shown = shares if shares[:, -1].any() else shares[:, :-1]
    image = matrix.imshow(shown, vmin=0, vmax=1, cmap="Blues", aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=matrix, shrink=0.6, label="share of the class' videos")
    matrix.set(xlabel="taken for", ylabel="class")
    right = 100 * np.diagonal(shares)
    bars.barh(np.arange(number), np.where(videos > 0, right, 0), color=BLUE)
    bars.set(xlim=(0, 100), xlabel=f"right, %; mean {right[videos > 0].mean():.1f}")
    if number <= NAMED:
        names = [short(name, 24) for name in classes]
        matrix.set_yticks(np.arange(number), names, fontsize=7, parse_math=False)
        columns = [*names, "none"][: shown.shape[1]]
        matrix.set_xticks(np.arange(shown.shape[1]), columns, fontsize=7, rotation=90, parse_math=False)
    return figure


def write_confusion(folder: Path, stem: str, guesses: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
    """What became of the videos of each class: STEM_classes.csv and STEM_confusion.png.

    Args:
        guesses, labels: (V,) class of each video, -1 no guess.
    """
    counts = confusion(guesses, labels, len(classes))
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("class", "videos", "right", "accuracy", "most often taken for"))
    for number, (name, accuracy) in enumerate(zip(classes, class_accuracy(counts).tolist())):
        wrong = counts[number].clone()
        videos, right, wrong[number] = int(wrong.sum()), int(wrong[number]), 0
        taken = (*classes, "none")[int(wrong.argmax())] if wrong.any() else ""
        writer.writerow((name, videos, right, f"{accuracy:.2f}" if videos else "", taken))
    write_or_explain(folder / f"{stem}_classes.csv", table.getvalue().encode("utf-8", "surrogateescape"))
    write_or_explain(folder / f"{stem}_confusion.png", png_bytes(draw_confusion(counts.numpy(), classes)))
