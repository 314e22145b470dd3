"""What the kernels over rows of features share: InfoNCE and top-K."""

from __future__ import annotations

from ._common import tl, triton

if triton is not None:

    @triton.jit
    def load_rows(ptr, row, inside, stride_row, d, D, stride_d):
        """(rows, columns) of a tensor, 0 outside."""
        offset = row.to(tl.int64)[:, None] * stride_row + d.to(tl.int64)[None, :] * stride_d
        return tl.load(ptr + offset, mask=inside[:, None] & (d < D)[None, :], other=0)

    @triton.jit
    def load_wide(ptr, row, inside, stride_row, d, D, stride_d):
        """The same in float32."""
        return load_rows(ptr, row, inside, stride_row, d, D, stride_d).to(tl.float32)

    @triton.jit
    def inverse_norm(square, zero):
        """Of rows with these sums of squares: 0 for a zero row, NaN for one that is not finite."""
        inverse = tl.where(zero, 0.0, 1 / tl.sqrt_rn(tl.where(zero, 1.0, square)))
        return tl.where(square < float("inf"), inverse, float("nan"))

    @triton.jit
    def dot(a, b, total, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
        """total + a b in float32.

        The interpreter has no bfloat16, and its sums in float32 depend on the place in the tile: it multiplies in
        float64, so that equal rows tie.
        """
        if UPCAST:
            return total + tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64).to(tl.float32)
        else:
            return tl.dot(a, b, total, input_precision=PRECISION)
