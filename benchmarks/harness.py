"""Check and time several implementations of one computation side by side.

A `Problem` holds inputs that are already made and its variants as functions without arguments. `check` runs each once
and compares its outputs with float32 or float64 expected ones; `measure` does that and then times them:

- interleaved, one call of each variant a round, so that clocks and temperature drift over all of them alike;
- from a cold cache: the L2 is overwritten before every call;
- device time by events, with the queue kept full so that launch gaps do not count; the time that the call takes of the
  host stands beside it. On a CPU both are the wall clock.

The floor is the larger of bytes over copy bandwidth and FLOPs over matmul rate, both measured on this device first.
"""

from __future__ import annotations

import functools
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, timezone
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from dclr.training.metrics import source_commit

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "numpy", "kornia", "memeff", "siglip-kernel", "inf-cl", "lightly")
PACKAGES += ("pytorch-metric-learning", "triton-augment", "flashlib", "faiss-cpu", "faiss-gpu-cu12")

OURS, GRAPH, REFERENCE, COMPILED = "ours", "ours (graph)", "reference", "compiled"
# Relative error ||out - expected|| / ||expected||. The operands of float32 variants may be rounded to TF32 by a peer.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3, torch.float16: 4e-3, torch.bfloat16: 2e-2}

Run = Callable[[], tuple[Tensor, ...]]


@dataclass
class Problem:
    """One computation at one size. `expected` gives what every variant must, unless it is in `other_functions`.

    `bytes` and `flops` are the floor's: each input read once, each output written once, and the matmuls that the
    formula cannot do without. `left_out` names what does not run here, and why. `compared` makes of a variant's outputs
    what is compared with the expected ones, where several are right.
    """

    name: str
    dtype: torch.dtype
    device: torch.device
    expected: Run
    variants: dict[str, Run]
    bytes: int
    flops: int = 0
    other_functions: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)
    compared: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = tuple


@dataclass
class Row:
    """One variant's line of the table. Times in microseconds, sizes in bytes; None where not measured."""

    problem: str
    variant: str
    p20_us: float | None = None
    p50_us: float | None = None
    p80_us: float | None = None
    host_us: float | None = None
    floor_us: float | None = None
    percent_of_floor: float | None = None
    ratio_to_ours: float | None = None
    peak_bytes: int | None = None
    bytes: int | None = None
    flops: int | None = None
    error: float | None = None
    ran: bool = True
    note: str = ""


def compiled(function: Callable, measuring: bool) -> Callable:
    """`torch.compile` of a reference; the quick backend where only the result matters."""
    torch._dynamo.reset()
    return torch.compile(function, backend="inductor" if measuring else "aot_eager", dynamic=False)


def missing(problem: Problem, peer: str, module: str, needs_cuda: bool = True) -> bool:
    """Whether a peer cannot run here; the reason goes to `problem.left_out`."""
    if find_spec(module.partition(".")[0]) is None:
        problem.left_out[peer] = "not installed"
    elif needs_cuda and problem.device.type != "cuda":
        problem.left_out[peer] = "needs a GPU"
    else:
        try:
            import_module(module)
        except Exception as error:  # whatever a peer does at import, it must not stop the others
            problem.left_out[peer] = f"cannot be imported: {error}"
    return peer in problem.left_out


def captured(run: Run) -> Run:
    """`run` as the replay of a CUDA graph; the outputs are the same tensors each time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    for output in outputs:  # so that a graph that does not write them is found out
        output.fill_(torch.nan if output.is_floating_point() else -1)

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return outputs

    return replay


def with_gradients(function: Callable[..., Tensor], *leaves: Tensor) -> Run:
    """Forward and backward: `function(*leaves)`, added up where it is no number, and its gradient to each leaf."""

    def run() -> tuple[Tensor, ...]:
        loss = function(*leaves)
        return (loss.detach(), *torch.autograd.grad(loss.sum() if loss.dim() else loss, leaves))

    return run


def check_problem(problem: Problem) -> list[Row]:
    """Run each variant once and compare. A variant of ours must run and be right, or `AssertionError`; of the others,
    a failure or a wrong result is noted in its row."""
    if problem.device.type == "cuda":
        _add_graph(problem)
    expected = problem.expected()
    rows = []
    for name, run in problem.variants.items():
        row = Row(problem.name, name, bytes=problem.bytes, flops=problem.flops)
        rows.append(row)
        try:
            outputs = run()
        except Exception as error:  # a peer's failure is a result, ours is not
            if name in (OURS, GRAPH):
                raise
            row.ran = False
            row.note = f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
            if problem.device.type == "cuda":
                torch.cuda.empty_cache()  # what ran out of memory leaves it to the next
            continue
        if name in problem.other_functions:
            row.note = "another function of the same cost"
            continue
        row.error = relative_error(problem.compared(outputs), expected)
        if not row.error <= TOLERANCE[problem.dtype]:  # NaN is wrong too
            row.note = f"wrong: relative error {row.error:.1e}"
            assert name not in (OURS, GRAPH), f"{problem.name}, {name}: {row.note}"
    return rows


def measure_problem(problem: Problem, seconds: float = 2.0) -> list[Row]:
    """`check`, then time what ran, for about `seconds`."""
    rows = check_problem(problem)
    ceilings = measure_ceilings(problem.device.type)
    rate = ceilings["matmul_flops"].get(str(problem.dtype).removeprefix("torch."))
    floor = problem.bytes / ceilings["copy_bytes"]
    if rate:
        floor = max(floor, problem.flops / rate)
    timed = {row.variant: row for row in rows if row.ran}
    timer = CudaTimer() if problem.device.type == "cuda" else CpuTimer()
    for name, row in timed.items():
        if name != GRAPH:  # its memory was taken when it was captured
            row.peak_bytes = timer.peak_bytes(problem.variants[name])
    samples = timer.interleaved({name: problem.variants[name] for name in timed}, seconds)
    for name, row in timed.items():
        device, host = (torch.tensor(values, dtype=torch.float64) for values in zip(*samples[name]))
        row.p20_us, row.p50_us, row.p80_us = (1e6 * device.quantile(torch.tensor([0.2, 0.5, 0.8]).double())).tolist()
        row.host_us = 1e6 * host.median().item()
        row.floor_us = 1e6 * floor
        row.percent_of_floor = 100 * row.floor_us / row.p50_us
    ours = next((row.p50_us for row in rows if row.variant == OURS), None)
    for row in timed.values():
        row.ratio_to_ours = row.p50_us / ours
    return rows


class CpuTimer:
    """Wall clock; memory is not measured."""

    def __init__(self) -> None:
        self.cache = torch.zeros(16 << 20, dtype=torch.int32)

    def peak_bytes(self, run: Run) -> int | None:
        return None

    def interleaved(self, runs: dict[str, Run], seconds: float) -> dict[str, list[tuple[float, float]]]:
        """(device, host) seconds of each call, by variant."""
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in _rounds(seconds, least=5):
            for name, run in runs.items():
                self.cache.add_(1)
                start = time.perf_counter()
                run()
                samples[name].append((time.perf_counter() - start,) * 2)
        return samples


class CudaTimer:
    """Events around each call. A sleep kernel in front keeps the queue full while the host launches the call.

    A call that the GPU began before the host had launched all of it is timed again, behind a longer sleep.
    """

    LONGEST_SLEEP = 0.05

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.cache = torch.zeros(4 * properties.L2_cache_size, dtype=torch.int8, device="cuda")
        self.cycles_per_second = self._clock()

    def peak_bytes(self, run: Run) -> int:
        """Memory above what was there before the call, its outputs included."""
        run()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        outputs = run()
        torch.cuda.synchronize()
        del outputs
        return torch.cuda.max_memory_allocated() - before

    def interleaved(self, runs: dict[str, Run], seconds: float) -> dict[str, list[tuple[float, float]]]:
        """(device, host) seconds of each call, by variant."""
        sleeps = {name: self._host_seconds(run) for name, run in runs.items()}
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in _rounds(seconds, least=10):
            for name, run in runs.items():
                samples[name].append(self._once(run, sleeps[name]))
        return samples

    def _once(self, run: Run, sleep: float) -> tuple[float, float]:
        while True:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.cache.add_(1)
            torch.cuda._sleep(int(1.5 * sleep * self.cycles_per_second))
            start.record()
            clock = time.perf_counter()
            run()
            host = time.perf_counter() - clock
            starved = start.query()
            end.record()
            torch.cuda.synchronize()
            if not starved or sleep >= self.LONGEST_SLEEP:
                return start.elapsed_time(end) / 1e3, host
            sleep = min(2 * max(sleep, host), self.LONGEST_SLEEP)

    def _host_seconds(self, run: Run) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        torch.cuda.synchronize()
        return min(seconds, self.LONGEST_SLEEP)

    def _clock(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(200_000_000)  # clocks of an idle GPU are low
        start.record()
        torch.cuda._sleep(10_000_000)
        end.record()
        torch.cuda.synchronize()
        return 10_000_000 / (start.elapsed_time(end) / 1e3)


@functools.cache
def measure_ceilings(device: str) -> dict:
    """What this device can do: copy bandwidth (bytes read plus written, a second) and matmul FLOP/s by dtype."""
    size, side = (1 << 30, 8192) if device == "cuda" else (1 << 26, 1024)
    timer = CudaTimer() if device == "cuda" else CpuTimer()
    source = torch.ones(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    runs: dict[str, Run] = {"copy": lambda: (target.copy_(source),)}
    dtypes = (torch.bfloat16, torch.float16, torch.float32) if device == "cuda" else (torch.float32,)
    for dtype in dtypes:
        a = torch.randn(side, side, device=device).to(dtype)
        runs[str(dtype).removeprefix("torch.")] = lambda a=a: (a @ a,)
    if device == "cuda":
        runs["tf32"] = lambda: (_tf32_square(a),)
    for run in runs.values():
        run()
    samples = timer.interleaved(runs, seconds=1.0)
    best = {name: min(device_s for device_s, _ in values) for name, values in samples.items()}
    copy = 2 * size / best.pop("copy")
    return {"copy_bytes": copy, "matmul_flops": {name: 2 * side**3 / value for name, value in best.items()}}


def _tf32_square(a: Tensor) -> Tensor:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return a @ a
    finally:
        torch.set_float32_matmul_precision(precision)


def relative_error(outputs: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Largest ||out - expected|| / ||expected|| over the outputs; infinity for a wrong number or shape of them."""
    outputs, expected = tuple(outputs), tuple(expected)
    if [out.shape for out in outputs] != [right.shape for right in expected]:
        return float("inf")
    errors = [(out.double() - right.double()).norm() / right.double().norm() for out, right in zip(outputs, expected)]
    return torch.stack(errors).nan_to_num(nan=torch.inf).max().item()


def table(rows: list[Row]) -> str:
    """One line a variant, its problem as a heading."""
    lines, heading = [], None
    columns = f"{'p20':>10}{'p50':>10}{'p80':>10}{'host':>10}{'floor':>10}{'% floor':>9}{'/ ours':>8}{'peak MB':>9}"
    for row in rows:
        if row.problem != heading:
            heading = row.problem
            lines += ["", f"{heading}: {row.bytes / 1e6:.3f} MB, {row.flops / 1e9:.3f} GFLOP", f"{'us':<26}{columns}"]
        times = (row.p20_us, row.p50_us, row.p80_us, row.host_us, row.floor_us)
        cells = [_table_cell(value, 10, 1) for value in times]
        cells += [_table_cell(row.percent_of_floor, 9, 1), _table_cell(row.ratio_to_ours, 8, 2)]
        cells += [_table_cell(None if row.peak_bytes is None else row.peak_bytes / 1e6, 9, 1)]
        lines.append(f"{row.variant:<26}{''.join(cells)}  {row.note}".rstrip())
    return "\n".join(lines)


def summary_table(rows: list[dict]) -> str:
    """One line a problem, of the rows of a report: ours, the best of the others that were right, the floor."""
    lines = [f"{'p50, us':<72}{'ours':>9}{'graph':>9}{'floor':>9}{'% floor':>9}{'peak MB':>9}  best of the others"]
    for problem in dict.fromkeys(row["problem"] for row in rows):
        timed = {row["variant"]: row for row in rows if row["problem"] == problem and row["p50_us"]}
        ours = timed.pop(OURS)
        graph = timed.pop(GRAPH, {}).get("p50_us")
        right = [(row["p50_us"], name) for name, row in timed.items() if not row["note"].startswith("wrong")]
        best = "{1} {0:.1f}".format(*min(right)) if right else "-"
        peak = ours["peak_bytes"] and ours["peak_bytes"] / 1e6
        cells = [(ours["p50_us"], 1), (graph, 1), (ours["floor_us"], 1), (ours["percent_of_floor"], 0), (peak, 1)]
        lines.append(f"{problem:<72}{''.join(_table_cell(value, 9, digits) for value, digits in cells)}  {best}")
    return "\n".join(lines)


def results_path(device: str) -> Path:
    """benchmarks/results/DEVICE/DATE.json"""
    return (
        ROOT / "benchmarks" / "results" / hardware_name(device).replace(" ", "-") / f"{date.today().isoformat()}.json"
    )


def measured_environment(device: str) -> dict:
    """Commit, device, versions, command and ceilings: what a number needs beside it."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": source_commit() or "unknown",
        "device": hardware_name(device),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _package_version(name))},
        "command": " ".join(["pytest", *sys.argv[1:]]),
        "ceilings": measure_ceilings(device),
    }


def hardware_name(device: str) -> str:
    """The card's name, or the processor's architecture and thread count."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu-{platform.machine()}-{torch.get_num_threads()}-threads"


def report(rows: list[Row], device: str) -> dict:
    """What goes into the JSON file."""
    return measured_environment(device) | {"rows": [asdict(row) for row in rows]}


def _add_graph(problem: Problem) -> None:
    if OURS in problem.variants and GRAPH not in problem.variants and GRAPH not in problem.left_out:
        problem.variants[GRAPH] = captured(problem.variants[OURS])


def _rounds(seconds: float, least: int) -> Iterable[int]:
    end = time.perf_counter() + seconds
    done = 0
    while done < least or (time.perf_counter() < end and done < 500):
        yield done
        done += 1


def _table_cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"


def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
