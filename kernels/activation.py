"""Activation maps and their alignment.

    A[t, h, w] = sum_c |F[c, t, h, w]|                                                    DCLR Eq. 11
    L = mean_{t, h, w} | mm(A_rgb) - mm(A_static + A_difference) |                        DCLR Eq. 12
    mm(A) = (A - min A) / (max A - min A) over the positions of one sample, 0 where A is constant

Shape suffixes: b batch, c channels, t, h, w frame, row and column of the map, p = t * h * w positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import check_float, check_tensors, expect, next_power_of_2, register_op, strided, tl, triton, wide_dtype
from .feature_maps import empty_gradient, launch_over_maps

# Reference


def activation_map_reference(features: Tensor) -> Tensor:
    """Plain PyTorch form of `activation_map`."""
    return features.abs().sum(1, dtype=wide_dtype(features))


def min_max_reference(activation: Tensor) -> Tensor:
    """(B, T, H, W) scaled to [0, 1] per sample; a constant map gives 0 with zero gradient."""
    low = activation.amin((1, 2, 3), keepdim=True)
    extent = activation.amax((1, 2, 3), keepdim=True) - low
    constant = extent == 0
    return torch.where(constant, 0, (activation - low) / torch.where(constant, 1, extent))


def map_alignment_reference(rgb_map: Tensor, target_map: Tensor) -> Tensor:
    """Eq. 12 per sample of two maps (B, T, H, W): result (B,)."""
    return (min_max_reference(rgb_map) - min_max_reference(target_map)).abs().mean((1, 2, 3))


def map_alignment_slope(rgb_map: Tensor, target_map: Tensor) -> Tensor:
    """Derivative (B, T, H, W) of `map_alignment_reference` with respect to `rgb_map`, ties sharing it evenly."""
    over = (1, 2, 3)
    low, high = rgb_map.amin(over, keepdim=True), rgb_map.amax(over, keepdim=True)
    scaled = min_max_reference(rgb_map)
    sign = (scaled - min_max_reference(target_map)).sign()
    lowest, highest = (rgb_map == low).to(sign), (rgb_map == high).to(sign)
    from_low = (sign * (1 - scaled)).sum(over, keepdim=True) / lowest.sum(over, keepdim=True)
    from_high = (sign * scaled).sum(over, keepdim=True) / highest.sum(over, keepdim=True)
    slope = (sign - lowest * from_low - highest * from_high) / ((high - low) * rgb_map.shape[1:].numel())
    return torch.where(high == low, 0, slope)


def activation_alignment_reference(rgb: Tensor, static: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
    """Plain PyTorch form of `activation_alignment` with `reduction="none"`, and `map_alignment_slope`."""
    target_map = activation_map_reference(static.detach()) + activation_map_reference(difference.detach())
    maps = activation_map_reference(rgb), target_map
    return map_alignment_reference(*maps), map_alignment_slope(*maps)


# Triton

# Positions of a tile of whole maps.
MOST_ALIGNED = 4096

if triton is not None:
    from .feature_maps import sign, tile_mask, tile_offset, tile_positions

    @triton.jit
    def _map_kernel(
        x_ptr, x_stride_b, x_stride_c, x_stride_p, map_ptr, map_stride_b, C, P,
        VEC_C: tl.constexpr, VEC_P: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr,
        STAGES: tl.constexpr,
    ):  # fmt: skip
        """Eq. 11 for one sample and one tile of positions."""
        C, P = C // VEC_C * VEC_C, P // VEC_P * VEC_P
        b = tl.program_id(0).to(tl.int64)
        p = tile_positions(tl.program_id(1) * (ROWS * LANES), ROWS, LANES)
        total = tl.zeros((ROWS, BLOCK_C, LANES), tl.float32)
        for first in tl.range(0, C, BLOCK_C, num_stages=STAGES):
            c = first + tl.arange(0, BLOCK_C)
            offset = tile_offset(b, c, p, x_stride_b, x_stride_c, x_stride_p, VEC_C, VEC_P)
            total += tl.abs(tl.load(x_ptr + offset, mask=tile_mask(c, p, C, P), other=0).to(tl.float32))
        tl.store(map_ptr + b * map_stride_b + p, tl.sum(total, 1), mask=p < P)

    @triton.jit
    def _map_backward_kernel(
        grad_ptr, grad_stride_b, grad_stride_p, x_ptr, x_stride_b, x_stride_c, x_stride_p,
        out_ptr, out_stride_b, out_stride_c, out_stride_p, C, P,
        VEC_C: tl.constexpr, VEC_P: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr,
    ):  # fmt: skip
        """grad[b, p] * sign(x[b, c, p]) for one tile."""
        C, P = C // VEC_C * VEC_C, P // VEC_P * VEC_P
        b = tl.program_id(0).to(tl.int64)
        c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        p = tile_positions(tl.program_id(2) * (ROWS * LANES), ROWS, LANES)
        mask = tile_mask(c, p, C, P)
        grad = tl.load(grad_ptr + b * grad_stride_b + p.to(tl.int64) * grad_stride_p, mask=p < P, other=0)
        x_offset = tile_offset(b, c, p, x_stride_b, x_stride_c, x_stride_p, VEC_C, VEC_P)
        out_offset = tile_offset(b, c, p, out_stride_b, out_stride_c, out_stride_p, VEC_C, VEC_P)
        x = tl.load(x_ptr + x_offset, mask=mask, other=0).to(tl.float32)
        out = tl.expand_dims(grad.to(tl.float32), 1) * sign(x)
        tl.store(out_ptr + out_offset, out.to(out_ptr.dtype.element_ty), mask=mask)

    @triton.jit
    def load_map(maps_ptr, index, p, chunks, P):
        """Positions `p` of map `index`, summed over the partial maps (chunks, 3, P) of one sample."""
        total = tl.zeros(p.shape, tl.float32)
        for chunk in range(chunks):
            total += tl.load(maps_ptr + (chunk * 3 + index) * P + p, mask=p < P, other=0)
        return total

    @triton.jit
    def _bounds(activation, inside):
        """Minimum and maximum."""
        low = tl.min(tl.where(inside, activation, float("inf")))
        return low, tl.max(tl.where(inside, activation, float("-inf")))

    @triton.jit
    def _min_max(activation, low, high):
        """The map scaled to [0, 1]."""
        return (activation - low) / tl.where(high == low, 1.0, high - low)

    @triton.jit
    def _gap_sums(rgb, target, inside, bounds):
        """Distance of the scaled maps, and the sums over positions that Eq. 12 and its derivative are made of.

        Positions that tie for the minimum or the maximum share its derivative, as in amin and amax.
        """
        scaled = _min_max(rgb, bounds[0], bounds[1])
        gap = tl.where(inside, scaled - _min_max(target, bounds[2], bounds[3]), 0.0)
        lowest, highest = inside & (rgb == bounds[0]), inside & (rgb == bounds[1])
        to_low, to_high = tl.sum(sign(gap) * (1 - scaled)), tl.sum(sign(gap) * scaled)
        sums = tl.sum(tl.abs(gap)), to_low, to_high, tl.sum(lowest.to(tl.float32)), tl.sum(highest.to(tl.float32))
        return gap, lowest, highest, sums

    @triton.jit
    def _slope(gap, lowest, highest, sums, bounds, P):
        """Derivative of Eq. 12 with respect to the RGB map."""
        slope = sign(gap) - tl.where(lowest, sums[1] / sums[3], 0.0) - tl.where(highest, sums[2] / sums[4], 0.0)
        extent = bounds[1] - bounds[0]
        return tl.where(extent == 0, 0.0, slope / (tl.where(extent == 0, 1.0, extent) * P))

    @triton.jit
    def align_maps(rgb, target, inside, P):
        """Eq. 12 of whole maps, 0 outside, and its derivative with respect to `rgb`."""
        low, high = _bounds(rgb, inside)
        target_low, target_high = _bounds(target, inside)
        bounds = low, high, target_low, target_high
        gap, lowest, highest, sums = _gap_sums(rgb, target, inside, bounds)
        return sums[0] / P, _slope(gap, lowest, highest, sums, bounds, P)

    @triton.jit
    def _load_pair(maps_ptr, p, chunks, P):
        """The RGB map, and what it is aligned with."""
        target = load_map(maps_ptr, 1, p, chunks, P) + load_map(maps_ptr, 2, p, chunks, P)
        return load_map(maps_ptr, 0, p, chunks, P), target

    @triton.jit
    def _align_kernel(maps_ptr, alignment_ptr, slope_ptr, slope_stride_b, chunks, P, BLOCK_P: tl.constexpr):
        """`align_maps` for one sample, tile by tile: once for the bounds, once for the sums, once for the slope."""
        b = tl.program_id(0).to(tl.int64)
        maps_ptr += b * chunks * 3 * P
        slope_ptr += b * slope_stride_b
        low, high, target_low, target_high = float("inf"), float("-inf"), float("inf"), float("-inf")
        for first in range(0, P, BLOCK_P):
            p = first + tl.arange(0, BLOCK_P)
            rgb, target = _load_pair(maps_ptr, p, chunks, P)
            tile_low, tile_high = _bounds(rgb, p < P)
            low, high = tl.minimum(low, tile_low), tl.maximum(high, tile_high)
            tile_low, tile_high = _bounds(target, p < P)
            target_low, target_high = tl.minimum(target_low, tile_low), tl.maximum(target_high, tile_high)
        bounds = low, high, target_low, target_high
        distance, to_low, to_high, lows, highs = 0.0, 0.0, 0.0, 0.0, 0.0
        for first in range(0, P, BLOCK_P):
            p = first + tl.arange(0, BLOCK_P)
            rgb, target = _load_pair(maps_ptr, p, chunks, P)
            _, _, _, sums = _gap_sums(rgb, target, p < P, bounds)
            distance, to_low, to_high = distance + sums[0], to_low + sums[1], to_high + sums[2]
            lows, highs = lows + sums[3], highs + sums[4]
        tl.store(alignment_ptr + b, distance / P)
        for first in range(0, P, BLOCK_P):
            p = first + tl.arange(0, BLOCK_P)
            rgb, target = _load_pair(maps_ptr, p, chunks, P)
            gap, lowest, highest, _ = _gap_sums(rgb, target, p < P, bounds)
            slope = _slope(gap, lowest, highest, (distance, to_low, to_high, lows, highs), bounds, P)
            tl.store(slope_ptr + p, slope, mask=p < P)


def launch_align(maps_bk3p: Tensor, alignment: Tensor, slope: Tensor) -> None:
    """Alignment (B,) and slope (B, ...) from partial maps (B, chunks, 3, P) of rgb, static and difference."""
    batch, chunks, _, positions = maps_bk3p.shape
    block_p = min(MOST_ALIGNED, next_power_of_2(positions))
    _align_kernel[(batch,)](
        maps_bk3p, alignment, slope, slope.stride(0), chunks, positions,
        BLOCK_P=block_p, num_warps=4 if block_p <= 1024 else 8,
    )  # fmt: skip


def _launch_map(features: Tensor, out: Tensor) -> None:
    features_bcp = features.flatten(2)
    launch_over_maps(_map_kernel, "read", "p", [features_bcp], *strided(features_bcp), out, out.stride(0))


def _launch_map_backward(grad: Tensor, features: Tensor, out: Tensor) -> None:
    maps_bcp = features.flatten(2), out.flatten(2)
    launch_over_maps(_map_backward_kernel, "write", "cp", maps_bcp, *strided(grad.flatten(1), *maps_bcp))


def _launch_alignment(rgb: Tensor, static: Tensor, difference: Tensor, alignment: Tensor, slope: Tensor) -> None:
    maps = slope.new_empty((len(rgb), 1, 3, slope[0].numel()))
    for index, features in enumerate((rgb, static, difference)):
        _launch_map(features, maps[:, 0, index])
    launch_align(maps, alignment, slope)


# Ops


def _empty_map(features: Tensor) -> Tensor:
    return features.new_empty((len(features), *features.shape[2:]), dtype=wide_dtype(features))


def _empty_alignment(rgb: Tensor, static: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
    slope = _empty_map(rgb)
    return slope.new_empty(len(rgb)), slope


def keep_last(ctx, arguments, results):
    """Save `rgb` and the last result, which is there for the gradient alone."""
    ctx.save_for_backward(arguments[0], results[-1])
    ctx.mark_non_differentiable(results[-1])


def _alignment_gradients(ctx, grad, _):
    rgb, slope = ctx.saved_tensors
    return (torch.ops.dclr.activation_map_backward(grad[:, None, None, None] * slope, rgb),)


register_op(
    "activation_map(Tensor features) -> Tensor",
    _empty_map,
    activation_map_reference,
    _launch_map,
    setup_context=lambda ctx, arguments, _: ctx.save_for_backward(*arguments),
    backward=lambda ctx, grad: (torch.ops.dclr.activation_map_backward(grad, *ctx.saved_tensors),),
)
register_op(
    "activation_map_backward(Tensor grad, Tensor features) -> Tensor",
    lambda grad, features: empty_gradient(features),
    lambda grad, features: grad.unsqueeze(1) * features.sign(),
    _launch_map_backward,
)
register_op(
    "activation_alignment(Tensor rgb, Tensor static, Tensor difference) -> (Tensor alignment, Tensor slope)",
    _empty_alignment,
    activation_alignment_reference,
    _launch_alignment,
    setup_context=keep_last,
    backward=_alignment_gradients,
)


# Public functions


def check_feature_maps(**maps: Tensor) -> None:
    """Feature maps (B, C, T, H, W) of one shape, dtype and device with at least one channel and one position."""
    check_tensors(**maps)
    (first_name, first), *others = maps.items()
    for name, features in maps.items():
        check_float(name, features, 5)
        expect(0 not in features.shape[1:], name, tuple(features.shape), "only the batch to be empty")
    shape, dtype = tuple(first.shape), first.dtype
    for name, features in others:
        expect(features.shape == shape, name, tuple(features.shape), lambda: f"{shape} as {first_name}")
        expect(features.dtype == dtype, name, features.dtype, f"{dtype} as {first_name}", TypeError)


def activation_map(features: Tensor) -> Tensor:
    """Sum of absolute features over channels (DCLR Eq. 11).

    Args:
        features: (B, C, T, H, W) float, any strides.

    Returns:
        (B, T, H, W) float32 (float64 for float64).

    Raises:
        ValueError, TypeError: wrong rank, dtype or an empty axis other than the batch.
    """
    check_feature_maps(features=features)
    return torch.ops.dclr.activation_map(features)


def activation_alignment(rgb: Tensor, static: Tensor, difference: Tensor, *, reduction: str = "mean") -> Tensor:
    """Distance of the RGB activation map from the static and difference ones, in [0, 1] (DCLR Eq. 12, per position).

    Both maps are min-max normalised per sample; a constant map is 0 everywhere and has no gradient. The gradient goes
    to `rgb` alone; positions that tie for the minimum or maximum share its part.

    Args:
        rgb, static, difference: (B, C, T, H, W) float, one shape and dtype, any strides.
        reduction: over samples, after the mean over positions: "mean", "sum" or "none".

    Returns:
        float32 (float64 for float64), () or (B,) for "none"; mean and sum of an empty batch are 0.

    Raises:
        ValueError, TypeError: wrong rank, dtype, device, shapes that differ, unknown reduction.
    """
    expect(reduction in ("mean", "sum", "none"), "reduction", repr(reduction), '"mean", "sum" or "none"')
    check_feature_maps(rgb=rgb, static=static, difference=difference)
    alignment, _ = torch.ops.dclr.activation_alignment(rgb, static, difference)
    if reduction == "none":
        return alignment
    return alignment.mean() if reduction == "mean" and len(alignment) else alignment.sum()
