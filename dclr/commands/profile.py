"""`dclr profile`: where the time of a pretraining step goes."""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler_of

from dclr.config import ConfigError, PretrainConfig
from dclr.distributed import choose_device, process_group
from dclr.files import write_whole
from dclr.phases import phase_seconds
from dclr.training import build_trainer

# Those of the step come one after the other; `augment` and `loss` are within `forward`.
STEP_PHASES = ("load", "forward", "backward", "optimizer", "after_step")
INNER_PHASES = ("augment", "loss")
WARMUP, TOP = 3, 15


def profile(config: PretrainConfig, steps: int = 5, trace: Path | None = Path("trace.json")) -> None:
    """Run a few steps of the last epoch and print what took how long.

    Every term is on but those that wait for a queue to fill: of DCLR's search, choose a queue of three batches or less.

    Args:
        steps: steps that are measured; three more come first.
        trace: Chrome trace to write. None: only run them between cudaProfilerStart and cudaProfilerStop, for Nsight.

    Raises:
        ConfigError: an epoch has too few steps.
        OSError: the trace cannot be written.
    """
    device = choose_device(config.train.device)
    on_gpu = device.type == "cuda"
    with process_group(device):
        trainer = build_trainer(config, device)
        if trainer.steps_per_epoch < WARMUP + steps:
            raise ConfigError(
                f"steps: got {steps}, which with {WARMUP} to warm up are more than the {trainer.steps_per_epoch} of an "
                "epoch; expected fewer, or a smaller train.batch"
            )
        if trace:  # torch says nothing of a file that it cannot write
            write_whole(trace, b"")
        trainer.epoch = config.train.epochs - 1
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with closing(trainer.steps()) as run:
            for _ in range(WARMUP):
                next(run)
            _synchronize(on_gpu)
            with (
                profiler_of(activities=activities) if trace else _nsight(on_gpu) as profiler,
                phase_seconds(device) as seconds,
            ):
                for _ in range(steps):
                    next(run)
                _synchronize(on_gpu)
    if trace:
        profiler.export_chrome_trace(str(trace))
        print(profile_summary(profiler, seconds, steps, on_gpu))
        print(f"written: {trace}")


def profile_summary(profiler: profiler_of, seconds: dict[str, float], steps: int, on_gpu: bool) -> str:
    """The share of each phase, and the operations (on a GPU, the kernels) that take longest."""
    total = sum(seconds.get(name, 0) for name in STEP_PHASES)
    lines = [f"{1e3 * total / steps:.2f} ms a step, mean of {steps}", "", f"{'phase':<12}{'ms':>10}{'share':>8}"]
    for name in (*STEP_PHASES, *INNER_PHASES):
        if name in seconds:
            within = "  (within forward)" if name in INNER_PHASES else ""
            lines.append(f"{name:<12}{1e3 * seconds[name] / steps:>10.2f}{seconds[name] / total:>8.1%}{within}")
    own, where = ("self_device_time_total", "CUDA") if on_gpu else ("self_cpu_time_total", "CPU")
    operations = [
        event
        for event in profiler.key_averages()
        if event.key not in seconds and event.device_type == getattr(torch.autograd.DeviceType, where)
    ]
    operations.sort(key=lambda event: -getattr(event, own))
    lines += ["", f"{'kernel' if on_gpu else 'operation':<60}{'calls':>7}{'ms':>10}{'share':>8}"]
    for event in operations[:TOP]:
        took = getattr(event, own) / 1e6
        share = f"{took / total:>8.1%}"
        lines.append(f"{event.key[:58]:<60}{event.count / steps:>7.0f}{1e3 * took / steps:>10.2f}{share}")
    return "\n".join(lines)


def _synchronize(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def _nsight(on_gpu: bool) -> torch.cuda.profiler.profile | nullcontext:
    return torch.cuda.profiler.profile() if on_gpu else nullcontext()
