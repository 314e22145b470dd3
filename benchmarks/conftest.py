"""`pytest benchmarks/` checks each benchmark on tiny sizes; `pytest benchmarks/ --benchmark` measures.

Each file has `SIZES`: the sizes of each mode, "tiny", "cpu" and "cuda". A test gets one `size` and the fixture `bench`,
makes a `Problem` and hands it over.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from . import harness

ROWS = pytest.StashKey[list]()
LEFT_OUT = pytest.StashKey[dict]()


def pytest_addoption(parser):
    group = parser.getgroup("dclr")
    group.addoption(
        "--benchmark", action="store_true", help="measure; without it the results of tiny sizes are checked"
    )
    group.addoption("--seconds", type=float, default=2.0, help="time spent on each problem (default: %(default)s)")
    group.addoption("--variants", help="measure ours and those whose names have one of these comma-separated parts")
    group.addoption("--sizes", choices=("tiny", "cpu", "cuda"), help="sizes of another mode than the device's")
    group.addoption("--results", help="JSON file (default: benchmarks/results/DEVICE/DATE.json)")


def pytest_configure(config):
    config.stash[ROWS] = []
    config.stash[LEFT_OUT] = {}


def present() -> str:
    """The kind of device that is measured."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def sizes(config) -> str:
    """Key into a benchmark's `SIZES`."""
    return config.getoption("--sizes") or (present() if config.getoption("--benchmark") else "tiny")


def pytest_generate_tests(metafunc):
    if "size" in metafunc.fixturenames:
        metafunc.parametrize("size", metafunc.module.SIZES[sizes(metafunc.config)], ids=str)


@pytest.fixture
def device() -> torch.device:
    return torch.device(present())


@pytest.fixture
def measuring(request) -> bool:
    return request.config.getoption("--benchmark")


@pytest.fixture(name="bench")
def measured_or_checked(request, measuring):
    """Takes a `Problem`: checks it, or measures it and keeps the rows for the table and the JSON file.

    Where measured, ours also goes through pytest-benchmark, so that its --benchmark-compare, --benchmark-json and
    --benchmark-autosave follow us from commit to commit; its times are wall clock with synchronisation.
    """

    def run(problem: harness.Problem) -> list[harness.Row]:
        stash = request.config.stash
        if not measuring:
            return harness.check_problem(problem)
        _select(problem, request.config.getoption("--variants"))
        rows = harness.measure_problem(problem, request.config.getoption("--seconds"))
        stash[ROWS] += rows
        stash[LEFT_OUT][problem.name] = problem.left_out
        _write_results(request.config)  # what there is, in case that this is interrupted
        if request.config.pluginmanager.hasplugin("benchmark"):
            _record_benchmark(request.getfixturevalue("benchmark"), problem, rows)
        return rows

    return run


def _select(problem, parts):
    """Leaves out the variants that were not asked for."""
    for name in list(problem.variants):
        if parts and name != harness.OURS and not any(part in name for part in parts.split(",")):
            del problem.variants[name]
            problem.left_out[name] = "not asked for"


def _record_benchmark(benchmark, problem, rows):
    def synchronised():
        problem.variants[harness.OURS]()
        if problem.device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.extra_info["rows"] = [asdict(row) for row in rows]
    benchmark.pedantic(synchronised, rounds=10, warmup_rounds=1)


def _write_results(config) -> tuple[dict, Path]:
    """The report so far, and the file that has it."""
    device = present()
    report = harness.report(config.stash[ROWS], device) | {"left_out": config.stash[LEFT_OUT]}
    path = Path(config.getoption("--results") or harness.results_path(device))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report, path


def pytest_terminal_summary(terminalreporter, config):
    rows, device = config.stash[ROWS], present()
    if not rows:
        return
    report, path = _write_results(config)
    modified = " (modified)" if report["commit"].endswith("-dirty") else ""
    terminalreporter.section(f"{report['device']}, commit {report['commit'][:12]}{modified}")
    ceilings = report["ceilings"]
    rates = ", ".join(f"{name} {rate / 1e12:.2f} TFLOP/s" for name, rate in ceilings["matmul_flops"].items())
    terminalreporter.line(f"measured ceilings: copy {ceilings['copy_bytes'] / 1e9:.1f} GB/s, matmul {rates}")
    terminalreporter.line(harness.table(rows))
    reasons = defaultdict(list)
    for problem, left_out in config.stash[LEFT_OUT].items():
        for peer, reason in left_out.items():
            reasons[peer, reason].append(problem)
    for (peer, reason), problems in reasons.items():
        terminalreporter.line(f"left out: {peer} ({reason}) of {', '.join(problems)}")
    if device == "cpu":
        terminalreporter.line("left out: CUDA graphs, memory, and the sizes of a GPU")
    terminalreporter.line(f"written: {path}")
