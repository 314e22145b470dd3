"""For some hundred to some thousand clips of one's own, on a CPU or a GPU; chosen by measurement, see the tutorial."""

from __future__ import annotations

from collections.abc import Callable

from dclr.config import DataConfig, OptimConfig, PretrainConfig, TrainConfig
from dclr.methods.dclr import LossWeights
from dclr.methods.simclr import SimCLRConfig
from dclr.presets.dclr import terms_alone
from dclr.presets.demo import SHORT


def small() -> PretrainConfig:
    """L_VS and L_VD on a folder of videos, with a small encoder and small clips: minutes to an hour on a CPU."""
    return PretrainConfig(
        encoder="r2plus1d_micro",
        data=DataConfig(dataset="folder", frames=8, stride=4, size=32, scale=(0.4, 1.0)),
        optim=OptimConfig(optimizer="adamw", lr=0.003, milestones=(0.75,), warmup=20),
        train=TrainConfig(epochs=100, batch=16, fold=True, static_once=True),
        method=terms_alone(LossWeights(vs=1, vd=1, sd=0), **SHORT),
    )


def small_simclr() -> PretrainConfig:
    """What `small` is measured against: vanilla contrast with all else alike."""
    run = small()
    run.method = SimCLRConfig(**SHORT)
    return run


PRESETS: dict[str, Callable[[], PretrainConfig]] = {"small": small, "small_simclr": small_simclr}
