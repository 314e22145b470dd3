"""`dclr bench`: results are written and drawn, no wrong config wins the search of a table, errors are one line."""

import functools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks import harness
from dclr.cli import main
from dclr.commands import bench
from dclr.kernels._common import Config

ROOT = Path(__file__).parents[2]
# They say which inputs fit a tile, keep registers from spilling, act where ids are given, or have a row of their own
# in a benchmark.
STAY = {"BLOCK_D", "whole", "maxnreg", "id_warps", "descriptor"}


def failing(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main(["bench", *argv])
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return stop.value.code, lines[0]


def test_measures_and_writes_results(tmp_path):
    path = tmp_path / "results.json"
    main(["bench", "--only", "topk and 2048", "--seconds", "0.01", "--results", str(path)])
    report = json.loads(path.read_text())
    assert {"commit", "device", "versions", "ceilings", "date"} <= set(report)
    assert report["command"].startswith("pytest benchmarks --benchmark")
    timed = {row["variant"]: row["p50_us"] for row in report["rows"]}
    assert timed["ours"] > 0 and timed["reference"] > 0
    assert "topk_similarity" in harness.summary_table(report["rows"])


def row(problem, variant, p50, **changes):
    times = {"p20_us": 0.9 * p50, "p50_us": p50, "p80_us": 1.2 * p50} if p50 else {"p50_us": None}
    more = {"floor_us": 1.0, "percent_of_floor": 50.0, "peak_bytes": None, "note": ""}
    return {"problem": problem, "variant": variant} | times | more | changes


ROWS = [
    row("decouple 40x3 uint8", "reference", 30.0),
    row("decouple 40x3 uint8", "kornia", 7.0, note="wrong: relative error 1"),
    row("decouple 40x3 uint8", "ours", 10.0),
    row("decouple 512x3 uint8", "ours", 40.0),
    row("info_nce 80x128", "ours", 5.0),
    row("info_nce 80x128", "broken", None),
]


def test_plot(tmp_path, capsys):
    files = [str(tmp_path / name) for name in ("one.json", "two.json")]
    for file in files:
        Path(file).write_text(json.dumps({"rows": ROWS}))
    panels = bench.read_panels(files[:1])
    assert {kernel: len(rows) for kernel, rows in panels.items()} == {"decouple": 4, "info_nce": 1}
    names = {row["variant"] for row in bench.read_panels(files)["info_nce"]}
    assert names == {"ours [one]", "ours [two]"}
    main(["bench", "--plot", *files])
    assert capsys.readouterr().out.strip() == str(tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    main(["bench", "--plot", files[0], "--output", str(tmp_path / "picture.svg")])
    assert all(text in (tmp_path / "picture.svg").read_text() for text in ("decouple", "info_nce"))


def test_summary_names_the_best_of_the_right_ones():
    lines = harness.summary_table(ROWS).splitlines()
    assert len(lines) == 4
    assert lines[1].split()[-2:] == ["reference", "30.0"] and lines[2].split()[-1] == "-"


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"rows": [1]}', '{"rows": []}'])
def test_files_that_hold_no_results(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(bench.BenchError, match=r"results\.json: "):
        bench.read_panels([str(path)])


def test_wrong_command_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert failing(capsys, "--tune", "info_nc") == (1, "dclr: --tune: unknown op 'info_nc'; did you mean info_nce?")
    needs = "dclr: --tune: needs a GPU, and torch.cuda.is_available() is False"
    assert failing(capsys, "--tune", "info_nce") == (1, needs)
    both = failing(capsys, "--tune", "info_nce", "--plot", "x.json")
    assert both == (1, "dclr: --plot and --tune: got both, expected one of them")
    assert failing(capsys, "--plot") == (1, "dclr: --plot: got no file, expected results to draw")
    missing = "dclr: no_file.json: cannot be read (No such file or directory)"
    assert failing(capsys, "--plot", "no_file.json") == (1, missing)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    status, line = failing(capsys)
    assert status == 1 and line.startswith(
        f"dclr: no benchmarks/ in {tmp_path}: expected an install from a source checkout: pip install -e .[bench]"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "source checkout" in failing(capsys, "--tune", "info_nce")[1]


def test_a_benchmark_that_fails_is_an_error(monkeypatch):
    monkeypatch.setattr(bench.subprocess, "run", lambda command, cwd: subprocess.CompletedProcess(command, 1))
    with pytest.raises(bench.BenchError, match="pytest: exit status 1, see above"):
        bench.run_benchmarks(bench.BenchConfig())


@dataclass(frozen=True)
class Entry(Config):
    """Of a table."""

    elements: int | None = None
    BLOCK_A: int | None = None
    BLOCK_D: int | None = None
    STAGES: int | None = None


def test_grid_is_around_the_entry():
    assert bench.grid(Entry(1, BLOCK_D=128)) == [Entry(1, BLOCK_D=128), Entry(2, BLOCK_D=128)]
    near = bench.grid(Entry(1, elements=64, STAGES=2))
    assert len(near) == 3 * 2 * 3 and Entry(1, elements=64, STAGES=2) in near
    assert {config.elements for config in near} == {32, 64, 128}
    assert {config.num_warps for config in near} == {1, 2} and {config.STAGES for config in near} == {1, 2, 3}


@pytest.mark.parametrize("module", sorted({module for modules, _ in bench.TUNABLE.values() for module in modules}))
def test_every_entry_of_the_tables_is_varied_or_stays(module):
    for table in import_module(f"dclr.kernels.{module}").CONFIGS.values():
        for path in [*bench.config_paths(table, 2), *bench.config_paths(table, 4)]:
            config = functools.reduce(lambda row, key: row[key], path, table)
            assert set(vars(config)) <= bench.DOUBLED | bench.STEPPED | STAY
            assert 1 < len(bench.grid(config)) <= 243


def pretended(table):
    """A problem whose time and result hang on the table: 8 is fast and wrong, 4 fails, few warms are slow."""
    config = lambda: table.get("sm_00", table["default"])["forward"][4]  # noqa: E731

    def ours():
        if config().BLOCK_A == 4:
            raise RuntimeError("out of resources")
        if config().BLOCK_A == 16:
            time.sleep(0.02 / config().num_warps)
        return (torch.ones(3) * (2 if config().BLOCK_A == 8 else 1),)

    expected = lambda: (torch.ones(3),)  # noqa: E731
    return harness.Problem("sum", torch.float32, torch.device("cpu"), expected, {harness.OURS: ours}, bytes=12)


def test_search_takes_the_fastest_that_is_right(capsys):
    table = {"default": {"forward": {2: Entry(1, BLOCK_A=1), 4: Entry(2, BLOCK_A=8)}}}
    before = repr(table)
    row = bench.search_table(table, "sm_00", [pretended(table)], 0.01)
    assert row == {"forward": {2: Entry(1, BLOCK_A=1), 4: Entry(4, BLOCK_A=16)}}
    assert repr(table) == before
    out = capsys.readouterr().out
    assert "3 left out: RuntimeError" in out and "3 left out: wrong result" in out
    table["default"]["forward"][4] = Entry(1, BLOCK_A=4)
    with pytest.raises(bench.BenchError, match="no config of the grid"):
        bench.search_table(table, "sm_00", [pretended(table | {"sm_00": table["default"]})], 0.01)


def test_a_config_that_is_no_faster_changes_nothing():
    present, other = Entry(4), Entry(8)
    assert bench._fastest(present, [other, present], [99.0, 100.0]) == present
    assert bench._fastest(present, [other, present], [90.0, 100.0]) == other


def test_ops_launch_by_the_tables_that_are_searched():
    """In the interpreter: without its row, no op of `TUNABLE` launches; with it, the search ends."""
    code = """
from importlib import import_module
import torch
from dclr.commands import bench
from dclr.kernels._common import Config

for op, (modules, benchmark) in bench.TUNABLE.items():
    benchmark = bench._from_checkout(benchmark)
    problem = benchmark.problem(benchmark.SIZES["tiny"][0], torch.device("cpu"), False)
    problem.variants["ours"]()
    for module in modules:
        table = import_module(f"dclr.kernels.{module}").CONFIGS
        try:
            bench.run_under(table, "default", {}, problem.variants["ours"])
        except KeyError:
            continue
        raise SystemExit(f"{op} does not read the table of {module}")
    if op == "decouple":
        row = bench.search_table(table, "default", [problem], 0.01)
        assert set(row) == set(table["default"]), row
"""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment)


def test_gpu_check_without_a_gpu():
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "DCLR_PYTHON": sys.executable}
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), "--stage", "correct"]
    done = subprocess.run(command, env=hidden, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    reason = f"torch.cuda.is_available() is not True in {sys.executable}"
    message = f"gpu_check: needs a GPU, and {reason} (--device cpu rehearses without one)"
    assert done.stderr.strip() == message
