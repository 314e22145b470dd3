"""Neighbours: which videos are chosen, and how a neighbour of the same class is told from another."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from dclr.visualize import draw_retrieval
from dclr.visualize.drawing import GREEN, GREY, RED, svg
from dclr.visualize.retrieval import Shown, choose


@pytest.mark.parametrize(
    "labels, count, chosen",
    [
        ([2, 2, 0, 0, 1, 1], 3, [2, 4, 0]),
        ([2, 2, 0, 0, 1, 1], 5, [2, 4, 0, 3, 5]),
        ([0, 0, 0, 1], 4, [0, 3, 1, 2]),
        ([0, 1, 2, 3, 4, 5], 3, [0, 2, 4]),
        ([-1, -1, -1], 2, [0, 1]),
        ([1, 0], 6, [1, 0]),
    ],
)
def test_evenly_over_the_classes(labels, count, chosen):
    assert choose(torch.tensor(labels), count) == chosen


def test_frames_marks_and_names():
    frames = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.full((1, 6, 8, 3), 60, np.uint8)
    query, same, other, unknown = (Shown(frame, label, 0.25) for frame, label in zip(frames, (1, 1, 0, -1)))
    long_name = "a class whose name is long"
    figure = draw_retrieval(query, [same, other, unknown], (long_name, "$x <b>"))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title() for axes in shown]
    assert titles == ["query\n$x <b>", "✓ 0.250\n$x <b>", f"✗ 0.250\n{long_name[:17]}…", " 0.250\nno label"]
    assert all((axes.images[0].get_array() == frame).all() for axes, frame in zip(shown, frames))
    spines = [axes.spines["left"] for axes in shown[1:]]
    assert [to_hex(spine.get_edgecolor()).upper() for spine in spines] == [GREEN, RED, GREY]
    assert spines[0].get_linestyle() != spines[1].get_linestyle()
    assert "<svg" in svg(figure, "retrieval")
