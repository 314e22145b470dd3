"""Pools weighted by an activation map, and the whole head over the three feature maps in one pass.

`reference.py` has the formulas; the Triton kernels stand in `weighted.py` and `decoupled.py`.
Shape suffixes: b batch, c channels, t, h, w frame, row and column of the map, p = t * h * w positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._common import check_float, check_tensors, define_op, expect, first_derivative, runs_triton, wide_dtype
from ..activation import activation_map_reference, check_feature_maps, map_alignment_slope
from ..feature_maps import empty_gradient
from .decoupled import head_backward, head_forward
from .reference import (
    DecoupledPool,
    decoupled_pool_reference,
    pool_by_maps,
    pool_weights_reference,
    weighted_pool_reference,
)
from .weighted import launch_pool, launch_pool_backward

__all__ = ["DecoupledPool", "decoupled_pool", "decoupled_pool_reference", "weighted_pool", "weighted_pool_reference"]

_library = torch.library.Library("dclr", "FRAGMENT")


# Ops


def _pool_forward(features: Tensor, activation: Tensor) -> Tensor:
    if not (runs_triton(features) and runs_triton(activation)):
        return weighted_pool_reference(features, activation)
    pooled = features.new_empty(features.shape[:2], dtype=torch.float32)
    if len(features):
        launch_pool(features, activation, pooled)
    return pooled


def _pool_backward(grad: Tensor, features: Tensor, activation: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
    results = empty_gradient(features), torch.empty_like(activation, memory_format=torch.contiguous_format)
    if runs_triton(features) and runs_triton(activation):
        if len(features):
            launch_pool_backward(grad, features, activation, pooled, *results)
        return results
    wide = activation.to(pooled.dtype)
    total = wide.sum((1, 2, 3), keepdim=True)
    by_position = (_over_positions(grad) * (features.to(pooled.dtype) - _over_positions(pooled))).sum(1)
    results[1].copy_(torch.where(total == 0, 0, by_position / total))
    results[0].copy_(_over_positions(grad) * pool_weights_reference(wide).unsqueeze(1))
    return results


def _head_forward(rgb: Tensor, static: Tensor, difference: Tensor) -> tuple[Tensor, ...]:
    if runs_triton(rgb):
        return head_forward(rgb, static, difference)
    maps = [activation_map_reference(features) for features in (rgb, static, difference)]
    rgb_map, static_map, difference_map = maps
    slope = map_alignment_slope(rgb_map, static_map + difference_map)
    saved = torch.stack([pool_weights_reference(static_map), pool_weights_reference(difference_map), slope], 1)
    return *pool_by_maps(rgb, static, difference, *maps), saved


def _head_backward(rgb: Tensor, saved: Tensor, *grads: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """`grads` are those of `DecoupledPool`'s fields, None for zero; `saved` is what `_head_forward` returns last."""
    if runs_triton(rgb):
        return head_backward(rgb, saved, *grads)
    grad = DecoupledPool(*(saved.new_zeros(()) if grad is None else _over_positions(grad) for grad in grads))
    static_weights, difference_weights, slope = saved.unsqueeze(2).unbind(1)
    uniform = 1 / rgb.shape[2:].numel()
    to_rgb = grad.rgb * uniform + grad.rgb_static * static_weights + grad.rgb_difference * difference_weights
    if grad.alignment.dim():
        to_rgb = to_rgb + grad.alignment * slope * rgb.sign()
    to_maps = to_rgb, grad.static * uniform, grad.difference * uniform
    return tuple(empty_gradient(rgb).copy_(value) for value in to_maps)


def _over_positions(tensor: Tensor) -> Tensor:
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
    check_feature_maps(features=features)
    check_float("activation", activation, 4)
    batch, _, *positions = features.shape
    expected = (batch, *positions)
    expect(activation.shape == expected, "activation", tuple(activation.shape), lambda: f"{expected} as features")
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
    check_feature_maps(rgb=rgb, static=static, difference=difference)
    *results, _ = torch.ops.dclr.decoupled_pool(rgb, static, difference)
    return DecoupledPool(*results)
