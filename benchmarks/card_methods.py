"""The smallest pretraining run of every method, uncompiled and compiled: the same losses from the first step on.

    python -m benchmarks.card_methods --device cuda --output FOLDER

One program a run, several at a time: compilation is the host's work. Prints a line for each run, and exits with 1 where
one failed or its losses are not those of the uncompiled run within bfloat16's rounding.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dclr.data.synth import SynthConfig, synthesize
from dclr.training import read_metrics

# Preset, and what it needs to act within a few steps of a small set: search and refinement from the first epoch on.
METHODS = {
    "dclr": ("dclr_ucf101", "--method.search.start", "0", "--method.refine.start", "0", "--method.search.queue", "24"),
    "official_release": ("official_release", "--method.queue", "24"),
    "simclr": ("simclr_ucf101",),
    "moco": ("moco_ucf101", "--method.queue", "24"),
    "fame": ("fame_ucf101", "--method.queue", "24"),
    "dualvar": ("dualvar_ucf101",),
}
MODES = (None, "default", "reduce-overhead")
SMALL = (
    "--data.dataset", "folder", "--data.label", "motion", "--data.frames", "8", "--data.stride", "1",
    "--data.workers", "0", "--encoder", "r2plus1d_tiny", "--train.epochs", "4", "--train.batch", "8",
    "--train.log-every", "1", "--train.no-tensorboard",
)  # fmt: skip
# Largest difference of a step's loss, as a share of it. Rounding grows from step to step, so the first must be closest.
FIRST, LATER = 0.02, 0.1


def pretrain_once(method: str, mode: str | None, device: str, videos: Path, output: Path) -> str:
    """Pretrain; returns what went wrong, or nothing."""
    preset, *flags = METHODS[method]
    size = "64" if device == "cuda" else "24"
    command = [sys.executable, "-m", "dclr", "pretrain", "--preset", preset, *SMALL, *flags]
    command += ["--data.root", str(videos), "--data.size", size, "--train.device", device, "--output", str(output)]
    command += ["--train.compile", mode] if mode else []
    # As many runs as cores are at work: none may start a compiler for each core.
    alone = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | alone)
    (output.parent / f"{output.name}.txt").write_text(done.stdout + done.stderr)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no word"])[-1]


def logged_losses(output: Path) -> list[float]:
    """The loss of each step of a run."""
    return [record["loss"] for record in read_metrics(output) if "loss" in record]


def differences(found: Sequence[float], expected: Sequence[float]) -> list[float]:
    """Of each step's loss, as a share of the expected one."""
    return [abs(a - b) / max(abs(b), 1e-6) for a, b in zip(found, expected, strict=True)]


def compare(found: Sequence[float], expected: Sequence[float]) -> str:
    """How a run's losses differ from the uncompiled run's, and whether that is too much."""
    share = differences(found, expected)
    right = share[0] <= FIRST and all(each <= LATER for each in share)  # NaN is wrong too
    return f"{'equal' if right else 'WRONG'}: first step {share[0]:.1e}, worst {max(share):.1e} of the loss"


def main(argv: Sequence[str] | None = None) -> int:
    """Run all of them; the exit status is 1 where one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    videos = options.output / "videos"
    synthesize(videos, SynthConfig(train=32, test=8, size=72, frames=16), progress=False)
    modes = MODES if options.device == "cuda" else MODES[:1]
    runs = [(method, mode) for method in options.methods for mode in modes]
    folders = {(method, mode): options.output / f"{method}_{mode or 'eager'}" for method, mode in runs}
    wrong, failures = 0, {}
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1)) as pool:
        errors = pool.map(lambda run: pretrain_once(*run, options.device, videos, folders[run]), runs)
        # A line as soon as there is one, in case that the time ends.
        for run, word in zip(runs, errors):
            method, mode = run
            failures[run] = word
            if not word and mode and not failures[method, None]:
                word = compare(logged_losses(folders[run]), logged_losses(folders[method, None]))
            wrong += bool(word) and not word.startswith("equal")
            last = "" if failures[run] else f"last loss {logged_losses(folders[run])[-1]:.4f} "
            print(f"{method:<18}{mode or 'eager':<18}{last}{word}", flush=True)
    print(f"{len(runs) - wrong} of {len(runs)} runs are right")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
