"""Triton kernel of `crop_resize_yuv`: one pass, each output pixel written once.

A program has a run of pixels of one frame. It goes through the pixels under their filter by blocks of 2 x 2, which
share their chroma, in as many steps as the scale factor takes. Neighbouring pixels read nearly the same ones, out of
the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import device_class, tl, triton

# `elements`: pixels of a program.
CONFIGS = {"default": {"elements": 256, "num_warps": 4}}

GEOMETRY = 5  # values of a clip in the table of boxes

if triton is not None:

    @triton.jit
    def _taps(i, length, odd, size):
        """Of the output pixels `i`: center and reach of the filter, its first block and how many there are."""
        scale = length.to(tl.float32) / size
        center = (i + 0.5) * scale
        reach = tl.maximum(scale, 1.0)
        first = tl.maximum(tl.floor(center - reach + 0.5).to(tl.int32), 0)
        pixels = tl.minimum((2 * tl.maximum(length, size) + size - 1) // size, length)
        return center, 1 / reach, (first + odd) // 2, pixels // 2 + 1

    @triton.jit
    def _weight(j, center, slope, length):
        """Of the box's pixel `j`; 0 where the box has none."""
        weight = tl.maximum(1 - tl.abs(j + 0.5 - center) * slope, 0.0)
        return tl.where((j >= 0) & (j < length), weight, 0.0)

    @triton.jit
    def _load(frame_ptr, row, column, width, mask):
        return tl.load(frame_ptr + (row * width + column), mask=mask, other=0).to(tl.float32)

    @triton.jit
    def _byte(row, y, u, v):
        """One channel of `row`, which is of the matrix."""
        value = tl.load(row) * y + tl.load(row + 1) * u + tl.load(row + 2) * v + tl.load(row + 3)
        return (tl.minimum(tl.maximum(value, 0.0), 255.0) + 0.5).to(tl.uint8)

    @triton.jit(do_not_specialize=["count", "T", "S"])
    def crop_resize_yuv_kernel(
        planes_ptr, geometry_ptr, matrix_ptr, out_ptr, count, T, S, GEOMETRY: tl.constexpr, P: tl.constexpr
    ):
        tiles = tl.cdiv(S * S, P)
        frame = (tl.program_id(0) // tiles).to(tl.int64)
        b, t = frame // T, frame % T
        p = tl.program_id(0) % tiles * P + tl.arange(0, P)
        box = geometry_ptr + b * GEOMETRY
        start, h, w = tl.load(box), tl.load(box + 1), tl.load(box + 2)
        odd_h, odd_w = (tl.load(box + 3) & 1).to(tl.int32), (tl.load(box + 4) & 1).to(tl.int32)
        half_w = (w + odd_w + 1) // 2
        luma, chroma = h * w, (h + odd_h + 1) // 2 * half_w
        # A frame's own offsets are then below 2^31.
        known = (start >= 0) & (h > 0) & (w > 0) & (luma < 2**31) & (start + T * (luma + 2 * chroma) <= count)
        inside = p < tl.where(known, S * S, 0)
        y_ptr = planes_ptr + start + t * luma
        u_ptr = planes_ptr + start + T * luma + t * chroma
        v_ptr = u_ptr + T * chroma
        h, w = tl.where(known, h, 1).to(tl.int32), tl.where(known, w, 1).to(tl.int32)
        half_w = half_w.to(tl.int32)
        center_h, slope_h, first_h, blocks_h = _taps(p // S, h, odd_h, S)
        center_w, slope_w, first_w, blocks_w = _taps(p % S, w, odd_w, S)
        y = tl.zeros((P,), tl.float32)
        u, v, total = y, y, y
        for k_h in range(blocks_h):
            block_h = first_h + k_h
            row = 2 * block_h - odd_h
            above, below = _weight(row, center_h, slope_h, h), _weight(row + 1, center_h, slope_h, h)
            upper, lower = inside & (above > 0), inside & (below > 0)
            for k_w in range(blocks_w):
                block_w = first_w + k_w
                column = 2 * block_w - odd_w
                left, right = _weight(column, center_w, slope_w, w), _weight(column + 1, center_w, slope_w, w)
                y += above * left * _load(y_ptr, row, column, w, upper & (left > 0))
                y += above * right * _load(y_ptr, row, column + 1, w, upper & (right > 0))
                y += below * left * _load(y_ptr, row + 1, column, w, lower & (left > 0))
                y += below * right * _load(y_ptr, row + 1, column + 1, w, lower & (right > 0))
                weight = (above + below) * (left + right)
                used = inside & (weight > 0)
                u += weight * _load(u_ptr, block_h, block_w, half_w, used)
                v += weight * _load(v_ptr, block_h, block_w, half_w, used)
                total += weight
        total = tl.where(total > 0, total, 1.0)
        y, u, v = y / total, u / total, v / total
        matrix_ptr += b * 12
        red, green, blue = _byte(matrix_ptr, y, u, v), _byte(matrix_ptr + 4, y, u, v), _byte(matrix_ptr + 8, y, u, v)
        # Padded to four, so that neighbouring threads write neighbouring bytes: red, green, blue, one that is masked.
        rgb = tl.reshape(tl.join(tl.join(red, blue), tl.join(green, blue)), (P, 4))
        c = tl.arange(0, 4)[None, :]
        offset = frame * S * S * 3 + p[:, None].to(tl.int64) * 3 + c
        tl.store(out_ptr + offset, rgb, mask=(p < S * S)[:, None] & (c < 3))


def launch(planes: Tensor, geometry: Tensor, matrix: Tensor, result: Tensor) -> None:
    """Fill `result` (B, T, size, size, 3); all contiguous."""
    batch, frames, size = result.shape[:3]
    config = dict(CONFIGS.get(device_class(planes.device), CONFIGS["default"]))
    elements = min(config.pop("elements"), triton.next_power_of_2(size * size))
    grid = (batch * frames * triton.cdiv(size * size, elements),)
    with torch.cuda.device_of(planes):
        crop_resize_yuv_kernel[grid](
            planes, geometry, matrix, result, planes.numel(), frames, size, GEOMETRY=GEOMETRY, P=elements, **config
        )
