"""What FAME would keep of a clip: its mask and the three that it is compared with (FAME Fig. 4)."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dclr.augment import ForegroundConfig
from dclr.augment.foreground import foreground_mask
from dclr.kernels import merge_foreground
from dclr.visualize.drawing import WIDTH, bare

MASKS = ("fame", "seed", "grid", "gauss")


def foreground_masks(clip: Tensor, beta: float = 0.5, hue: str = "correct") -> dict[str, Tensor]:
    """Weight (H, W) in [0, 1] of a clip's own pixels by each mask; see `dclr.augment.ForegroundConfig`.

    Args:
        clip: uint8 (T, H, W, 3), T at least 2.
    """
    clip_bcthw = clip.permute(3, 0, 1, 2)[None]
    return {
        name: foreground_mask(clip_bcthw, ForegroundConfig(mask=name, beta=beta, hue=hue)).weight[0] for name in MASKS
    }


def draw_masks(clip: Tensor, other: Tensor, masks: dict[str, Tensor]) -> Figure:
    """The clip's middle frame, it merged by FAME's mask onto `other`, and each mask over the frame.

    Args:
        clip, other: uint8 (T, H, W, 3) of one shape.
        masks: of `foreground_masks`.
    """
    frame = clip[len(clip) // 2].numpy()
    pair = torch.stack([clip, other]).permute(0, 4, 1, 2, 3)
    merged = merge_foreground(pair, torch.tensor([1]), masks["fame"][None])[0].permute(1, 2, 3, 0)
    pictures = {"clip": frame, "on another clip": merged[len(merged) // 2].numpy()}
    pictures |= {name: _dimmed(frame, weight.numpy()) for name, weight in masks.items()}
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    for axes, (name, picture) in zip(figure.subplots(2, 3).flatten(), pictures.items()):
        axes.imshow(picture)
        axes.set_title(name, fontsize=9)
        bare(axes)
    return figure


def _dimmed(frame: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The frame where the weight is 1, a faint grey of it where 0."""
    kept = weight[..., None]
    faint = 0.25 * frame.mean(2, keepdims=True) + 150
    return (kept * frame + (1 - kept) * faint).round().astype(np.uint8)
