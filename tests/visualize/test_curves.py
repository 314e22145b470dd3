"""Curves: a picture a quantity with the values of the log, chance, smoothing, scales, gaps, and very short runs."""

import math

import numpy as np

from dclr.training import append_metrics
from dclr.visualize import curves_of, draw_curve, read_run
from dclr.visualize.drawing import svg

RECORD = {
    "epoch": 0, "loss/vs": 2.0, "loss/vd": 1.0, "similarity/vs_positive": 0.5, "similarity/vs_negative": 0.1,
    "learning_rate": 0.1, "clips_per_second": 30.0, "data_wait_share": 0.1, "memory_mib": 300.0,
}  # fmt: skip


def records(losses):
    return [{**RECORD, "step": 10 * i + 10, "loss": loss} for i, loss in enumerate(losses)]


def drawn(steps):
    """Title -> axes of each curve's picture."""
    return {curve.title: draw_curve(curve, steps).axes[0] for curve in curves_of(steps)}


def test_a_picture_for_each_quantity():
    pictures = drawn(records([5.0, 4.0, 3.0]))
    assert list(pictures) == [
        "loss, weighted sum", "loss vs", "loss vd", "similarity vs", "learning rate", "clips/s",
    ]  # fmt: skip
    assert all(curve.reading for curve in curves_of(records([5.0])))
    (line,) = pictures["loss, weighted sum"].lines
    assert line.get_xdata().tolist() == [10, 20, 30] and line.get_ydata().tolist() == [5, 4, 3]
    positive, negative = pictures["similarity vs"].lines
    assert (positive.get_label(), positive.get_ydata()[0]) == ("positive", 0.5)
    assert (negative.get_label(), negative.get_ydata()[0]) == ("negative", 0.1)


def test_chance_beside_a_loss_and_no_curve_of_its_own():
    steps = [{**record, "chance/vs": 2.5} for record in records([5.0, 4.0])]
    pictures = drawn(steps)
    assert not any("chance" in title for title in pictures)
    lines = {line.get_label(): list(line.get_ydata()) for line in pictures["loss vs"].lines}
    assert lines == {"vs": [2.0, 2.0], "chance": [2.5, 2.5]}
    assert len(pictures["loss vd"].lines) == 1
    assert pictures["loss vs"].get_legend() and not pictures["loss vd"].get_legend()


def test_many_points_are_smoothed_over_the_raw_line():
    heights = np.random.default_rng(0).normal(size=101)
    heights[40] = np.nan
    raw, smooth = drawn(records([None if np.isnan(y) else y for y in heights]))["loss, weighted sum"].lines
    np.testing.assert_array_equal(raw.get_ydata(), heights)
    assert raw.get_alpha() < 0.5
    # A window of 5: two points on either side, fewer at the ends, without the gap.
    expected = [np.nanmean(heights[max(i - 2, 0) : i + 3]) for i in range(101)]
    expected[40] = np.nan
    np.testing.assert_allclose(smooth.get_ydata(), expected, atol=1e-12)


def test_logarithmic_where_a_loss_is_positive_and_spans_a_factor_of_ten():
    for losses, scale in (
        ([20.0, 2.0], "log"),
        ([20.0, 2.1], "linear"),
        ([20.0, -2.0], "linear"),
        ([0.0, 1], "linear"),
    ):
        assert drawn(records(losses))["loss, weighted sum"].get_yscale() == scale


def test_gaps_and_terms_that_join_late():
    steps = records([4.0, None, 2.0])
    steps[2]["loss/sd"] = 7.0
    pictures = drawn(steps)
    heights = pictures["loss, weighted sum"].lines[0].get_ydata()
    assert heights[0] == 4 and math.isnan(heights[1]) and heights[2] == 2
    assert pictures["loss sd"].lines[0].get_xdata().tolist() == [30]


def test_a_single_point_is_seen():
    axes = drawn(records([3.0]))["loss, weighted sum"]
    assert axes.lines[0].get_marker() == "o" and "<svg" in svg(axes.figure, "loss")


def test_nothing_finite():
    assert "<svg" in svg(drawn(records([None, None]))["loss, weighted sum"].figure, "loss")


def test_a_resumed_run_has_one_monotonic_axis(tmp_path):
    for step, loss in ((1, 9), (2, 8), (3, 7), (2, 80), (4, 60)):
        append_metrics(tmp_path, {"step": step, "loss": loss})
    append_metrics(tmp_path, {"step": 4, "wall_seconds": 3.0})
    run = read_run(tmp_path)
    assert [(record["step"], record["loss"]) for record in run.steps] == [(1, 9), (2, 80), (4, 60)]
    assert run.cost["wall_seconds"] == 3
    axes = drawn(run.steps)["loss, weighted sum"]
    assert (np.diff(axes.lines[0].get_xdata()) > 0).all()
