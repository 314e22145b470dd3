"""FAME: symmetric MoCo on clips whose backgrounds come from other videos (Ding et al., CVPR 2022)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from dclr.augment import AugmentConfig, ForegroundConfig
from dclr.methods.moco import MoCo, MoCoConfig


@dataclass
class FAMEConfig(MoCoConfig):
    """MoCo in both directions, on merged clips. For any other method, set `augment.foreground` instead."""

    temperature: float = 0.1
    """Cosines are divided by it in the loss; the smaller, the more the hardest negatives count."""
    symmetric: bool = True
    """Also contrast queries of view j with keys of view i; the loss is the mean of both."""
    foreground: ForegroundConfig = field(default_factory=lambda: ForegroundConfig(mask="fame"))
    """The masks, and where the backgrounds come from."""


class FAME(MoCo):
    """MoCo with `config.foreground` in front of it.

    Args:
        config: temperature, head, momentum, queue and masks.
        encoder: (b, 3, T, h, w) to (b, C, T', h', w'), with `feature_dim`.
        augment: flip and colour augmentation, with `foreground` left at its default.

    Raises:
        ValueError: `augment.foreground` is set, which `config.foreground` would replace.
    """

    def __init__(self, config: FAMEConfig, encoder: nn.Module, augment: AugmentConfig) -> None:
        if augment.foreground != ForegroundConfig():
            raise ValueError(f"augment.foreground: got {augment.foreground}, expected it in method.foreground for fame")
        super().__init__(config, encoder, replace(augment, foreground=config.foreground))
