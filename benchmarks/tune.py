"""Times entries of the kernels' tables side by side on this card: what to write into a table for a card of your own.

    python -m benchmarks.tune --sweeps forward gradient --seconds 0.5 --output tune.json

Each candidate takes the place of the card's entry, must give what the entry gives, and is timed with the others as the
benchmarks are: interleaved, from a cold cache, by events. `--compile` only compiles, so that several processes can do
that for one that then measures. A candidate that the card has no room for is named with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dclr.kernels import feature_maps
from dclr.kernels._common import Config, device_class
from dclr.kernels.decouple import kernel as decouple
from dclr.kernels.info_nce import launch as info_nce
from dclr.kernels.pooling import decoupled
from dclr.kernels.topk import launch as topk

from . import bench_decouple, bench_head, bench_info_nce, bench_topk, harness


@dataclass(frozen=True)
class Sweep:
    """Candidates for one entry of a table, and the problem that is timed with each.

    Attributes:
        module: has the table `CONFIGS`.
        keys: where the entry is in a card's part of it.
        changes: of the entry, one set of fields a candidate.
        problem: makes the problem.
        constants: variables of the module beside the table, one set a candidate.
    """

    module: Any
    keys: tuple
    problem: Callable[[], harness.Problem]
    changes: tuple[dict[str, int | None], ...] = ()
    constants: tuple[dict[str, Any], ...] = ()

    def entry(self) -> Config:
        """The card's own."""
        value: Any = self._part()
        for key in self.keys:
            value = value[key]
        return value

    def _part(self) -> dict:
        tables = self.module.CONFIGS
        return tables.get(device_class(torch.device("cuda", 0)), tables["default"])

    @contextmanager
    def using(self, entry: Config, constants: dict[str, Any]):
        """The table with another entry, and the module with other constants."""
        part, *path = self._part(), *self.keys
        for key in path[:-1]:
            part = part[key]
        before, kept = part[path[-1]], {name: getattr(self.module, name) for name in constants}
        part[path[-1]] = entry
        vars(self.module).update(constants)
        try:
            yield
        finally:
            part[path[-1]] = before
            vars(self.module).update(kept)

    def candidates(self) -> dict[str, tuple[Config, dict[str, Any]]]:
        """By name, the card's own first."""
        own = self.entry()
        found = {"as it is": (own, {})}
        found |= {_named(change): (replace(own, **change), {}) for change in self.changes}
        return found | {_named(constants): (own, constants) for constants in self.constants}


def _named(values: dict) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _tiles(*sizes: tuple[int, ...], names: tuple[str, ...]) -> tuple[dict[str, int], ...]:
    return tuple(dict(zip(names, size, strict=True)) for size in sizes)


CUDA = torch.device("cuda")
_SCORES = "num_warps", "BLOCK_A", "BLOCK_B", "STAGES", "programs"
_MAPS = "num_warps", "elements", "STAGES"


def _loss(rows: int, backward: bool, shared: bool = True) -> Callable[[], harness.Problem]:
    size = bench_info_nce.Size(rows, shared=shared)
    return lambda: bench_info_nce.problem(size, CUDA, False, backward)


def _head(batch: int, channels_last: bool, backward: bool) -> Callable[[], harness.Problem]:
    return lambda: bench_head.problem(bench_head.Size(batch, channels_last=channels_last), CUDA, False, backward)


def _search(rows: int, length: int) -> Callable[[], harness.Problem]:
    return lambda: bench_topk.problem(bench_topk.Size(rows, length), CUDA, False)


_READS = _tiles(
    (4, 8192, 2), (4, 8192, 3), (4, 4096, 5), (8, 8192, 4), (8, 16384, 2), (2, 4096, 4), names=_MAPS
)  # fmt: skip
_WRITES = _tiles(
    (4, 4096, 128), (4, 4096, 32), (8, 8192, 32), (4, 2048, 16), (8, 8192, 16), (8, 16384, 128), (8, 16384, 64),
    names=("num_warps", "elements", "positions"),
)  # fmt: skip
_SEARCHES = _tiles(
    (4, 64, 64, 3, 3), (8, 128, 64, 3, 2), (8, 256, 64, 3, 1), (8, 256, 64, 2, 1), (8, 128, 128, 3, 1),
    (4, 128, 64, 2, 2), (4, 128, 32, 4, 2), (4, 64, 32, 4, 3),
    names=("num_warps", "BLOCK_M", "BLOCK_L", "num_stages", "programs"),
)  # fmt: skip
_FORWARDS = _tiles(
    (4, 128, 64, 2, 3), (4, 128, 128, 2, 2), (4, 64, 64, 2, 4), (4, 64, 32, 2, 4), (8, 128, 128, 3, 1), names=_SCORES
)
_GRADIENTS = _tiles(
    (4, 64, 64, 2, 2), (4, 64, 32, 2, 3), (4, 64, 128, 2, 1), (4, 64, 128, 2, 2), (8, 128, 128, 2, 1), names=_SCORES
)
_CHOICES = tuple(
    {"CHOICE": topk.ChoiceTile(*size)} for size in ((4, 8192), (8, 8192), (8, 16384), (16, 8192), (16, 32768))
)
SWEEPS = {
    "forward": Sweep(info_nce, ("forward", 2), _loss(65536, False), _FORWARDS),
    "forward, small": Sweep(info_nce, ("forward", 2), _loss(512, False), _FORWARDS),
    "gradient": Sweep(info_nce, ("gradient", 2), _loss(65536, True), _GRADIENTS),
    "gradient, small": Sweep(info_nce, ("gradient", 2), _loss(512, True), _GRADIENTS),
    "gradient, 4096": Sweep(info_nce, ("gradient", 2), _loss(4096, True), _GRADIENTS),
    "gradient of two": Sweep(info_nce, ("gradient", 2), _loss(65536, True, shared=False), _GRADIENTS),
    "head": Sweep(decoupled, ("read", 2), _head(1024, False, False), _READS),
    "head, channels last": Sweep(decoupled, ("read", 2), _head(1024, True, False), _READS),
    "head, written": Sweep(feature_maps, ("write",), _head(1024, False, True), _WRITES),
    "head, written, channels last": Sweep(feature_maps, ("write",), _head(1024, True, True), _WRITES),
    "top-K": Sweep(topk, (2,), _search(512, 1 << 20), _SEARCHES),
    "top-K, few queries": Sweep(topk, (2,), _search(80, 1 << 20), _SEARCHES),
    "top-K, small": Sweep(topk, (2,), _search(80, 16384), _SEARCHES),
    "top-K, choice": Sweep(topk, (2,), _search(512, 1 << 20), constants=_CHOICES),
    "top-K, small choice": Sweep(topk, (2,), _search(80, 16384), constants=_CHOICES),
    "decouple": Sweep(
        decouple, ("walk",), lambda: bench_decouple.problem(bench_decouple.Size(512), CUDA, False),
        _tiles((2, 512), (4, 512), (4, 2048), (8, 2048), (8, 4096), names=_MAPS[:2]),
    ),
}  # fmt: skip


def run_sweep(sweep: Sweep, seconds: float | None) -> list[dict[str, Any]]:
    """A row a candidate, fastest first, with times in microseconds; only compiled where `seconds` is None."""
    run = sweep.problem().variants[harness.OURS]
    expected, runs, rows = run(), {}, []
    for name, candidate in sweep.candidates().items():

        def once(candidate=candidate):
            with sweep.using(*candidate):
                return run()

        try:
            error = harness.relative_error(once(), expected)
            torch.cuda.synchronize()
        except Exception as problem:  # no room on the card, or more than the compiler can do: a result
            rows.append({"candidate": name, "note": f"{type(problem).__name__}: {str(problem).splitlines()[0][:100]}"})
            continue
        runs[name] = once
        rows.append({"candidate": name, "error": error})
    if seconds is None:
        return rows
    samples = harness.CudaTimer().interleaved(runs, seconds)
    for row in rows:
        if row["candidate"] in samples:
            times = torch.tensor([device for device, _ in samples[row["candidate"]]], dtype=torch.float64)
            row |= {"p20_us": 1e6 * times.quantile(0.2).item(), "p50_us": 1e6 * times.median().item()}
    return sorted(rows, key=lambda row: row.get("p50_us", float("inf")))


def main(argv: Sequence[str] | None = None) -> int:
    """Run sweeps; the exit status is 1 where a candidate that ran was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent on each sweep (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile, measure nothing")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args(argv)
    found: dict[str, list[dict]] = {}
    for name in options.sweeps:
        print(name, flush=True)
        found[name] = run_sweep(SWEEPS[name], None if options.compile else options.seconds)
        for row in found[name]:
            time = f"{row['p50_us']:>10.1f} us" if "p50_us" in row else f"{'-':>13}"
            print(f"{time}  {row['candidate']}  {row.get('note') or format(row['error'], '.1e')}", flush=True)
        if options.output:
            environment = harness.measured_environment("cuda")
            options.output.write_text(json.dumps(environment | {"sweeps": found}, indent=1) + "\n")
    return int(any(not row.get("error", 0) <= 2e-2 for rows in found.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
