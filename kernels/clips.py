"""What the kernels over clips share: checks, references, and programs that have a tile of the pixels of one frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ._common import (
    FLOAT_DTYPES,
    Config,
    cdiv,
    check_kind,
    check_rows,
    device_row,
    expect,
    next_power_of_2,
    tl,
    triton,
    wide_dtype,
)

# Arguments of the kernels that no kernel is specialised on.
CLIP_STRIDES = ["stride_b", "stride_c", "stride_t", "stride_h", "stride_w"]


@dataclass(frozen=True)
class ClipTile(Config):
    """Pixels of a tile or of a step through a frame, or the tile's elements; FRAMES it has of them at a time."""

    elements: int
    FRAMES: int | None = None


def check_clip(
    clip: Tensor, flip: Tensor | None, index: Tensor | None, expected: str, frames: int, channels: int | None = 3
) -> None:
    """A clip of the `expected` shape, of `frames` or more; `flip` and `static_index` of its samples where given."""
    known = clip.dtype in FLOAT_DTYPES or clip.dtype == torch.uint8
    expect(known, "clip", clip.dtype, "uint8 or a floating dtype", TypeError)
    right = clip.dim() == 5 and clip.shape[2] >= frames and (channels is None or clip.shape[1] == channels)
    expect(right, "clip", tuple(clip.shape), expected)
    small = clip.shape[1] * clip.shape[3] * clip.shape[4] < 2**31
    expect(small, "clip", tuple(clip.shape), "frames of fewer than 2^31 elements")
    check_kind("flip", flip, torch.bool, (clip.shape[0],))
    if index is not None:
        expect(tuple(index.shape) == (clip.shape[0],), "static_index", tuple(index.shape), (clip.shape[0],))
        check_rows("static_index", index, clip.shape[2] - 1)


# Reference


def levels(clip: Tensor) -> int:
    """What 1 is in a clip's values."""
    return 255 if clip.dtype == torch.uint8 else 1


def mirrored(x: Tensor, flip: Tensor | None) -> Tensor:
    """`x` (B, ..., W), its last axis turned round where `flip` (B,) says so."""
    return x if flip is None else torch.where(flip.view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)


def unit_clip(clip: Tensor, flip: Tensor | None) -> Tensor:
    """The mirrored clip with values in [0, 1]; float32, or float64 for a float64 clip."""
    wide = clip.to(wide_dtype(clip))
    return mirrored(wide / 255 if clip.dtype == torch.uint8 else wide, flip)


# Triton

if triton is not None:

    @triton.jit
    def pixel_tile(pixels, P: tl.constexpr):
        """Of a program, one of those of `pixel_grid`: its sample, which of its pixels, and which of them there are."""
        tiles = tl.cdiv(pixels, P)
        p = tl.program_id(0) % tiles * P + tl.arange(0, P)
        return (tl.program_id(0) // tiles).to(tl.int64), p, p < pixels

    @triton.jit
    def pixel_offset(h, w, W, flipped, stride_h, stride_w):
        """Of the pixels of the mirrored, or plain, frame."""
        w = tl.where(flipped, W - 1 - w, w)
        return h.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w

    @triton.jit
    def load_rgb(frame_ptr, stride_c, offset, mask, dtype: tl.constexpr):
        """Red, green and blue of the pixels at `offset`, in `dtype`, as they are stored."""
        stride_c = stride_c.to(tl.int64)
        return [tl.load(frame_ptr + i * stride_c + offset, mask=mask, other=0).to(dtype) for i in (0, 1, 2)]

    @triton.jit
    def store_rgb(frame_ptr, pixel, rgb, mask):
        """Into a frame with channels last; padded to four, so that neighbouring threads write neighbouring elements."""
        c = tl.arange(0, 4)[None, :]
        r, g, b = [x.to(frame_ptr.dtype.element_ty) for x in rgb]
        # In the order of memory r, g, b, and a fourth that the mask drops.
        x = tl.reshape(tl.join(tl.join(r, b), tl.join(g, b)), (r.shape[0], 4))
        tl.store(frame_ptr + (pixel[:, None] * 3 + c), x, mask=mask[:, None] & (c < 3))


def dense(*tensors: Tensor | None) -> list[Tensor | None]:
    """The small arguments of a launch, contiguous; all but strided ones are so already."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def pixel_grid(table: dict[str, dict], kind: str, device: torch.device, samples: int, pixels: int) -> tuple:
    """Grid and constants of a launch over tiles of samples of so many pixels."""
    return _pixel_tiles(device_row(table, device)[kind], samples, pixels)


@lru_cache
def _pixel_tiles(config: ClipTile, samples: int, pixels: int) -> tuple[tuple[int], dict[str, int]]:
    tile = min(config.elements, next_power_of_2(pixels))
    return (samples * cdiv(pixels, tile),), {"P": tile, **config.options("FRAMES")}
