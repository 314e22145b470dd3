"""Mirror flip, colours and blur of uint8 clips, one draw per clip, and DCLR's three encoder inputs of them.

    y = blur(hue(saturation(contrast(brightness(grayscale(x))))))        colours of a clip (DCLR Sec. 4.1)
    rgb_t = (y_t - mean) / std,  t = 0 .. T-1                            the clip v
    static = (y'_{t*} - mean) / std, one frame, colours of its own       DCLR Eq. 3
    difference_t = (x_{t+1} - x_t) / std, without colours                DCLR Eq. 4

The colour steps are kornia's. Shape suffixes: b batch, c channels, t frames, h rows, w columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clips import unit_clip

COLORS = 6  # values of a clip in the table of colours
LUMA = (0.299, 0.587, 0.114)


def augment_reference(
    clip_bcthw: Tensor, color: Tensor, static_index: Tensor | None, static_color: Tensor | None, flip: Tensor | None,
    mean: Sequence[float], std: Sequence[float], blur_size: int, dtype: torch.dtype | None = None,
) -> list[Tensor]:  # fmt: skip
    """Plain PyTorch form of `augment_clip`; float32, or float64 for a float64 clip."""
    raw = unit_clip(clip_bcthw, flip)
    mean, std = (torch.tensor(values, dtype=raw.dtype, device=raw.device).view(3, 1, 1, 1) for values in (mean, std))
    if static_index is None:
        return [(recolored(raw, color, blur_size) - mean) / std]
    still = raw[torch.arange(len(raw), device=raw.device), :, static_index.long(), None]
    parts = recolored(raw[:, :, :-1], color, blur_size), recolored(still, static_color, blur_size)
    return [*((part - mean) / std for part in parts), (raw[:, :, 1:] - raw[:, :, :-1]) / std]


def recolored(clip_bcthw: Tensor, color: Tensor, blur_size: int) -> Tensor:
    """Clips in [0, 1] with the colours and the blur of each one's row of `color`."""
    columns = color.to(clip_bcthw.dtype).view(-1, COLORS, 1, 1, 1, 1).unbind(1)
    grayscale, brightness, contrast, saturation, hue, sigma = columns
    clip = torch.where(grayscale > 0, _luma(clip_bcthw), clip_bcthw)
    clip = (clip * brightness).clamp(0, 1)
    center = _luma(clip).mean((1, 2, 3, 4), keepdim=True)
    clip = (center + (clip - center) * contrast).clamp(0, 1)
    clip = shifted_hue(clip, saturation, hue)
    if blur_size == 1:
        return clip
    return torch.where(sigma > 0, blurred(clip, sigma, blur_size), clip)


def shifted_hue(clip_bcthw: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """HSV saturation times `saturation`, at most 1, and hue plus `hue`, in shares of the circle."""
    r, g, b = clip_bcthw.unbind(1)
    value, low = clip_bcthw.amax(1), clip_bcthw.amin(1)
    span = value - low
    divisor = torch.where(span > 0, span, 1)
    of_green = torch.where(value == g, 2 + (b - r) / divisor, 4 + (r - g) / divisor)
    sixth = torch.where(value == r, (g - b) / divisor, of_green) + 6 * hue[:, 0]
    span = torch.minimum(span * saturation[:, 0], value)
    # Channel n of a colour is its value less a share of the range that depends on the hue alone.
    turns = [(n + sixth) % 6 for n in (5, 3, 1)]
    return torch.stack([value - span * torch.minimum(k, 4 - k).clamp(0, 1) for k in turns], 1)


def blurred(clip_bcthw: Tensor, sigma: Tensor, size: int) -> Tensor:
    """Gaussian blur of `size` x `size` taps, reflected at the border."""
    radius = size // 2
    offsets = torch.arange(-radius, radius + 1, device=clip_bcthw.device)
    weights = torch.softmax(-(offsets**2) / (2 * torch.where(sigma > 0, sigma, 1) ** 2), -1)
    for dim in (3, 4):
        length = clip_bcthw.shape[dim]
        padding = (0, 0, radius, radius) if dim == 3 else (radius, radius, 0, 0)
        padded = F.pad(clip_bcthw, (*padding, 0, 0), mode="reflect")
        shifts = (padded.narrow(dim, k, length) * weights[..., k, None] for k in range(size))
        clip_bcthw = sum(shifts)
    return clip_bcthw


def _luma(clip_bcthw: Tensor) -> Tensor:
    return sum(weight * clip_bcthw[:, c : c + 1] for c, weight in enumerate(LUMA))
