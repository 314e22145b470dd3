"""The demo: objectives compared on small generated videos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dclr.augment import AugmentConfig
from dclr.config import DataConfig, OptimConfig, PretrainConfig, TrainConfig
from dclr.methods.dclr import AlignmentConfig, DCLRConfig, LossStart, LossWeights, RefineConfig
from dclr.methods.search import SearchConfig
from dclr.methods.simclr import SimCLRConfig


def _demo(method: DCLRConfig | SimCLRConfig) -> PretrainConfig:
    """Small clips and a small encoder on generated videos; no mirror flips, which would merge directions."""
    return PretrainConfig(
        output="runs/demo",
        encoder="r2plus1d_tiny",
        data=DataConfig(
            dataset="folder", root="runs/demo/videos_0", label="motion", frames=8, stride=1,
            size=32, scale=(0.5, 1.0), workers=0, cache="memory",
        ),
        augment=AugmentConfig(flip=0, hue=0, blur=0),
        optim=OptimConfig(optimizer="adamw", lr=0.003, milestones=(0.75,), warmup=20),
        train=TrainConfig(epochs=28, batch=32, checkpoint_every=2, tensorboard=False, static_once=True),
        method=method,
    )  # fmt: skip


def _demo_terms(vs: float, vd: float, sd: float, vs_start: int = 0, sd_start: int = 0) -> PretrainConfig:
    method = DCLRConfig(
        losses=LossWeights(vv=0, vs=vs, vd=vd, sd=sd),
        loss_start=LossStart(vs=vs_start, sd=sd_start),
        search=SearchConfig(on=()),
        alignment=AlignmentConfig(0),
        refine=RefineConfig(False, False),
        temperature=0.1,
        dim=64,
        hidden=96,
        center=True,
    )
    return _demo(method)


def demo_dclr() -> PretrainConfig:
    """The demo's DCLR: L_VD alone first, then L_VS joins, balanced and with clipped gradients."""
    run = _demo_terms(vs=8, vd=1, sd=0, vs_start=10)
    # The first gradients of L_VS are dozens of times longer than those before: one step along them would undo L_VD.
    # After that the one term is solved at the other's cost where neither holds it back.
    optim = replace(run.optim, clip=30, clip_start=10)
    return replace(run, optim=optim, method=replace(run.method, balance=3))


def demo_vanilla() -> PretrainConfig:
    """The demo's vanilla contrast, L_VV."""
    return _demo(SimCLRConfig(temperature=0.1, dim=64, hidden=96, center=True))


def demo_vs() -> PretrainConfig:
    """The demo with L_VS alone."""
    return _demo_terms(vs=1, vd=0, sd=0)


def demo_vd() -> PretrainConfig:
    """The demo with L_VD alone."""
    return _demo_terms(vs=0, vd=1, sd=0)


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
