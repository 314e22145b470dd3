"""FAME: a clip's moving foreground on the background of another clip (Ding et al., "Motion-aware Contrastive Video
Representation Learning via Foreground-background Merging", CVPR 2022), after its released code.

    S = mean over t of sum over c |x[t+1] - x[t]|, smoothed, in [0, 1]                   seed
    R = P(color | foreground) / (P(color | foreground) + P(color | background))          refinement by colour
    M = 1 on the beta share of the pixels with the largest R                             mask
    x' = x M + y (1 - M)                                                                 merge

The sums over t and the merge read whole clips and are kernels (`motion_map`, `merge_foreground`). This file does what
lies between, on maps with about a hundredth of the bytes. Shapes: b clips, c = 3 channels, t frames, h x w pixels;
clips after the crop and before the colours; maps are float32, of the mirrored clips. Ties in a ranking of pixels go to
the lower index. Nothing here has a gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from kornia.color import rgb_to_hsv
from kornia.filters import filter2d_separable
from torch import Tensor

from dclr.kernels import motion_map

# Shares of the pixels, those that move most and least, whose colours are counted as foreground and as background.
FOREGROUND_SHARE, BACKGROUND_SHARE = 0.5, 0.1
BINS = 10  # in each of the three coordinates of a colour
CELLS = 4  # cells along each side


@dataclass
class ForegroundConfig:
    """What stays of a clip when its background is taken from another one."""

    mask: Literal["none", "fame", "seed", "grid", "gauss"] = "none"
    """none leaves clips alone; fame: seed refined by colour; seed; grid: the cells of a 4 x 4 grid that move most;
    gauss: a fixed soft centre."""
    background: Literal["inter", "intra", "none"] = "inter"
    """inter: from another video of the process' batch; intra: from another view of the same video; none: its own."""
    views: Literal["single", "both"] = "single"
    """single: merge in view 0 alone, as the released code does; both: in all views, each with its own masks and
    backgrounds."""
    beta: float = 0.5
    """Share of the pixels that are foreground; 1 changes nothing, and gauss does not use it."""
    hue: Literal["correct", "official"] = "correct"
    """official multiplies the hue by 2 pi once too often, as the released code does."""
    perm: Literal["uniform", "derangement"] = "uniform"
    """uniform: any order of the videos, so that a clip may get its own background; derangement: never its own."""

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise ValueError(f"foreground.beta: got {self.beta}, expected a share in (0, 1]")

    @property
    def merges(self) -> bool:
        """Whether any clip changes."""
        return self.mask != "none" and self.background != "none"


class Mask(NamedTuple):
    """`weight` (b, h, w) of the clip's own pixels, and `still` (b,) bool: clips without motion, whose mask is
    arbitrary."""

    weight: Tensor
    still: Tensor


@torch.no_grad()
def foreground_mask(clip_bcthw: Tensor, config: ForegroundConfig, flip_b: Tensor | None = None) -> Mask:
    """The mask of each clip, which is mirrored first where `flip_b` says so.

    Args:
        clip_bcthw: uint8, or floating in [0, 1].

    Returns:
        float32 weights of 0 or 1; for `gauss` anything between.
    """
    with torch.autocast(clip_bcthw.device.type, enabled=False):
        moved = motion_map(clip_bcthw, flip=flip_b)
        score = seed(moved.motion)
        still = score.flatten(1).amax(1) == 0
        if config.mask == "fame":
            score = refined_by_color(moved.mean, score, config.hue)
        if config.mask == "grid":
            return Mask(grid_mask(score, config.beta), still)
        if config.mask == "gauss":
            return Mask(gauss_mask(score), still)
        return Mask(top_share(score, config.beta), still)


def seed(motion_bhw: Tensor) -> Tensor:
    """How much each pixel moves, smoothed, (b, h, w) in [0, 1]; all 0 for a clip that stands still or has one frame."""
    return min_max(smooth(motion_bhw))


def refined_by_color(mean_bchw: Tensor, seed_bhw: Tensor, hue: str) -> Tensor:
    """How much more often each pixel's colour is foreground than background, smoothed, (b, h, w) in [0, 1]."""
    bins = color_bins(mean_bchw, hue).flatten(1)
    score = seed_bhw.flatten(1)
    pixels = score.shape[1]
    most = score.argsort(dim=1, descending=True, stable=True)[:, : int(FOREGROUND_SHARE * pixels)]
    least = score.argsort(dim=1, stable=True)[:, : int(BACKGROUND_SHARE * pixels)]
    foreground = _histogram(bins.gather(1, most))
    # One more of each colour, so that a colour that stands for neither counts as background.
    background = _histogram(bins.gather(1, least)) + 1
    foreground, background = (count / (count.sum(1, keepdim=True) + 1e-8) for count in (foreground, background))
    share = foreground / (foreground + background)
    return min_max(smooth(share.gather(1, bins).view_as(seed_bhw)))


def color_bins(mean_bchw: Tensor, hue: str) -> Tensor:
    """Bin of each pixel's colour, (b, h, w) int64 in [0, 1000).

    Of the colour in HSV, the hue is an angle and the saturation a radius. The bin is that point's x and y, and the
    value, in ten steps each.
    """
    angle, saturation, value = rgb_to_hsv(mean_bchw).unbind(1)
    angle = angle * 2 * math.pi if hue == "official" else angle
    across, along = ((saturation * wave(angle) + 1) / 2 for wave in (torch.cos, torch.sin))
    x, y, v = ((9 * part + 1).round().clamp(1, BINS).long() - 1 for part in (across, along, value))
    return x + BINS * y + BINS**2 * v


def _histogram(bins_bp: Tensor) -> Tensor:
    counts = torch.zeros(len(bins_bp), BINS**3, device=bins_bp.device)
    return counts.scatter_add_(1, bins_bp, torch.ones_like(bins_bp, dtype=counts.dtype))


def top_share(score_bhw: Tensor, beta: float) -> Tensor:
    """1 on the int(beta * h * w) pixels with the largest score, else 0."""
    score = score_bhw.flatten(1)
    kept = score.argsort(dim=1, descending=True, stable=True)[:, : int(beta * score.shape[1])]
    return torch.zeros_like(score).scatter_(1, kept, 1).view_as(score_bhw)


def grid_mask(score_bhw: Tensor, beta: float) -> Tensor:
    """1 on the round(16 beta) cells of a 4 x 4 grid with the largest sum of scores, at least one."""
    height, width = score_bhw.shape[1:]
    row, column = (torch.arange(size, device=score_bhw.device) * CELLS // size for size in (height, width))
    cell = (row[:, None] * CELLS + column).flatten().expand(len(score_bhw), -1)
    sums = score_bhw.new_zeros(len(score_bhw), CELLS**2).scatter_add_(1, cell, score_bhw.flatten(1))
    kept = sums.argsort(dim=1, descending=True, stable=True)[:, : max(1, round(beta * CELLS**2))]
    return torch.zeros_like(sums).scatter_(1, kept, 1).gather(1, cell).view_as(score_bhw)


def gauss_mask(score_bhw: Tensor) -> Tensor:
    """A Gaussian about the centre, 1 there, with a third of the size as standard deviation. Of the scores only the
    shape counts."""
    down, across = (_gauss(size, score_bhw) for size in score_bhw.shape[1:])
    return (down[:, None] * across).expand_as(score_bhw)


def _gauss(size: int, like: Tensor) -> Tensor:
    offset = torch.arange(size, device=like.device, dtype=like.dtype) - (size - 1) / 2
    curve = torch.exp(-((offset / (size / 3)) ** 2) / 2)
    return curve / curve.amax()


def blur_size(height: int) -> int:
    """Taps of a Gaussian blur of pictures of this height: about a tenth, odd."""
    return int(0.1 * height) // 2 * 2 + 1


def smooth(map_bhw: Tensor) -> Tensor:
    """Gaussian blur over about a tenth of the height, reflected at the border; nothing below 20 pixels."""
    taps = blur_size(map_bhw.shape[1])
    if taps == 1:
        return map_bhw
    curve = _gauss(taps, map_bhw)[None]
    curve = curve / curve.sum()
    return filter2d_separable(map_bhw[:, None], curve, curve, border_type="reflect")[:, 0]


def min_max(map_bhw: Tensor) -> Tensor:
    """Each map to [0, 1]."""
    low, high = map_bhw.amin((1, 2), keepdim=True), map_bhw.amax((1, 2), keepdim=True)
    return (map_bhw - low) / (high - low + 1e-8)
