"""The harness itself: a wrong result of ours fails, one of a peer is noted, and every row gets its numbers."""

import json

import pytest
import torch

from . import harness
from .harness import (
    OURS,
    REFERENCE,
    Problem,
    check_problem,
    measure_problem,
    missing,
    relative_error,
    report,
    table,
    with_gradients,
)


def problem(**variants) -> Problem:
    x = torch.randn(64, 64)
    right = lambda: (x @ x,)  # noqa: E731
    return Problem(
        name="square",
        dtype=torch.float32,
        device=torch.device("cpu"),
        expected=lambda: (x.double() @ x.double(),),
        variants={REFERENCE: right, OURS: right} | {name: lambda f=f: (f(x),) for name, f in variants.items()},
        bytes=2 * 64 * 64 * 4,
        flops=2 * 64**3,
    )


@pytest.mark.parametrize("wrong", [lambda x: x, lambda x: x @ x * torch.nan, lambda x: (x @ x)[:5]])
def test_wrong_result_of_ours_fails(wrong):
    with pytest.raises(AssertionError, match="square, ours: wrong"):
        check_problem(problem(**{OURS: wrong}))


def test_failure_of_ours_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        check_problem(problem(**{OURS: lambda x: 1 // 0}))


def test_peers_are_noted():
    rows = {row.variant: row for row in check_problem(problem(wrong=lambda x: x, broken=lambda x: x @ x[:3]))}
    assert rows[OURS].error < 1e-6 and rows[OURS].note == ""
    assert rows["wrong"].note.startswith("wrong: relative error") and rows["wrong"].ran
    assert rows["broken"].note.startswith("RuntimeError") and not rows["broken"].ran


def test_measured_rows_have_numbers():
    squares = problem(broken=lambda x: x @ x[:3], other=lambda x: x)
    squares.other_functions.add("other")
    rows = {row.variant: row for row in measure_problem(squares, seconds=0.05)}
    ours = rows[OURS]
    assert 0 < ours.p20_us <= ours.p50_us <= ours.p80_us and ours.ratio_to_ours == 1
    assert ours.percent_of_floor == pytest.approx(100 * ours.floor_us / ours.p50_us)
    assert rows["broken"].p50_us is None and rows["other"].p50_us > 0
    text = table(list(rows.values()))
    assert "square: 0.033 MB, 0.001 GFLOP" in text and "RuntimeError" in text
    written = json.loads(json.dumps(report(list(rows.values()), "cpu")))
    assert written["versions"]["torch"]
    assert {"commit", "device", "command", "ceilings", "rows"} <= set(written) and len(written["rows"]) == 4


def test_gradients_are_the_leaves():
    x = torch.randn(5, requires_grad=True)
    loss, gradient = with_gradients(lambda x: x.square().sum(), x)()
    torch.testing.assert_close(gradient, 2 * x.detach())
    assert not loss.requires_grad


def test_missing_peers_are_named():
    squares = problem()
    assert missing(squares, "nobody", "no_such_package_anywhere.part")
    assert missing(squares, "on a GPU", "torch")
    assert not missing(squares, "torch", "torch.nn", needs_cuda=False)
    assert squares.left_out == {"nobody": "not installed", "on a GPU": "needs a GPU"}


def test_relative_error_is_the_worst():
    ones = torch.ones(4)
    assert relative_error([ones, 1.5 * ones], [ones, ones]) == pytest.approx(0.5)
    assert relative_error([ones], [ones, ones]) == relative_error([ones[:2]], [ones]) == float("inf")
    assert relative_error([torch.nan * ones], [ones]) == float("inf")


def test_ceilings_are_those_of_a_computer():
    ceilings = harness.measure_ceilings("cpu")
    assert 1e8 < ceilings["copy_bytes"] < 1e13
    assert 1e8 < ceilings["matmul_flops"]["float32"] < 1e15
