"""Backward Triton kernels of InfoNCE; the forward file has the shape letters.

With p[i, j] the share of negative j in the sum of query i, and g[i] the gradient to its loss,

    to unit query i:  sum over j of g[i] c[i, j] unit key j / temperature       c[i, j] = p[i, j] for negatives,
    to unit key j:    sum over i of g[i] c[i, j] unit query i / temperature               p[i, +] - 1 for the positive

Scores are computed again tile by tile. Where the keys are the queries, one score serves both sums, and so does its
exponential where it cannot overflow.

slopes    brings the gradients to the losses into what a tile of scores is multiplied by
gradient  multiplies the shares with the rows of the other side
finish    turns a gradient to unit rows into one to the inputs
"""

from __future__ import annotations

from ._common import tl, triton

if triton is not None:
    from ._nce_forward import (
        dot,
        dot_chunks,
        inverse_norm,
        load_copy,
        load_rows,
        marked_spans,
        power_scale,
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
            "exclude_stride_g", "exclude_stride_r", "exclude_stride_e", "G", "R", "N",
        ]
    )  # fmt: skip
    def slopes_kernel(
        grad_ptr, grad_stride_g, grad_stride_r, loss_ptr, weight_ptr, size_ptr, scale_ptr, share_ptr,
        index_ptr, index_stride_g, index_stride_r, exclude_ptr, exclude_stride_g, exclude_stride_r, exclude_stride_e,
        slope_ptr, span_ptr, G, R, N,
        E: tl.constexpr, ONE_EXP: tl.constexpr, BLOCK: tl.constexpr,
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
        inverse = tl.load(scale_ptr + g * N + row, mask=inside, other=0)
        tl.store(slope_ptr + row, base, mask=inside)
        tl.store(slope_ptr + total + row, weight, mask=inside)
        tl.store(slope_ptr + 2 * total + row, pull, mask=inside)
        tl.store(slope_ptr + 3 * total + row, tl.where((weight == 0) & (pull == 0), 0.0, inverse), mask=inside)
        index_ptr = index_ptr + g * index_stride_g if index_ptr is not None else index_ptr
        exclude_ptr = exclude_ptr + g * exclude_stride_g if exclude_ptr is not None else exclude_ptr
        spans = marked_spans(index_ptr, index_stride_r, exclude_ptr, exclude_stride_r, exclude_stride_e, row, inside, E)
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
        score, slope_ptr, slope_stride, index_ptr, index_stride_r, exclude_ptr, exclude_stride_r, exclude_stride_e,
        row, inside, key, E: tl.constexpr, ONE_EXP: tl.constexpr, AXIS: tl.constexpr,
    ):  # fmt: skip
        """Shares of a tile with positives or excluded keys in it, times the gradients. Queries `row` lie along AXIS."""
        base, weight = _load_slopes(slope_ptr, slope_stride, row, inside)
        if not ONE_EXP:
            score -= tl.expand_dims(base, 1 - AXIS)
        pull = tl.load(slope_ptr + 2 * slope_stride + row, mask=inside, other=0)
        return set_marked(
            tl.exp2(score) * tl.expand_dims(weight, 1 - AXIS), index_ptr, index_stride_r, -pull, 0.0,
            exclude_ptr, exclude_stride_r, exclude_stride_e, row, inside, key, E, AXIS,
        )  # fmt: skip

    @triton.jit
    def _gradient_tile(
        copy_ptr, a_scale_ptr, b_scale_ptr, slope_ptr, slope_stride, span_ptr, index_ptr, index_stride_r,
        exclude_ptr, exclude_stride_r, exclude_stride_e, out_ptr, a_tile, a_offset, a_count,
        b_offset, b_count, sharpness, part,
        E: tl.constexpr, AS_QUERY: tl.constexpr, AS_KEY: tl.constexpr, ONE_EXP: tl.constexpr, PAD: tl.constexpr,
        BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
        PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    ):  # fmt: skip
        """Gradient to BLOCK_A unit rows a, as queries, as keys or as both, from `part` of the rows b of the other side.

        BLOCK_D columns of it, where the rows are longer than a tile.
        """
        a_first = a_tile * BLOCK_A
        a_row = a_first + tl.arange(0, BLOCK_A)
        a_inside = a_row < a_count
        a_ptr = copy_ptr + tl.cast(a_offset, tl.int64) * PAD
        b_ptr = copy_ptr + tl.cast(b_offset, tl.int64) * PAD
        a_scale = tl.load(a_scale_ptr + a_row, mask=a_inside, other=0) * sharpness
        if AS_QUERY:
            a_base, a_weight = _load_slopes(slope_ptr, slope_stride, a_row, a_inside)
            a_spans = marked_spans(
                index_ptr, index_stride_r, exclude_ptr, exclude_stride_r, exclude_stride_e, a_row, a_inside, E
            )
        d = tl.arange(0, BLOCK_D)
        column = tl.program_id(2) * BLOCK_D + d
        if BLOCK_D == PAD:
            a = load_copy(a_ptr, a_first, a_count, d, PAD, BLOCK_A)
        total = tl.zeros((BLOCK_A, BLOCK_D), tl.float32)
        begin = tl.program_id(1) * part
        for first in tl.range(begin, tl.minimum(begin + part, b_count), BLOCK_B, num_stages=STAGES):
            b_row = first + tl.arange(0, BLOCK_B)
            b_inside = b_row < b_count
            b = load_copy(b_ptr, first, b_count, column, PAD, BLOCK_B)
            if BLOCK_D == PAD:
                score = dot(a, tl.trans(b), tl.zeros((BLOCK_A, BLOCK_B), tl.float32), PRECISION, UPCAST)
            else:
                score = dot_chunks(
                    a_ptr, a_first, a_count, b_ptr, first, b_count, PAD, BLOCK_A, BLOCK_B, BLOCK_D, STAGES,
                    PRECISION, UPCAST,
                )  # fmt: skip
            b_scale = tl.load(b_scale_ptr + b_row)  # without a mask: see `range_workspace`
            score = score * b_scale[None, :] * a_scale[:, None]
            special = first + BLOCK_B > b_count
            if AS_QUERY:
                special |= touched(
                    a_spans, index_ptr, index_stride_r, exclude_ptr, exclude_stride_r, exclude_stride_e,
                    a_row, a_inside, first, E, BLOCK_B,
                )  # fmt: skip
            if AS_KEY:
                b_base, b_weight = tl.load(slope_ptr + b_row), tl.load(slope_ptr + slope_stride + b_row)
                b_span_ptr = span_ptr + 4 * (first // BLOCK_B)
                b_spans = tl.load(b_span_ptr), tl.load(b_span_ptr + 1), tl.load(b_span_ptr + 2), tl.load(b_span_ptr + 3)
                special |= touched(
                    b_spans, index_ptr, index_stride_r, exclude_ptr, exclude_stride_r, exclude_stride_e,
                    b_row, b_inside, a_first, E, BLOCK_A,
                )  # fmt: skip
            if special:
                coefficient = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
                if AS_QUERY:
                    coefficient += _marked_shares(
                        score, slope_ptr, slope_stride, index_ptr, index_stride_r, exclude_ptr, exclude_stride_r,
                        exclude_stride_e, a_row, a_inside, b_row, E, ONE_EXP, 0,
                    )  # fmt: skip
                if AS_KEY:
                    coefficient += _marked_shares(
                        score, slope_ptr, slope_stride, index_ptr, index_stride_r, exclude_ptr, exclude_stride_r,
                        exclude_stride_e, b_row, b_inside, a_row, E, ONE_EXP, 1,
                    )  # fmt: skip
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
            total = dot(coefficient.to(copy_ptr.dtype.element_ty), b, total, PRECISION, UPCAST)
        out_ptr += tl.cast(a_offset + a_first, tl.int64) * PAD + tl.program_id(2) * BLOCK_D
        mask = a_inside[:, None] & (column < PAD)[None, :]
        tl.store(out_ptr + tl.arange(0, BLOCK_A)[:, None] * PAD + d[None, :], total, mask=mask)

    @triton.jit(
        do_not_specialize=[
            "index_stride_g", "index_stride_r", "exclude_stride_g", "exclude_stride_r", "exclude_stride_e",
            "G", "R", "P", "N", "key_part", "query_part",
        ]
    )  # fmt: skip
    def gradient_kernel(
        copy_ptr, scale_ptr, slope_ptr, span_ptr, index_ptr, index_stride_g, index_stride_r,
        exclude_ptr, exclude_stride_g, exclude_stride_r, exclude_stride_e,
        partial_ptr, sharpness, G, R, P, N, key_part, query_part,
        E: tl.constexpr, QUERY: tl.constexpr, KEY: tl.constexpr, SHARED: tl.constexpr, ONE_EXP: tl.constexpr,
        PAD: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
        PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    ):  # fmt: skip
        """Tiles of queries (QUERY), then of keys (KEY), of each group; with SHARED the queries are the keys.

        `partial_ptr` (splits, G, N, PAD): parts of the gradient to unit rows, in units of what `finish_kernel`
        multiplies.
        """
        query_tiles = tl.cdiv(R, BLOCK_A) if QUERY else 0
        tiles = query_tiles + (tl.cdiv(P, BLOCK_A) if KEY and not SHARED else 0)
        g = (tl.program_id(0) // tiles).to(tl.int64)
        tile = tl.program_id(0) % tiles
        copy_ptr += g * N * PAD
        scale_ptr += g * N
        slope_ptr += g * R
        slope_stride = G.to(tl.int64) * R
        span_ptr += g * tl.cdiv(R, BLOCK_B) * 4
        used_ptr = slope_ptr + 3 * slope_stride
        index_ptr = index_ptr + g * index_stride_g if index_ptr is not None else index_ptr
        exclude_ptr = exclude_ptr + g * exclude_stride_g if exclude_ptr is not None else exclude_ptr
        partial_ptr += (tl.program_id(1).to(tl.int64) * G + g) * N * PAD
        if QUERY:  # noqa: SIM102, for the compiler leaves out a branch only on a constant of its own
            if tile < query_tiles:
                _gradient_tile(
                    copy_ptr, scale_ptr if SHARED else used_ptr, scale_ptr + N - P, slope_ptr, slope_stride,
                    span_ptr, index_ptr, index_stride_r, exclude_ptr, exclude_stride_r, exclude_stride_e,
                    partial_ptr, tile, 0, R, N - P, P, sharpness, key_part, E, True, SHARED, ONE_EXP,
                    PAD, BLOCK_A, BLOCK_B, BLOCK_D, STAGES, PRECISION, UPCAST,
                )  # fmt: skip
        if KEY and not SHARED:  # noqa: SIM102
            if tile >= query_tiles:
                _gradient_tile(
                    copy_ptr, scale_ptr + N - P, used_ptr, slope_ptr, slope_stride,
                    span_ptr, index_ptr, index_stride_r, exclude_ptr, exclude_stride_r, exclude_stride_e,
                    partial_ptr, tile - query_tiles, N - P, P, 0, R, sharpness, query_part, E, False, True, ONE_EXP,
                    PAD, BLOCK_A, BLOCK_B, BLOCK_D, STAGES, PRECISION, UPCAST,
                )  # fmt: skip

    @triton.jit
    def _sum_parts(partial_ptr, row, inside, splits, stride_split, d, PAD: tl.constexpr):
        total = tl.zeros((row.shape[0], d.shape[0]), tl.float32)
        for split in range(splits):
            total += load_rows(partial_ptr + tl.cast(split, tl.int64) * stride_split, row, inside, PAD, d, PAD, 1)
        return total

    @triton.jit
    def _store_rows(ptr, row, d, D, value, mask):
        if ptr is not None:
            tl.store(ptr + row[:, None] * D + d[None, :], value.to(ptr.dtype.element_ty), mask=mask)

    @triton.jit(do_not_specialize=["positive_stride_g", "positive_stride_r", "G", "R", "P", "N", "splits"])
    def finish_kernel(
        size_ptr, copy_ptr, scale_ptr, slope_ptr, pair_ptr, partial_ptr,
        positive_ptr, positive_stride_g, positive_stride_r, positive_stride_d,
        query_out_ptr, key_out_ptr, positive_out_ptr, factor, G, R, P, D, N, splits,
        PAD: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        """Gradients of the inputs: that to unit row u = x / |x|, z, is (z - (z . u) u) / |x| to x.

        `factor` is that of the losses over the temperature.
        Programs are blocks of queries, then of keys if their gradient is asked for, of each group.
        """
        query_blocks = tl.cdiv(R, ROWS)
        blocks = query_blocks + (tl.cdiv(P, ROWS) if key_out_ptr is not None else 0)
        g = (tl.program_id(0) // blocks).to(tl.int64)
        block = tl.program_id(0) % blocks
        of_query = block < query_blocks
        row = ((block - tl.where(of_query, 0, query_blocks)) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = row < tl.where(of_query, R, P)
        copied = g * N + tl.where(of_query, 0, N - P) + row
        inverse = tl.load(scale_ptr + copied, mask=inside, other=0)
        scale = tl.load(scale_ptr + G.to(tl.int64) * N + copied, mask=inside, other=0)
        size = _load_size(size_ptr, g) if size_ptr is not None else 1.0
        if positive_ptr is not None:
            pairs_total = G.to(tl.int64) * R
            pair, of_pair = g * R + row, row < tl.where(of_query, R, 0)
            pull = tl.load(slope_ptr + 2 * pairs_total + pair, mask=of_pair, other=0) * (size * factor)
            cosine = tl.load(pair_ptr + pair, mask=of_pair, other=0)
            positive_inverse = tl.load(pair_ptr + pairs_total + pair, mask=of_pair, other=0)
            positive_scale = tl.load(pair_ptr + 2 * pairs_total + pair, mask=of_pair, other=0)
            positive_ptr += g * positive_stride_g
        along = tl.zeros((ROWS,), tl.float32)
        for step in tl.static_range(2):
            for first in range(0, PAD, BLOCK_D):
                d = first + tl.arange(0, BLOCK_D)
                mask = inside[:, None] & (d < D)[None, :]
                unit = load_rows(copy_ptr, copied, inside, PAD, d, PAD, 1) * inverse[:, None]
                z = _sum_parts(partial_ptr, copied, inside, splits, G.to(tl.int64) * N * PAD, d, PAD) * (size * factor)
                if positive_ptr is not None:
                    positive = load_rows(positive_ptr, row, of_pair, positive_stride_r, d, D, positive_stride_d)
                    positive *= (positive_scale * positive_inverse)[:, None]
                    z -= pull[:, None] * positive
                    if positive_out_ptr is not None and step == 1:
                        out = (cosine[:, None] * positive - unit) * (pull * positive_inverse)[:, None]
                        out *= positive_scale[:, None]
                        if of_query:
                            _store_rows(positive_out_ptr, g * R + row, d, D, out, mask)
                if step == 0:
                    along += tl.sum(z * unit, 1)
                else:
                    out = (z - along[:, None] * unit) * inverse[:, None] * scale[:, None]
                    if of_query:
                        _store_rows(query_out_ptr, g * R + row, d, D, out, mask)
                    else:
                        _store_rows(key_out_ptr, g * P + row, d, D, out, mask)

    @triton.jit
    def _unit_scale(ptr, row, inside, stride_row, stride_d, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
        """The power of two of a row, and the inverse of its norm after that."""
        scale = power_scale(ptr, row, inside, stride_row, stride_d, D, ROWS, BLOCK_D)
        square = tl.zeros((ROWS,), tl.float32)
        for first in range(0, D, BLOCK_D):
            x = load_rows(ptr, row, inside, stride_row, first + tl.arange(0, BLOCK_D), D, stride_d) * scale[:, None]
            square += tl.sum(x * x, 1)
        return scale, inverse_norm(square)

    @triton.jit(do_not_specialize=["G", "R", "P", "N", "total", "learned", "splits"])
    def finish_ranges_kernel(
        size_ptr, slope_ptr, pair_ptr, partial_ptr, rows_ptr, stride_row, stride_d, first_ptr, positive_ptr, column_ptr,
        out_ptr, factor, G, R, P, D, N, total, learned, splits,
        PAD: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        """Gradients (total, D) of rows of which ranges are the queries and the keys of the groups: the sum of all uses.

        Rows from `learned` on are constants, and get 0. `positive_ptr`, `column_ptr` (G, R): the row of each query's
        positive, and which of the keys that is; without one it is a constant.
        """
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = row < learned
        scale, inverse = _unit_scale(rows_ptr, row, inside, stride_row, stride_d, D, ROWS, BLOCK_D)
        pairs_total, stride_split = G.to(tl.int64) * R, G.to(tl.int64) * N * PAD
        along = tl.zeros((ROWS,), tl.float32)
        for step in tl.static_range(2):
            for first in range(0, PAD, BLOCK_D):
                d = first + tl.arange(0, BLOCK_D)
                unit = load_rows(rows_ptr, row, inside, stride_row, d, D, stride_d) * (scale * inverse)[:, None]
                z = tl.zeros((ROWS, BLOCK_D), tl.float32)
                for g in range(G):
                    size = _load_size(size_ptr, g) if size_ptr is not None else 1.0
                    group = tl.cast(g, tl.int64)
                    copied = group * N
                    of_query = row - tl.load(first_ptr + g)
                    used = inside & (of_query >= 0) & (of_query < R)
                    if tl.max(used.to(tl.int32), 0) > 0:
                        part = _sum_parts(partial_ptr, copied + of_query, used, splits, stride_split, d, PAD)
                        z += part * (size * factor)
                        pair = group * R + of_query
                        apart = used & (tl.load(column_ptr + pair, mask=used, other=0) < 0)
                        pull = tl.load(slope_ptr + 2 * pairs_total + pair, mask=apart, other=0) * (size * factor)
                        inverse_p = tl.load(pair_ptr + pairs_total + pair, mask=apart, other=0)
                        scale_p = tl.load(pair_ptr + 2 * pairs_total + pair, mask=apart, other=0)
                        other = tl.load(positive_ptr + pair, mask=apart, other=0)
                        positive = load_rows(rows_ptr, other, apart, stride_row, d, D, stride_d)
                        positive *= (scale_p * inverse_p)[:, None]
                        z -= pull[:, None] * positive
                    of_key = row - tl.load(first_ptr + G + g)
                    used = inside & (of_key >= 0) & (of_key < P)
                    if tl.max(used.to(tl.int32), 0) > 0:
                        part = _sum_parts(partial_ptr, copied + R + of_key, used, splits, stride_split, d, PAD)
                        z += part * (size * factor)
                if step == 0:
                    along += tl.sum(z * unit, 1)
                else:
                    out = (z - along[:, None] * unit) * (inverse * scale)[:, None]
                    mask = (row < total)[:, None] & (d < D)[None, :]
                    _store_rows(out_ptr, row, d, D, tl.where(inside[:, None], out, 0.0), mask)
