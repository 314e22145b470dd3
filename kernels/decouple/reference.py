"""Clip, static clip and frame difference.

    rgb_t = (x_t - mean) / std,  t = 0 .. T-1                                             (the clip v)
    static_t = rgb_{t*} for one frame t* in every place                                   DCLR Eq. 3
    difference_t = (x_{t+1} - x_t) / std                                                  DCLR Eq. 4

Shape suffixes: b batch, c channels, t frames, h rows, w columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..clips import mirrored, unit_clip


class Decoupled(NamedTuple):
    """(B, C, T, H, W) each."""

    rgb: Tensor
    static: Tensor
    difference: Tensor


def decouple_reference(
    clip_bcthw: Tensor, index: Tensor, flip: Tensor | None, mean: Tensor | None, std: Tensor | None, dtype: torch.dtype
) -> Decoupled:
    """Plain PyTorch form of `decouple`; arithmetic in float32, or float64 for a float64 clip."""
    raw = unit_clip(clip_bcthw, flip)
    mean, std = 0 if mean is None else mean.view(-1, 1, 1, 1), 1 if std is None else std.view(-1, 1, 1, 1)
    rgb = ((raw[:, :, :-1] - mean) / std).to(dtype)
    difference = ((raw[:, :, 1:] - raw[:, :, :-1]) / std).to(dtype)
    still = rgb[torch.arange(rgb.shape[0], device=rgb.device), :, index.long()]
    return Decoupled(rgb, still[:, :, None].expand_as(rgb), difference)


def decouple_backward_reference(
    rgb: Tensor | None, static: Tensor | None, difference: Tensor | None, static_index: Tensor, flip: Tensor | None,
    std: Tensor | None, size: Sequence[int], dtype: torch.dtype, channels_last: bool,
) -> Tensor:  # fmt: skip
    """Gradient of the clip (B, C, T+1, H, W), in float32 at least and in any layout, from those of its parts."""
    to_clip = torch.zeros(size, dtype=torch.promote_types(dtype, torch.float32), device=static_index.device)
    if rgb is not None:
        to_clip[:, :, :-1] += rgb
    if static is not None:
        samples = torch.arange(len(to_clip), device=to_clip.device)
        to_clip[samples, :, static_index.long()] += static.sum(2, dtype=to_clip.dtype)
    if difference is not None:
        to_clip[:, :, 1:] += difference
        to_clip[:, :, :-1] -= difference
    return mirrored(to_clip if std is None else to_clip / std.view(-1, 1, 1, 1), flip)
