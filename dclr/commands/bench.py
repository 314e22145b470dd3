"""`dclr bench`: time the kernels against their peers, draw the results, tune a table of block sizes.

    dclr bench                              # pytest benchmarks/ --benchmark
    dclr bench --plot results.json          # ours and each peer over sizes
    dclr bench --tune info_nce              # the best config of this device, as a line for the table

Measuring and tuning need a source checkout: the benchmarks lie beside the package and are not installed with it.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import math
import operator
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from dclr.kernels._common import Config, device_class
from dclr.suggest import did_you_mean

ROOT = Path(__file__).resolve().parents[2]

# Of each op, the modules of `dclr.kernels` with the tables CONFIGS that it launches by, and its benchmark.
TUNABLE = {
    "augment_clip": (("augment.kernel",), "bench_augment"),
    "crop_resize_yuv": (("crop_resize",), "bench_crop_resize"),
    "decouple": (("decouple.kernel",), "bench_decouple"),
    "decoupled_pool": (("feature_maps", "pooling.decoupled"), "bench_head"),
    "info_nce": (("info_nce.launch",), "bench_info_nce"),
    "merge_foreground": (("foreground",), "bench_foreground"),
    "topk_similarity": (("topk.launch",), "bench_topk"),
}
# What the grid halves and doubles, and what it moves by one. Other entries say which inputs fit a tile, and stay.
DOUBLED = {
    "elements", "positions", "last_positions", "BLOCK_A", "BLOCK_B", "BLOCK_M", "BLOCK_L", "ROWS", "FRAMES",
    "num_warps", "programs", "chunks",
}  # fmt: skip
STEPPED = {"STAGES", "num_stages"}
# A change of the table must pay more than the measurement's own noise.
WORTH = 0.98


class BenchError(ValueError):
    """What cannot be measured, drawn or tuned, in one line."""


@dataclass
class BenchConfig:
    """Measure; or draw with --plot; or search with --tune."""

    plot: tuple[str, ...] | None = None
    """Results files (JSON) to draw, instead of measuring."""
    output: str | None = None
    """Picture that --plot writes, its kind by its suffix (default: the first results file with .png)."""
    tune: str | None = None
    """Op whose config table is searched on this GPU, instead of measuring."""
    only: str = ""
    """Benchmarks to run (an expression as of pytest -k); with --tune, a part of the names of its sizes."""
    seconds: float = 2.0
    """Time spent on each problem."""
    results: str | None = None
    """JSON file of the measurement (default: benchmarks/results/DEVICE/DATE.json)."""


def bench(config: BenchConfig) -> None:
    """Measure, draw or tune; BenchError says in one line what is missing or failed."""
    if config.plot is not None and config.tune:
        raise BenchError("--plot and --tune: got both, expected one of them")
    if config.plot == ():
        raise BenchError("--plot: got no file, expected results to draw")
    if config.plot is not None:
        print(plot_results(config.plot, config.output))
    elif config.tune:
        tune(config.tune, config.only, config.seconds)
    else:
        run_benchmarks(config)


# Measure


def run_benchmarks(config: BenchConfig) -> None:
    """`pytest benchmarks --benchmark`, which prints a table and writes the results."""
    _require_checkout()
    _require("pytest")
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark", "--seconds", str(config.seconds)]
    if config.only:
        command += ["-k", config.only]
    if config.results:
        command += ["--results", str(Path(config.results).expanduser().absolute())]
    status = subprocess.run(command, cwd=ROOT).returncode
    if status:
        raise BenchError(f"pytest: exit status {status}, {'no such benchmark' if status == 5 else 'see above'}")


def _require_checkout() -> None:
    if not (ROOT / "benchmarks" / "conftest.py").is_file():
        raise BenchError(
            f"no benchmarks/ in {ROOT}: expected an install from a source checkout: pip install -e .[bench]"
        )


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise BenchError(f"{package} is not installed; the extra `bench` has it: pip install -e '.[bench]'")


# Plot


def plot_results(files: Sequence[str], output: str | None) -> Path:
    """Draw medians from p20 to p80, a panel for each kernel, a line of it for each size; returns the picture's path."""
    panels = read_panels(files)
    variants = sorted({row["variant"] for rows in panels.values() for row in rows})
    variants.sort(key=lambda name: not name.startswith("ours"))  # so that ours looks the same in every plot
    colors = {name: f"C{i % 10}" for i, name in enumerate(variants)}
    heights = [len({row["problem"] for row in rows}) + 3 for rows in panels.values()]
    figure = Figure(figsize=(11, 0.3 * sum(heights)), layout="constrained")
    column = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (kernel, rows) in zip(column, panels.items()):
        _draw(axes, kernel, rows, colors)
    path = Path(output) if output else Path(files[0]).with_suffix(".png")
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise BenchError(f"--output: got {path} ({error})") from error
    return path


def read_panels(files: Sequence[str]) -> dict[str, list[dict]]:
    """Timed rows of results files by kernel, which is the first word of a problem's name."""
    panels = defaultdict(list)
    for file in files:
        try:
            rows = json.loads(Path(file).read_text(encoding="utf-8"))["rows"]
            timed = [row for row in rows if row["p50_us"]]
        except OSError as error:
            raise BenchError(f"{file}: cannot be read ({error.strerror or error})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{file}: expected results of `dclr bench` ({type(error).__name__}: {error})") from error
        for row in timed:
            source = f" [{Path(file).stem}]" if len(files) > 1 else ""
            panels[row["problem"].partition(" ")[0]].append(row | {"variant": row["variant"] + source})
    if not panels:
        raise BenchError(f"{', '.join(files)}: no row has a time")
    return panels


def _draw(axes: Any, kernel: str, rows: list[dict], colors: dict[str, str]) -> None:
    place = {problem: i for i, problem in enumerate(dict.fromkeys(row["problem"] for row in rows))}
    for variant, color in colors.items():
        mine = [row for row in rows if row["variant"] == variant]
        if mine:
            p20, p50, p80 = ([row[key] for row in mine] for key in ("p20_us", "p50_us", "p80_us"))
            spread = [[b - a for a, b in zip(p20, p50)], [b - a for a, b in zip(p50, p80)]]
            y = [place[row["problem"]] for row in mine]
            marker = "D" if variant.startswith("ours") else "o"
            axes.errorbar(p50, y, xerr=spread, fmt=marker, color=color, label=variant, markersize=5)
    axes.plot([row["floor_us"] for row in rows], [place[row["problem"]] for row in rows], "k|", label="floor")
    axes.set_yticks(list(place.values()), [problem.removeprefix(kernel).strip() for problem in place], fontsize=8)
    axes.set_ylim(len(place) - 0.5, -0.5)
    axes.set(xscale="log", xlabel="microseconds", title=kernel)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


# Tune


def tune(op: str, only: str, seconds: float) -> None:
    """Search the grid around the table entries of one op on this GPU and print the best as lines for the table.

    What counts is the geometric mean of the medians over the benchmark's sizes, in its dtype (bfloat16).
    """
    if op not in TUNABLE:
        raise BenchError(f"--tune: unknown op {op!r}{did_you_mean(op, TUNABLE)}")
    if not torch.cuda.is_available():
        raise BenchError("--tune: needs a GPU, and torch.cuda.is_available() is False")
    _require_checkout()
    modules, benchmark = TUNABLE[op]
    benchmark = _from_checkout(benchmark)
    sizes = [size for size in benchmark.SIZES["cuda"] if only in str(size)]
    if not sizes:
        raise BenchError(f"--only: got {only!r}, expected a part of {', '.join(map(str, benchmark.SIZES['cuda']))}")
    problems = [benchmark.problem(size, torch.device("cuda"), measuring=False) for size in sizes]
    device = device_class(torch.device("cuda"))
    for module in modules:
        table = importlib.import_module(f"dclr.kernels.{module}").CONFIGS
        line = f'    "{device}": {search_table(table, device, problems, seconds)},'.replace("'", '"')
        print(f"\nkernels/{module.replace('.', '/')}.py, CONFIGS:\n{line}")


def search_table(table: dict[str, dict], device: str, problems: list, seconds: float) -> dict:
    """The row of `device` in `table`, each config that the problems use replaced by the fastest that is right."""
    harness = _from_checkout("harness")
    expected = [problem.expected() for problem in problems]  # which a config must give before it is timed
    row = table.get(device, table["default"])
    for path in config_paths(row, problems[0].dtype.itemsize):
        present = functools.reduce(operator.getitem, path, row)
        right, reasons = [], Counter()
        for config in grid(present):
            under = functools.partial(run_under, table, device, replaced(row, path, config))
            reason = _reason_against(harness, under, problems, expected)
            if reason:
                reasons[reason] += 1
            else:
                right.append((config, under))
        left_out = "".join(f"; {count} left out: {reason}" for reason, count in reasons.items())
        print(f"\n{' '.join(map(str, path))} {len(right)} configs give the right results{left_out}", flush=True)
        if not right:
            raise BenchError("--tune: no config of the grid gives the right results")
        configs, unders = zip(*right)
        row = replaced(row, path, _fastest(present, configs, _times(harness, unders, problems, seconds)))
    return row


def config_paths(row: dict | Config, itemsize: int) -> Iterator[tuple]:
    """Keys that lead to the configs in a row of a table; of those by element size, `itemsize` alone."""
    if not isinstance(row, dict):
        yield ()
        return
    for key, value in row.items():
        if not isinstance(key, int) or key == itemsize:
            yield from ((key, *rest) for rest in config_paths(value, itemsize))


def replaced(row: dict | Config, path: tuple, config: Config) -> dict | Config:
    """A copy of `row` with another config at `path`."""
    return row | {path[0]: replaced(row[path[0]], path[1:], config)} if path else config


def grid(config: Config) -> list[Config]:
    """All combinations of each entry and its neighbours."""

    def near(name: str, value: int | None) -> list[int | None]:
        if value is None:
            return [None]
        if name in DOUBLED:
            return [number for number in (value // 2, value, 2 * value) if number]
        return [number for number in (value - 1, value, value + 1) if number] if name in STEPPED else [value]

    entries = vars(config)
    values = [near(name, value) for name, value in entries.items()]
    return [replace(config, **dict(zip(entries, combination))) for combination in itertools.product(*values)]


def run_under(table: dict[str, dict], device: str, row: dict, run: Callable) -> Any:
    """Call `run` while `table` has that `row` for `device`."""
    before = dict(table)
    table[device] = row
    try:
        return run()
    finally:
        table.clear()
        table.update(before)


def _reason_against(harness: Any, under: Callable, problems: list, expected: list) -> str | None:
    """Why a config is not timed: it does not compile or launch, or a result is wrong."""
    for problem, right in zip(problems, expected):
        try:
            error = harness.relative_error(problem.compared(under(problem.variants[harness.OURS])), right)
        except torch.AcceleratorError:  # nothing more can be launched in this process
            raise
        except Exception as failure:  # the compiler and the driver have many ways to refuse
            return type(failure).__name__
        if not error <= harness.TOLERANCE[problem.dtype]:
            return "wrong result"
    return None


def _times(harness: Any, unders: Sequence[Callable], problems: list, seconds: float) -> list[float]:
    """Of each config, the geometric mean over the problems of its median microseconds."""
    timer = harness.CudaTimer() if problems[0].device.type == "cuda" else harness.CpuTimer()
    medians: list[list[float]] = [[] for _ in unders]
    for problem in problems:
        ours = problem.variants[harness.OURS]
        runs = {str(i): functools.partial(under, ours) for i, under in enumerate(unders)}
        for i, samples in timer.interleaved(runs, seconds).items():
            medians[int(i)].append(1e6 * statistics.median(device_s for device_s, _ in samples))
    return [statistics.geometric_mean(values) for values in medians]


def _fastest(present: Config, configs: Sequence[Config], times: list[float]) -> Config:
    """The fastest config, or the present one where it is as fast; prints the first five."""
    ranked = sorted(zip(times, configs), key=operator.itemgetter(0))
    before = next((time for time, config in ranked if config == present), math.inf)
    for time, config in ranked[:5]:
        print(f"{time:10.1f} us  {time / before:5.2f} of the present  {config}")
    return ranked[0][1] if ranked[0][0] < WORTH * before else present


def _from_checkout(name: str) -> Any:
    """A module of `benchmarks/`, which is no installed package."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"benchmarks.{name}")
