"""Pools weighted by an activation map, and the whole head over the three feature maps in one pass.

`reference.py` has the formulas; the Triton kernels stand in `weighted.py` and `decoupled.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._common import check_float, check_tensors, expect, register_op, wide_dtype
from ..activation import activation_map_reference, check_feature_maps, keep_last, map_alignment_slope
from ..feature_maps import empty_gradient
from .decoupled import launch_head, launch_head_backward
from .reference import DecoupledPool, decoupled_pool_reference, pool_weights_reference, weighted_pool_reference
from .weighted import launch_pool, launch_pool_backward

# Ops


def _empty_pool(features: Tensor, *weights: Tensor) -> Tensor:
    return features.new_empty(features.shape[:2], dtype=wide_dtype(features, *weights))


def _empty_pool_gradients(grad: Tensor, features: Tensor, activation: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
    return empty_gradient(features), torch.empty_like(activation, memory_format=torch.contiguous_format)


def _pool_gradients(grad: Tensor, features: Tensor, activation: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
    wide = activation.to(pooled.dtype)
    total = wide.sum((1, 2, 3), keepdim=True)
    by_position = (_over_positions(grad) * (features.to(pooled.dtype) - _over_positions(pooled))).sum(1)
    to_features = _over_positions(grad) * pool_weights_reference(wide).unsqueeze(1)
    return to_features, torch.where(total == 0, 0, by_position / total)


def _empty_head(rgb: Tensor, static: Tensor, difference: Tensor) -> tuple[Tensor, ...]:
    """The fields of `DecoupledPool`, then (B, 3, T, H, W): both weight maps and the slope of the alignment."""
    batch, _, *positions = rgb.shape
    pool = _empty_pool(rgb)
    others = (torch.empty_like(pool) for _ in range(4))
    return pool, *others, pool.new_empty(batch), pool.new_empty((batch, 3, *positions))


def _head(rgb: Tensor, static: Tensor, difference: Tensor) -> tuple[Tensor, ...]:
    maps = rgb_map, static_map, difference_map = [*map(activation_map_reference, (rgb, static, difference))]
    slope = map_alignment_slope(rgb_map, static_map + difference_map)
    saved = torch.stack([pool_weights_reference(static_map), pool_weights_reference(difference_map), slope], 1)
    return *decoupled_pool_reference(rgb, static, difference, maps), saved


def _head_gradients(rgb: Tensor, saved: Tensor, *grads: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """`grads` are those of `DecoupledPool`'s fields, None for zero; `saved` is the last of `_empty_head`."""
    grad = DecoupledPool(*(saved.new_zeros(()) if grad is None else _over_positions(grad) for grad in grads))
    static_weights, difference_weights, slope = saved.unsqueeze(2).unbind(1)
    uniform = 1 / rgb.shape[2:].numel()
    to_rgb = grad.rgb * uniform + grad.rgb_static * static_weights + grad.rgb_difference * difference_weights
    if grad.alignment.dim():
        to_rgb = to_rgb + grad.alignment * slope * rgb.sign()
    to_maps = to_rgb, grad.static * uniform, grad.difference * uniform
    return tuple(value.expand_as(rgb) for value in to_maps)


def _over_positions(tensor: Tensor) -> Tensor:
    """(B, C) or (B,) made to broadcast over (B, C, T, H, W)."""
    return tensor.view(*tensor.shape, *[1] * (5 - tensor.dim()))


register_op(
    "weighted_pool(Tensor features, Tensor activation) -> Tensor",
    _empty_pool,
    weighted_pool_reference,
    launch_pool,
    setup_context=lambda ctx, arguments, pooled: ctx.save_for_backward(*arguments, pooled),
    backward=lambda ctx, grad: torch.ops.dclr.weighted_pool_backward(grad, *ctx.saved_tensors),
)
register_op(
    "weighted_pool_backward(Tensor grad, Tensor features, Tensor activation, Tensor pooled) -> (Tensor, Tensor)",
    _empty_pool_gradients,
    _pool_gradients,
    launch_pool_backward,
)
register_op(
    "decoupled_pool(Tensor rgb, Tensor static, Tensor difference) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _empty_head,
    _head,
    launch_head,
    setup_context=keep_last,
    backward=lambda ctx, *grads: torch.ops.dclr.decoupled_pool_backward(*ctx.saved_tensors, *grads[:-1]),
)
register_op(
    "decoupled_pool_backward(Tensor rgb, Tensor saved, Tensor? grad_rgb, Tensor? grad_rgb_static, "
    "Tensor? grad_rgb_difference, Tensor? grad_static, Tensor? grad_difference, "
    "Tensor? grad_alignment) -> (Tensor, Tensor, Tensor)",
    lambda rgb, saved, *grads: tuple(empty_gradient(rgb) for _ in range(3)),
    _head_gradients,
    launch_head_backward,
)


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
    expected = (features.shape[0], *features.shape[2:])
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
        DecoupledPool: the five pools (B, C) and the alignment (B,), float32 (float64 for float64).

    Raises:
        ValueError, TypeError: wrong rank, dtype, device, or shapes that differ.
    """
    check_feature_maps(rgb=rgb, static=static, difference=difference)
    *results, _ = torch.ops.dclr.decoupled_pool(rgb, static, difference)
    return DecoupledPool(*results)
