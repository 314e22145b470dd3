"""Pools weighted by an activation map, and the whole head over the three feature maps in one pass.

    f[c] = sum_{t, h, w} F[c, t, h, w] A[t, h, w] / sum_{t, h, w} A[t, h, w]              DCLR Eq. 13

Weights that sum to 0 pool uniformly.
Shape suffixes: b batch, c channels, t, h, w frame, row and column of the map, p = t * h * w positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._common import check, check_float, check_same_device
from .activation import (
    activation_map_reference,
    check_features,
    map_alignment_reference,
    map_alignment_slope,
    wide_dtype,
)

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


# Ops


def _pool_forward(features: Tensor, activation: Tensor) -> Tensor:
    return weighted_pool_reference(features, activation)


def _pool_backward(grad: Tensor, features: Tensor, activation: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
    weights = pool_weights_reference(activation.to(pooled.dtype))
    total = activation.to(pooled.dtype).sum((1, 2, 3), keepdim=True)
    by_position = (_spread(grad) * (features.to(pooled.dtype) - _spread(pooled))).sum(1)
    grad_activation = torch.where(total == 0, 0, by_position / total)
    return _laid_out(_spread(grad) * weights.unsqueeze(1), features), _laid_out(grad_activation, activation)


def _head_forward(rgb: Tensor, static: Tensor, difference: Tensor) -> tuple[Tensor, ...]:
    maps = [activation_map_reference(features) for features in (rgb, static, difference)]
    rgb_map, static_map, difference_map = maps
    slope = map_alignment_slope(rgb_map, static_map + difference_map)
    saved = torch.stack([pool_weights_reference(static_map), pool_weights_reference(difference_map), slope], 1)
    return *_pool_by_maps(rgb, static, difference, *maps), saved


def _head_backward(rgb: Tensor, saved: Tensor, *grads: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """`grads` are those of `DecoupledPool`'s fields, None for zero; `saved` is what `_head_forward` returns last."""
    grad = DecoupledPool(*(saved.new_zeros(()) if grad is None else _spread(grad) for grad in grads))
    static_weights, difference_weights, slope = saved.unsqueeze(2).unbind(1)
    uniform = 1 / rgb.shape[2:].numel()
    to_rgb = grad.rgb * uniform + grad.rgb_static * static_weights + grad.rgb_difference * difference_weights
    to_rgb = to_rgb + grad.alignment * slope * rgb.sign()
    return _laid_out(to_rgb, rgb), _laid_out(grad.static * uniform, rgb), _laid_out(grad.difference * uniform, rgb)


def _spread(tensor: Tensor) -> Tensor:
    """(B, C) or (B,) made to broadcast over (B, C, T, H, W)."""
    return tensor.view(*tensor.shape, *[1] * (5 - tensor.dim()))


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """`value`, broadcast, in the shape, strides and dtype of `like`."""
    return torch.empty_like(like).copy_(value)


for _name, _schema, _run in (
    ("weighted_pool", "(Tensor features, Tensor activation) -> Tensor", _pool_forward),
    (
        "weighted_pool_backward",
        "(Tensor grad, Tensor features, Tensor activation, Tensor pooled) -> (Tensor, Tensor)",
        _pool_backward,
    ),
    (
        "decoupled_pool",
        "(Tensor rgb, Tensor static, Tensor difference) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _head_forward,
    ),
    (
        "decoupled_pool_backward",
        "(Tensor rgb, Tensor saved, Tensor? grad_rgb, Tensor? grad_rgb_static, Tensor? grad_rgb_difference, "
        "Tensor? grad_static, Tensor? grad_difference, Tensor? grad_alignment) -> (Tensor, Tensor, Tensor)",
        _head_backward,
    ),
):
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _run, _key)


@torch.library.register_fake("dclr::weighted_pool", lib=_library)
def _(features, activation):
    return features.new_empty(features.shape[:2], dtype=wide_dtype(features, activation))


@torch.library.register_fake("dclr::weighted_pool_backward", lib=_library)
def _(grad, features, activation, pooled):
    return torch.empty_like(features), torch.empty_like(activation)


@torch.library.register_fake("dclr::decoupled_pool", lib=_library)
def _(rgb, static, difference):
    wide = wide_dtype(rgb)
    pools = [rgb.new_empty(rgb.shape[:2], dtype=wide) for _ in range(5)]
    batch, _, *positions = rgb.shape
    return *pools, rgb.new_empty(batch, dtype=wide), rgb.new_empty((batch, 3, *positions), dtype=wide)


@torch.library.register_fake("dclr::decoupled_pool_backward", lib=_library)
def _(rgb, saved, *grads):
    return tuple(torch.empty_like(rgb) for _ in range(3))


class _WeightedPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, activation):
        with torch._C._AutoDispatchBelowAutograd():
            pooled = torch.ops.dclr.weighted_pool(features, activation)
        ctx.save_for_backward(features, activation, pooled)
        return pooled

    @staticmethod
    @once_differentiable
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
    @once_differentiable
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
    check_features(features=features)
    check_float("activation", activation, 4)
    batch, _, *positions = features.shape
    expected = (batch, *positions)
    check(activation.shape == expected, "activation", f"shape {tuple(activation.shape)}", f"{expected} as features")
    check_same_device(features=features, activation=activation)
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
