"""Activation maps and their alignment.

    A[t, h, w] = sum_c |F[c, t, h, w]|                                                    DCLR Eq. 11
    L = mean_{t, h, w} | mm(A_rgb) - mm(A_static + A_difference) |                        DCLR Eq. 12
    mm(A) = (A - min A) / (max A - min A) over the positions of one sample, 0 where A is constant

Shape suffixes: b batch, c channels, t, h, w frame, row and column of the map, p = t * h * w positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._common import check, check_float, check_same_device

_library = torch.library.Library("dclr", "FRAGMENT")


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of sums and results: float32, or float64 where an input has it."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


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


def activation_alignment_reference(rgb: Tensor, static: Tensor, difference: Tensor) -> Tensor:
    """Plain PyTorch form of `activation_alignment` with `reduction="none"`."""
    target_map = activation_map_reference(static.detach()) + activation_map_reference(difference.detach())
    return map_alignment_reference(activation_map_reference(rgb), target_map)


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


# Ops


def _forward(features: Tensor) -> Tensor:
    return activation_map_reference(features)


def _backward(grad: Tensor, features: Tensor) -> Tensor:
    return torch.empty_like(features).copy_(grad.unsqueeze(1) * features.sign())


def _alignment_forward(rgb: Tensor, static: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
    rgb_map = activation_map_reference(rgb)
    target_map = activation_map_reference(static) + activation_map_reference(difference)
    return map_alignment_reference(rgb_map, target_map), map_alignment_slope(rgb_map, target_map)


for _name, _schema, _run in (
    ("activation_map", "(Tensor features) -> Tensor", _forward),
    ("activation_map_backward", "(Tensor grad, Tensor features) -> Tensor", _backward),
    (
        "activation_alignment",
        "(Tensor rgb, Tensor static, Tensor difference) -> (Tensor alignment, Tensor slope)",
        _alignment_forward,
    ),
):
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _run, _key)


@torch.library.register_fake("dclr::activation_map", lib=_library)
def _(features):
    return features.new_empty((len(features), *features.shape[2:]), dtype=wide_dtype(features))


@torch.library.register_fake("dclr::activation_map_backward", lib=_library)
def _(grad, features):
    return torch.empty_like(features)


@torch.library.register_fake("dclr::activation_alignment", lib=_library)
def _(rgb, static, difference):
    maps = rgb.new_empty((len(rgb), *rgb.shape[2:]), dtype=wide_dtype(rgb))
    return maps.new_empty(len(rgb)), maps


class _ActivationMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features):
        ctx.save_for_backward(features)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.dclr.activation_map(features)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return torch.ops.dclr.activation_map_backward(grad, *ctx.saved_tensors)


class _ActivationAlignment(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rgb, static, difference):
        with torch._C._AutoDispatchBelowAutograd():
            alignment, slope = torch.ops.dclr.activation_alignment(rgb, static, difference)
        ctx.save_for_backward(rgb, slope)
        ctx.mark_non_differentiable(slope)
        return alignment, slope

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        rgb, slope = ctx.saved_tensors
        return torch.ops.dclr.activation_map_backward(grad[:, None, None, None] * slope, rgb), None, None


_library.impl("activation_map", _ActivationMap.apply, "Autograd")
_library.impl("activation_alignment", _ActivationAlignment.apply, "Autograd")


# Public functions


def check_features(**maps: Tensor) -> None:
    """Feature maps (B, C, T, H, W) of one shape, dtype and device with at least one channel and one position."""
    (first_name, first), *others = maps.items()
    for name, features in maps.items():
        check_float(name, features, 5)
        check(0 not in features.shape[1:], name, f"shape {tuple(features.shape)}", "only the batch to be empty")
    for name, features in others:
        shape, dtype = tuple(first.shape), first.dtype
        check(features.shape == shape, name, f"shape {tuple(features.shape)}", f"{shape} as {first_name}")
        check(features.dtype == dtype, name, features.dtype, f"{dtype} as {first_name}", TypeError)
    check_same_device(**maps)


def activation_map(features: Tensor) -> Tensor:
    """Sum of absolute features over channels (DCLR Eq. 11).

    Args:
        features: (B, C, T, H, W) float, any strides.

    Returns:
        (B, T, H, W) float32 (float64 for float64).

    Raises:
        ValueError, TypeError: wrong rank, dtype or an empty axis other than the batch.
    """
    check_features(features=features)
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
    check(reduction in ("mean", "sum", "none"), "reduction", repr(reduction), '"mean", "sum" or "none"')
    check_features(rgb=rgb, static=static, difference=difference)
    alignment, _ = torch.ops.dclr.activation_alignment(rgb, static, difference)
    if reduction == "none":
        return alignment
    return alignment.mean() if reduction == "mean" and len(alignment) else alignment.sum()
