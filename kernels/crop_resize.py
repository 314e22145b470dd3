"""Crop boxes of YUV 4:2:0 clips, as decoders give them, to RGB clips of one size.

    rgb = round(M (A_h Y A_w^T, A_h U' A_w^T, A_h V' A_w^T, 1)),    cut off at 0 and 255
    A[i, j] = max(0, 1 - |j + 1/2 - (i + 1/2) h / s| / max(h / s, 1)), rows divided by their sums

A is the antialiased triangle filter of `F.interpolate(mode="bilinear", antialias=True)`, from the h rows of the box to
s; beyond the box there is nothing. U' and V' are the chroma planes with each value repeated for the 2 x 2 pixels that
share it, as FFmpeg's own conversion to RGB has it. Both steps are linear: converting first and resizing then gives the
same, but for rounding and for pixels whose colour is cut off.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import check_count, check_kind, check_tensors, expect, has_values, register_op, tl, triton
from .clips import ClipTile, dense, pixel_grid

CONFIGS = {"default": {"run": ClipTile(4, 256)}}

GEOMETRY = 5  # values of a clip in the table of boxes


# Reference


def crop_resize_yuv_reference(
    planes: Tensor, geometry: Tensor, matrix: Tensor, frames: int, size: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Plain PyTorch form of `crop_resize_yuv`, which computes in `dtype`, clip by clip."""
    clips = [torch.empty((0, frames, size, size, 3), dtype=torch.uint8, device=planes.device)]
    for box, affine in zip(geometry.tolist(), matrix.to(dtype)):
        yuv_tchw = F.interpolate(unpacked(planes, box, frames).to(dtype), (size, size), mode="bilinear", antialias=True)
        rgb_thwc = yuv_tchw.permute(0, 2, 3, 1) @ affine[:, :3].T + affine[:, 3]
        clips.append((rgb_thwc.clamp(0, 255) + 0.5).to(torch.uint8)[None])
    return torch.cat(clips)


def unpacked(planes: Tensor, box: list[int], frames: int) -> Tensor:
    """Y, U and V of each pixel of one clip's box: uint8 (T, 3, h, w)."""
    start, height, width, odd_h, odd_w = box
    shapes = [(height, width), *[((height + odd_h + 1) // 2, (width + odd_w + 1) // 2)] * 2]
    parts = planes[start:].split([*(frames * h * w for h, w in shapes), planes.numel() - start - _count(box, frames)])
    y, *chroma = (part.view(frames, *shape) for part, shape in zip(parts, shapes))
    wide = (part.repeat_interleave(2, 1).repeat_interleave(2, 2) for part in chroma)
    return torch.stack([y, *(part[:, odd_h : odd_h + height, odd_w : odd_w + width] for part in wide)], 1)


def _count(box: list[int], frames: int) -> int:
    """Elements of a clip's three planes."""
    _, height, width, odd_h, odd_w = box
    return frames * (height * width + 2 * ((height + odd_h + 1) // 2) * ((width + odd_w + 1) // 2))


# Triton

# A program has a run of pixels of one frame. It goes through the pixels under their filter by blocks of 2 x 2, which
# share their chroma, in as many steps as the scale factor takes. Neighbouring pixels read nearly the same ones, out of
# the cache.

if triton is not None:
    from .clips import pixel_tile, store_rgb

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
    def _load_plane(frame_ptr, row, column, width, mask):
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
        frame, p, mask = pixel_tile(S * S, P)
        b, t = frame // T, frame % T
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
                y += above * left * _load_plane(y_ptr, row, column, w, upper & (left > 0))
                y += above * right * _load_plane(y_ptr, row, column + 1, w, upper & (right > 0))
                y += below * left * _load_plane(y_ptr, row + 1, column, w, lower & (left > 0))
                y += below * right * _load_plane(y_ptr, row + 1, column + 1, w, lower & (right > 0))
                weight = (above + below) * (left + right)
                used = inside & (weight > 0)
                u += weight * _load_plane(u_ptr, block_h, block_w, half_w, used)
                v += weight * _load_plane(v_ptr, block_h, block_w, half_w, used)
                total += weight
        total = tl.where(total > 0, total, 1.0)
        y, u, v = y / total, u / total, v / total
        matrix_ptr += b * 12
        rgb = [_byte(matrix_ptr + row, y, u, v) for row in (0, 4, 8)]
        store_rgb(out_ptr + frame * S * S * 3, p.to(tl.int64), rgb, mask)


def _launch_crops(planes: Tensor, geometry: Tensor, matrix: Tensor, frames: int, size: int, result: Tensor) -> None:
    """Fill `result` (B, T, size, size, 3), contiguous."""
    small = dense(planes, geometry, matrix)
    grid, sizes = pixel_grid(CONFIGS, "run", planes.device, len(geometry) * frames, size * size)
    crop_resize_yuv_kernel[grid](*small, result, len(planes), frames, size, GEOMETRY=GEOMETRY, **sizes)


# Op


def _empty_crops(planes: Tensor, geometry: Tensor, matrix: Tensor, frames: int, size: int) -> Tensor:
    return torch.empty((geometry.shape[0], frames, size, size, 3), dtype=torch.uint8, device=planes.device)


register_op(
    "crop_resize_yuv(Tensor planes, Tensor geometry, Tensor matrix, int frames, int size) -> Tensor",
    _empty_crops,
    crop_resize_yuv_reference,
    _launch_crops,
)


# Public function


def crop_resize_yuv(planes: Tensor, geometry: Tensor, matrix: Tensor, frames: int, size: int) -> Tensor:
    """RGB clips of one size, from crop boxes of any sizes in YUV 4:2:0.

    Args:
        planes: (N,) uint8, the boxes of all clips one after the other: of each the luma (T, h, w), then the two chroma
            planes (T, h', w') that cover it.
        geometry: (B, 5) int64, of each clip: where it starts in `planes`; h and w, h * w < 2^31; and for rows and
            columns 1 where the box begins with the second of the two pixels that share their chroma, else 0. So
            h' = (h + odd + 1) // 2.
            Wrong ones are an error where the tensor is on the CPU; on a GPU a box that is not in `planes` reads as 0.
        matrix: (B, 3, 4) float32: R, G and B are `matrix @ (Y, U, V, 1)`, all in [0, 255].
        frames: T, of every clip.
        size: of the results' sides.

    Returns:
        uint8 (B, T, size, size, 3), contiguous; channels last, as decoders have it. Nothing here has a gradient.

    Raises:
        TypeError, ValueError: a wrong rank, size, dtype or device, named.
    """
    check_tensors(planes=planes, geometry=geometry, matrix=matrix)
    check_kind("planes", planes, torch.uint8)
    check_kind("geometry", geometry, torch.int64)
    expect(planes.dim() == 1, "planes", tuple(planes.shape), "(N,)")
    right = geometry.dim() == 2 and geometry.shape[1] == GEOMETRY
    expect(right, "geometry", tuple(geometry.shape), f"(B, {GEOMETRY})")
    check_kind("matrix", matrix, torch.float32, (geometry.shape[0], 3, 4))
    check_count("frames", frames, 1)
    check_count("size", size, 1, 2**15 - 1)
    if has_values(geometry):
        _check_boxes(planes, geometry, frames)
    return torch.ops.dclr.crop_resize_yuv(planes, geometry, matrix, frames, size)


def _check_boxes(planes: Tensor, geometry: Tensor, frames: int) -> None:
    for number, box in enumerate(geometry.tolist()):
        start, height, width, *odd = box
        right = start >= 0 and height > 0 and width > 0 and height * width < 2**31 and set(odd) <= {0, 1}
        right = right and start + _count(box, frames) <= planes.numel()
        expect(right, f"geometry[{number}]", box, lambda: f"a box of {frames} frames in {planes.numel()} elements")
