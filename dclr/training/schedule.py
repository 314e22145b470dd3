"""Learning rate as a function of where the run is; nothing to save, nothing to resume."""

from __future__ import annotations

import math

from dclr.config import OptimConfig


def learning_rate(config: OptimConfig, batch: int, epochs: int, epoch: int, step: int, steps_per_epoch: int) -> float:
    """Rate of one step.

    Args:
        batch: global batch; the configured rate is for 64 videos and scales linearly.
        epoch, step: epochs completed, and steps completed within the current one.
    """
    rate = config.lr * batch / 64
    done = epoch * steps_per_epoch + step
    if config.warmup:
        rate *= min(1.0, (done + 1) / config.warmup)
    if config.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * done / (epochs * steps_per_epoch)))
    if config.schedule == "step":
        # Rounded: 0.6 * 5 is a little over 3.
        return rate * 0.1 ** sum(epoch >= round(share * epochs, 6) for share in config.milestones)
    return rate
