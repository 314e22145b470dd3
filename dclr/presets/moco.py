"""MoCo, the baseline with a queue."""

from __future__ import annotations

from collections.abc import Callable

from dclr.config import DataConfig, PretrainConfig, TrainConfig
from dclr.methods.moco import MoCoConfig


def moco_ucf101() -> PretrainConfig:
    """MoCo on UCF-101: queue 2048, momentum 0.999; no figure of its own in the papers.

    Optimiser, schedule, temperature and queue are those of DCLR's released code, which adds its terms to this.
    """
    # Statistics over all GPUs would leave the shuffled BatchNorm nothing to do.
    return PretrainConfig(data=DataConfig(dataset="ucf101"), train=TrainConfig(sync_bn=False), method=MoCoConfig())


PRESETS: dict[str, Callable[[], PretrainConfig]] = {"moco_ucf101": moco_ucf101}
