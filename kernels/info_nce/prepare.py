"""The first Triton kernel of InfoNCE: copies of rows that can be multiplied in their own dtype, and pairs' cosines.

A copied row has its exponent taken out: it is scaled by the power of two that brings its largest element into [1, 2),
exactly in every dtype. What is left of its norm scales rows and columns of a tile of products, so that 16-bit operands
cost no precision. A row with a NaN or an infinity is copied as zeros with a NaN norm, and so reaches no other row.
`forward.py` has the shape letters.
"""

from __future__ import annotations

from .._common import tl, triton

if triton is not None:
    from ..rows import inverse_norm, load_wide

    @triton.jit
    def _power_scale(ptr, row, inside, stride_row, stride_d, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
        """The power of two that brings the largest element of each row into [1, 2); finite for every row."""
        largest = tl.zeros((ROWS,), tl.float32)
        for first in range(0, D, BLOCK_D):
            x = load_wide(ptr, row, inside, stride_row, first + tl.arange(0, BLOCK_D), D, stride_d)
            largest = tl.maximum(largest, tl.max(tl.abs(x), 1))
        exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
        return ((254 - tl.minimum(exponent, 253)) << 23).to(tl.float32, bitcast=True)

    @triton.jit
    def _unit_scale(ptr, row, inside, stride_row, stride_d, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
        """The power of two of each row, and the inverse of its norm after that."""
        scale = _power_scale(ptr, row, inside, stride_row, stride_d, D, ROWS, BLOCK_D)
        square = tl.zeros((ROWS,), tl.float32)
        for first in range(0, D, BLOCK_D):
            x = load_wide(ptr, row, inside, stride_row, first + tl.arange(0, BLOCK_D), D, stride_d) * scale[:, None]
            square += tl.sum(x * x, 1)
        return scale, inverse_norm(square, square == 0)

    @triton.jit
    def _copy_rows(
        ptr, row, inside, stride_row, stride_d, copy_ptr, scale_ptr, C, D,
        PAD: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        """Writes the copy, the inverse of its norm and its scale."""
        scale, inverse = _unit_scale(ptr, row, inside, stride_row, stride_d, D, ROWS, BLOCK_D)
        for first in range(0, PAD, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            x = load_wide(ptr, row, inside, stride_row, d, D, stride_d) * scale[:, None]
            x = tl.where(tl.abs(x) < float("inf"), x, 0.0).to(copy_ptr.dtype.element_ty)
            mask = inside[:, None] & (d < PAD)[None, :]
            tl.store(copy_ptr + row.to(tl.int64)[:, None] * PAD + d[None, :], x, mask=mask)
        tl.store(scale_ptr + row, inverse, mask=inside)
        tl.store(scale_ptr + C + row, scale, mask=inside)

    @triton.jit
    def _pair_cosine(
        query_ptr, query_row, query_stride, query_stride_d, other_ptr, other_row, other_stride, other_stride_d,
        inside, there, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        """Cosine of each query with its positive, inverse norm of the positive's scaled row, and its scale."""
        scale, inverse = _unit_scale(query_ptr, query_row, inside, query_stride, query_stride_d, D, ROWS, BLOCK_D)
        other_scale, other_inverse = _unit_scale(
            other_ptr, other_row, there, other_stride, other_stride_d, D, ROWS, BLOCK_D
        )
        product = tl.zeros((ROWS,), tl.float32)
        for first in range(0, D, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            x = load_wide(query_ptr, query_row, inside, query_stride, d, D, query_stride_d) * scale[:, None]
            y = load_wide(other_ptr, other_row, there, other_stride, d, D, other_stride_d) * other_scale[:, None]
            product += tl.sum(x * y, 1)
        return product * inverse * other_inverse, other_inverse, other_scale

    @triton.jit(do_not_specialize=["row_stride_g", "row_stride_r", "S", "Q", "K", "G", "R", "others"])
    def prepare_kernel(
        query_ptr, query_stride_g, query_stride_r, query_stride_d, key_ptr, key_stride_g, key_stride_r, key_stride_d,
        other_ptr, other_stride_g, other_stride_r, other_stride_d, row_ptr, row_stride_g, row_stride_r, first_ptr,
        copy_ptr, scale_ptr, pair_ptr, S, Q, K, G, R, others, D,
        PAD: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BEYOND: tl.constexpr,
    ):  # fmt: skip
        """Copies S groups of Q rows of `query_ptr` and K of `key_ptr`; then takes the cosines of G groups of R queries.

        The positive of a query is the row of `other_ptr` that `row_ptr` (G, R) says, without it that of its number; it
        has `others` rows. With `first_ptr` the queries of a group begin at one of the rows of `query_ptr`.
        `pair_ptr` (3, G, R): the positive's cosine, the inverse norm of its scaled row, its scale.
        """
        query_blocks, C = tl.cdiv(Q, ROWS), S.to(tl.int64) * (Q + K)
        blocks = query_blocks + tl.cdiv(K, ROWS)
        program = tl.program_id(0)
        if program == 0:
            tl.store(scale_ptr + 2 * C + tl.arange(0, BEYOND), tl.zeros((BEYOND,), tl.float32))
        if program < S * blocks:
            g, block = (program // blocks).to(tl.int64), program % blocks
            copy_ptr += g * (Q + K) * PAD
            scale_ptr += g * (Q + K)
            if block < query_blocks:
                row = block * ROWS + tl.arange(0, ROWS)
                _copy_rows(
                    query_ptr + g * query_stride_g, row, row < Q, query_stride_r, query_stride_d,
                    copy_ptr, scale_ptr, C, D, PAD, ROWS, BLOCK_D,
                )  # fmt: skip
            elif key_ptr is not None:
                row = (block - query_blocks) * ROWS + tl.arange(0, ROWS)
                _copy_rows(
                    key_ptr + g * key_stride_g, row, row < K, key_stride_r, key_stride_d,
                    copy_ptr + Q.to(tl.int64) * PAD, scale_ptr + Q, C, D, PAD, ROWS, BLOCK_D,
                )  # fmt: skip
        else:
            program -= S * blocks
            blocks = tl.cdiv(R, ROWS)
            g = (program // blocks).to(tl.int64)
            row = program % blocks * ROWS + tl.arange(0, ROWS)
            inside, pair, pairs = row < R, g * R + row, G.to(tl.int64) * R
            other = row
            if row_ptr is not None:
                other = tl.load(row_ptr + g * row_stride_g + row.to(tl.int64) * row_stride_r, mask=inside, other=-1)
                other = other.to(tl.int32)
            if first_ptr is not None:
                query_ptr += tl.load(first_ptr + g) * query_stride_r
            else:
                query_ptr += g * query_stride_g
            cosine, inverse, scale = _pair_cosine(
                query_ptr, row, query_stride_r, query_stride_d,
                other_ptr + g * other_stride_g, other, other_stride_r, other_stride_d,
                inside, inside & (other >= 0) & (other < others), D, ROWS, BLOCK_D,
            )  # fmt: skip
            tl.store(pair_ptr + pair, cosine, mask=inside)
            tl.store(pair_ptr + pairs + pair, inverse, mask=inside)
            tl.store(pair_ptr + 2 * pairs + pair, scale, mask=inside)
