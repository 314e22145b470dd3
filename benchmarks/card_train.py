"""Rows of the ablation on a card: a process a seed, side by side, then one table of them all.

    python -m benchmarks.card_train --device cuda --output FOLDER

`dclr ablate` notes each run that is finished, so that a second call goes on where the time ended.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Most telling first: vanilla, L_VD, both, both without balance, with refinement and alignment, with search, the whole.
ROWS = ("T4.1", "T4.4", "T4.3", "T4.4_printed", "T7.5", "T5.3", "T4.6")
SEEDS = (0, 1, 2)
SIZES = {
    "cuda": ("--size", "gpu", "--epochs", "10", "--synth.train", "4096", "--synth.test", "800"),
    "cpu": ("--epochs", "1", "--synth.train", "64", "--synth.test", "16", "--synth.size", "24", "--synth.frames", "10"),
}


def command(device: str, output: Path, rows: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """`dclr ablate` of these rows and seeds."""
    flags = [*SIZES[device], "--rows", ",".join(rows), "--output", str(output), "--seeds", *map(str, seeds)]
    return [sys.executable, "-m", "dclr", "ablate", *flags]


def main(argv: Sequence[str] | None = None) -> int:
    """Run all; the exit status is 1 where a seed failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=SIZES, default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    rows, seeds = (ROWS, SEEDS) if options.device == "cuda" else (ROWS[:2], SEEDS[:2])
    started = [subprocess.Popen(command(options.device, options.output, rows, [seed])) for seed in seeds]
    if any([process.wait() for process in started]):
        return 1
    return subprocess.run(command(options.device, options.output, rows, seeds)).returncode


if __name__ == "__main__":
    sys.exit(main())
