"""Triton kernels of `weighted_pool`: features weighted by an activation map, and its gradients."""

from __future__ import annotations

from torch import Tensor

from .._common import strided, tl, triton
from ..feature_maps import launch_over_maps

if triton is not None:
    from ..feature_maps import load_pool, pool_weight, tile_mask, tile_offset, tile_positions

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
            pooled += tl.sum(tl.sum(x * tl.expand_dims(pool_weight(activation, total, P), 1), 0), 1)
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


def launch_pool(features: Tensor, activation: Tensor, pooled: Tensor) -> None:
    """Fill `pooled` (B, C)."""
    features_bcp = features.flatten(2)
    arguments = *strided(features_bcp, activation.flatten(1)), pooled
    launch_over_maps(_pool_kernel, "read", "c", [features_bcp], *arguments)


def launch_pool_backward(
    grad: Tensor, features: Tensor, activation: Tensor, pooled: Tensor, to_features: Tensor, to_activation: Tensor
) -> None:
    """Fill the gradients to features and activation."""
    maps_bcp = features_bcp, out_bcp = features.flatten(2), to_features.flatten(2)
    arguments = *strided(grad, features_bcp, activation.flatten(1)), pooled, *strided(out_bcp), to_activation
    launch_over_maps(_pool_backward_kernel, "read", "p", maps_bcp, *arguments)
