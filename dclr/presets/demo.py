"""The demo: objectives compared on small generated videos."""

from __future__ import annotations

from collections.abc import Callable

from dclr.augment import AugmentConfig
from dclr.config import DataConfig, OptimConfig, PretrainConfig, TrainConfig
from dclr.methods.base import ContrastiveConfig
from dclr.methods.dclr import LossWeights
from dclr.methods.simclr import SimCLRConfig
from dclr.presets.dclr import terms_alone

# What a short run with a narrow encoder needs of any contrastive method.
SHORT = {"temperature": 0.1, "dim": 64, "hidden": 96, "center": True}


def demo_run(method: ContrastiveConfig) -> PretrainConfig:
    """Small clips and a small encoder on generated videos; no mirror flips, which would merge directions."""
    return PretrainConfig(
        output="runs/demo",
        encoder="r2plus1d_micro",
        data=DataConfig(
            dataset="folder", root="runs/demo/videos_0", label="motion", frames=8, stride=1,
            size=24, scale=(0.5, 1.0), workers=0, cache="memory",
        ),
        augment=AugmentConfig(flip=0, hue=0, blur=0),
        optim=OptimConfig(optimizer="adamw", lr=0.006, milestones=(0.85,), warmup=20),
        train=TrainConfig(epochs=32, batch=32, checkpoint_every=32, tensorboard=False, fold=True, static_once=True),
        method=method,
    )  # fmt: skip


def _demo_terms(vs: float, vd: float) -> PretrainConfig:
    return demo_run(terms_alone(LossWeights(vs=vs, vd=vd, sd=0), **SHORT))


def demo_dclr() -> PretrainConfig:
    """The demo's DCLR: L_VS and L_VD together."""
    return _demo_terms(vs=1, vd=1)


def demo_vanilla() -> PretrainConfig:
    """The demo's vanilla contrast, L_VV."""
    return demo_run(SimCLRConfig(**SHORT))


def demo_vs() -> PretrainConfig:
    """The demo with L_VS alone."""
    return _demo_terms(vs=1, vd=0)


def demo_vd() -> PretrainConfig:
    """The demo with L_VD alone."""
    return _demo_terms(vs=0, vd=1)


# Objectives that `dclr demo` compares, all with the same videos, encoder and steps.
DEMO_ROWS: dict[str, Callable[[], PretrainConfig]] = {
    "vanilla": demo_vanilla,
    "vs": demo_vs,
    "vd": demo_vd,
    "dclr": demo_dclr,
}

PRESETS: dict[str, Callable[[], PretrainConfig]] = {
    "demo": demo_dclr,
    "demo_vanilla": demo_vanilla,
    "demo_vs": demo_vs,
    "demo_vd": demo_vd,
}
