"""`dclr profile`: where the time of a pretraining step goes."""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler_of

from dclr.config import ConfigError, PretrainConfig
from dclr.training.distributed import choose_device, joined
from dclr.training.trainer import build_trainer

# Those of the step come one after the other; `augment` and `loss` are within `forward`.
STEP_PHASES = ("load", "forward", "backward", "optimizer", "after_step")
INNER_PHASES = ("augment", "loss")
WARMUP, TOP = 3, 15


def profile(config: PretrainConfig, steps: int = 5, trace: Path | None = Path("trace.json")) -> None:
    """Run a few steps of the last epoch, in which every term is on, and print what took how long.

    Args:
        steps: steps that are measured; three more come first.
        trace: Chrome trace to write. None: only run them between cudaProfilerStart and cudaProfilerStop, for Nsight.

    Raises:
        ConfigError: an epoch has too few steps.
    """
    device = choose_device(config.train.device)
    on_gpu = device.type == "cuda"
    with joined(device):
        trainer = build_trainer(config, device)
        if trainer.epoch_steps < WARMUP + steps:
            raise ConfigError(
                f"steps: got {steps}, expected at most {trainer.epoch_steps - WARMUP}: one epoch's less 3"
            )
        trainer.epoch = config.train.epochs - 1
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with closing(trainer.steps()) as run:
            for _ in range(WARMUP):
                next(run)
            _synchronize(on_gpu)
            with profiler_of(activities=activities) if trace else _nsight(on_gpu) as profiler:
                for _ in range(steps):
                    next(run)
                _synchronize(on_gpu)
    if trace:
        profiler.export_chrome_trace(str(trace))
        print(summary(profiler, steps, on_gpu))
        print(f"written: {trace}")


def summary(profiler: profiler_of, steps: int, on_gpu: bool) -> str:
    """The share of each phase, and the operations (on a GPU, the kernels) that take longest."""
    events = profiler.key_averages()
    ranges = {*STEP_PHASES, *INNER_PHASES}
    # On a GPU from a phase's first kernel to its last; loading is the host's alone.
    span = {event.key: max(event.device_time_total, 0) if on_gpu else event.cpu_time_total for event in events}
    total = sum(span.get(name, 0) for name in STEP_PHASES) or 1
    lines = [f"{total / steps / 1e3:.2f} ms a step, mean of {steps}", "", f"{'phase':<12}{'ms':>10}{'share':>8}"]
    for name in (*STEP_PHASES, *INNER_PHASES):
        if name in span:
            within = "  (within forward)" if name in INNER_PHASES else ""
            lines.append(f"{name:<12}{span[name] / steps / 1e3:>10.2f}{span[name] / total:>8.1%}{within}")
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    operations = [event for event in events if event.key not in ranges]
    operations.sort(key=lambda event: -getattr(event, own))
    lines += ["", f"{'kernel' if on_gpu else 'operation':<60}{'calls':>7}{'ms':>10}{'share':>8}"]
    for event in operations[:TOP]:
        time = getattr(event, own)
        lines.append(f"{event.key[:58]:<60}{event.count / steps:>7.0f}{time / steps / 1e3:>10.2f}{time / total:>8.1%}")
    return "\n".join(lines)


def _synchronize(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def _nsight(on_gpu: bool) -> torch.cuda.profiler.profile | nullcontext:
    return torch.cuda.profiler.profile() if on_gpu else nullcontext()
