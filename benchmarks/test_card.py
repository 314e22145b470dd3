"""The plan for a card: what it selects exists, a step that fails or hangs costs the others nothing, and a rehearsal."""

import json
import os
import subprocess
import sys
from importlib import import_module

import pytest

from . import card, harness
from .card import CardStep, Plan, run_steps
from .card_methods import compare


def python(name, code, limit=60):
    return CardStep(name, limit, (sys.executable, "-c", code))


def selected(expression, names):
    return [name for name in names if any(part in name for part in expression.split(" or "))]


@pytest.mark.parametrize("stage", card.STAGES)
def test_every_benchmark_of_the_plan_has_such_a_size(stage, tmp_path):
    steps = [step for step in card.STAGES[stage](Plan("cuda", tmp_path)) if step.rows]
    assert len({step.rows for step in steps}) == len(steps)
    for step in steps:
        file = next(part for part in step.command if part.startswith("benchmarks/"))
        expression = step.command[step.command.index("-k") + 1]
        sizes = import_module(file.removesuffix(".py").replace("/", ".")).SIZES["cuda"]
        assert selected(expression, [str(size) for size in sizes]), f"{step.name} selects nothing"


def test_each_step_is_on_its_own(tmp_path):
    steps = [
        python("right", "print('first'); print('last line')"),
        python("wrong", "raise SystemExit('no such thing')"),
        python("endless", "import time; print('begun', flush=True); time.sleep(600)", limit=3),
        CardStep("absent", 60, ("no-such-program",)),
        python("after", "print('still there')"),
    ]
    outcomes = run_steps(steps, Plan("cuda", tmp_path), seconds=300)
    assert [outcome.result for outcome in outcomes] == ["passed", "failed (1)", "stopped", "left out", "passed"]
    assert outcomes[0].detail == "last line" and "no such thing" in outcomes[1].detail
    checks = json.loads((tmp_path / "report.json").read_text())["checks"]
    assert [checks[step.name]["result"] for step in steps] == [outcome.result for outcome in outcomes]
    log = (tmp_path / "log.txt").read_text()
    assert "begun" in log and "still there" in log


def test_what_there_is_no_time_for_is_said(tmp_path):
    outcomes = run_steps([python("late", "pass")], Plan("cpu", tmp_path), seconds=1)
    assert [(outcome.result, outcome.detail) for outcome in outcomes] == [("left out", "the time was up")]


def test_losses_are_compared_from_the_first_step_on():
    assert compare([8.0, 4.1], [8.01, 4.0]).startswith("equal")
    assert compare([8.4, 4.0], [8.0, 4.0]).startswith("WRONG")
    assert compare([8.0, 4.9], [8.0, 4.0]).startswith("WRONG")
    assert compare([8.0, float("nan")], [8.0, 4.0]).startswith("WRONG")
    with pytest.raises(ValueError, match="zip"):
        compare([8.0], [8.0, 4.0])


@pytest.mark.parametrize("stage", ["correct", "train"])
def test_a_rehearsal_from_beginning_to_end(stage, tmp_path):
    """Every step of the stage on a CPU; those that need a card have nothing to do there, and say so."""
    command = ["bash", str(harness.ROOT / "scripts" / "gpu_check.sh"), "--stage", stage, "--device", "cpu"]
    command += ["--seconds", "3000", "--output", str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"DCLR_PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    steps = card.STAGES[stage](Plan("cpu", tmp_path))
    results = {name: check["result"] for name, check in report["checks"].items()}
    assert results == {step.name: "passed" for step in steps}
    if any(step.rows for step in steps):
        assert report["rows"] and report["commit"] and report["versions"]["torch"]
