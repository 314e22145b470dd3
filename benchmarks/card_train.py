"""Rows of the ablation on a card: a process a seed and row, side by side, then one table of them all.

    python -m benchmarks.card_train --device cuda --output FOLDER

The size is the demo's, which was seen to learn in 512 steps; only many runs keep a card busy. `dclr ablate` notes
each run that is finished, so that a second call goes on where the time ended.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Most telling first: both, vanilla, L_VD, both without balance, with refinement and alignment, with search, with L_SD.
ROWS = ("T4.4", "T4.1", "T4.3", "T4.4_printed", "T7.5", "T5.3", "T4.6")
SEEDS = (0, 1, 2)
SIZES = {
    "cuda": (),
    "cpu": ("--epochs", "1", "--synth.train", "64", "--synth.test", "16", "--synth.size", "24", "--synth.frames", "10"),
}


def command(device: str, output: Path, rows: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """`dclr ablate` of these rows and seeds."""
    flags = [*SIZES[device], "--rows", ",".join(rows), "--output", str(output), "--seeds", *map(str, seeds)]
    return [sys.executable, "-m", "dclr", "ablate", *flags]


def _side_by_side(options: argparse.Namespace, runs: Sequence[tuple[str, int]]) -> int:
    """How many of the runs failed."""
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1)) as pool:
        done = pool.map(lambda run: subprocess.run(command(options.device, options.output, [run[0]], [run[1]])), runs)
        return sum(process.returncode != 0 for process in done)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all; the exit status is 1 where a seed failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=SIZES, default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    rows, seeds = (ROWS, SEEDS) if options.device == "cuda" else (ROWS[:2], SEEDS[:2])
    # The first row of a seed makes its videos, the others find them; then as many at a time as there are cores.
    failed = _side_by_side(options, [(rows[0], seed) for seed in seeds])
    failed += _side_by_side(options, [(row, seed) for row in rows[1:] for seed in seeds])
    if failed:
        return 1
    return subprocess.run(command(options.device, options.output, rows, seeds)).returncode


if __name__ == "__main__":
    sys.exit(main())
