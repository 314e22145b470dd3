"""FAME's two passes over whole clips: where a clip moves, and the merge of its foreground with another background.

    motion = mean over t of sum over c |x_{t+1} - x_t|,   mean = mean over t of x_t
    merged_b = x_b w_b + x_{background_b} (1 - w_b)

Source: Ding et al., "Motion-aware Contrastive Video Representation Learning via Foreground-background Merging", CVPR
2022. What FAME does between the two, it does with (B, H, W) maps, a hundredth of the clip's bytes: blur, histogram and
ranking are plain PyTorch in `dclr.augment.foreground`.

Shape suffixes: b batch, c channels, t frames, h rows, w columns, p pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._common import FLOAT_DTYPES, check_kind, check_rows, check_tensors, expect, register_op, tl, triton, wide_dtype
from .clips import CLIP_STRIDES, ClipTile, check_clip, dense, levels, mirrored, pixel_grid, unit_clip

SHAPE = "(B, 3, T, H, W), T >= 1"  # of clips

CONFIGS = {"default": {"motion": ClipTile(4, 256), "merge": ClipTile(4, 64, 4)}}


class MotionMap(NamedTuple):
    """`motion` (B, H, W) in [0, 3] and the mean picture `mean` (B, 3, H, W) in [0, 1], float32."""

    motion: Tensor
    mean: Tensor


# Reference


def motion_map_reference(clip_bcthw: Tensor, flip: Tensor | None) -> MotionMap:
    """Plain PyTorch form of `motion_map`; float32, or float64 for a float64 clip."""
    raw = clip_bcthw.to(wide_dtype(clip_bcthw))
    frames, one = raw.shape[2], levels(clip_bcthw)
    # In place and in one sum: faster than abs, sum, mean, and makes no second copy of the steps.
    motion = (raw[:, :, 1:] - raw[:, :, :-1]).abs_().sum((1, 2)) / (one * max(1, frames - 1))
    return MotionMap(mirrored(motion, flip), mirrored(raw.sum(2) / (one * frames), flip))


def merge_foreground_reference(
    clip_bcthw: Tensor, background: Tensor, weight_bhw: Tensor, flip: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Plain PyTorch form of `merge_foreground`; blends in float32, or float64 for a float64 clip."""
    chooses = dtype == torch.uint8
    raw = mirrored(clip_bcthw, flip) if chooses else unit_clip(clip_bcthw, flip)
    own, rest, other = raw[: len(background)], raw[len(background) :], raw[background]
    weight = weight_bhw[:, None, None].to(wide_dtype(clip_bcthw))
    merged = torch.where(weight > 0.5, own, other) if chooses else torch.lerp(other, own, weight)
    return torch.cat([merged, rest]).to(dtype)


# Triton

if triton is not None:
    from .clips import load_rgb, pixel_offset, pixel_tile

    @triton.jit
    def _source(b, p, W, stride_b, stride_h, stride_w, flip_ptr, known):
        """Offsets at which sample `b` has the pixels `p` of the mirrored, or plain, clip."""
        h, w = p // W, p % W
        flipped = tl.load(flip_ptr + b, mask=known, other=0) != 0 if flip_ptr is not None else False
        return b * stride_b + pixel_offset(h, w, W, flipped, stride_h, stride_w)

    @triton.jit
    def _mean(total, count):
        """Rounded as IEEE division is: the same on every device."""
        return tl.div_rn(total.to(tl.float32), count.to(tl.float32))

    @triton.jit(do_not_specialize=[*CLIP_STRIDES, "T", "H", "W"])
    def motion_kernel(
        clip_ptr, stride_b, stride_c, stride_t, stride_h, stride_w, flip_ptr, motion_ptr, mean_ptr, T, H, W,
        LEVELS: tl.constexpr, P: tl.constexpr,
    ):  # fmt: skip
        size = H * W
        b, p, mask = pixel_tile(size, P)
        offset = _source(b, p, W, stride_b, stride_h, stride_w, flip_ptr, True)
        # Sums of bytes are exact, in any order.
        dtype: tl.constexpr = tl.float32 if LEVELS == 1 else tl.int32
        rgb = load_rgb(clip_ptr, stride_c, offset, mask, dtype)
        total, moved = rgb, tl.zeros((P,), dtype)
        for t in tl.range(1, T, loop_unroll_factor=4):  # reads of four frames are in flight at once
            after = load_rgb(clip_ptr + t * stride_t.to(tl.int64), stride_c, offset, mask, dtype)
            moved += tl.abs(after[0] - rgb[0]) + tl.abs(after[1] - rgb[1]) + tl.abs(after[2] - rgb[2])
            total = [total[i] + after[i] for i in (0, 1, 2)]
            rgb = after
        tl.store(motion_ptr + b * size + p, _mean(moved, LEVELS * tl.maximum(T - 1, 1)), mask=mask)
        mean_ptr += b * 3 * size
        for i in tl.static_range(3):
            tl.store(mean_ptr + i * size + p, _mean(total[i], LEVELS * T), mask=mask)

    @triton.jit(do_not_specialize=[*CLIP_STRIDES, "B", "N", "T", "H", "W"])
    def merge_kernel(
        clip_ptr, stride_b, stride_c, stride_t, stride_h, stride_w, background_ptr, weight_ptr, flip_ptr, out_ptr,
        B, N, T, H, W, LEVELS: tl.constexpr, BLEND: tl.constexpr, FRAMES: tl.constexpr, P: tl.constexpr,
    ):  # fmt: skip
        """Frames x pixels x channels, which are padded to four: neighbouring threads write neighbouring elements."""
        size = H * W
        b, p, mask = pixel_tile(size, P)
        step, c = tl.arange(0, FRAMES)[:, None, None], tl.arange(0, 4)[None, None, :]
        merges = b < N
        weight = tl.load(weight_ptr + b * size + p, mask=p < tl.where(merges, size, 0), other=1.0)[None, :, None]
        other_b = tl.load(background_ptr + b, mask=merges, other=-1)
        known = (other_b >= 0) & (other_b < B)
        inside = mask[None, :, None] & (c < 3)
        other_inside = (p < tl.where(known, size, 0))[None, :, None] & (c < 3)
        channel = c.to(tl.int64) * stride_c
        own = _source(b, p, W, stride_b, stride_h, stride_w, flip_ptr, True)[None, :, None] + channel
        other = _source(other_b, p, W, stride_b, stride_h, stride_w, flip_ptr, known)[None, :, None] + channel
        place = b * T * size * 3 + p[None, :, None] * 3 + c
        if BLEND:
            own_inside, other_inside = inside & (weight != 0), other_inside & (weight != 1)
        else:  # of the two, only the one that is chosen is read
            chosen = weight > 0.5
            own, own_inside = tl.where(chosen, own, other), tl.where(chosen, inside, other_inside)
        for first in range(0, T, FRAMES):
            t = (first + step).to(tl.int64)
            merged = tl.load(clip_ptr + t * stride_t + own, mask=own_inside & (t < T), other=0)
            if BLEND:
                y = tl.load(clip_ptr + t * stride_t + other, mask=other_inside & (t < T), other=0).to(tl.float32)
                merged = (merged.to(tl.float32) * weight + y * (1 - weight)) * (1 / LEVELS)
            tl.store(out_ptr + t * size * 3 + place, merged.to(out_ptr.dtype.element_ty), mask=inside & (t < T))


def _launch_pixels(name: str, clip: Tensor, *arguments: Tensor | int | None, **constants: bool) -> None:
    """`arguments` stand between the clip's strides and its sizes."""
    batch, _, frames, height, width = clip.shape
    grid, sizes = pixel_grid(CONFIGS, name, clip.device, batch, height * width)
    kernel = {"motion": motion_kernel, "merge": merge_kernel}[name]
    kernel[grid](clip, *clip.stride(), *arguments, frames, height, width, LEVELS=levels(clip), **constants, **sizes)


def _launch_merge(
    clip: Tensor, background: Tensor, weight: Tensor, flip: Tensor | None, dtype: torch.dtype, merged: Tensor
) -> None:
    small = dense(background, weight, flip)
    _launch_pixels("merge", clip, *small, merged, len(clip), len(background), BLEND=dtype != torch.uint8)


# Ops


def _empty_maps(clip: Tensor, flip: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, channels, _, height, width = clip.shape
    motion = torch.empty((batch, height, width), dtype=wide_dtype(clip), device=clip.device)
    return motion, motion.new_empty((batch, channels, height, width))


def _empty_merged(clip: Tensor, *arguments) -> Tensor:
    return torch.empty(clip.shape, dtype=arguments[-1], device=clip.device, memory_format=torch.channels_last_3d)


register_op(
    "motion_map(Tensor clip, Tensor? flip) -> (Tensor, Tensor)",
    _empty_maps,
    motion_map_reference,
    lambda clip, flip, *maps: _launch_pixels("motion", clip, *dense(flip), *maps),
)
register_op(
    "merge_foreground(Tensor clip, Tensor background, Tensor weight, Tensor? flip, ScalarType dtype) -> Tensor",
    _empty_merged,
    merge_foreground_reference,
    _launch_merge,
)


# Public functions


def motion_map(clip: Tensor, *, flip: Tensor | None = None) -> MotionMap:
    """How much each pixel of a clip moves, and the clip's mean picture; each value of the clip is read once.

    Args:
        clip: (B, 3, T, H, W) RGB, uint8 or floating in [0, 1], any strides. A single frame does not move.
        flip: (B,) bool, the clips to mirror.

    Returns:
        MotionMap(motion, mean), (B, H, W) and (B, 3, H, W) float32, contiguous; float64 for a float64 clip. Of uint8
        clips the sums are exact and rounded once, when they are divided, so that pixels tie in `motion` where they
        move by the same. Nothing here has a gradient.

    Raises:
        TypeError, ValueError: a wrong rank, size, dtype or device, named.
    """
    check_tensors(clip=clip, optional={"flip": flip})
    check_clip(clip, flip, None, SHAPE, 1)
    return MotionMap(*torch.ops.dclr.motion_map(clip, flip))


def merge_foreground(
    clip: Tensor,
    background: Tensor,
    weight: Tensor,
    *,
    flip: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Clips on backgrounds of others, all mirrored first where `flip` says so.

    Args:
        clip: (B, 3, T, H, W) RGB, uint8 or floating in [0, 1], any strides.
        background: (N,) int64 in [0, B), N <= B: the clip that gives each of the first N clips its background; the rest
            keep theirs. Others are an error where the tensor is on the CPU; on a GPU they read as black.
        weight: (N, H, W) float32 in [0, 1], of the clip's own pixels, once it is mirrored.
        flip: (B,) bool, the clips to mirror.
        dtype: of the result, by default the clip's. uint8, of a uint8 clip, takes each pixel from the one of the two
            with the larger weight, which is the blend where weights are 0 or 1; a floating dtype blends, in [0, 1].

    Returns:
        (B, 3, T, H, W) in channels_last_3d. Nothing here has a gradient.

    Raises:
        TypeError, ValueError: a wrong rank, size, dtype or device, named.
    """
    check_tensors(clip=clip, background=background, weight=weight, optional={"flip": flip})
    check_clip(clip, flip, None, SHAPE, 1)
    dtype = clip.dtype if dtype is None else dtype
    known = dtype in FLOAT_DTYPES or dtype == clip.dtype
    expect(known, "dtype", dtype, "a floating dtype, or uint8 for a uint8 clip", TypeError)
    check_kind("background", background, torch.int64)
    fits = background.dim() == 1 and background.shape[0] <= clip.shape[0]
    expect(fits, "background", tuple(background.shape), lambda: f"(N,), N <= {clip.shape[0]}")
    check_kind("weight", weight, torch.float32, (background.shape[0], *clip.shape[3:]))
    check_rows("background", background, clip.shape[0])
    return torch.ops.dclr.merge_foreground(clip, background, weight, flip, dtype)
