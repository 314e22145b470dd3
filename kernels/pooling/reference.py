"""Pools weighted by an activation map, and the whole head over the three feature maps in one pass.

    f[c] = sum_{t, h, w} F[c, t, h, w] A[t, h, w] / sum_{t, h, w} A[t, h, w]              DCLR Eq. 13

Weights that sum to 0 pool uniformly.
Shape suffixes: b batch, c channels, t, h, w frame, row and column of the map, p = t * h * w positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._common import wide_dtype
from ..activation import activation_map_reference, map_alignment_reference


class DecoupledPool(NamedTuple):
    """Result of `decoupled_pool`: five pools (B, C) and the alignment (B,)."""

    rgb: Tensor
    rgb_static: Tensor
    rgb_difference: Tensor
    static: Tensor
    difference: Tensor
    alignment: Tensor


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


def decoupled_pool_reference(
    rgb: Tensor, static: Tensor, difference: Tensor, maps: Sequence[Tensor] | None = None
) -> DecoupledPool:
    """Plain PyTorch form of `decoupled_pool`; `maps`: the three activation maps, where they are known."""
    maps = maps or map(activation_map_reference, (rgb, static.detach(), difference.detach()))
    rgb_map, static_map, difference_map = maps
    return DecoupledPool(
        average_pool_reference(rgb),
        weighted_pool_reference(rgb, static_map),
        weighted_pool_reference(rgb, difference_map),
        average_pool_reference(static),
        average_pool_reference(difference),
        map_alignment_reference(rgb_map, static_map + difference_map),
    )
