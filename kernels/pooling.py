"""Pools weighted by an activation map, and the whole head over the three feature maps in one pass.

    f[c] = sum_{t, h, w} F[c, t, h, w] A[t, h, w] / sum_{t, h, w} A[t, h, w]              DCLR Eq. 13

Weights that sum to 0 pool uniformly.
Shape suffixes: b batch, c channels, t, h, w frame, row and column of the map, p = t * h * w positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._common import check, check_float, check_tensors, define_op, first_derivative, runs_triton, tl, triton
from ._head import head_backward, head_forward
from ._tiles import CONFIGS, empty_gradient, tile_sizes, wide_dtype
from .activation import (
    activation_map_reference,
    check_features,
    map_alignment_reference,
    map_alignment_slope,
)

if triton is not None:
    from ._tiles import load_pool, pool_weight, sum_positions, tile_mask, tile_offset, tile_positions

_library = torch.library.Library("dclr", "FRAGMENT")


class DecoupledPool(NamedTuple):
    """Result of `decoupled_pool`: five pools (B, C) and the alignment (B,)."""

    rgb: Tensor
    rgb_static: Tensor
    rgb_difference: Tensor
    static: Tensor
    difference: Tensor
    alignment: Tensor


# Reference


def pool_weights_reference(activation: Tensor) -> Tensor:
    """Weights of `activation`'s shape (B, T, H, W) that sum to 1 per sample: uniform where it sums to 0."""
    total = activation.sum((1, 2, 3), keepdim=True)
    empty = total == 0
    return torch.where(empty, 1 / activation.shape[1:].numel(), activation / torch.where(empty, 1, total))


def weighted_pool_reference(features: Tensor, activation: Tensor) -> Tensor:
    """Plain PyTorch form of `weighted_pool`."""
    wide = wide_dtype(features, activation)
    return (features.to(wide) * pool_weights_reference(activation.to(wide)).unsqueeze(1)).sum((2, 3, 4))


def average_pool_reference(features: Tensor) -> Tensor:
    """Mean over positions, (B, C), in float32 at least."""
    return features.mean((2, 3, 4), dtype=wide_dtype(features))


def decoupled_pool_reference(rgb: Tensor, static: Tensor, difference: Tensor) -> DecoupledPool:
    """Plain PyTorch form of `decoupled_pool`."""
    masks = activation_map_reference(static.detach()), activation_map_reference(difference.detach())
    return _pool_by_maps(rgb, static, difference, activation_map_reference(rgb), *masks)


def _pool_by_maps(rgb, static, difference, rgb_map, static_map, difference_map) -> DecoupledPool:
    return DecoupledPool(
        average_pool_reference(rgb),
        weighted_pool_reference(rgb, static_map),
        weighted_pool_reference(rgb, difference_map),
        average_pool_reference(static),
        average_pool_reference(difference),
        map_alignment_reference(rgb_map, static_map + difference_map),
    )


# Triton

if triton is not None:

    @triton.jit
    def _activation_total(a_ptr, stride_p, P, ROWS: tl.constexpr, LANES: tl.constexpr):
        total = tl.zeros((ROWS, LANES), tl.float32)
        for first in range(0, P, ROWS * LANES):
            p = tile_positions(first, ROWS, LANES)
            total += tl.load(a_ptr + p.to(tl.int64) * stride_p, mask=p < P, other=0).to(tl.float32)
        return tl.sum(tl.sum(total, 0), 0)

    @triton.jit
    def _pool_kernel(
        x_ptr, x_stride_b, x_stride_c, x_stride_p, a_ptr, a_stride_b, a_stride_p, pooled_ptr, C, P,
        VEC_C: tl.constexpr, VEC_P: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr,
        STAGES: tl.constexpr,
    ):  # fmt: skip
        """Eq. 13 for one sample and one block of channels."""
        C, P = C // VEC_C * VEC_C, P // VEC_P * VEC_P
        b = tl.program_id(0).to(tl.int64)
        c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        a_ptr += b * a_stride_b
        total = _activation_total(a_ptr, a_stride_p, P, ROWS, LANES)
        pooled = tl.zeros((BLOCK_C,), tl.float32)
        for first in tl.range(0, P, ROWS * LANES, num_stages=STAGES):
            p = tile_positions(first, ROWS, LANES)
            activation = tl.load(a_ptr + p.to(tl.int64) * a_stride_p, mask=p < P, other=0).to(tl.float32)
            offset = tile_offset(b, c, p, x_stride_b, x_stride_c, x_stride_p, VEC_C, VEC_P)
            x = tl.load(x_ptr + offset, mask=tile_mask(c, p, C, P), other=0).to(tl.float32)
            pooled += sum_positions(x * tl.expand_dims(pool_weight(activation, total, P), 1))
        tl.store(pooled_ptr + b * C + c, pooled, mask=c < C)

    @triton.jit
    def _pool_backward_kernel(
        grad_ptr, grad_stride_b, grad_stride_c, x_ptr, x_stride_b, x_stride_c, x_stride_p,
        a_ptr, a_stride_b, a_stride_p, pooled_ptr,
        dx_ptr, dx_stride_b, dx_stride_c, dx_stride_p, da_ptr, C, P,
        VEC_C: tl.constexpr, VEC_P: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr,
        STAGES: tl.constexpr,
    ):  # fmt: skip
        """Both gradients for one sample and one tile of positions."""
        C, P = C // VEC_C * VEC_C, P // VEC_P * VEC_P
        b = tl.program_id(0).to(tl.int64)
        p = tile_positions(tl.program_id(1) * (ROWS * LANES), ROWS, LANES)
        a_ptr += b * a_stride_b
        total = _activation_total(a_ptr, a_stride_p, P, ROWS, LANES)
        activation = tl.load(a_ptr + p.to(tl.int64) * a_stride_p, mask=p < P, other=0).to(tl.float32)
        weight = tl.expand_dims(pool_weight(activation, total, P), 1)
        by_position = tl.zeros((ROWS, BLOCK_C, LANES), tl.float32)
        for first in tl.range(0, C, BLOCK_C, num_stages=STAGES):
            c = first + tl.arange(0, BLOCK_C)
            mask = tile_mask(c, p, C, P)
            x_offset = tile_offset(b, c, p, x_stride_b, x_stride_c, x_stride_p, VEC_C, VEC_P)
            dx_offset = tile_offset(b, c, p, dx_stride_b, dx_stride_c, dx_stride_p, VEC_C, VEC_P)
            grad = load_pool(grad_ptr, b * grad_stride_b, c, grad_stride_c, C)
            pooled = load_pool(pooled_ptr, b * C, c, 1, C)
            x = tl.load(x_ptr + x_offset, mask=mask, other=0).to(tl.float32)
            by_position += grad * (x - pooled)
            tl.store(dx_ptr + dx_offset, (grad * weight).to(dx_ptr.dtype.element_ty), mask=mask)
        da = tl.sum(by_position, 1) / tl.where(total == 0, 1.0, total)
        da = tl.where(total == 0, 0.0, da).to(da_ptr.dtype.element_ty)
        tl.store(da_ptr + b * P + p, da, mask=p < P)

# Ops


def _pool_forward(features: Tensor, activation: Tensor) -> Tensor:
    if not (runs_triton(features) and runs_triton(activation)):
        return weighted_pool_reference(features, activation)
    pooled = features.new_empty(features.shape[:2], dtype=torch.float32)
    if len(features):
        features_bcp, activation_bp = features.flatten(2), activation.flatten(1)
        sizes = tile_sizes(CONFIGS, "read", features_bcp)
        batch, channels, positions = features_bcp.shape
        grid = (batch, triton.cdiv(channels, sizes["BLOCK_C"]))
        with torch.cuda.device_of(features):
            _pool_kernel[grid](
                features_bcp, *features_bcp.stride(), activation_bp, *activation_bp.stride(), pooled,
                channels, positions, **sizes,
            )  # fmt: skip
    return pooled


def _pool_backward(grad: Tensor, features: Tensor, activation: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
    to_features = empty_gradient(features)
    to_activation = torch.empty_like(activation, memory_format=torch.contiguous_format)
    if not (runs_triton(features) and runs_triton(activation)):
        wide = activation.to(pooled.dtype)
        total = wide.sum((1, 2, 3), keepdim=True)
        by_position = (_spread(grad) * (features.to(pooled.dtype) - _spread(pooled))).sum(1)
        to_activation.copy_(torch.where(total == 0, 0, by_position / total))
        return to_features.copy_(_spread(grad) * pool_weights_reference(wide).unsqueeze(1)), to_activation
    if len(features):
        features_bcp, out_bcp, activation_bp = features.flatten(2), to_features.flatten(2), activation.flatten(1)
        sizes = tile_sizes(CONFIGS, "read", features_bcp, out_bcp)
        batch, channels, positions = features_bcp.shape
        grid = (batch, triton.cdiv(positions, sizes["ROWS"] * sizes["LANES"]))
        with torch.cuda.device_of(features):
            _pool_backward_kernel[grid](
                grad, *grad.stride(), features_bcp, *features_bcp.stride(), activation_bp, *activation_bp.stride(),
                pooled, out_bcp, *out_bcp.stride(), to_activation, channels, positions, **sizes,
            )  # fmt: skip
    return to_features, to_activation


def _head_forward(rgb: Tensor, static: Tensor, difference: Tensor) -> tuple[Tensor, ...]:
    if runs_triton(rgb):
        return head_forward(rgb, static, difference)
    maps = [activation_map_reference(features) for features in (rgb, static, difference)]
    rgb_map, static_map, difference_map = maps
    slope = map_alignment_slope(rgb_map, static_map + difference_map)
    saved = torch.stack([pool_weights_reference(static_map), pool_weights_reference(difference_map), slope], 1)
    return *_pool_by_maps(rgb, static, difference, *maps), saved


def _head_backward(rgb: Tensor, saved: Tensor, *grads: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """`grads` are those of `DecoupledPool`'s fields, None for zero; `saved` is what `_head_forward` returns last."""
    if runs_triton(rgb):
        return head_backward(rgb, saved, *grads)
    grad = DecoupledPool(*(saved.new_zeros(()) if grad is None else _spread(grad) for grad in grads))
    static_weights, difference_weights, slope = saved.unsqueeze(2).unbind(1)
    uniform = 1 / rgb.shape[2:].numel()
    to_rgb = grad.rgb * uniform + grad.rgb_static * static_weights + grad.rgb_difference * difference_weights
    if grad.alignment.dim():
        to_rgb = to_rgb + grad.alignment * slope * rgb.sign()
    to_maps = to_rgb, grad.static * uniform, grad.difference * uniform
    return tuple(empty_gradient(rgb).copy_(value) for value in to_maps)


def _spread(tensor: Tensor) -> Tensor:
    """(B, C) or (B,) made to broadcast over (B, C, T, H, W)."""
    return tensor.view(*tensor.shape, *[1] * (5 - tensor.dim()))


define_op(_library, "weighted_pool(Tensor features, Tensor activation) -> Tensor", _pool_forward)
define_op(
    _library,
    "weighted_pool_backward(Tensor grad, Tensor features, Tensor activation, Tensor pooled) -> (Tensor, Tensor)",
    _pool_backward,
)
define_op(
    _library,
    "decoupled_pool(Tensor rgb, Tensor static, Tensor difference) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _head_forward,
)
define_op(
    _library,
    "decoupled_pool_backward(Tensor rgb, Tensor saved, Tensor? grad_rgb, Tensor? grad_rgb_static, "
    "Tensor? grad_rgb_difference, Tensor? grad_static, Tensor? grad_difference, "
    "Tensor? grad_alignment) -> (Tensor, Tensor, Tensor)",
    _head_backward,
)


@torch.library.register_fake("dclr::weighted_pool", lib=_library)
def _(features, activation):
    return features.new_empty(features.shape[:2], dtype=wide_dtype(features, activation))


@torch.library.register_fake("dclr::weighted_pool_backward", lib=_library)
def _(grad, features, activation, pooled):
    return empty_gradient(features), torch.empty_like(activation, memory_format=torch.contiguous_format)


@torch.library.register_fake("dclr::decoupled_pool", lib=_library)
def _(rgb, static, difference):
    wide = wide_dtype(rgb)
    pools = [rgb.new_empty(rgb.shape[:2], dtype=wide) for _ in range(5)]
    batch, _, *positions = rgb.shape
    return *pools, rgb.new_empty(batch, dtype=wide), rgb.new_empty((batch, 3, *positions), dtype=wide)


@torch.library.register_fake("dclr::decoupled_pool_backward", lib=_library)
def _(rgb, saved, *grads):
    return tuple(empty_gradient(rgb) for _ in range(3))


class _WeightedPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, activation):
        with torch._C._AutoDispatchBelowAutograd():
            pooled = torch.ops.dclr.weighted_pool(features, activation)
        ctx.save_for_backward(features, activation, pooled)
        return pooled

    @staticmethod
    @first_derivative
    def backward(ctx, grad):
        return torch.ops.dclr.weighted_pool_backward(grad, *ctx.saved_tensors)


class _DecoupledPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rgb, static, difference):
        with torch._C._AutoDispatchBelowAutograd():
            *results, saved = torch.ops.dclr.decoupled_pool(rgb, static, difference)
        ctx.save_for_backward(rgb, saved)
        ctx.mark_non_differentiable(saved)
        ctx.set_materialize_grads(False)
        return *results, saved

    @staticmethod
    @first_derivative
    def backward(ctx, *grads):
        return torch.ops.dclr.decoupled_pool_backward(*ctx.saved_tensors, *grads[:-1])


_library.impl("weighted_pool", _WeightedPool.apply, "Autograd")
_library.impl("decoupled_pool", _DecoupledPool.apply, "Autograd")


# Public functions


def weighted_pool(features: Tensor, activation: Tensor) -> Tensor:
    """Mean of features over positions, weighted by an activation map (DCLR Eq. 13).

    Gradients go to both arguments. Weights that sum to 0 pool uniformly, without a gradient to `activation`.

    Args:
        features: (B, C, T, H, W) float, any strides.
        activation: (B, T, H, W) float, non-negative, any strides; its dtype may be another one.

    Returns:
        (B, C) float32 (float64 where an argument is float64).

    Raises:
        ValueError, TypeError: wrong rank, shape, dtype or device.
    """
    check_tensors(features=features, activation=activation)
    check_features(features=features)
    check_float("activation", activation, 4)
    batch, _, *positions = features.shape
    expected = (batch, *positions)
    check(activation.shape == expected, "activation", tuple(activation.shape), lambda: f"{expected} as features")
    return torch.ops.dclr.weighted_pool(features, activation)


def decoupled_pool(rgb: Tensor, static: Tensor, difference: Tensor) -> DecoupledPool:
    """The feature-space head in one pass over the three feature maps (DCLR Eq. 11-13).

    `rgb`, `static` and `difference` of the result are average pools; `rgb_static` and `rgb_difference` pool `rgb` by
    the activation maps of the other two, which get no gradient from it; `alignment` is
    `activation_alignment(..., reduction="none")`, with a gradient to `rgb` alone.

    Args:
        rgb, static, difference: (B, C, T, H, W) float, one shape and dtype, any strides.

    Returns:
        `DecoupledPool`, float32 (float64 for float64).

    Raises:
        ValueError, TypeError: wrong rank, dtype, device, or shapes that differ.
    """
    check_features(rgb=rgb, static=static, difference=difference)
    *results, _ = torch.ops.dclr.decoupled_pool(rgb, static, difference)
    return DecoupledPool(*results)
