"""What is checked and measured on a GPU, in order of worth, within a limit of seconds: `scripts/gpu_check.sh`.

    correct   kernel tests, every method compiled and not, the demo cut short, a first look at each hot path
    measure   the benchmarks that matter most, ours and the peers that are installed
    train     a few rows of the ablation in three seeds

Each step is a program of its own with a limit of its own, so that one that fails or hangs costs the others nothing.
`report.json` and `log.txt` in the output folder are written after each step. With `--device cpu` the
same steps run at their smallest: a rehearsal, so that no minute on a card goes to a typing error.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import harness

LEAST_SECONDS = 5  # less is not worth a start
FIRST_LOOK = "ours,reference"
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")


@dataclass(frozen=True)
class CardStep:
    """One program.

    Attributes:
        name: of the step, in the report.
        limit: seconds after which it is interrupted.
        command: the program and its arguments.
        environment: variables besides those of this process.
        rows: the file with rows of benchmarks that it writes, if it does.
    """

    name: str
    limit: int
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    rows: Path | None = None


@dataclass
class Outcome:
    """How a step went: `result` is passed, failed, stopped or left out; `detail` its last line, or the reason."""

    name: str
    result: str
    seconds: float
    detail: str


@dataclass(frozen=True)
class Plan:
    """What the steps of a stage are made for: the device, and the folder for what they write."""

    device: str
    output: Path

    @property
    def on_card(self) -> bool:
        return self.device == "cuda"

    def tests(self, name: str, limit: int, *arguments: str, **environment: str) -> CardStep:
        """Tests of the suite."""
        return CardStep(name, limit, (*PYTEST, *arguments), environment)

    def benchmark(
        self, file: str, only: str, limit: int, seconds: float = 0.3, variants: str | None = None
    ) -> CardStep:
        """The sizes of a benchmark that `only` selects (an expression as of pytest -k)."""
        name = f"{file} {only}".strip()
        rows = self.output / f"{name.replace(' ', '_')}.rows.json"
        command = [*PYTEST, f"benchmarks/bench_{file}.py", "--benchmark", "--results", str(rows)]
        command += ["--seconds", str(seconds if self.on_card else 0.01)]
        command += ["-k", only] if self.on_card else ["--sizes", "tiny"]
        # A CPU would compile the others for minutes.
        chosen = variants if self.on_card else FIRST_LOOK
        command += ["--variants", chosen] if chosen else []
        return CardStep(name, limit, tuple(command), rows=rows)

    def module(self, name: str, limit: int, module: str, *arguments: str) -> CardStep:
        """A program of this package or of dclr."""
        return CardStep(name, limit, (sys.executable, "-m", module, *arguments))


def correct(plan: Plan) -> list[CardStep]:
    """First: is it right? Then first numbers, so that there are some even if nothing else follows."""
    gpu_tests, workers = "tests/kernels/test_gpu.py", "14" if plan.on_card else "0"
    output = str(plan.output / "methods")
    return [
        plan.tests("kernel tests", 170, gpu_tests, "-n", workers, "-k", "not past"),
        plan.tests("past 2^31", 60, gpu_tests, "-k", "past"),
        plan.tests("no host waits", 60, "tests/training/test_updater.py", "-k", "host_never_waits"),
        plan.benchmark("head", "40x512 or 1024x512", 30, 0.1, FIRST_LOOK),
        plan.benchmark("info_nce", "512 or 16384", 30, 0.1, FIRST_LOOK),
        plan.benchmark("topk", "16384 or 1048576", 30, 0.1, FIRST_LOOK),
        plan.benchmark("decouple", "512", 30, 0.1, FIRST_LOOK),
        plan.benchmark("loss", "2x40", 30, 0.1, FIRST_LOOK),
        sanitizer(plan, gpu_tests),
        # Minutes of compilation a run, as many at a time as there are cores.
        plan.module("methods", 540, "benchmarks.card_methods", "--device", plan.device, "--output", output),
    ]


def sanitizer(plan: Plan, tests: str) -> CardStep:
    """compute-sanitizer over one size of each op. Without the caching allocator every tensor has its own bounds."""
    checked = (*PYTEST, tests, "-k", "values and bfloat16")
    tool = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1")
    command = (*tool, *checked) if plan.on_card else checked
    return CardStep("sanitizer", 100, command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def measurements(plan: Plan) -> list[CardStep]:
    """The rows that matter, most telling first."""
    peers = "compiled,memeff,inf-cl,siglip,flashlib"
    return [
        # Ours and the straightforward one are compiled one after the other, for about two minutes each.
        plan.benchmark("step", "32x2x16", 360, 2.0, "eager,released,compiled bf16,no compile"),
        plan.benchmark("info_nce", "512 or 4096 or 65536", 120, variants=f"{peers},descriptors"),
        plan.benchmark("topk", "16384 or 1048576", 60, variants=peers),
        plan.benchmark("head", "40x512 or 1024x512", 90, variants=peers),
        plan.benchmark("decouple", "512x3", 40, variants=peers),
        plan.benchmark("loss", "2x40", 40, variants=peers),
        *(plan.benchmark(file, "512", 30) for file in ("augment", "crop_resize", "foreground")),
        plan.benchmark("overhead", "", 30),
    ]


def train(plan: Plan) -> list[CardStep]:
    """What the terms of the objective learn, in three seeds."""
    output = str(plan.output / "ablation")
    return [plan.module("ablation", 900, "benchmarks.card_train", "--device", plan.device, "--output", output)]


STAGES: dict[str, Callable[[Plan], list[CardStep]]] = {"correct": correct, "measure": measurements, "train": train}


def run_steps(steps: Sequence[CardStep], plan: Plan, seconds: float) -> list[Outcome]:
    """Run the steps one after the other until the time is up; writes the report after each."""
    end = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for step in steps:
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            outcomes.append(Outcome(step.name, "left out", 0.0, "the time was up"))
        else:
            limit = step.limit if plan.on_card else seconds  # a CPU has no need to hurry
            outcomes.append(_run_step(step, min(limit, left), plan.output / "log.txt"))
        print(_line(outcomes[-1]), flush=True)
        _write_report(plan, steps, outcomes)
    return outcomes


def _run_step(step: CardStep, limit: float, log: Path) -> Outcome:
    begin = time.monotonic()
    print(f"== {step.name}", flush=True)
    try:
        process = subprocess.Popen(
            step.command,
            cwd=harness.ROOT,
            env=os.environ | step.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(step.name, "left out", 0.0, f"{step.command[0]}: {error.strerror}")
    text, stopped = _output(process, limit)
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"== {step.name}: {' '.join(step.command)}\n{text}\n")
    result = "stopped" if stopped else "passed" if process.returncode == 0 else f"failed ({process.returncode})"
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return Outcome(step.name, result, time.monotonic() - begin, last.strip("= "))


def _output(process: subprocess.Popen, limit: float) -> tuple[str, bool]:
    """What a program prints, and whether it was stopped: by an interrupt, so that pytest still writes what it has."""
    try:
        return process.communicate(timeout=limit)[0], False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)  # it has a session of its own, and would outlive this one
        raise
    try:
        return process.communicate(timeout=10)[0], True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0], True


def _line(outcome: Outcome) -> str:
    return f"{outcome.name:<28}{outcome.seconds:>6.0f} s  {outcome.result}: {outcome.detail[:160]}"


def _write_report(plan: Plan, steps: Sequence[CardStep], outcomes: Sequence[Outcome]) -> None:
    """The report so far, and the rows of all benchmarks in the form that `dclr bench --plot` reads."""
    reports = [json.loads(step.rows.read_text()) for step in steps if step.rows and step.rows.exists()]
    checks = {outcome.name: asdict(outcome) for outcome in outcomes}
    report = reports[-1] if reports else {}
    report |= {"command": f"scripts/gpu_check.sh {' '.join(sys.argv[1:])}", "checks": checks}
    rows = [row for part in reports for row in part["rows"]]
    (plan.output / "report.json").write_text(json.dumps(report | {"rows": rows}, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a stage; the exit status is 1 where a step failed."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_check.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--steps", nargs="+", metavar="NAME", help="only steps in whose names one of these is")
    parser.add_argument("--seconds", type=float, default=540, help="limit of the whole (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder of report.json and log.txt (default: a folder of the card)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: rehearse at the smallest sizes")
    options = parser.parse_args(argv)
    output = options.output or harness.results_path(options.device).with_suffix("")
    plan = Plan(options.device, output.absolute())
    plan.output.mkdir(parents=True, exist_ok=True)
    steps = [step for step in STAGES[options.stage](plan) if any(part in step.name for part in options.steps or [""])]
    if not steps:
        parser.error(f"--steps: {' '.join(options.steps)} names none of stage {options.stage}")
    outcomes = run_steps(steps, plan, options.seconds)
    report = json.loads((plan.output / "report.json").read_text())
    print(f"\n{report.get('device', options.device)}, commit {report.get('commit', 'unknown')[:12]}")
    print("\n".join(map(_line, outcomes)))
    if report["rows"]:
        print(harness.summary_table(report["rows"]))
    print(f"written: {plan.output}")
    return int(any(outcome.result.startswith("failed") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
