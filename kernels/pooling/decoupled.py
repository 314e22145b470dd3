"""Triton kernels of `decoupled_pool`: each of the three feature maps is read once.

The static and difference maps come first, then RGB once for its map and its three pools, then the alignment, which
needs the whole RGB map. One program does all of it for a sample and keeps the small maps in registers. Where the batch
is too small to fill the device, or a map too large for one tile, the phases are launches over chunks and tiles instead.

Of 16-bit features, the pools of a tile are one matrix product, features (channels x positions) by weights (positions x
16, of which the first three columns are used): matrix units add across threads, which else costs more instructions than
all the rest. Weights are cut into pieces of 16 bits, whose products are exact, so that the sums are those of float32.
The sums of |F| stay in a thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .._common import INTERPRET, cdiv, device_row, next_power_of_2, strided, tl, triton
from ..activation import launch_align
from ..feature_maps import FeatureMapTile, launch_over_maps, vector_sizes


@dataclass(frozen=True)
class Split:
    """Below `programs` samples, the channels of one are split among `chunks` programs, for two more launches."""

    programs: int
    chunks: int


# Of the reading kernel, by the size of an element in bytes, and when it is split.
_SPLIT = Split(128, 2)
_READ = {2: FeatureMapTile(4, 128, 4096, 4), 4: FeatureMapTile(8, 128, 4096, 4)}
CONFIGS = {
    "default": {"read": {2: FeatureMapTile(4, 128, 8192, 2), 4: FeatureMapTile(8, 128, 4096, 2)}, "split": _SPLIT},
    "sm_80": {"read": _READ, "split": _SPLIT},
    "sm_90": {"read": _READ | {2: FeatureMapTile(4, 128, 8192, 3)}, "split": _SPLIT},
    "sm_100": {"read": _READ, "split": _SPLIT},
}

# Of 16 bits, that a float32 weight is cut into; none where features have 32 bits themselves.
PIECES = {torch.bfloat16: 3, torch.float16: 2, torch.float32: 0}

if triton is not None:
    from ..activation import align_maps, load_map
    from ..feature_maps import load_pool, pool_weight, sign, tile_mask, tile_offset, tile_positions

    MOST = tl.constexpr(16384)

    @triton.jit
    def _load_tile(x_ptr, b, c, p, stride_b, stride_c, stride_p, C, P, LAST: tl.constexpr, VEC: tl.constexpr):
        """Channels x positions, or positions x channels if LAST.

        Strides are multiples of VEC, which the compiler cannot know of a stride such as 98 unless it is written so.
        """
        c, p = c.to(tl.int64), p.to(tl.int64)
        x_ptr += b * (stride_b // VEC * VEC)
        if LAST:
            offset = p[:, None] * (stride_p // VEC * VEC) + c[None, :]
            return tl.load(x_ptr + offset, mask=(p < P)[:, None] & (c < C)[None, :], other=0)
        else:
            offset = c[:, None] * (stride_c // VEC * VEC) + (p * (1 if VEC > 1 else stride_p))[None, :]
            return tl.load(x_ptr + offset, mask=(c < C)[:, None] & (p < P)[None, :], other=0)

    @triton.jit
    def _weight_pieces(p, static_weight, difference_weight, P, dtype: tl.constexpr):
        """Three matrices (BLOCK_P, 16) of 16-bit numbers whose sum is 1, P times as much as the average's weight, and P
        times the given weights, at most MOST times: so they are near 1, where float16 has all its bits."""
        column, times = tl.arange(0, 16)[None, :], tl.minimum(P, MOST)
        weight = tl.where(column == 0, 1.0, 0.0) + tl.where(column == 1, static_weight[:, None] * times, 0.0)
        weight += tl.where(column == 2, difference_weight[:, None] * times, 0.0)
        weight = tl.where((p < P)[:, None], weight, 0.0)
        first = weight.to(dtype)
        rest = weight - first.to(tl.float32)
        second = rest.to(dtype)
        return first, second, (rest - second.to(tl.float32)).to(dtype)

    @triton.jit
    def _read(
        x_ptr, b, p, strides, weights, outs, c_begin, c_end, C, P,
        PIECES: tl.constexpr, POOLS: tl.constexpr, LAST: tl.constexpr, VEC: tl.constexpr,
        BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        """The activation map at `p` of the channels from `c_begin` to `c_end`, whose first POOLS pools are stored.

        These are the average, and those by both `weights` (BLOCK_P,): products of features of 16 bits with PIECES of
        the weights, else sums.
        """
        AXIS: tl.constexpr = 0 if LAST else 1  # of the positions
        if PIECES > 0:
            pieces = _weight_pieces(p, weights[0], weights[1], P, x_ptr.dtype.element_ty)
            column = tl.arange(0, 16)[None, :]
            unit = tl.where(column == 0, 1.0 / P, 1.0 / tl.minimum(P, MOST))
        total = tl.zeros((BLOCK_P, BLOCK_C) if LAST else (BLOCK_C, BLOCK_P), tl.float32)
        for first in tl.range(c_begin, c_end, BLOCK_C, num_stages=STAGES):
            c = first + tl.arange(0, BLOCK_C)
            x = _load_tile(x_ptr, b, c, p, strides[0], strides[1], strides[2], C, P, LAST, VEC)
            if PIECES > 0:
                pools = tl.zeros((BLOCK_C, 16), tl.float32)
                for i in tl.static_range(1 if POOLS == 1 else PIECES):
                    pools = tl.dot(tl.trans(x) if LAST else x, pieces[i], pools)
                pools *= unit
                total += tl.abs(x.to(tl.float32))
                place = c[:, None] + tl.zeros((1, 16), tl.int32)
                for i in tl.static_range(POOLS):
                    tl.store(outs[i] + place, pools, mask=(c < C)[:, None] & (column == i))
            else:
                x = x.to(tl.float32)
                total += tl.abs(x)
                tl.store(outs[0] + c, tl.sum(x, AXIS) / P, mask=c < C)
                for i in tl.static_range(1, POOLS):
                    pool = tl.sum(x * tl.expand_dims(weights[i - 1], 1 - AXIS), AXIS)
                    tl.store(outs[i] + c, pool, mask=c < C)
        return tl.sum(total, 1 - AXIS)

    @triton.jit
    def _head_kernel(
        rgb_ptr, rgb_stride_b, rgb_stride_c, rgb_stride_p,
        static_ptr, static_stride_b, static_stride_c, static_stride_p,
        difference_ptr, difference_stride_b, difference_stride_c, difference_stride_p,
        rgb_pool_ptr, rgb_static_ptr, rgb_difference_ptr, static_pool_ptr, difference_pool_ptr, alignment_ptr,
        saved_ptr, maps_ptr, C, P, chunk_size, chunks, MASKS: tl.constexpr, RGB: tl.constexpr,
        PIECES: tl.constexpr, LAST: tl.constexpr, VEC: tl.constexpr,
        BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        """A whole sample, or phase MASKS or RGB for one tile of positions and one chunk of channels.

        Pools (tiles, B, C) are partial sums over tiles, `maps_ptr` has partial maps (B, chunks, 3, P).
        """
        if LAST:
            C = C // VEC * VEC
        else:
            P = P // VEC * VEC
        b = tl.program_id(0).to(tl.int64)
        chunk, tile = tl.program_id(1), tl.program_id(2)
        p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        chunk_size = chunk_size // BLOCK_C * BLOCK_C
        c_begin = chunk * chunk_size
        c_end = tl.minimum(C, c_begin + chunk_size)
        pool = (tile * tl.num_programs(0) + b) * C
        saved_ptr += b * 3 * P
        if MASKS:
            none = tl.zeros((BLOCK_P,), tl.float32)
            static = _read(
                static_ptr, b, p, (static_stride_b, static_stride_c, static_stride_p), (none, none),
                (static_pool_ptr + pool,), c_begin, c_end, C, P, PIECES, 1, LAST, VEC, BLOCK_C, BLOCK_P, STAGES,
            )  # fmt: skip
            difference = _read(
                difference_ptr, b, p, (difference_stride_b, difference_stride_c, difference_stride_p), (none, none),
                (difference_pool_ptr + pool,), c_begin, c_end, C, P, PIECES, 1, LAST, VEC, BLOCK_C, BLOCK_P, STAGES,
            )  # fmt: skip
            if not RGB:
                maps_ptr += (b * chunks + chunk) * 3 * P
                tl.store(maps_ptr + P + p, static, mask=p < P)
                tl.store(maps_ptr + 2 * P + p, difference, mask=p < P)
            static_total, difference_total = tl.sum(static), tl.sum(difference)
        else:
            maps_ptr += b * chunks * 3 * P
            static, difference = load_map(maps_ptr, 1, p, chunks, P), load_map(maps_ptr, 2, p, chunks, P)
            static_total, difference_total = tl.sum(static), tl.sum(difference)
            # The other tiles count in the totals.
            for step in range(1, tl.num_programs(2)):
                other = (tile + step) % tl.num_programs(2) * BLOCK_P + tl.arange(0, BLOCK_P)
                static_total += tl.sum(load_map(maps_ptr, 1, other, chunks, P))
                difference_total += tl.sum(load_map(maps_ptr, 2, other, chunks, P))
        if RGB:
            static_weight = pool_weight(static, static_total, P)
            difference_weight = pool_weight(difference, difference_total, P)
            if chunk == 0:
                tl.store(saved_ptr + p, static_weight, mask=p < P)
                tl.store(saved_ptr + P + p, difference_weight, mask=p < P)
            rgb = _read(
                rgb_ptr, b, p, (rgb_stride_b, rgb_stride_c, rgb_stride_p), (static_weight, difference_weight),
                (rgb_pool_ptr + pool, rgb_static_ptr + pool, rgb_difference_ptr + pool), c_begin, c_end, C, P,
                PIECES, 3, LAST, VEC, BLOCK_C, BLOCK_P, STAGES,
            )  # fmt: skip
            if MASKS:
                alignment, slope = align_maps(rgb, static + difference, p < P, P)
                tl.store(alignment_ptr + b, alignment)
                tl.store(saved_ptr + 2 * P + p, slope, mask=p < P)
            else:
                tl.store(maps_ptr + chunk * 3 * P + p, rgb, mask=p < P)

    @triton.jit
    def _head_backward_kernel(
        rgb_ptr, rgb_stride_b, rgb_stride_c, rgb_stride_p, saved_ptr,
        to_rgb_ptr, to_static_ptr, to_difference_ptr, out_stride_b, out_stride_c, out_stride_p,
        rgb_grad_ptr, rgb_grad_stride_b, rgb_grad_stride_c,
        rgb_static_grad_ptr, rgb_static_grad_stride_b, rgb_static_grad_stride_c,
        rgb_difference_grad_ptr, rgb_difference_grad_stride_b, rgb_difference_grad_stride_c,
        static_grad_ptr, static_grad_stride_b, static_grad_stride_c,
        difference_grad_ptr, difference_grad_stride_b, difference_grad_stride_c,
        alignment_grad_ptr, alignment_grad_stride_b, C, P,
        VEC_C: tl.constexpr, VEC_P: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr,
    ):  # fmt: skip
        """The three gradients of one tile; `saved_ptr` has both weight maps and the alignment's slope."""
        C, P = C // VEC_C * VEC_C, P // VEC_P * VEC_P
        b = tl.program_id(0).to(tl.int64)
        c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        p = tile_positions(tl.program_id(2) * (ROWS * LANES), ROWS, LANES)
        mask = tile_mask(c, p, C, P)
        out_offset = tile_offset(b, c, p, out_stride_b, out_stride_c, out_stride_p, VEC_C, VEC_P)
        dtype = to_rgb_ptr.dtype.element_ty
        zeros = tl.zeros((ROWS, BLOCK_C, LANES), tl.float32)

        to_static = load_pool(static_grad_ptr, b * static_grad_stride_b, c, static_grad_stride_c, C) / P
        tl.store(to_static_ptr + out_offset, (to_static + zeros).to(dtype), mask=mask)
        to_difference = load_pool(difference_grad_ptr, b * difference_grad_stride_b, c, difference_grad_stride_c, C) / P
        tl.store(to_difference_ptr + out_offset, (to_difference + zeros).to(dtype), mask=mask)

        to_rgb = zeros + load_pool(rgb_grad_ptr, b * rgb_grad_stride_b, c, rgb_grad_stride_c, C) / P
        weight = tl.load(saved_ptr + b * 3 * P + p, mask=p < P, other=0)
        grad = load_pool(rgb_static_grad_ptr, b * rgb_static_grad_stride_b, c, rgb_static_grad_stride_c, C)
        to_rgb += grad * tl.expand_dims(weight, 1)
        weight = tl.load(saved_ptr + (b * 3 + 1) * P + p, mask=p < P, other=0)
        grad = load_pool(rgb_difference_grad_ptr, b * rgb_difference_grad_stride_b, c, rgb_difference_grad_stride_c, C)
        to_rgb += grad * tl.expand_dims(weight, 1)
        if alignment_grad_ptr is not None:
            slope = tl.load(saved_ptr + (b * 3 + 2) * P + p, mask=p < P, other=0)
            slope *= tl.load(alignment_grad_ptr + b * alignment_grad_stride_b).to(tl.float32)
            offset = tile_offset(b, c, p, rgb_stride_b, rgb_stride_c, rgb_stride_p, VEC_C, VEC_P)
            rgb = tl.load(rgb_ptr + offset, mask=mask, other=0).to(tl.float32)
            to_rgb += tl.expand_dims(slope, 1) * sign(rgb)
        tl.store(to_rgb_ptr + out_offset, to_rgb.to(dtype), mask=mask)


@lru_cache
def head_plan(
    tile: FeatureMapTile, split: Split, dtype: torch.dtype, shape_bcp: torch.Size, *strides_bcp: tuple[int, ...]
) -> tuple[tuple[int, int, int], int, dict[str, int]]:
    """Grid (samples, chunks of channels, tiles of positions), channels of a chunk, a multiple of the block, constants.

    The constants are the order and the width of accesses, pieces of a weight, tile sizes, warps and stages.
    """
    batch, channels, positions = shape_bcp
    block_p = max(16, min(tile.positions, next_power_of_2(positions)))
    block_c = max(16, min(tile.elements // block_p, next_power_of_2(channels)))
    blocks = cdiv(channels, block_c)
    chunk_size = cdiv(blocks, max(1, min(blocks, split.chunks, split.programs // batch))) * block_c
    constants = {
        "LAST": all(stride[1] == 1 for stride in strides_bcp),
        "VEC": max(vector_sizes(shape_bcp, *strides_bcp).values()),
        "PIECES": 0 if INTERPRET and dtype != torch.float16 else PIECES[dtype],
        "BLOCK_C": block_c,
        "BLOCK_P": block_p,
        **tile.options("STAGES"),
    }
    return (batch, cdiv(channels, chunk_size), cdiv(positions, block_p)), chunk_size, constants


def launch_head(rgb: Tensor, static: Tensor, difference: Tensor, *results: Tensor) -> None:
    """Fill the fields of `DecoupledPool`, then (B, 3, T, H, W): both weight maps and the slope of the alignment."""
    *pools, alignment, saved = results
    maps_bcp = [features.flatten(2) for features in (rgb, static, difference)]
    _, channels, positions = shape = maps_bcp[0].shape
    row = device_row(CONFIGS, rgb.device)
    strides = (features.stride() for features in maps_bcp)
    grid, chunk_size, sizes = head_plan(row["read"][rgb.element_size()], row["split"], rgb.dtype, shape, *strides)
    batch, chunks, tiles = grid
    whole = chunks == tiles == 1
    partial_pools = pools if tiles == 1 else saved.new_empty((len(pools), tiles, batch, channels)).unbind()
    partial_maps = None if whole else saved.new_empty((batch, chunks, 3, positions))
    arguments = *strided(*maps_bcp), *partial_pools, alignment, saved, partial_maps
    for masks, of_rgb in [(True, True)] if whole else [(True, False), (False, True)]:
        _head_kernel[grid](*arguments, channels, positions, chunk_size, chunks, MASKS=masks, RGB=of_rgb, **sizes)
    if not whole:
        launch_align(partial_maps, alignment, saved[:, 2])
    if tiles > 1:
        for partial_pool, pool in zip(partial_pools, pools):
            torch.sum(partial_pool, 0, out=pool)


def launch_head_backward(rgb: Tensor, saved: Tensor, *grads_and_outs: Tensor | None) -> None:
    """Fill the gradients to `rgb`, `static` and `difference` from those of `DecoupledPool`'s fields, None for zero."""
    *grads, to_alignment = grads_and_outs[:6]
    rgb_bcp, *outs_bcp = (features.flatten(2) for features in (rgb, *grads_and_outs[6:]))
    launch_over_maps(
        _head_backward_kernel, "write", "cp", (rgb_bcp, outs_bcp[0]),
        *strided(rgb_bcp), saved, *outs_bcp, *outs_bcp[0].stride(), *strided(*grads, rank=2),
        *strided(to_alignment, rank=1),
    )  # fmt: skip
