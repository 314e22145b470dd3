"""Triton kernels of `decoupled_pool`: each of the three feature maps is read once.

The static and difference maps come first, then RGB once for its map and its three pools, then the alignment, which
needs the whole RGB map. One program does all of it for a sample, through small maps in memory that it alone uses;
where the batch is too small to fill the device, each phase is a launch over chunks of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import device_class, tl, triton
from ._tiles import CONFIGS as TILES
from ._tiles import empty_gradient, tile_sizes

if triton is not None:
    from ._tiles import load_pool, pool_weight, sign, sum_positions, tile_mask, tile_offset, tile_positions
    from .activation import align_block, align_maps, launch_align, load_map

# Below PROGRAMS samples, the channels of one are split among up to CHUNKS programs, at the price of two more launches.
CONFIGS = {"default": {"programs": 128, "chunks": 2}}

if triton is not None:

    @triton.jit
    def _add_pool(pool_ptr, part, c, C, first):
        """Adds a tile's part to the pool, which the first tile starts."""
        earlier = tl.load(pool_ptr + c, mask=(c < C) & (tl.zeros_like(c) + first > 0), other=0)
        tl.store(pool_ptr + c, earlier + part, mask=c < C)

    @triton.jit
    def _read_mask(
        b, x_ptr, stride_b, stride_c, stride_p, map_ptr, pool_ptr, c_begin, c_end, C, P,
        VEC_C: tl.constexpr, VEC_P: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr,
        STAGES: tl.constexpr,
    ):  # fmt: skip
        """Activation map (P,) and average pools of one sample's channels from `c_begin` to `c_end`."""
        for first in range(0, P, ROWS * LANES):
            p = tile_positions(first, ROWS, LANES)
            total = tl.zeros((ROWS, BLOCK_C, LANES), tl.float32)
            for first_c in tl.range(c_begin, c_end, BLOCK_C, num_stages=STAGES):
                c = first_c + tl.arange(0, BLOCK_C)
                offset = tile_offset(b, c, p, stride_b, stride_c, stride_p, VEC_C, VEC_P)
                x = tl.load(x_ptr + offset, mask=tile_mask(c, p, C, P), other=0).to(tl.float32)
                total += tl.abs(x)
                _add_pool(pool_ptr, sum_positions(x) / P, c, C, first)
            tl.store(map_ptr + p, tl.sum(total, 1), mask=p < P)
            tl.debug_barrier()

    @triton.jit
    def _read_rgb(
        b, x_ptr, stride_b, stride_c, stride_p, maps_ptr, weights_ptr, pool_ptr, static_pool_ptr, difference_pool_ptr,
        chunk, chunks, c_begin, c_end, C, P,
        VEC_C: tl.constexpr, VEC_P: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr,
        STAGES: tl.constexpr,
    ):  # fmt: skip
        """As `_read_mask`, with the pools by the static and difference maps, which are complete by now."""
        static_total = tl.zeros((ROWS, LANES), tl.float32)
        difference_total = tl.zeros((ROWS, LANES), tl.float32)
        static, difference = static_total, difference_total  # maps of one tile are loaded once and stay in registers
        for first in range(0, P, ROWS * LANES):
            p = tile_positions(first, ROWS, LANES)
            static, difference = load_map(maps_ptr, 1, p, chunks, P), load_map(maps_ptr, 2, p, chunks, P)
            static_total += static
            difference_total += difference
        static_sum = tl.sum(tl.sum(static_total, 0), 0)
        difference_sum = tl.sum(tl.sum(difference_total, 0), 0)
        for first in range(0, P, ROWS * LANES):
            p = tile_positions(first, ROWS, LANES)
            if P > ROWS * LANES:
                static, difference = load_map(maps_ptr, 1, p, chunks, P), load_map(maps_ptr, 2, p, chunks, P)
            static_weight = pool_weight(static, static_sum, P)
            difference_weight = pool_weight(difference, difference_sum, P)
            if chunk == 0:
                tl.store(weights_ptr + p, static_weight, mask=p < P)
                tl.store(weights_ptr + P + p, difference_weight, mask=p < P)
            total = tl.zeros((ROWS, BLOCK_C, LANES), tl.float32)
            for first_c in tl.range(c_begin, c_end, BLOCK_C, num_stages=STAGES):
                c = first_c + tl.arange(0, BLOCK_C)
                offset = tile_offset(b, c, p, stride_b, stride_c, stride_p, VEC_C, VEC_P)
                x = tl.load(x_ptr + offset, mask=tile_mask(c, p, C, P), other=0).to(tl.float32)
                total += tl.abs(x)
                by_static = sum_positions(x * tl.expand_dims(static_weight, 1))
                by_difference = sum_positions(x * tl.expand_dims(difference_weight, 1))
                _add_pool(pool_ptr, sum_positions(x) / P, c, C, first)
                _add_pool(static_pool_ptr, by_static, c, C, first)
                _add_pool(difference_pool_ptr, by_difference, c, C, first)
            tl.store(maps_ptr + chunk * 3 * P + p, tl.sum(total, 1), mask=p < P)
            tl.debug_barrier()

    @triton.jit
    def _head_kernel(
        rgb_ptr, rgb_stride_b, rgb_stride_c, rgb_stride_p,
        static_ptr, static_stride_b, static_stride_c, static_stride_p,
        difference_ptr, difference_stride_b, difference_stride_c, difference_stride_p,
        rgb_pool_ptr, rgb_static_ptr, rgb_difference_ptr, static_pool_ptr, difference_pool_ptr, alignment_ptr,
        saved_ptr, maps_ptr, C, P, chunk_size, chunks, MASKS: tl.constexpr, RGB: tl.constexpr, ALIGN_P: tl.constexpr,
        VEC_C: tl.constexpr, VEC_P: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr,
        STAGES: tl.constexpr,
    ):  # fmt: skip
        """A whole sample, or one of the phases MASKS and RGB for a chunk of its channels, the alignment left out."""
        C, P = C // VEC_C * VEC_C, P // VEC_P * VEC_P
        b = tl.program_id(0).to(tl.int64)
        chunk = tl.program_id(1)
        chunk_size = chunk_size // BLOCK_C * BLOCK_C
        c_begin = chunk * chunk_size
        c_end = tl.minimum(C, c_begin + chunk_size)
        maps_ptr += b * chunks * 3 * P
        saved_ptr += b * 3 * P
        if MASKS:
            own_maps_ptr = maps_ptr + chunk * 3 * P
            _read_mask(
                b, static_ptr, static_stride_b, static_stride_c, static_stride_p, own_maps_ptr + P,
                static_pool_ptr + b * C, c_begin, c_end, C, P, VEC_C, VEC_P, ROWS, BLOCK_C, LANES, STAGES,
            )  # fmt: skip
            _read_mask(
                b, difference_ptr, difference_stride_b, difference_stride_c, difference_stride_p, own_maps_ptr + 2 * P,
                difference_pool_ptr + b * C, c_begin, c_end, C, P, VEC_C, VEC_P, ROWS, BLOCK_C, LANES, STAGES,
            )  # fmt: skip
        if RGB:
            _read_rgb(
                b, rgb_ptr, rgb_stride_b, rgb_stride_c, rgb_stride_p, maps_ptr, saved_ptr,
                rgb_pool_ptr + b * C, rgb_static_ptr + b * C, rgb_difference_ptr + b * C,
                chunk, chunks, c_begin, c_end, C, P, VEC_C, VEC_P, ROWS, BLOCK_C, LANES, STAGES,
            )  # fmt: skip
        if MASKS and RGB:
            align_maps(maps_ptr, chunks, P, alignment_ptr + b, saved_ptr + 2 * P, ALIGN_P)

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
    pools = [torch.empty((batch, channels), **wide) for _ in range(5)]
    alignment, saved = torch.empty(batch, **wide), torch.empty((batch, 3, *shape), **wide)
    if batch:
        maps_bcp = [features.flatten(2) for features in (rgb, static, difference)]
        sizes = tile_sizes(TILES, "read", *maps_bcp)
        chunk_size, chunks = _chunks(batch, channels, sizes["BLOCK_C"], rgb.device)
        positions = saved[0, 0].numel()
        partial_maps = torch.empty((batch, chunks, 3, positions), **wide)
        strided = [value for features in maps_bcp for value in (features, *features.stride())]
        arguments = *strided, *pools, alignment, saved, partial_maps, channels, positions, chunk_size, chunks
        sizes["ALIGN_P"] = align_block(positions)
        with torch.cuda.device_of(rgb):
            if chunks == 1:
                _head_kernel[batch, 1](*arguments, MASKS=True, RGB=True, **sizes)
            else:
                _head_kernel[batch, chunks](*arguments, MASKS=True, RGB=False, **sizes)
                _head_kernel[batch, chunks](*arguments, MASKS=False, RGB=True, **sizes)
                launch_align(partial_maps, alignment, saved[:, 2])
    return *pools, alignment, saved


def head_backward(rgb: Tensor, saved: Tensor, *grads: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to `rgb`, `static` and `difference` from those of `DecoupledPool`'s fields, None for zero."""
    outs = [empty_gradient(rgb) for _ in range(3)]
    if len(rgb):
        rgb_bcp, outs_bcp = rgb.flatten(2), [out.flatten(2) for out in outs]
        sizes = tile_sizes(TILES, "write", rgb_bcp, outs_bcp[0])
        batch, channels, positions = rgb_bcp.shape
        strided = [value for grad in grads[:5] for value in ((None, 0, 0) if grad is None else (grad, *grad.stride()))]
        alignment = (None, 0) if grads[5] is None else (grads[5], *grads[5].stride())
        grid = (batch, triton.cdiv(channels, sizes["BLOCK_C"]), triton.cdiv(positions, sizes["ROWS"] * sizes["LANES"]))
        with torch.cuda.device_of(rgb):
            _head_backward_kernel[grid](
                rgb_bcp, *rgb_bcp.stride(), saved, *outs_bcp, *outs_bcp[0].stride(), *strided, *alignment,
                channels, positions, **sizes,
            )  # fmt: skip
    return tuple(outs)


def _chunks(batch: int, channels: int, block_c: int, device: torch.device) -> tuple[int, int]:
    """Channels of a chunk, a multiple of the block, and how many chunks that makes."""
    config = CONFIGS.get(device_class(device), CONFIGS["default"])
    blocks = triton.cdiv(channels, block_c)
    wanted = max(1, min(blocks, config["chunks"], config["programs"] // batch))
    chunk_size = triton.cdiv(blocks, wanted) * block_c
    return chunk_size, triton.cdiv(channels, chunk_size)
