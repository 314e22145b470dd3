"""Curves: a panel a quantity with the values of the log, scales, gaps, and runs of very few lines."""

import math

import numpy as np

from dclr.training import append_metrics
from dclr.visualize import draw_curves, read_run
from dclr.visualize.drawing import png_bytes

RECORD = {
    "epoch": 0, "loss/vs": 2.0, "loss/vd": 1.0, "similarity/vs_positive": 0.5, "similarity/vs_negative": 0.1,
    "learning_rate": 0.1, "clips_per_second": 30.0, "data_wait_share": 0.1, "memory_mib": 300.0,
}  # fmt: skip


def records(losses):
    return [{**RECORD, "step": 10 * i + 10, "loss": loss} for i, loss in enumerate(losses)]


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}


def test_a_panel_for_each_quantity():
    drawn = panels(draw_curves(records([5.0, 4.0, 3.0])))
    assert list(drawn) == [
        "loss, weighted sum", "loss vs", "loss vd", "similarity vs", "learning rate", "clips/s",
    ]  # fmt: skip
    (line,) = drawn["loss, weighted sum"].lines
    assert line.get_xdata().tolist() == [10, 20, 30] and line.get_ydata().tolist() == [5, 4, 3]
    positive, negative = drawn["similarity vs"].lines
    assert (positive.get_label(), positive.get_ydata()[0]) == ("positive", 0.5)
    assert (negative.get_label(), negative.get_ydata()[0]) == ("negative", 0.1)


def test_logarithmic_where_a_loss_is_positive_and_spans_a_factor_of_ten():
    for losses, scale in (
        ([20.0, 2.0], "log"),
        ([20.0, 2.1], "linear"),
        ([20.0, -2.0], "linear"),
        ([0.0, 1], "linear"),
    ):
        assert panels(draw_curves(records(losses)))["loss, weighted sum"].get_yscale() == scale


def test_gaps_and_terms_that_join_late():
    steps = records([4.0, None, 2.0])
    steps[2]["loss/sd"] = 7.0
    drawn = panels(draw_curves(steps))
    heights = drawn["loss, weighted sum"].lines[0].get_ydata()
    assert heights[0] == 4 and math.isnan(heights[1]) and heights[2] == 2
    assert drawn["loss sd"].lines[0].get_xdata().tolist() == [30]


def test_a_single_line_is_seen():
    figure = draw_curves(records([3.0]))
    assert panels(figure)["loss, weighted sum"].lines[0].get_marker() == "o"
    assert png_bytes(figure).startswith(b"\x89PNG\r\n\x1a\n")


def test_nothing_finite():
    assert png_bytes(draw_curves(records([None, None])))


def test_a_resumed_run_has_one_monotonic_axis(tmp_path):
    for step, loss in ((1, 9), (2, 8), (3, 7), (2, 80), (4, 60)):
        append_metrics(tmp_path, {"step": step, "loss": loss})
    append_metrics(tmp_path, {"step": 4, "wall_seconds": 3.0})
    run = read_run(tmp_path)
    assert [(record["step"], record["loss"]) for record in run.steps] == [(1, 9), (2, 80), (4, 60)]
    assert run.cost["wall_seconds"] == 3
    axes = draw_curves(run.steps).axes[0]
    assert (np.diff(axes.lines[0].get_xdata()) > 0).all()
