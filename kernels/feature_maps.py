"""What the kernels over feature maps share: tiles of channels x positions, and how wide an access may be.

A tile is (ROWS, BLOCK_C, LANES), where position = first + row * LANES + lane: rows stay within a thread, so that a sum
over positions crosses few threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ._common import Config, cdiv, device_row, next_power_of_2, tl, triton


@dataclass(frozen=True)
class FeatureMapTile(Config):
    """Positions and elements of a tile; STAGES tiles are in flight at once, in shared memory.

    `last_positions`: where channels are last in memory, and fewer positions leave longer runs of channels.
    """

    positions: int
    elements: int
    STAGES: int | None = None
    last_positions: int | None = None


# In kernels that read maps and in those that write gradients. Without `maxnreg`, NVIDIA's assembler would spill a value
# or two for more programs.
_WRITE, _READ_SM90 = FeatureMapTile(8, 128, 8192), FeatureMapTile(16, 128, 4096, 5, maxnreg=128)
CONFIGS = {
    "default": {"read": FeatureMapTile(8, 128, 4096, 2), "write": _WRITE},
    "sm_80": {"read": FeatureMapTile(8, 128, 2048, 4, maxnreg=128), "write": _WRITE},
    "sm_90": {"read": _READ_SM90, "write": FeatureMapTile(4, 128, 4096, last_positions=32)},
    "sm_100": {"read": _READ_SM90, "write": _WRITE},
}


if triton is not None:

    @triton.jit
    def tile_positions(first, ROWS: tl.constexpr, LANES: tl.constexpr):
        """Positions (ROWS, LANES) of the tile that starts at `first`."""
        return first + tl.arange(0, ROWS)[:, None] * LANES + tl.arange(0, LANES)[None, :]

    @triton.jit
    def tile_offset(b, c, p, stride_b, stride_c, stride_p, VEC_C: tl.constexpr, VEC_P: tl.constexpr):
        """Offsets of a tile. Where VEC > 1, that axis has stride 1 and the other strides are multiples of VEC, which
        the compiler cannot know of a stride such as 98 unless it is written so."""
        b, c, p = b.to(tl.int64), c.to(tl.int64)[None, :, None], tl.expand_dims(p, 1).to(tl.int64)
        if VEC_P > 1:
            return b * (stride_b // VEC_P * VEC_P) + c * (stride_c // VEC_P * VEC_P) + p
        elif VEC_C > 1:
            return b * (stride_b // VEC_C * VEC_C) + c + p * (stride_p // VEC_C * VEC_C)
        else:
            return b * stride_b + c * stride_c + p * stride_p

    @triton.jit
    def tile_mask(c, p, C, P):
        return (c < C)[None, :, None] & tl.expand_dims(p < P, 1)

    @triton.jit
    def sign(x):
        return (x > 0).to(tl.float32) - (x < 0).to(tl.float32)

    @triton.jit
    def load_pool(ptr, first, c, stride_c, C):
        """(1, BLOCK_C, 1) of a pool or its gradient; an absent gradient is 0."""
        if ptr is None:
            return tl.zeros(c.shape, tl.float32)[None, :, None]
        else:
            return tl.load(ptr + first + c.to(tl.int64) * stride_c, mask=c < C, other=0).to(tl.float32)[None, :, None]

    @triton.jit
    def pool_weight(activation, total, P):
        """Uniform where the activation sums to 0."""
        return tl.where(total == 0, 1.0 / P, activation / tl.where(total == 0, 1.0, total))


def vector_sizes(shape_bcp: torch.Size, *strides_bcp: tuple[int, ...]) -> dict[str, int]:
    """Elements that any access may span, along channels and along positions: powers of two up to 16."""

    def along(axis: int) -> int:
        if any(strides[axis] != 1 for strides in strides_bcp):
            return 1
        others = (stride for strides in strides_bcp for i, stride in enumerate(strides) if i != axis)
        return math.gcd(16, shape_bcp[axis], *others)

    return {"VEC_P": along(2), "VEC_C": along(1) if along(2) == 1 else 1}


@lru_cache
def map_plan(
    config: FeatureMapTile, axes: str, shape_bcp: torch.Size, *strides_bcp: tuple[int, ...]
) -> tuple[tuple[int, ...], dict[str, int]]:
    """Grid and constants of a launch over feature maps of one shape: vector widths, tile sizes, warps, stages."""
    batch, channels, positions = shape_bcp
    vectors = vector_sizes(shape_bcp, *strides_bcp)
    longest = (config.last_positions if vectors["VEC_C"] > 1 else None) or config.positions
    block_p = min(longest, next_power_of_2(positions))
    block_c = min(config.elements // block_p, next_power_of_2(channels))
    lanes = min(16, block_p)
    tile = {"ROWS": block_p // lanes, "BLOCK_C": block_c, "LANES": lanes}
    blocks = {"c": cdiv(channels, block_c), "p": cdiv(positions, block_p)}
    return (batch, *(blocks[axis] for axis in axes)), {**vectors, **tile, **config.options("STAGES")}


def launch_over_maps(kernel: Callable, kind: str, axes: str, maps_bcp: Sequence[Tensor], *arguments) -> None:
    """Launch a "read" or "write" kernel with `arguments`, the numbers of channels and positions, and its constants.

    Programs are samples x blocks of channels, of positions or of both, as `axes` says: "c", "p" or "cp".
    """
    config = device_row(CONFIGS, maps_bcp[0].device)[kind]
    grid, sizes = map_plan(config, axes, maps_bcp[0].shape, *(maps.stride() for maps in maps_bcp))
    kernel[grid](*arguments, *maps_bcp[0].shape[1:], **sizes)


def empty_gradient(features: Tensor) -> Tensor:
    """Uninitialised tensor of the same shape and dtype, contiguous, or channels last where `features` is."""
    channels_last = not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last_3d)
    return torch.empty_like(
        features, memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format
    )
