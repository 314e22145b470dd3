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

from ._common import FLOAT_DTYPES, check, check_same_device

MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last_3d)


class Decoupled(NamedTuple):
    """(B, C, T, H, W) each."""

    rgb: Tensor
    static: Tensor
    difference: Tensor


def decouple_reference(
    clip_bcthw: Tensor, static_index: Tensor, flip: Tensor | None, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> Decoupled:
    """Plain PyTorch form of `decouple`; arithmetic in float32, or float64 for a float64 clip."""
    wide = torch.float64 if clip_bcthw.dtype == torch.float64 else torch.float32
    raw = clip_bcthw.to(wide) / 255 if clip_bcthw.dtype == torch.uint8 else clip_bcthw.to(wide)
    if flip is not None:
        raw = torch.where(flip.view(-1, 1, 1, 1, 1), raw.flip(-1), raw)
    std = std.view(-1, 1, 1, 1)
    rgb = ((raw[:, :, :-1] - mean.view(-1, 1, 1, 1)) / std).to(dtype)
    difference = ((raw[:, :, 1:] - raw[:, :, :-1]) / std).to(dtype)
    still = rgb[torch.arange(rgb.shape[0], device=rgb.device), :, static_index.long()]
    return Decoupled(rgb, still[:, :, None].expand_as(rgb), difference)


def decouple(
    clip: Tensor,
    static_index: Tensor,
    *,
    flip: Tensor | None = None,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Decoupled:
    """Split a clip into itself, a static clip and its frame difference (DCLR Eq. 3-4).

    Args:
        clip: (B, C, T+1, H, W) uint8 (scaled to [0, 1]) or floating, any strides.
        static_index: (B,) int64 or int32 in [0, T): the frame that stands still.
        flip: (B,) bool, the clips to mirror.
        mean, std: (C,) of each channel, for values in [0, 1]; 0 and 1 where not given.
        dtype: of the results; the clip's, or float32 for uint8.
        memory_format: of the results, `torch.contiguous_format` or `torch.channels_last_3d`.

    Returns:
        Decoupled of (B, C, T, H, W); gradients reach a floating clip.

    Raises:
        TypeError, ValueError: a wrong rank, size, dtype or device, named.
    """
    dtype = _check(clip, static_index, flip, dtype, memory_format)
    wide = torch.float64 if clip.dtype == torch.float64 else torch.float32
    channel = [_per_channel(name, value, default, clip, wide) for name, value, default in
               (("mean", mean, 0.0), ("std", std, 1.0))]  # fmt: skip
    parts = decouple_reference(clip, static_index, flip, *channel, dtype)
    return Decoupled(*(part.contiguous(memory_format=memory_format) for part in parts))


def _check(
    clip: Tensor, static_index: Tensor, flip: Tensor | None, dtype: torch.dtype | None, memory_format: object
) -> torch.dtype:
    floating = clip.dtype in FLOAT_DTYPES
    check(floating or clip.dtype == torch.uint8, "clip", clip.dtype, "uint8 or a floating dtype", TypeError)
    shape = f"shape {tuple(clip.shape)}"
    check(clip.dim() == 5 and clip.shape[2] >= 2, "clip", shape, "(B, C, T+1, H, W) with at least 2 frames")
    integer = static_index.dtype in (torch.int64, torch.int32)
    check(integer, "static_index", static_index.dtype, "int64 or int32", TypeError)
    batch, frames = clip.shape[0], clip.shape[2] - 1
    check(tuple(static_index.shape) == (batch,), "static_index", f"shape {tuple(static_index.shape)}", f"({batch},)")
    if flip is not None:
        check(flip.dtype == torch.bool, "flip", flip.dtype, "bool", TypeError)
        check(tuple(flip.shape) == (batch,), "flip", f"shape {tuple(flip.shape)}", f"({batch},)")
    check_same_device(clip=clip, static_index=static_index, flip=flip)
    check(memory_format in MEMORY_FORMATS, "memory_format", memory_format, "contiguous_format or channels_last_3d")
    if static_index.device.type == "cpu" and not torch.compiler.is_compiling() and batch:
        low, high = int(static_index.min()), int(static_index.max())
        check(low >= 0 and high < frames, "static_index", f"values in [{low}, {high}]", f"values in [0, {frames})")
    if dtype is None:
        return clip.dtype if floating else torch.float32
    check(dtype in FLOAT_DTYPES, "dtype", dtype, "float32, bfloat16, float16 or float64", TypeError)
    return dtype


def _per_channel(name: str, value: Sequence[float] | Tensor | None, default: float, clip: Tensor, dtype) -> Tensor:
    channels = clip.shape[1]
    if value is None:
        return torch.full((channels,), default, device=clip.device, dtype=dtype)
    tensor = torch.as_tensor(value, dtype=dtype, device=clip.device)
    check(tuple(tensor.shape) == (channels,), name, f"shape {tuple(tensor.shape)}", f"({channels},)")
    return tensor
