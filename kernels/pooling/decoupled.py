"""Triton kernels of `decoupled_pool`: each of the three feature maps is read once.

The static and difference maps come first, then RGB once for its map and its three pools, then the alignment, which
needs the whole RGB map. One program does all of it for a sample and keeps the small maps in registers. Where the batch
is too small to fill the device, or a map too large for one tile, the phases are launches over chunks and tiles instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._common import cdiv, device_class, tl, triton
from ..feature_maps import empty_gradient, map_tile

if triton is not None:
    from ..activation import align_maps, launch_align, load_map
    from ..feature_maps import load_pool, pool_weight, sign, sum_positions, tile_mask, tile_offset, tile_positions


@dataclass(frozen=True)
class Split:
    """Below `programs` samples, the channels of one are split among `chunks` programs, for two more launches."""

    programs: int
    chunks: int


CONFIGS = {"default": {"split": Split(128, 2)}}

if triton is not None:

    @triton.jit
    def _read_mask(
        b, x_ptr, stride_b, stride_c, stride_p, pool_ptr, p, c_begin, c_end, C, P,
        VEC_C: tl.constexpr, VEC_P: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr,
        STAGES: tl.constexpr,
    ):  # fmt: skip
        """Stores average pools of the channels from `c_begin` to `c_end` and returns their activation map at `p`."""
        total = tl.zeros((ROWS, BLOCK_C, LANES), tl.float32)
        for first in tl.range(c_begin, c_end, BLOCK_C, num_stages=STAGES):
            c = first + tl.arange(0, BLOCK_C)
            offset = tile_offset(b, c, p, stride_b, stride_c, stride_p, VEC_C, VEC_P)
            x = tl.load(x_ptr + offset, mask=tile_mask(c, p, C, P), other=0).to(tl.float32)
            total += tl.abs(x)
            tl.store(pool_ptr + c, sum_positions(x) / P, mask=c < C)
        return tl.sum(total, 1)

    @triton.jit
    def _read_rgb(
        b, x_ptr, stride_b, stride_c, stride_p, pool_ptr, static_pool_ptr, difference_pool_ptr,
        static_weight, difference_weight, p, c_begin, c_end, C, P,
        VEC_C: tl.constexpr, VEC_P: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr,
        STAGES: tl.constexpr,
    ):  # fmt: skip
        """As `_read_mask`, and pools by both weights (ROWS, LANES)."""
        static_weight, difference_weight = tl.expand_dims(static_weight, 1), tl.expand_dims(difference_weight, 1)
        total = tl.zeros((ROWS, BLOCK_C, LANES), tl.float32)
        for first in tl.range(c_begin, c_end, BLOCK_C, num_stages=STAGES):
            c = first + tl.arange(0, BLOCK_C)
            offset = tile_offset(b, c, p, stride_b, stride_c, stride_p, VEC_C, VEC_P)
            x = tl.load(x_ptr + offset, mask=tile_mask(c, p, C, P), other=0).to(tl.float32)
            total += tl.abs(x)
            tl.store(pool_ptr + c, sum_positions(x) / P, mask=c < C)
            tl.store(static_pool_ptr + c, sum_positions(x * static_weight), mask=c < C)
            tl.store(difference_pool_ptr + c, sum_positions(x * difference_weight), mask=c < C)
        return tl.sum(total, 1)

    @triton.jit
    def _head_kernel(
        rgb_ptr, rgb_stride_b, rgb_stride_c, rgb_stride_p,
        static_ptr, static_stride_b, static_stride_c, static_stride_p,
        difference_ptr, difference_stride_b, difference_stride_c, difference_stride_p,
        rgb_pool_ptr, rgb_static_ptr, rgb_difference_ptr, static_pool_ptr, difference_pool_ptr, alignment_ptr,
        saved_ptr, maps_ptr, C, P, chunk_size, chunks, MASKS: tl.constexpr, RGB: tl.constexpr,
        VEC_C: tl.constexpr, VEC_P: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr,
        STAGES: tl.constexpr,
    ):  # fmt: skip
        """A whole sample, or phase MASKS or RGB for one tile of positions and one chunk of channels.

        Pools (tiles, B, C) are partial sums over tiles, `maps_ptr` has partial maps (B, chunks, 3, P).
        """
        C, P = C // VEC_C * VEC_C, P // VEC_P * VEC_P
        b = tl.program_id(0).to(tl.int64)
        chunk, tile = tl.program_id(1), tl.program_id(2)
        p = tile_positions(tile * (ROWS * LANES), ROWS, LANES)
        chunk_size = chunk_size // BLOCK_C * BLOCK_C
        c_begin = chunk * chunk_size
        c_end = tl.minimum(C, c_begin + chunk_size)
        pool = (tile * tl.num_programs(0) + b) * C
        saved_ptr += b * 3 * P
        if MASKS:
            static = _read_mask(
                b, static_ptr, static_stride_b, static_stride_c, static_stride_p, static_pool_ptr + pool,
                p, c_begin, c_end, C, P, VEC_C, VEC_P, ROWS, BLOCK_C, LANES, STAGES,
            )  # fmt: skip
            difference = _read_mask(
                b, difference_ptr, difference_stride_b, difference_stride_c, difference_stride_p,
                difference_pool_ptr + pool, p, c_begin, c_end, C, P, VEC_C, VEC_P, ROWS, BLOCK_C, LANES, STAGES,
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
                other = tile_positions((tile + step) % tl.num_programs(2) * (ROWS * LANES), ROWS, LANES)
                static_total += tl.sum(load_map(maps_ptr, 1, other, chunks, P))
                difference_total += tl.sum(load_map(maps_ptr, 2, other, chunks, P))
        if RGB:
            static_weight = pool_weight(static, static_total, P)
            difference_weight = pool_weight(difference, difference_total, P)
            if chunk == 0:
                tl.store(saved_ptr + p, static_weight, mask=p < P)
                tl.store(saved_ptr + P + p, difference_weight, mask=p < P)
            rgb = _read_rgb(
                b, rgb_ptr, rgb_stride_b, rgb_stride_c, rgb_stride_p,
                rgb_pool_ptr + pool, rgb_static_ptr + pool, rgb_difference_ptr + pool, static_weight, difference_weight,
                p, c_begin, c_end, C, P, VEC_C, VEC_P, ROWS, BLOCK_C, LANES, STAGES,
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


def head_forward(rgb: Tensor, static: Tensor, difference: Tensor) -> tuple[Tensor, ...]:
    """The fields of `DecoupledPool`, then (B, 3, T, H, W): both weight maps and the slope of the alignment."""
    batch, channels, *shape = rgb.shape
    wide = {"dtype": torch.float32, "device": rgb.device}
    alignment, saved = torch.empty(batch, **wide), torch.empty((batch, 3, *shape), **wide)
    if not batch:
        return *(torch.empty((batch, channels), **wide) for _ in range(5)), alignment, saved
    maps_bcp = [features.flatten(2) for features in (rgb, static, difference)]
    positions = maps_bcp[0].shape[2]
    sizes = map_tile("read", *maps_bcp)
    tiles = cdiv(positions, sizes["ROWS"] * sizes["LANES"])
    chunk_size, chunks = _chunks(batch, channels, sizes["BLOCK_C"], rgb.device)
    whole = chunks == tiles == 1
    pools = [torch.empty((batch, channels) if tiles == 1 else (tiles, batch, channels), **wide) for _ in range(5)]
    partial_maps = None if whole else torch.empty((batch, chunks, 3, positions), **wide)
    strided = [value for features in maps_bcp for value in (features, *features.stride())]
    arguments = *strided, *pools, alignment, saved, partial_maps, channels, positions, chunk_size, chunks
    with torch.cuda.device_of(rgb):
        for masks, of_rgb in [(True, True)] if whole else [(True, False), (False, True)]:
            _head_kernel[batch, chunks, tiles](*arguments, MASKS=masks, RGB=of_rgb, **sizes)
    if not whole:
        launch_align(partial_maps, alignment, saved[:, 2])
    return *(pools if tiles == 1 else (pool.sum(0) for pool in pools)), alignment, saved


def head_backward(rgb: Tensor, saved: Tensor, *grads: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to `rgb`, `static` and `difference` from those of `DecoupledPool`'s fields, None for zero."""
    outs = [empty_gradient(rgb) for _ in range(3)]
    if len(rgb):
        rgb_bcp, outs_bcp = rgb.flatten(2), [out.flatten(2) for out in outs]
        sizes = map_tile("write", rgb_bcp, outs_bcp[0])
        batch, channels, positions = rgb_bcp.shape
        strided = [value for grad in grads[:5] for value in ((None, 0, 0) if grad is None else (grad, *grad.stride()))]
        alignment = (None, 0) if grads[5] is None else (grads[5], *grads[5].stride())
        grid = (batch, cdiv(channels, sizes["BLOCK_C"]), cdiv(positions, sizes["ROWS"] * sizes["LANES"]))
        with torch.cuda.device_of(rgb):
            _head_backward_kernel[grid](
                rgb_bcp, *rgb_bcp.stride(), saved, *outs_bcp, *outs_bcp[0].stride(), *strided, *alignment,
                channels, positions, **sizes,
            )  # fmt: skip
    return tuple(outs)


def _chunks(batch: int, channels: int, block_c: int, device: torch.device) -> tuple[int, int]:
    """Channels of a chunk, a multiple of the block, and how many chunks that makes."""
    split = CONFIGS.get(device_class(device), CONFIGS["default"])["split"]
    blocks = cdiv(channels, block_c)
    wanted = max(1, min(blocks, split.chunks, split.programs // batch))
    chunk_size = cdiv(blocks, wanted) * block_c
    return chunk_size, cdiv(channels, chunk_size)
