"""Backward Triton kernels of InfoNCE; the forward file has the shape letters.

With p[i, j] the share of negative j in the sum of query i, and g[i] the gradient to its loss,

    to unit query i:  sum over j of g[i] c[i, j] unit key j / temperature       c[i, j] = p[i, j] for negatives,
    to unit key j:    sum over i of g[i] c[i, j] unit query i / temperature               p[i, +] - 1 for the positive

Scores are computed again tile by tile. Where the keys are the queries, one score serves both sums, and so does its
exponential where it cannot overflow.

slopes    brings the gradients to the losses into what a tile of scores is multiplied by
gradient  multiplies the coefficients g c with the rows of the other side; those of rows too long for one tile it writes
product   multiplies these with the rows, some columns to a program: else each would compute the scores anew
finish    turns a gradient to unit rows into one to the inputs
"""

from __future__ import annotations

from .._common import tl, triton

if triton is not None:
    from ..rows import dot, load_wide
    from .forward import (
        dot_chunks,
        first_rows,
        load_copy,
        load_passing,
        marked_spans,
        set_marked,
        touched,
    )

    @triton.jit
    def _load_size(size_ptr, g):
        """Unit of the gradients to the losses of a group."""
        size = tl.load(size_ptr + g)
        return tl.where(size == 0, 1.0, size)

    @triton.jit(
        do_not_specialize=[
            "grad_stride_g", "grad_stride_r", "index_stride_g", "index_stride_r",
            "exclude_stride_g", "exclude_stride_r", "exclude_stride_e", "excluded", "G", "R", "P",
        ]
    )  # fmt: skip
    def slopes_kernel(
        grad_ptr, grad_stride_g, grad_stride_r, loss_ptr, weight_ptr, size_ptr, scale_ptr, share_ptr,
        first_ptr, index_ptr, index_stride_g, index_stride_r,
        exclude_ptr, exclude_stride_g, exclude_stride_r, exclude_stride_e, excluded, slope_ptr, span_ptr, G, R, P,
        E: tl.constexpr, SHARED: tl.constexpr, ONE_EXP: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Programs are blocks of queries of each group; gradients to their losses are measured in `size_ptr` (G,).

        `loss_ptr` (G,), if given: the row of `grad_ptr` of each group; `weight_ptr` (G, R), contiguous, if given: what
        else the losses were multiplied by.
        `slope_ptr` (4, G, R): the share of a negative, times the gradient, is exp2(score - base) * weight, that of the
        positive -pull; then the inverse norm of the query, 0 where nobody uses its loss, which can be NaN then.
        `span_ptr` (G, blocks, 4): `marked_spans` of each block.
        """
        blocks = tl.cdiv(R, BLOCK)
        g = (tl.program_id(0) // blocks).to(tl.int64)
        row = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
        inside = row < R
        total = G.to(tl.int64) * R
        share_ptr += g * R
        slope_ptr += g * R
        grad_ptr += (g if loss_ptr is None else tl.load(loss_ptr + g)) * grad_stride_g
        grad = tl.load(grad_ptr + row.to(tl.int64) * grad_stride_r, mask=inside, other=0)
        if weight_ptr is not None:
            grad *= tl.load(weight_ptr + g * R + row, mask=inside, other=0).to(tl.float32)
        if size_ptr is not None:
            grad /= _load_size(size_ptr, g)
        unused = grad == 0
        base = tl.load(share_ptr + row, mask=inside, other=0)
        # So far up that no exponential of an unused row overflows: infinity times 0 would be NaN.
        base = tl.where(unused, 0.0 if ONE_EXP else 1e30, base)
        pull = tl.where(unused, 0.0, tl.load(share_ptr + total + row, mask=inside, other=0) * grad)
        weight = grad * tl.exp2(-base) if ONE_EXP else grad
        first_query, _ = first_rows(first_ptr, g, G, R, P, SHARED)
        inverse = tl.load(scale_ptr + first_query + row, mask=inside, other=0)
        tl.store(slope_ptr + row, base, mask=inside)
        tl.store(slope_ptr + total + row, weight, mask=inside)
        tl.store(slope_ptr + 2 * total + row, pull, mask=inside)
        tl.store(slope_ptr + 3 * total + row, tl.where((weight == 0) & (pull == 0), 0.0, inverse), mask=inside)
        marks = (
            g, index_ptr, index_stride_g, index_stride_r,
            exclude_ptr, exclude_stride_g, exclude_stride_r, exclude_stride_e, excluded,
        )  # fmt: skip
        spans = marked_spans(marks, row, inside, E)
        for i in tl.static_range(4):
            tl.store(span_ptr + 4 * tl.program_id(0) + i, spans[i])

    @triton.jit
    def _load_slopes(slope_ptr, stride, row, inside):
        """Base and weight."""
        return (
            tl.load(slope_ptr + row, mask=inside, other=0),
            tl.load(slope_ptr + stride + row, mask=inside, other=0),
        )

    @triton.jit
    def _marked_shares(
        score, slope_ptr, slope_stride, marks, row, inside, key,
        E: tl.constexpr, ONE_EXP: tl.constexpr, AXIS: tl.constexpr,
    ):  # fmt: skip
        """Shares of a tile with positives or excluded keys in it, times the gradients. Queries `row` lie along AXIS."""
        base, weight = _load_slopes(slope_ptr, slope_stride, row, inside)
        if not ONE_EXP:
            score -= tl.expand_dims(base, 1 - AXIS)
        pull = tl.load(slope_ptr + 2 * slope_stride + row, mask=inside, other=0)
        share = tl.exp2(score) * tl.expand_dims(weight, 1 - AXIS)
        return set_marked(share, marks, -pull, 0.0, row, inside, key, E, AXIS)

    @triton.jit
    def _gradient_tile(
        side_a, side_b, descriptor, slope_ptr, slope_stride, span_ptr, marks, out_ptr, a_tile, sharpness, part,
        E: tl.constexpr, AS_QUERY: tl.constexpr, AS_KEY: tl.constexpr, ONE_EXP: tl.constexpr, PAD: tl.constexpr,
        BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
        PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    ):  # fmt: skip
        """Gradient to BLOCK_A unit rows a, as queries, as keys or as both, from `part` of the rows b of the other side.

        A side is (copied rows, their scales, how many, the place of the first among all). `out_ptr` is that of a
        group's first row; where rows are longer than a tile, that of the coefficients (programs, BLOCK_A, rows b).
        """
        a_ptr, a_scale_ptr, a_count, _ = side_a
        b_ptr, b_scale_ptr, b_count, b_begin = side_b
        a_first = a_tile * BLOCK_A
        a_row = a_first + tl.arange(0, BLOCK_A)
        a_inside = a_row < a_count
        a_scale = tl.load(a_scale_ptr + a_row, mask=a_inside, other=0) * sharpness
        if AS_QUERY:
            a_base, a_weight = _load_slopes(slope_ptr, slope_stride, a_row, a_inside)
            a_spans = marked_spans(marks, a_row, a_inside, E)
        WHOLE: tl.constexpr = BLOCK_D == PAD
        d, a = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_A)
        if WHOLE:
            rows = load_copy(a_ptr, a_first, a_count, d, PAD, BLOCK_A)
            total = tl.zeros((BLOCK_A, BLOCK_D), tl.float32)
            out_ptr += tl.cast(a_first, tl.int64) * PAD
        else:
            out_ptr += tl.program_id(0).to(tl.int64) * BLOCK_A * b_count
        begin = tl.program_id(1) * part
        for first in tl.range(begin, tl.minimum(begin + part, b_count), BLOCK_B, num_stages=STAGES):
            b_row = first + tl.arange(0, BLOCK_B)
            b_inside = b_row < b_count
            if WHOLE:
                b = load_passing(descriptor, b_begin, b_ptr, first, b_count, d, PAD, BLOCK_B)
                score = dot(rows, tl.trans(b), tl.zeros((BLOCK_A, BLOCK_B), tl.float32), PRECISION, UPCAST)
            else:
                score = dot_chunks(
                    a_ptr, a_first, a_count, b_ptr, first, b_count, PAD, BLOCK_A, BLOCK_B, BLOCK_D, STAGES,
                    PRECISION, UPCAST,
                )  # fmt: skip
            b_scale = tl.load(b_scale_ptr + b_row)  # without a mask: see `workspace`
            score = score * b_scale[None, :] * a_scale[:, None]
            special = first + BLOCK_B > b_count
            if AS_QUERY:
                special |= touched(marks, a_spans, a_row, a_inside, first, E, BLOCK_B)
            if AS_KEY:
                b_base, b_weight = tl.load(slope_ptr + b_row), tl.load(slope_ptr + slope_stride + b_row)
                b_span_ptr = span_ptr + 4 * (first // BLOCK_B)
                b_spans = tl.load(b_span_ptr), tl.load(b_span_ptr + 1), tl.load(b_span_ptr + 2), tl.load(b_span_ptr + 3)
                special |= touched(marks, b_spans, b_row, b_inside, a_first, E, BLOCK_A)
            if special:
                coefficient = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
                if AS_QUERY:
                    coefficient += _marked_shares(
                        score, slope_ptr, slope_stride, marks, a_row, a_inside, b_row, E, ONE_EXP, 0
                    )
                if AS_KEY:
                    coefficient += _marked_shares(
                        score, slope_ptr, slope_stride, marks, b_row, b_inside, a_row, E, ONE_EXP, 1
                    )
                coefficient *= tl.where(b_scale == b_scale, b_scale, 0.0)[None, :]
                coefficient = tl.where(b_inside[None, :], coefficient, 0.0)
            elif ONE_EXP:
                weight = a_weight[:, None] * b_scale[None, :] + (b_weight * b_scale)[None, :]
                coefficient = tl.exp2(score) * weight
            else:
                coefficient = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
                if AS_QUERY:
                    coefficient += tl.exp2(score - a_base[:, None]) * (a_weight[:, None] * b_scale[None, :])
                if AS_KEY:
                    coefficient += tl.exp2(score - b_base[None, :]) * (b_weight * b_scale)[None, :]
            coefficient = coefficient.to(a_ptr.dtype.element_ty)
            if WHOLE:
                total = dot(coefficient, b, total, PRECISION, UPCAST)
            else:
                mask = a_inside[:, None] & b_inside[None, :]
                tl.store(out_ptr + a[:, None].to(tl.int64) * b_count + b_row[None, :], coefficient, mask=mask)
        if WHOLE:
            tl.store(out_ptr + a[:, None] * PAD + d[None, :], total, mask=a_inside[:, None])

    @triton.jit(
        do_not_specialize=[
            "index_stride_g", "index_stride_r", "exclude_stride_g", "exclude_stride_r", "exclude_stride_e", "excluded",
            "G", "R", "P", "key_part", "query_part", "first_tile", "tiles",
        ]
    )  # fmt: skip
    def gradient_kernel(
        copy_ptr, descriptor, scale_ptr, slope_ptr, span_ptr, first_ptr, index_ptr, index_stride_g, index_stride_r,
        exclude_ptr, exclude_stride_g, exclude_stride_r, exclude_stride_e, excluded,
        out_ptr, sharpness, G, R, P, key_part, query_part, first_tile, tiles,
        E: tl.constexpr, QUERY: tl.constexpr, KEY: tl.constexpr, SHARED: tl.constexpr, ONE_EXP: tl.constexpr,
        PAD: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
        PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    ):  # fmt: skip
        """`tiles` of each group, of queries (QUERY), then of keys (KEY); with SHARED the queries are the keys.

        `out_ptr` (splits, G, R + P, or R if SHARED, PAD): parts of the gradient to unit rows, in units of what
        `finish_kernel` multiplies. Of long rows it is of one side, and gets coefficients: see `_gradient_tile`.
        """
        query_tiles = tl.cdiv(R, BLOCK_A) if QUERY else 0
        g = (tl.program_id(0) // tiles).to(tl.int64)
        tile = tl.program_id(0) % tiles + first_tile
        slope_ptr += g * R
        slope_stride = G.to(tl.int64) * R
        used_ptr = slope_ptr + 3 * slope_stride
        span_ptr += g * tl.cdiv(R, BLOCK_B) * 4
        marks = (
            g, index_ptr, index_stride_g, index_stride_r,
            exclude_ptr, exclude_stride_g, exclude_stride_r, exclude_stride_e, excluded,
        )  # fmt: skip
        first_query, first_key = first_rows(first_ptr, g, G, R, P, SHARED)
        queries = copy_ptr + first_query * PAD, scale_ptr + first_query if SHARED else used_ptr, R, first_query
        keys = copy_ptr + first_key * PAD, scale_ptr + first_key, P, first_key
        to_query, to_key = out_ptr, out_ptr
        if BLOCK_D == PAD:
            to_query += (tl.program_id(1).to(tl.int64) * G + g) * (R if SHARED else R + P) * PAD
            to_key = to_query + R.to(tl.int64) * PAD
        if QUERY:  # noqa: SIM102, for the compiler leaves out a branch only on a constant of its own
            if tile < query_tiles:
                _gradient_tile(
                    queries, keys, descriptor, slope_ptr, slope_stride, span_ptr, marks, to_query, tile, sharpness,
                    key_part,
                    E, True, SHARED, ONE_EXP, PAD, BLOCK_A, BLOCK_B, BLOCK_D, STAGES, PRECISION, UPCAST,
                )  # fmt: skip
        if KEY and not SHARED:  # noqa: SIM102
            if tile >= query_tiles:
                _gradient_tile(
                    keys, queries, descriptor, slope_ptr, slope_stride, span_ptr, marks, to_key, tile - query_tiles,
                    sharpness, query_part,
                    E, False, True, ONE_EXP, PAD, BLOCK_A, BLOCK_B, BLOCK_D, STAGES, PRECISION, UPCAST,
                )  # fmt: skip

    @triton.jit(do_not_specialize=["G", "R", "P", "first_tile", "tiles"])
    def product_kernel(
        coefficient_ptr, copy_ptr, first_ptr, partial_ptr, G, R, P, first_tile, tiles,
        KEY: tl.constexpr, SHARED: tl.constexpr, PAD: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
        BLOCK_D: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    ):  # fmt: skip
        """BLOCK_D columns of the gradient to BLOCK_A unit rows, keys (KEY) or queries, from their coefficients."""
        g = (tl.program_id(0) // tiles).to(tl.int64)
        a = tl.arange(0, BLOCK_A)
        row = (tl.program_id(0) % tiles + first_tile) * BLOCK_A + a
        first_query, first_key = first_rows(first_ptr, g, G, R, P, SHARED)
        if KEY:
            inside, count, other_ptr = row < P, R, copy_ptr + first_query * PAD
        else:
            inside, count, other_ptr = row < R, P, copy_ptr + first_key * PAD
        coefficient_ptr += tl.program_id(0).to(tl.int64) * BLOCK_A * count + a[:, None].to(tl.int64) * count
        d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        total = tl.zeros((BLOCK_A, BLOCK_D), tl.float32)
        for first in tl.range(0, count, BLOCK_B, num_stages=STAGES):
            other = first + tl.arange(0, BLOCK_B)[None, :]
            coefficient = tl.load(coefficient_ptr + other, mask=inside[:, None] & (other < count), other=0)
            rows = load_copy(other_ptr, first, count, d, PAD, BLOCK_B)
            total = dot(coefficient, rows, total, PRECISION, UPCAST)
        place = g * (R if SHARED else R + P) + (R if KEY else 0) + row
        tl.store(partial_ptr + place[:, None] * PAD + d[None, :], total, mask=inside[:, None])

    @triton.jit
    def _sum_parts(partial_ptr, row, inside, splits, stride_split, d, PAD: tl.constexpr):
        total = tl.zeros((row.shape[0], d.shape[0]), tl.float32)
        # Unrolled, for loads that are waited for one after the other take longer than all the rest.
        for split in tl.range(0, splits, loop_unroll_factor=4):
            total += load_wide(partial_ptr + tl.cast(split, tl.int64) * stride_split, row, inside, PAD, d, PAD, 1)
        return total

    @triton.jit
    def _store_rows(ptr, row, d, D, value, inside):
        if ptr is not None:
            mask = inside[:, None] & (d < D)[None, :]
            tl.store(ptr + row[:, None] * D + d[None, :], value.to(ptr.dtype.element_ty), mask=mask)

    @triton.jit
    def _pulls(slope_ptr, pair_ptr, row_ptr, column_ptr, g, q, of_query, G, R):
        """Of the queries `q` whose positive is no key of the group: its row, pull, cosine, and its inverse norm."""
        pair, pairs = tl.cast(g, tl.int64) * R + q, G.to(tl.int64) * R
        other, apart = q, of_query
        if row_ptr is not None:
            apart = of_query & (tl.load(column_ptr + pair, mask=of_query, other=0) < 0)
            other = tl.load(row_ptr + pair, mask=apart, other=0)
        pull = tl.load(slope_ptr + 2 * pairs + pair, mask=apart, other=0)
        cosine = tl.load(pair_ptr + pair, mask=apart, other=0)
        inverse = tl.load(pair_ptr + pairs + pair, mask=apart, other=0)
        return other, apart, pull, cosine, inverse * tl.load(pair_ptr + 2 * pairs + pair, mask=apart, other=0)

    @triton.jit(do_not_specialize=["G", "R", "P", "C", "learned", "splits"])
    def finish_kernel(
        size_ptr, copy_ptr, scale_ptr, slope_ptr, pair_ptr, partial_ptr,
        other_ptr, other_stride_g, other_stride_r, other_stride_d, row_ptr, column_ptr, first_ptr,
        query_out_ptr, key_out_ptr, other_out_ptr, factor, G, R, P, D, C, learned, splits,
        SHARED: tl.constexpr, PAD: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        """Gradients of the inputs: that to unit row u = x / |x|, z, is (z - (z . u) u) / |x| to x.

        `factor` is that of the losses over the temperature. Programs are blocks of queries, then of keys if their
        gradient is asked for, of each group. `other_ptr`, if given: the positives that are no keys.
        With `first_ptr` they are blocks of all rows, and `query_out_ptr` gets the sum of all their uses; rows from
        `learned` on are constants, and get 0. `other_ptr` has the same rows then; `row_ptr` (G, R) says which of them
        is the positive of a query, and `column_ptr` (G, R) which key of the group, -1 for none.
        """
        N = R if SHARED else R + P
        stride_split = G.to(tl.int64) * N * PAD
        if first_ptr is None:
            query_blocks = tl.cdiv(R, ROWS)
            blocks = query_blocks + (tl.cdiv(P, ROWS) if key_out_ptr is not None else 0)
            first_group, last_group = tl.program_id(0) // blocks, tl.program_id(0) // blocks + 1
            block = tl.program_id(0) % blocks
            is_query = block < query_blocks
            row = ((block - tl.where(is_query, 0, query_blocks)) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
            inside = row < tl.where(is_query, R, P)
            copied = first_group.to(tl.int64) * N + tl.where(is_query, 0, N - P) + row
        else:
            first_group, last_group = 0, G
            row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
            inside, copied = row < learned, row
        inverse = tl.load(scale_ptr + copied, mask=inside, other=0)
        scale = tl.load(scale_ptr + C + copied, mask=inside, other=0)
        along = tl.zeros((ROWS,), tl.float32)
        # Rows of one block need no second look for their part along the unit row.
        LAST: tl.constexpr = 0 if PAD == BLOCK_D else 1
        for step in tl.static_range(LAST + 1):
            for first in range(0, PAD, BLOCK_D):
                d = first + tl.arange(0, BLOCK_D)
                unit = load_wide(copy_ptr, copied, inside, PAD, d, PAD, 1) * inverse[:, None]
                z = tl.zeros((ROWS, BLOCK_D), tl.float32)
                for g in range(first_group, last_group):
                    group = tl.cast(g, tl.int64)
                    size = factor * _load_size(size_ptr, g) if size_ptr is not None else factor
                    if first_ptr is None:
                        q, k = row, row
                        of_query, of_key = row < tl.where(is_query, R, 0), row < tl.where(is_query, 0, P)
                    else:
                        q, k = row - tl.load(first_ptr + g), row - tl.load(first_ptr + G + g)
                        of_query, of_key = inside & (q >= 0) & (q < R), inside & (k >= 0) & (k < P)
                    if tl.max(of_query.to(tl.int32), 0) > 0:
                        z += size * _sum_parts(partial_ptr, group * N + q, of_query, splits, stride_split, d, PAD)
                        if other_ptr is not None:
                            other, apart, pull, cosine, other_inverse = _pulls(
                                slope_ptr, pair_ptr, row_ptr, column_ptr, g, q, of_query, G, R
                            )
                            positive = load_wide(
                                other_ptr + group * other_stride_g, other, apart, other_stride_r, d, D, other_stride_d
                            )
                            positive = positive * other_inverse[:, None]
                            pull *= size
                            z -= pull[:, None] * positive
                            if other_out_ptr is not None and step == LAST:
                                out = (cosine[:, None] * positive - unit) * (pull * other_inverse)[:, None]
                                out = tl.where(pull[:, None] == 0, 0.0, out)
                                _store_rows(other_out_ptr, group * R + row, d, D, out, of_query)
                    if tl.max(of_key.to(tl.int32), 0) > 0:
                        copied_key = group * N + N - P + k
                        z += size * _sum_parts(partial_ptr, copied_key, of_key, splits, stride_split, d, PAD)
                if step == 0:
                    along += tl.sum(z * unit, 1)
                if step == LAST:
                    out = (z - along[:, None] * unit) * inverse[:, None] * scale[:, None]
                    if first_ptr is not None:
                        out = tl.where(inside[:, None], out, 0.0)
                        _store_rows(query_out_ptr, row, d, D, out, row < C)
                    elif is_query:
                        _store_rows(query_out_ptr, first_group.to(tl.int64) * R + row, d, D, out, inside)
                    else:
                        _store_rows(key_out_ptr, first_group.to(tl.int64) * P + row, d, D, out, inside)
