"""Triton kernels of `decouple`: a program takes a tile of one frame through time.

It holds the frame before in registers, so that each frame is read once for its own place and for both differences.
A tile has the order of the memory that is written: channels x positions, or where channels are last one row of
positions x channels. A row is cut into runs of V elements, written in one access each. What is read comes in runs too
where its layout allows (RUN), turned round in registers where the sample is mirrored, else element by element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .._common import cdiv, device_row, next_power_of_2, strided, tl, triton
from ..clips import CLIP_STRIDES, ClipTile, dense, levels

# Elements of a tile, channels padded to a power of two: 8 a thread, which is a run of 16-bit results.
# Without `maxnreg`, the assembler for sm_100 would spill a value for more programs.
CONFIGS = {
    "default": {"walk": ClipTile(4, 1024)},
    "sm_100": {"walk": ClipTile(4, 1024, maxnreg=255)},
    "gfx942": {"walk": ClipTile(4, 2048)},
}

_GRADIENT_STRIDES = [f"{name}_{stride}" for name in ("rgb", "static", "difference") for stride in CLIP_STRIDES]

if triton is not None:
    from ..clips import pixel_offset

    @triton.jit
    def _tile(C, H, W, LAST: tl.constexpr, V: tl.constexpr, ROWS: tl.constexpr, RUNS: tl.constexpr):
        """Sample, channels, runs of a row by number, mask (ROWS, RUNS, V) and the length of a row of memory."""
        length = (H * W * C if LAST else H * W) // V * V
        tiles = tl.cdiv(length, RUNS * V)
        b = (tl.program_id(0) // tiles).to(tl.int64)
        run = tl.program_id(0) % tiles * RUNS + tl.arange(0, RUNS)[None, :, None]
        place = run * V + tl.arange(0, V)[None, None, :]
        if LAST:
            return b, place % C, run, place < length, length.to(tl.int64)
        else:
            c = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None, None]
            return b, c, run, (c < C) & (place < length), length.to(tl.int64)

    @triton.jit
    def _source(b, c, run, mirrored, C, W, strides, LAST: tl.constexpr, V: tl.constexpr, RUN: tl.constexpr):
        """Offsets (ROWS, RUNS, V) at which a frame of a sample is read.

        In runs, the strides and W are multiples of V, which the compiler only knows when it is written so.
        """
        stride_b, stride_c, stride_h, stride_w = strides
        lane = tl.arange(0, V)[None, None, :]
        if RUN and LAST:
            return b * (stride_b // V * V) + run * V + lane
        elif RUN:
            h, w = run // (W // V), run % (W // V)
            w = tl.where(mirrored, W // V - 1 - w, w)
            row = c.to(tl.int64) * (stride_c // V * V) + h.to(tl.int64) * (stride_h // V * V)
            return b * (stride_b // V * V) + row + w * V + lane
        else:
            p = (run * V + lane) // C if LAST else run * V + lane
            pixel = pixel_offset(p // W, p % W, W, mirrored, stride_h, stride_w)
            return b * stride_b + c.to(tl.int64) * stride_c + pixel

    @triton.jit
    def _load_frame(ptr, t, stride_t, offset, mirrored, mask, LAST: tl.constexpr, V: tl.constexpr, RUN: tl.constexpr):
        """A tile of frame `t` in float32."""
        stride_t = stride_t.to(tl.int64) // V * V if RUN else stride_t.to(tl.int64)
        x = tl.load(ptr + t * stride_t + offset, mask=mask, other=0)
        if RUN and not LAST:
            x = tl.where(mirrored, tl.flip(x, 2), x)
        return x.to(tl.float32)

    @triton.jit
    def _per_channel(ptr, c, C, default: tl.constexpr, LAST: tl.constexpr):
        """Values of the channels `c`; where channels are last, a few scalars instead of one load for each element."""
        value = tl.full(c.shape, default, tl.float32)
        if ptr is not None:
            if LAST:
                for k in range(C):
                    value = tl.where(c == k, tl.load(ptr + k), value)
            else:
                value = tl.load(ptr + c, mask=c < C, other=default)
        return value

    @triton.jit(do_not_specialize=[*CLIP_STRIDES, "C", "T", "H", "W"])
    def decouple_kernel(
        clip_ptr, stride_b, stride_c, stride_t, stride_h, stride_w, index_ptr, flip_ptr, mean_ptr, std_ptr,
        rgb_ptr, static_ptr, difference_ptr, C, T, H, W, SCALE: tl.constexpr, RUN: tl.constexpr,
        LAST: tl.constexpr, V: tl.constexpr, ROWS: tl.constexpr, RUNS: tl.constexpr,
    ):  # fmt: skip
        b, c, run, mask, length = _tile(C, H, W, LAST, V, ROWS, RUNS)
        mirrored = tl.load(flip_ptr + b) if flip_ptr is not None else False
        still_t = tl.load(index_ptr + b)
        mean, factor = _per_channel(mean_ptr, c, C, 0.0, LAST), 1.0 / _per_channel(std_ptr, c, C, 1.0, LAST)
        source = _source(b, c, run, mirrored, C, W, (stride_b, stride_c, stride_h, stride_w), LAST, V, RUN)
        out = (b if LAST else b * C + c) * T * length + run * V + tl.arange(0, V)[None, None, :]
        dtype = rgb_ptr.dtype.element_ty
        still = tl.zeros(mask.shape, dtype)
        x = _load_frame(clip_ptr, 0, stride_t, source, mirrored, mask, LAST, V, RUN)
        for t in range(T):
            after = _load_frame(clip_ptr, t + 1, stride_t, source, mirrored, mask, LAST, V, RUN)
            rgb = ((x * SCALE - mean) * factor).to(dtype)
            # Scaled after the subtraction: equal frames differ by exactly 0, fused multiply-add or not.
            difference = ((after - x) * (SCALE * factor)).to(dtype)
            tl.store(rgb_ptr + t * length + out, rgb, mask=mask)
            tl.store(difference_ptr + t * length + out, difference, mask=mask)
            still = tl.where(t == still_t, rgb, still)
            x = after
        for t in range(T):
            tl.store(static_ptr + t * length + out, still, mask=mask)

    @triton.jit(do_not_specialize=[*_GRADIENT_STRIDES, "C", "T", "H", "W"])
    def decouple_backward_kernel(
        rgb_ptr, rgb_stride_b, rgb_stride_c, rgb_stride_t, rgb_stride_h, rgb_stride_w,
        static_ptr, static_stride_b, static_stride_c, static_stride_t, static_stride_h, static_stride_w,
        difference_ptr, difference_stride_b, difference_stride_c, difference_stride_t, difference_stride_h,
        difference_stride_w, index_ptr, flip_ptr, std_ptr, out_ptr, C, T, H, W,
        RGB_RUN: tl.constexpr, STATIC_RUN: tl.constexpr, DIFFERENCE_RUN: tl.constexpr,
        LAST: tl.constexpr, V: tl.constexpr, ROWS: tl.constexpr, RUNS: tl.constexpr,
    ):  # fmt: skip
        """Gradient of the clip from those of the three results; an absent one is 0."""
        b, c, run, mask, length = _tile(C, H, W, LAST, V, ROWS, RUNS)
        mirrored = tl.load(flip_ptr + b) if flip_ptr is not None else False
        still_t = tl.load(index_ptr + b)
        factor = 1.0 / _per_channel(std_ptr, c, C, 1.0, LAST)
        strides = (
            (rgb_stride_b, rgb_stride_c, rgb_stride_h, rgb_stride_w),
            (static_stride_b, static_stride_c, static_stride_h, static_stride_w),
            (difference_stride_b, difference_stride_c, difference_stride_h, difference_stride_w),
        )
        runs = (RGB_RUN, STATIC_RUN, DIFFERENCE_RUN)
        source = [_source(b, c, run, mirrored, C, W, strides[i], LAST, V, runs[i]) for i in (0, 1, 2)]
        out = (b if LAST else b * C + c) * (T + 1) * length + run * V + tl.arange(0, V)[None, None, :]
        still = tl.zeros(mask.shape, tl.float32)
        if static_ptr is not None:
            for t in range(T):
                still += _load_frame(static_ptr, t, static_stride_t, source[1], mirrored, mask, LAST, V, STATIC_RUN)
        before = tl.zeros(mask.shape, tl.float32)
        dtype = out_ptr.dtype.element_ty
        for t in range(T):
            grad = before + tl.where(t == still_t, still, 0.0)
            if rgb_ptr is not None:
                grad += _load_frame(rgb_ptr, t, rgb_stride_t, source[0], mirrored, mask, LAST, V, RGB_RUN)
            if difference_ptr is not None:
                before = _load_frame(
                    difference_ptr, t, difference_stride_t, source[2], mirrored, mask, LAST, V, DIFFERENCE_RUN
                )
                grad -= before
            tl.store(out_ptr + t * length + out, (grad * factor).to(dtype), mask=mask)
        tl.store(out_ptr + T * length + out, (before * factor).to(dtype), mask=mask)


@lru_cache
def frame_plan(
    config: ClipTile, shape: tuple[int, ...], itemsize: int, last: bool, flipped: bool, *strides: tuple[int, ...] | None
) -> tuple[tuple[int, int], tuple[int, int], list[bool], dict[str, int]]:
    """How a launch goes through clips of one shape (B, C, T, H, W), read with these strides, None of an absent one.

    Returns the grid; H and W, or 1 and H * W where rows follow each other in all clips and nothing is mirrored; of each
    clip, whether runs of a tile are runs in it; and the constants. `itemsize` and `last` are those of what is written.
    """
    batch, channels, frames, height, width = shape
    if not flipped and all(height == 1 or stride is None or stride[3] == width * stride[4] for stride in strides):
        height, width = 1, height * width
    rows = 1 if last else min(4, next_power_of_2(channels))
    length = height * width * (channels if last else 1)
    run = math.gcd(16 // itemsize, length)
    runs = max(1, min(config.elements // rows, next_power_of_2(length)) // run)

    def in_runs(stride: tuple[int, ...] | None) -> bool:
        if stride is None:
            return False
        b, c, t, h, w = stride
        if last:
            return not flipped and height == 1 and (w, c) == (channels, 1) and b % run == t % run == 0
        outer = (batch, b), (channels, c), (frames, t), (height, h)
        return w == 1 and not any(step % run for step in (width, *(step for n, step in outer if n > 1)))

    grid = batch * cdiv(length, runs * run), 1 if last else cdiv(channels, rows)
    constants = {"LAST": last, "V": run, "ROWS": rows, "RUNS": runs, **config.options()}
    return grid, (height, width), [in_runs(stride) for stride in strides], constants


def launch_forward(
    clip: Tensor, index: Tensor, flip: Tensor | None, mean: Tensor | None, std: Tensor | None, dtype: torch.dtype,
    last: bool, *outs: Tensor,
) -> None:  # fmt: skip
    """Fill clip, static clip and difference, dense in the order that `last` says."""
    config, flipped = device_row(CONFIGS, clip.device)["walk"], flip is not None
    grid, size, (run,), constants = frame_plan(config, clip.shape, dtype.itemsize, last, flipped, clip.stride())
    decouple_kernel[grid](
        clip, *clip.stride(), *dense(index, flip, mean, std), *outs, clip.shape[1], clip.shape[2] - 1, *size,
        SCALE=1 / levels(clip), RUN=run, **constants,
    )  # fmt: skip


def launch_backward(
    rgb: Tensor | None, static: Tensor | None, difference: Tensor | None, index: Tensor, flip: Tensor | None,
    std: Tensor | None, clip_shape: Sequence[int], dtype: torch.dtype, last: bool, out: Tensor,
) -> None:  # fmt: skip
    """Fill the gradient of the clip (B, C, T+1, H, W), dense, from those of its parts, of any strides."""
    grads, (batch, channels, frames, *size) = (rgb, static, difference), clip_shape
    config, shape = device_row(CONFIGS, out.device)["walk"], (batch, channels, frames - 1, *size)
    strides = (None if grad is None else grad.stride() for grad in grads)
    grid, size, runs, constants = frame_plan(config, shape, dtype.itemsize, last, flip is not None, *strides)
    decouple_backward_kernel[grid](
        *strided(*grads, rank=5), *dense(index, flip, std), out, channels, frames - 1, *size,
        **dict(zip(("RGB_RUN", "STATIC_RUN", "DIFFERENCE_RUN"), runs)), **constants,
    )  # fmt: skip
