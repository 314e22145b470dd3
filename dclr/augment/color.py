"""Colour augmentation of a batch of clips, step by step, by kornia's functions where there are some.

This runs on CPUs. On a GPU `dclr.kernels.augment_clip` does the same in one pass over the clips.
Shapes: b clips, 3 channels, t frames, h x w pixels.
"""

from __future__ import annotations

import math

import torch
from kornia.enhance import adjust_hue, adjust_saturation
from kornia.filters import gaussian_blur2d
from torch import Tensor

from dclr.augment.draws import AugmentConfig, ColorDraw
from dclr.augment.foreground import blur_size

GRAY_WEIGHTS = (0.299, 0.587, 0.114)


def _where_drawn(mask_b: Tensor, changed: Tensor, clip_bcthw: Tensor) -> Tensor:
    return torch.where(mask_b.view(-1, 1, 1, 1, 1), changed, clip_bcthw)


def _brightness_of(clip_bcthw: Tensor) -> Tensor:
    weights = torch.tensor(GRAY_WEIGHTS, device=clip_bcthw.device, dtype=clip_bcthw.dtype).view(1, 3, 1, 1, 1)
    return (clip_bcthw * weights).sum(1, keepdim=True)


def _jitter(clip_bcthw: Tensor, config: AugmentConfig, params: ColorDraw) -> Tensor:
    """Brightness, contrast, saturation, hue, each multiplicative about its neutral value and clamped to [0, 1]."""
    b, c, t, h, w = clip_bcthw.shape
    out = clip_bcthw
    if config.brightness:
        out = (out * params.brightness.view(-1, 1, 1, 1, 1)).clamp(0, 1)
    if config.contrast:
        mean = _brightness_of(out).mean((1, 2, 3, 4), keepdim=True)
        out = (mean + (out - mean) * params.contrast.view(-1, 1, 1, 1, 1)).clamp(0, 1)
    tall = out.reshape(b, c, t * h, w)  # kornia takes pictures; saturation and hue act on each pixel by itself
    if config.saturation:
        tall = adjust_saturation(tall, params.saturation)
    if config.hue:
        tall = adjust_hue(tall, params.hue * 2 * math.pi)
    return tall.view(b, c, t, h, w)


def _blur(clip_bcthw: Tensor, sigma_b: Tensor) -> Tensor:
    b, c, t, h, w = clip_bcthw.shape
    kernel = blur_size(h)
    frames = clip_bcthw.transpose(1, 2).reshape(b * t, c, h, w).contiguous()  # kornia 0.8 calls view() on them
    sigma = sigma_b.repeat_interleave(t)[:, None].expand(-1, 2)
    return gaussian_blur2d(frames, (kernel, kernel), sigma).view(b, t, c, h, w).transpose(1, 2)


def augment_color(clip_bcthw: Tensor, config: AugmentConfig, params: ColorDraw) -> Tensor:
    """Grayscale, jitter and blur, in this order, each on the clips whose draw says so.

    Args:
        clip_bcthw: (b, 3, t, h, w) float in [0, 1].

    Returns:
        A new tensor of the same shape and dtype in [0, 1].
    """
    params = ColorDraw(*(value.to(clip_bcthw.device, non_blocking=True) for value in params))
    out = clip_bcthw
    if config.grayscale:
        out = _where_drawn(params.grayscale, _brightness_of(out).expand_as(out), out)
    if config.jitter:
        out = _where_drawn(params.jitter, _jitter(out, config, params), out)
    if config.blur and blur_size(out.shape[-2]) > 1:  # a kernel of one pixel is the identity
        out = _where_drawn(params.blur, _blur(out, params.sigma), out)
    return out
