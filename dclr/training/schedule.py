"""Optimiser, and the learning rate as a function of where the run is: nothing to save, nothing to resume."""

from __future__ import annotations

import math

import torch
from torch import nn

from dclr.config import OptimConfig


def base_rate(config: OptimConfig, batch: int) -> float:
    """The rate that the schedule starts from, for a global batch of `batch` videos."""
    return config.lr * batch / 64 if config.scale_lr else config.lr


def learning_rate(config: OptimConfig, batch: int, epochs: int, epoch: int, step: int, steps_per_epoch: int) -> float:
    """Rate of one step. The schedule goes by epochs: all steps of one have the same rate, but for the warm-up.

    Args:
        batch: global batch, with which the rate grows where `config.scale_lr` says so.
        epoch, step: epochs completed, and steps completed within the current one.
    """
    rate = base_rate(config, batch)
    if config.warmup:
        rate *= min(1.0, (epoch * steps_per_epoch + step + 1) / config.warmup)
    if config.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    if config.schedule == "step":
        # Rounded: 0.6 * 5 is a little over 3.
        return rate * 0.1 ** sum(epoch >= round(share * epochs, 6) for share in config.milestones)
    return rate


def build_optimizer(config: OptimConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Optimiser of the parameters that are trained; the loop sets the learning rate before each step."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # One launch for all parameters instead of several.
    options = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": parameters[0].is_cuda}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options)
    return torch.optim.SGD(parameters, momentum=config.momentum, **options)
