"""What a run says of itself on the terminal, besides its bar."""

from __future__ import annotations

import math
import sys
import time
from contextlib import suppress
from datetime import timedelta

import torch
from torch import nn
from tqdm import tqdm

from dclr.config import PretrainConfig
from dclr.data import VideoDataset
from dclr.distributed import world
from dclr.training.failures import Failures
from dclr.training.metrics import device_name, memory_mib

# Of 84 training videos (UT-Interaction) an encoder learned a little in 300 steps, and twice as much in 1000.
FEW_STEPS, ENOUGH_STEPS = 300, 1000


def say(message: str) -> None:
    """A line on stderr, above the bar; nowhere where the terminal is lost, which must not stop a run."""
    with suppress(OSError):
        tqdm.write(message, file=sys.stderr)


def description(
    config: PretrainConfig,
    videos: VideoDataset,
    method: nn.Module,
    failures: Failures,
    device: torch.device,
    steps_per_epoch: int,
) -> str:
    """What a run is about to do, for the terminal."""
    train, total = config.train, config.train.epochs * steps_per_epoch
    data = f"{len(videos)} in {len(videos.classes)} classes, {config.data.dataset} {config.data.subset}"
    data += f", without {len(videos.missing)} that are missing" if videos.missing else ""
    known = f"{len(failures.reasons)} so far" if failures.reasons else "none known yet"
    parameters = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    in_encoder = sum(parameter.numel() for parameter in method.encoder.parameters())
    lines = {
        "videos": data,
        "unreadable": f"{known}; up to {failures.allowed} are replaced by others, more stop the run",
        "steps": f"{steps_per_epoch} an epoch of {train.batch} videos each, {train.epochs} epochs, {total} in all",
        "device": f"{world()} x {device_name(device)}",
        "parameters": f"{parameters / 1e6:.2f} M, of which {in_encoder / 1e6:.2f} M in {config.encoder}",
        "output": config.output,
    }
    return "\n".join(f"{name:12}{value}" for name, value in lines.items())


def few_steps(config: PretrainConfig, steps_per_epoch: int) -> str:
    """A warning where a run is too short to learn much, mostly nothing."""
    total = config.train.epochs * steps_per_epoch
    if total >= FEW_STEPS:
        return ""
    return (
        f"few steps: {total} in all; small sets of videos took about {ENOUGH_STEPS}, which is "
        f"--train.epochs {math.ceil(ENOUGH_STEPS / steps_per_epoch)} here"
    )


class Pace:
    """How long a run will take, once ten steps are done; the first two, which compile and warm up, do not count.

    Args:
        first: step that the run starts from.
        total: its last step.
    """

    WARM_UP, MEASURED = 2, 10

    def __init__(self, first: int, total: int, device: torch.device) -> None:
        self.first, self.total, self.device = first, total, device

    def after(self, step: int) -> str:
        """What to say after this step, mostly nothing."""
        done = step - self.first
        if done == self.WARM_UP:
            self.since = self._now()
        if done != self.MEASURED or step == self.total:
            return ""
        seconds = (self._now() - self.since) / (self.MEASURED - self.WARM_UP)
        left = timedelta(seconds=round(seconds * (self.total - step)))
        return (
            f"{seconds:.2g} s a step: about {left} for the {self.total - step} steps left; "
            f"{memory_mib(self.device):.0f} MiB of memory on {device_name(self.device)}"
        )

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
