"""FAME's two passes over whole clips: where a clip moves, and the merge of its foreground with another background.

    motion = mean over t of sum over c |x_{t+1} - x_t|,   mean = mean over t of x_t
    merged_b = x_b w_b + x_{background_b} (1 - w_b)

Source: Ding et al., "Motion-aware Contrastive Video Representation Learning via Foreground-background Merging", CVPR
2022. What FAME does between the two, it does with (B, H, W) maps, a hundredth of the clip's bytes: blur, histogram and
ranking are plain PyTorch in `dclr.augment.foreground`.

Shape suffixes: b batch, c channels, t frames, h rows, w columns, p pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ._common import (
    FLOAT_DTYPES,
    Config,
    cdiv,
    check_rows,
    check_tensors,
    define_op,
    device_class,
    expect,
    next_power_of_2,
    runs_triton,
    tl,
    triton,
    wide_dtype,
)


@dataclass(frozen=True)
class ForegroundTile(Config):
    """`elements`: pixels of a tile, FRAMES how many frames it has at a time."""

    elements: int
    FRAMES: int | None = None


CONFIGS = {"default": {"motion": ForegroundTile(4, 256), "merge": ForegroundTile(4, 64, 4)}}

_library = torch.library.Library("dclr", "FRAGMENT")


class MotionMap(NamedTuple):
    """`motion` (B, H, W) in [0, 3] and the mean picture `mean` (B, 3, H, W) in [0, 1], float32."""

    motion: Tensor
    mean: Tensor


# Reference


def motion_map_reference(clip_bcthw: Tensor, flip: Tensor | None) -> MotionMap:
    """Plain PyTorch form of `motion_map`; float32, or float64 for a float64 clip."""
    raw = clip_bcthw.to(wide_dtype(clip_bcthw))
    frames, levels = raw.shape[2], _levels(clip_bcthw)
    # In place and in one sum: faster than abs, sum, mean, and makes no second copy of the steps.
    motion = (raw[:, :, 1:] - raw[:, :, :-1]).abs_().sum((1, 2)) / (levels * max(1, frames - 1))
    return MotionMap(_mirrored(motion, flip), _mirrored(raw.sum(2) / (levels * frames), flip))


def merge_foreground_reference(
    clip_bcthw: Tensor, background: Tensor, weight_bhw: Tensor, flip: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Plain PyTorch form of `merge_foreground`; blends in float32, or float64 for a float64 clip."""
    chooses = dtype == torch.uint8
    raw = _mirrored(clip_bcthw, flip)
    raw = raw if chooses else raw.to(wide_dtype(clip_bcthw)) / _levels(clip_bcthw)
    own, rest, other = raw[: len(background)], raw[len(background) :], raw[background]
    weight = weight_bhw[:, None, None].to(wide_dtype(clip_bcthw))
    merged = torch.where(weight > 0.5, own, other) if chooses else torch.lerp(other, own, weight)
    return torch.cat([merged, rest]).to(dtype)


def _levels(clip: Tensor) -> int:
    """What 1 is in a clip's values."""
    return 255 if clip.dtype == torch.uint8 else 1


def _mirrored(x: Tensor, flip: Tensor | None) -> Tensor:
    return x if flip is None else torch.where(flip.view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)


# Triton

if triton is not None:
    from .pixels import load_rgb

    _STRIDES = ["stride_b", "stride_c", "stride_t", "stride_h", "stride_w"]

    @triton.jit
    def _tile(H, W, P: tl.constexpr):
        """Sample, pixels and mask of a program."""
        tiles = tl.cdiv(H * W, P)
        b = (tl.program_id(0) // tiles).to(tl.int64)
        p = tl.program_id(0) % tiles * P + tl.arange(0, P)
        return b, p, p < H * W

    @triton.jit
    def _source(b, p, W, stride_b, stride_h, stride_w, flip_ptr, known):
        """Offsets at which sample `b` has the pixels `p` of the mirrored, or plain, clip."""
        h, w = p // W, p % W
        if flip_ptr is not None:
            w = tl.where(tl.load(flip_ptr + b, mask=known, other=0) != 0, W - 1 - w, w)
        return b * stride_b + h.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w

    @triton.jit
    def _mean(total, count):
        """Rounded as IEEE division is: the same on every device."""
        return tl.div_rn(total.to(tl.float32), count.to(tl.float32))

    @triton.jit(do_not_specialize=[*_STRIDES, "T", "H", "W"])
    def motion_kernel(
        clip_ptr, stride_b, stride_c, stride_t, stride_h, stride_w, flip_ptr, motion_ptr, mean_ptr, T, H, W,
        LEVELS: tl.constexpr, P: tl.constexpr,
    ):  # fmt: skip
        b, p, mask = _tile(H, W, P)
        size = H * W
        offset = _source(b, p, W, stride_b, stride_h, stride_w, flip_ptr, True)
        # Sums of bytes are exact, in any order.
        dtype: tl.constexpr = tl.float32 if LEVELS == 1 else tl.int32
        r, g, c = load_rgb(clip_ptr, stride_c, offset, mask, dtype)
        sum_r, sum_g, sum_c, moved = r, g, c, tl.zeros((P,), dtype)
        for t in tl.range(1, T, loop_unroll_factor=4):  # reads of four frames are in flight at once
            r1, g1, c1 = load_rgb(clip_ptr + t * stride_t.to(tl.int64), stride_c, offset, mask, dtype)
            moved += tl.abs(r1 - r) + tl.abs(g1 - g) + tl.abs(c1 - c)
            sum_r, sum_g, sum_c = sum_r + r1, sum_g + g1, sum_c + c1
            r, g, c = r1, g1, c1
        tl.store(motion_ptr + b * size + p, _mean(moved, LEVELS * tl.maximum(T - 1, 1)), mask=mask)
        mean_ptr += b * 3 * size
        tl.store(mean_ptr + p, _mean(sum_r, LEVELS * T), mask=mask)
        tl.store(mean_ptr + size + p, _mean(sum_g, LEVELS * T), mask=mask)
        tl.store(mean_ptr + 2 * size + p, _mean(sum_c, LEVELS * T), mask=mask)

    @triton.jit(do_not_specialize=[*_STRIDES, "B", "N", "T", "H", "W"])
    def merge_kernel(
        clip_ptr, stride_b, stride_c, stride_t, stride_h, stride_w, background_ptr, weight_ptr, flip_ptr, out_ptr,
        B, N, T, H, W, LEVELS: tl.constexpr, BLEND: tl.constexpr, FRAMES: tl.constexpr, P: tl.constexpr,
    ):  # fmt: skip
        """Frames x pixels x channels, which are padded to four: neighbouring threads write neighbouring elements."""
        b, p, mask = _tile(H, W, P)
        size = H * W
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
    config = CONFIGS.get(device_class(clip.device), CONFIGS["default"])[name]
    pixels = min(config.elements, next_power_of_2(height * width))
    kernel = {"motion": motion_kernel, "merge": merge_kernel}[name]
    with torch.cuda.device_of(clip):
        kernel[(batch * cdiv(height * width, pixels),)](
            clip, *clip.stride(), *arguments, frames, height, width, LEVELS=_levels(clip), P=pixels,
            **constants, **config.options("FRAMES"),
        )  # fmt: skip


# Ops


def _empty_maps(clip: Tensor) -> tuple[Tensor, Tensor]:
    batch, channels, _, height, width = clip.shape
    motion = torch.empty((batch, height, width), dtype=wide_dtype(clip), device=clip.device)
    return motion, motion.new_empty((batch, channels, height, width))


def _motion_map(clip: Tensor, flip: Tensor | None) -> tuple[Tensor, Tensor]:
    maps = _empty_maps(clip)
    if not runs_triton(clip):
        for result, value in zip(maps, motion_map_reference(clip, flip)):
            result.copy_(value)
    elif clip.numel():
        _launch_pixels("motion", clip, None if flip is None else flip.contiguous(), *maps)
    return maps


def _empty_clip(clip: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(clip.shape, dtype=dtype, device=clip.device, memory_format=torch.channels_last_3d)


def _merge_foreground(
    clip: Tensor, background: Tensor, weight: Tensor, flip: Tensor | None, dtype: torch.dtype
) -> Tensor:
    merged = _empty_clip(clip, dtype)
    if not runs_triton(clip) or dtype == torch.float64:
        merged.copy_(merge_foreground_reference(clip, background, weight, flip, dtype))
    elif clip.numel():
        small = [None if part is None else part.contiguous() for part in (background, weight, flip)]
        sizes = clip.shape[0], background.shape[0]
        _launch_pixels("merge", clip, *small, merged, *sizes, BLEND=dtype != torch.uint8)
    return merged


define_op(_library, "motion_map(Tensor clip, Tensor? flip) -> (Tensor, Tensor)", _motion_map)
define_op(
    _library,
    "merge_foreground(Tensor clip, Tensor background, Tensor weight, Tensor? flip, ScalarType dtype) -> Tensor",
    _merge_foreground,
)


@torch.library.register_fake("dclr::motion_map", lib=_library)
def _(clip, flip):
    return _empty_maps(clip)


@torch.library.register_fake("dclr::merge_foreground", lib=_library)
def _(clip, background, weight, flip, dtype):
    return _empty_clip(clip, dtype)


# Public functions


def motion_map(clip: Tensor, *, flip: Tensor | None = None) -> MotionMap:
    """How much each pixel of a clip moves, and the clip's mean picture; each value of the clip is read once.

    Args:
        clip: (B, 3, T, H, W) RGB, uint8 or floating in [0, 1], any strides. A single frame does not move.
        flip: (B,) bool, the clips to mirror.

    Returns:
        MotionMap, contiguous; float64 for a float64 clip. Of uint8 clips the sums are exact and rounded once, when they
        are divided, so that pixels tie in `motion` where they move by the same. Nothing here has a gradient.

    Raises:
        TypeError, ValueError: a wrong rank, size, dtype or device, named.
    """
    _check_moving_clip(clip, flip)
    return MotionMap(*torch.ops.dclr.motion_map(clip.detach(), flip))


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
    _check_moving_clip(clip, flip)
    dtype = clip.dtype if dtype is None else dtype
    known = dtype in FLOAT_DTYPES or dtype == clip.dtype
    expect(known, "dtype", dtype, "a floating dtype, or uint8 for a uint8 clip", TypeError)
    expect(background.dtype == torch.int64, "background", background.dtype, "int64", TypeError)
    fits = background.dim() == 1 and background.shape[0] <= clip.shape[0]
    expect(fits, "background", tuple(background.shape), lambda: f"(N,), N <= {clip.shape[0]}")
    expect(weight.dtype == torch.float32, "weight", weight.dtype, "float32", TypeError)
    expected = background.shape[0], *clip.shape[3:]
    expect(tuple(weight.shape) == expected, "weight", tuple(weight.shape), expected)
    check_rows("background", background, clip.shape[0])
    return torch.ops.dclr.merge_foreground(clip.detach(), background, weight.detach(), flip, dtype)


def _check_moving_clip(clip: Tensor, flip: Tensor | None) -> None:
    check_tensors(clip=clip, optional={"flip": flip})
    known = clip.dtype in FLOAT_DTYPES or clip.dtype == torch.uint8
    expect(known, "clip", clip.dtype, "uint8 or a floating dtype", TypeError)
    right = clip.dim() == 5 and clip.shape[1] == 3 and clip.shape[2] >= 1
    expect(right, "clip", tuple(clip.shape), "(B, 3, T, H, W), T >= 1")
    expect(3 * clip.shape[3] * clip.shape[4] < 2**31, "clip", tuple(clip.shape), "frames of fewer than 2^31 elements")
    if flip is not None:
        expect(flip.dtype == torch.bool, "flip", flip.dtype, "bool", TypeError)
        expect(tuple(flip.shape) == (clip.shape[0],), "flip", tuple(flip.shape), (clip.shape[0],))
