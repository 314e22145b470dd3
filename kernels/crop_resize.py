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

from ._common import check, check_count, check_tensors, define_op, has_values, runs_triton
from ._crop_resize import GEOMETRY, launch

_library = torch.library.Library("dclr", "FRAGMENT")


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


# Op


def _empty_result(planes: Tensor, geometry: Tensor, frames: int, size: int) -> Tensor:
    return torch.empty((geometry.shape[0], frames, size, size, 3), dtype=torch.uint8, device=planes.device)


def _crop_resize_yuv(planes: Tensor, geometry: Tensor, matrix: Tensor, frames: int, size: int) -> Tensor:
    planes, geometry, matrix = planes.contiguous(), geometry.contiguous(), matrix.contiguous()
    if not runs_triton(planes):
        return crop_resize_yuv_reference(planes, geometry, matrix, frames, size)
    result = _empty_result(planes, geometry, frames, size)
    if result.numel():
        launch(planes, geometry, matrix, result)
    return result


define_op(
    _library,
    "crop_resize_yuv(Tensor planes, Tensor geometry, Tensor matrix, int frames, int size) -> Tensor",
    _crop_resize_yuv,
)


@torch.library.register_fake("dclr::crop_resize_yuv", lib=_library)
def _(planes, geometry, matrix, frames, size):
    return _empty_result(planes, geometry, frames, size)


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
    for name, tensor, dtype in (("planes", planes, torch.uint8), ("geometry", geometry, torch.int64)):
        check(tensor.dtype == dtype, name, tensor.dtype, dtype, TypeError)
    check(matrix.dtype == torch.float32, "matrix", matrix.dtype, "torch.float32", TypeError)
    check(planes.dim() == 1, "planes", tuple(planes.shape), "(N,)")
    right = geometry.dim() == 2 and geometry.shape[1] == GEOMETRY
    check(right, "geometry", tuple(geometry.shape), f"(B, {GEOMETRY})")
    expected = (geometry.shape[0], 3, 4)
    check(tuple(matrix.shape) == expected, "matrix", tuple(matrix.shape), expected)
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
        check(right, f"geometry[{number}]", box, lambda: f"a box of {frames} frames in {planes.numel()} elements")
