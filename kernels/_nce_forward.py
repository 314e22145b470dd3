"""Forward Triton kernels of InfoNCE, and what the backward ones share with them. None holds a matrix of scores.

prepare   copies rows so that they can be multiplied in their own dtype, and takes the cosine of each positive
forward   sums exp(score) over the negatives of a block of queries, one part of the keys to a program
losses    adds up the parts, and the losses of a group

A copied row has its exponent taken out: it is scaled by the power of two that brings its largest element into [1, 2),
exactly in every dtype. What is left of its norm scales rows and columns of a tile of products, so that 16-bit operands
cost no precision. A row with a NaN or an infinity is copied as zeros with a NaN norm, and so reaches no other row.

Shape letters: G groups, R queries, P keys, D features, E excluded keys of a query, N copied rows of a group: the
queries, then the keys unless these are the queries themselves. Scores are in units of log 2.

E is a constant, for only a loop without loops in it is pipelined.
"""

from __future__ import annotations

from ._common import tl, triton

if triton is not None:
    LN2 = tl.constexpr(0.6931471805599453)

    @triton.jit
    def load_rows(ptr, row, inside, stride_row, d, D, stride_d):
        """(rows, columns) in float32, 0 outside."""
        offset = row.to(tl.int64)[:, None] * stride_row + d.to(tl.int64)[None, :] * stride_d
        return tl.load(ptr + offset, mask=inside[:, None] & (d < D)[None, :], other=0).to(tl.float32)

    @triton.jit
    def power_scale(ptr, row, inside, stride_row, stride_d, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
        """The power of two that brings the largest element of each row into [1, 2); finite for every row."""
        largest = tl.zeros((ROWS,), tl.float32)
        for first in range(0, D, BLOCK_D):
            x = load_rows(ptr, row, inside, stride_row, first + tl.arange(0, BLOCK_D), D, stride_d)
            largest = tl.maximum(largest, tl.max(tl.abs(x), 1))
        exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
        return ((254 - tl.minimum(exponent, 253)) << 23).to(tl.float32, bitcast=True)

    @triton.jit
    def inverse_norm(square):
        """0 for a zero row, NaN for one that is not finite."""
        inverse = tl.where(square == 0, 0.0, 1 / tl.sqrt_rn(tl.where(square == 0, 1.0, square)))
        return tl.where(square < float("inf"), inverse, float("nan"))

    @triton.jit
    def _copy_rows(
        ptr, row, inside, stride_row, stride_d, copy_ptr, scale_ptr, rows_total, D,
        PAD: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        """Writes the copy, the inverse of its norm and its scale; returns the last two."""
        scale = power_scale(ptr, row, inside, stride_row, stride_d, D, ROWS, BLOCK_D)
        square = tl.zeros((ROWS,), tl.float32)
        for first in range(0, PAD, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            x = load_rows(ptr, row, inside, stride_row, d, D, stride_d) * scale[:, None]
            square += tl.sum(x * x, 1)
            x = tl.where(tl.abs(x) < float("inf"), x, 0.0).to(copy_ptr.dtype.element_ty)
            mask = inside[:, None] & (d < PAD)[None, :]
            tl.store(copy_ptr + row.to(tl.int64)[:, None] * PAD + d[None, :], x, mask=mask)
        inverse = inverse_norm(square)
        tl.store(scale_ptr + row, inverse, mask=inside)
        tl.store(scale_ptr + rows_total + row, scale, mask=inside)
        return inverse, scale

    @triton.jit(
        do_not_specialize=[
            "query_stride_g", "key_stride_g", "positive_stride_g", "positive_stride_r",
            "index_stride_g", "index_stride_r", "G", "R", "P", "N",
        ]
    )  # fmt: skip
    def prepare_kernel(
        query_ptr, query_stride_g, query_stride_r, query_stride_d, key_ptr, key_stride_g, key_stride_p, key_stride_d,
        positive_ptr, positive_stride_g, positive_stride_r, positive_stride_d,
        index_ptr, index_stride_g, index_stride_r, first_ptr, copy_ptr, scale_ptr, pair_ptr, G, R, P, D, N,
        PAD: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BEYOND: tl.constexpr,
    ):  # fmt: skip
        """Programs are blocks of queries, then of keys, of each group.

        `first_ptr` (2, G), if given: the rows at which the queries and the keys of a group begin.
        Of `positive_ptr` each query has its own row, or that of `index_ptr`, which without it are rows of the keys.
        `pair_ptr` (3, G, R): the positive's cosine, the inverse norm of its scaled row, its scale.
        """
        query_blocks = tl.cdiv(R, ROWS)
        blocks = query_blocks + tl.cdiv(N - R, ROWS)
        g = (tl.program_id(0) // blocks).to(tl.int64)
        block = tl.program_id(0) % blocks
        copy_ptr += g * N * PAD
        scale_ptr += g * N
        rows_total = G.to(tl.int64) * N
        if tl.program_id(0) == 0:
            tl.store(scale_ptr + 2 * rows_total + tl.arange(0, BEYOND), tl.zeros((BEYOND,), tl.float32))
        query_ptr += g * query_stride_g
        key_ptr += g * key_stride_g
        if first_ptr is not None:
            query_ptr += tl.load(first_ptr + g) * query_stride_r
            key_ptr += tl.load(first_ptr + G + g) * key_stride_p
        if block < query_blocks:
            row = block * ROWS + tl.arange(0, ROWS)
            inside = row < R
            inverse, scale = _copy_rows(
                query_ptr, row, inside, query_stride_r, query_stride_d, copy_ptr, scale_ptr, rows_total, D,
                PAD, ROWS, BLOCK_D,
            )  # fmt: skip
            other, there = row, inside
            if index_ptr is not None:
                offset = g * index_stride_g + row.to(tl.int64) * index_stride_r
                other = tl.load(index_ptr + offset, mask=inside, other=-1).to(tl.int32)
                there = other >= 0
            if positive_ptr is not None:
                other_ptr, other_stride, other_stride_d = positive_ptr, positive_stride_r, positive_stride_d
                other_ptr += g * positive_stride_g
            else:
                other_ptr, other_stride, other_stride_d = key_ptr, key_stride_p, key_stride_d
                there = there & (other < P)
            other_scale = power_scale(other_ptr, other, there, other_stride, other_stride_d, D, ROWS, BLOCK_D)
            square, product = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
            for first in range(0, D, BLOCK_D):
                d = first + tl.arange(0, BLOCK_D)
                x = load_rows(query_ptr, row, inside, query_stride_r, d, D, query_stride_d) * scale[:, None]
                y = load_rows(other_ptr, other, there, other_stride, d, D, other_stride_d) * other_scale[:, None]
                product += tl.sum(x * y, 1)
                square += tl.sum(y * y, 1)
            other_inverse = inverse_norm(square)
            pair, pairs_total = g * R + row, G.to(tl.int64) * R
            tl.store(pair_ptr + pair, product * inverse * other_inverse, mask=inside)
            tl.store(pair_ptr + pairs_total + pair, other_inverse, mask=inside)
            tl.store(pair_ptr + 2 * pairs_total + pair, other_scale, mask=inside)
        else:
            row = (block - query_blocks) * ROWS + tl.arange(0, ROWS)
            _copy_rows(
                key_ptr, row, row < P, key_stride_p, key_stride_d, copy_ptr + R.to(tl.int64) * PAD, scale_ptr + R,
                rows_total, D, PAD, ROWS, BLOCK_D,
            )  # fmt: skip

    @triton.jit
    def dot(a, b, total, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
        """total + a b in float32. The interpreter has no bfloat16: it multiplies in float32."""
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        return tl.dot(a, b, total, input_precision=PRECISION)

    @triton.jit
    def load_copy(copy_ptr, first, count, d, PAD: tl.constexpr, BLOCK: tl.constexpr):
        """Copied rows [first, first + BLOCK) of `count`."""
        row = tl.arange(0, BLOCK)
        copy_ptr += tl.cast(first, tl.int64) * PAD  # leaves offsets that are the same for all tiles
        return tl.load(copy_ptr + row[:, None] * PAD + d[None, :], mask=(row < count - first)[:, None], other=0)

    @triton.jit
    def dot_chunks(
        a_ptr, a_first, a_count, b_ptr, b_first, b_count, PAD: tl.constexpr, BLOCK_A: tl.constexpr,
        BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
        UPCAST: tl.constexpr,
    ):  # fmt: skip
        """(BLOCK_A, BLOCK_B) products of rows that are too long for one tile."""
        product = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
        for first in tl.range(0, PAD, BLOCK_D, num_stages=STAGES):
            d = first + tl.arange(0, BLOCK_D)
            a = load_copy(a_ptr, a_first, a_count, d, PAD, BLOCK_A)
            b = load_copy(b_ptr, b_first, b_count, d, PAD, BLOCK_B)
            product = dot(a, tl.trans(b), product, PRECISION, UPCAST)
        return product

    @triton.jit
    def load_index(index_ptr, stride_r, row, inside):
        """Row of `key` that is the positive of each query, -1 for none."""
        if index_ptr is not None:
            return tl.load(index_ptr + row.to(tl.int64) * stride_r, mask=inside, other=-1).to(tl.int32)
        else:
            return tl.full(row.shape, -1, tl.int32)

    @triton.jit
    def _load_excluded(exclude_ptr, stride_r, stride_e, row, inside, e):
        offset = row.to(tl.int64) * stride_r + tl.cast(e, tl.int64) * stride_e
        return tl.load(exclude_ptr + offset, mask=inside, other=-1).to(tl.int32)

    @triton.jit
    def marked_spans(index_ptr, stride_i, exclude_ptr, stride_r, stride_e, row, inside, E: tl.constexpr):
        """First and last key that is the positive of one of the queries `row`, then that one of them excludes."""
        none = tl.full(row.shape, 2147483647, tl.int32)
        index = load_index(index_ptr, stride_i, row, inside)
        excluded_low, excluded_high = none, tl.full(row.shape, -1, tl.int32)
        for e in tl.static_range(E):
            mark = _load_excluded(exclude_ptr, stride_r, stride_e, row, inside, e)
            excluded_low = tl.minimum(excluded_low, tl.where(mark < 0, none, mark))
            excluded_high = tl.maximum(excluded_high, mark)
        low = tl.min(tl.where(index < 0, none, index), 0)
        return low, tl.max(index, 0), tl.min(excluded_low, 0), tl.max(excluded_high, 0)

    @triton.jit
    def touched(
        spans, index_ptr, stride_i, exclude_ptr, stride_r, stride_e, row, inside, first,
        E: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Whether one of the queries `row` has its positive or an excluded key among [first, first + BLOCK).

        Their `marked_spans` rule most tiles out at once.
        """
        last = first + BLOCK - 1
        hit = ((spans[0] <= last) & (spans[1] >= first)) | ((spans[2] <= last) & (spans[3] >= first))
        if hit:
            index = load_index(index_ptr, stride_i, row, inside)
            marked = (index >= first) & (index <= last)
            for e in tl.static_range(E):
                mark = _load_excluded(exclude_ptr, stride_r, stride_e, row, inside, e)
                marked = marked | ((mark >= first) & (mark <= last))
            hit = tl.max(marked.to(tl.int32), 0) > 0
        return hit

    @triton.jit
    def set_marked(
        tile, index_ptr, stride_i, at_positive, at_excluded, exclude_ptr, stride_r, stride_e, row, inside, key,
        E: tl.constexpr, AXIS: tl.constexpr,
    ):  # fmt: skip
        """Sets a tile at the excluded keys and at the positives, which win. Queries `row` lie along AXIS."""
        key = tl.expand_dims(key, AXIS)
        for e in tl.static_range(E):
            mark = _load_excluded(exclude_ptr, stride_r, stride_e, row, inside, e)
            tile = tl.where(tl.expand_dims(mark, 1 - AXIS) == key, at_excluded, tile)
        index = load_index(index_ptr, stride_i, row, inside)
        return tl.where(tl.expand_dims(index, 1 - AXIS) == key, tl.expand_dims(at_positive, 1 - AXIS), tile)

    @triton.jit(
        do_not_specialize=[
            "index_stride_g", "index_stride_r", "exclude_stride_g", "exclude_stride_r", "exclude_stride_e",
            "G", "R", "P", "N", "part",
        ]
    )  # fmt: skip
    def forward_kernel(
        copy_ptr, scale_ptr, index_ptr, index_stride_g, index_stride_r,
        exclude_ptr, exclude_stride_g, exclude_stride_r, exclude_stride_e, partial_ptr, sharpness, G, R, P, N, part,
        E: tl.constexpr, BOUNDED: tl.constexpr, PAD: tl.constexpr,
        BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
        PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    ):  # fmt: skip
        """Sum over `part` keys of exp2(score - top) for BLOCK_A queries, with top 0 if BOUNDED, else their maximum.

        `partial_ptr` (splits, 2, G, R): sums, and tops where not BOUNDED. `sharpness` is log2(e) / temperature.
        """
        tiles = tl.cdiv(R, BLOCK_A)
        g = (tl.program_id(0) // tiles).to(tl.int64)
        a_first = tl.program_id(0) % tiles * BLOCK_A
        row = a_first + tl.arange(0, BLOCK_A)
        inside = row < R
        copy_ptr += g * N * PAD
        scale_ptr += g * N
        index_ptr = index_ptr + g * index_stride_g if index_ptr is not None else index_ptr
        exclude_ptr = exclude_ptr + g * exclude_stride_g if exclude_ptr is not None else exclude_ptr
        spans = marked_spans(index_ptr, index_stride_r, exclude_ptr, exclude_stride_r, exclude_stride_e, row, inside, E)
        nothing = tl.full((BLOCK_A,), float("-inf"), tl.float32)
        row_scale = tl.load(scale_ptr + row, mask=inside, other=0) * sharpness
        d = tl.arange(0, BLOCK_D)
        if BLOCK_D == PAD:
            a = load_copy(copy_ptr, a_first, R, d, PAD, BLOCK_A)
        key_ptr = copy_ptr + (N - P).to(tl.int64) * PAD
        total, top = tl.zeros((BLOCK_A,), tl.float32), nothing
        begin = tl.program_id(1) * part
        for first in tl.range(begin, tl.minimum(begin + part, P), BLOCK_B, num_stages=STAGES):
            key = first + tl.arange(0, BLOCK_B)
            if BLOCK_D == PAD:
                b = load_copy(key_ptr, first, P, d, PAD, BLOCK_B)
                score = dot(a, tl.trans(b), tl.zeros((BLOCK_A, BLOCK_B), tl.float32), PRECISION, UPCAST)
            else:
                score = dot_chunks(
                    copy_ptr, a_first, R, key_ptr, first, P, PAD, BLOCK_A, BLOCK_B, BLOCK_D, STAGES, PRECISION, UPCAST
                )
            column_scale = tl.load(scale_ptr + (N - P) + key)  # without a mask: see `range_workspace`
            score = score * column_scale[None, :] * row_scale[:, None]
            special = touched(
                spans, index_ptr, index_stride_r, exclude_ptr, exclude_stride_r, exclude_stride_e,
                row, inside, first, E, BLOCK_B,
            )  # fmt: skip
            if special | (first + BLOCK_B > P):
                score = set_marked(
                    score, index_ptr, index_stride_r, nothing, float("-inf"),
                    exclude_ptr, exclude_stride_r, exclude_stride_e, row, inside, key, E, 0,
                )  # fmt: skip
                score = tl.where((key < P)[None, :], score, float("-inf"))
            if BOUNDED:
                total += tl.sum(tl.exp2(score), 1)
            else:
                new_top = tl.maximum(top, tl.max(score, 1))
                shift = tl.where(new_top == float("-inf"), 0.0, new_top)
                total = total * tl.exp2(top - shift) + tl.sum(tl.exp2(score - shift[:, None]), 1)
                top = new_top
        rows_total = G.to(tl.int64) * R
        partial_ptr += tl.program_id(1) * 2 * rows_total + g * R + row
        tl.store(partial_ptr, total, mask=inside)
        if not BOUNDED:
            tl.store(partial_ptr + rows_total, top, mask=inside)

    @triton.jit
    def _softplus(x):
        """log(1 + exp(x)), exact to rounding where exp(x) is tiny."""
        small = tl.exp(-tl.abs(x))
        plus = 1 + small
        # log1p: the rounding of 1 + small cancels in the quotient.
        log1p = tl.where(plus == 1, small, tl.log(plus) * (small / tl.where(plus == 1, 1.0, plus - 1)))
        return tl.maximum(x, 0.0) + log1p

    @triton.jit(do_not_specialize=["G", "R", "longest", "splits"])
    def losses_kernel(
        partial_ptr, pair_ptr, weight_ptr, begin_ptr, loss_ptr, share_ptr, sharpness, factor, G, R, longest, splits,
        BOUNDED: tl.constexpr, TOTAL: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Losses of BLOCK queries of a group from the parts of their sums, times `factor` and their weight if given.

        `begin_ptr` (losses + 1,), if given: which of all queries count as a group here, at most `longest`.
        `loss_ptr` (G, R); with TOTAL (G, programs of a group), the sum of each program's losses.
        `share_ptr` (2, G, R): log2 of the sum with the positive in it, and 1 - share of the positive.
        """
        blocks = tl.cdiv(longest, BLOCK)
        g = (tl.program_id(0) // blocks).to(tl.int64)
        row = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
        if begin_ptr is not None:
            begin = tl.load(begin_ptr + g)
            inside = row < tl.load(begin_ptr + g + 1) - begin
        else:
            begin = g * R
            inside = row < R
        row += begin
        stride = G.to(tl.int64) * R
        top = tl.full((BLOCK,), 0.0 if BOUNDED else float("-inf"), tl.float32)
        if not BOUNDED:
            for split in range(splits):
                top = tl.maximum(top, tl.load(partial_ptr + (2 * split + 1) * stride + row, mask=inside, other=0))
            top = tl.where(top == float("-inf"), 0.0, top)
        total = tl.zeros((BLOCK,), tl.float32)
        for split in range(splits):
            part = tl.load(partial_ptr + 2 * split * stride + row, mask=inside, other=0)
            if not BOUNDED:
                part *= tl.exp2(tl.load(partial_ptr + (2 * split + 1) * stride + row, mask=inside, other=0) - top)
            total += part
        negative = tl.log2(total) + top
        positive = tl.load(pair_ptr + row, mask=inside, other=0) * sharpness
        gap = (negative - positive) * LN2
        high = tl.maximum(negative, positive)
        both = high + tl.log2(tl.exp2(negative - high) + tl.exp2(positive - high))
        tl.store(share_ptr + row, both, mask=inside)
        tl.store(share_ptr + stride + row, 1 / (1 + tl.exp(-gap)), mask=inside)
        loss = _softplus(gap) * factor
        if weight_ptr is not None:
            loss *= tl.load(weight_ptr + row, mask=inside, other=0).to(tl.float32)
        if TOTAL:
            tl.store(loss_ptr + tl.program_id(0), tl.sum(tl.where(inside, loss, 0.0), 0))
        else:
            tl.store(loss_ptr + row, loss, mask=inside)
