"""Forward Triton kernels of InfoNCE, and what the backward ones share with them. None holds a matrix of scores.

prepare   copies rows and takes the cosine of each positive (in a file of its own)
forward   sums exp(score) over the negatives of a block of queries, one part of the keys to a program
losses    adds up the parts, and the losses of a group

Shape letters: G groups, R queries and P keys of a group, D features, E excluded keys of a query, C copied rows: of each
group the queries, then the keys unless these are the queries themselves; or, with ranges of one tensor, its rows.
`first_ptr` (2, G) then says at which of them the queries and the keys of a group begin. Scores are in units of log 2.

What is the positive of a query and what it excludes goes through the kernels as one tuple, `marks`: the group, index
and its strides, exclude and its strides, and how many a query excludes. E is that number as a constant, for only a loop
without loops in it is pipelined; from MANY on there is one.
"""

from __future__ import annotations

from .._common import tl, triton

MANY_EXCLUDED = 9

if triton is not None:
    from ..rows import dot

    LN2 = tl.constexpr(0.6931471805599453)
    MANY = tl.constexpr(MANY_EXCLUDED)

    @triton.jit
    def first_rows(first_ptr, g, G, R, P, SHARED: tl.constexpr):
        """Copied rows at which the queries and the keys of a group begin."""
        if first_ptr is not None:
            return tl.load(first_ptr + g), tl.load(first_ptr + G + g)
        elif SHARED:
            return g * R, g * R
        else:
            return g * (R + P), g * (R + P) + R

    @triton.jit
    def load_copy(copy_ptr, first, count, d, PAD: tl.constexpr, BLOCK: tl.constexpr):
        """Copied rows [first, first + BLOCK) of `count`."""
        row = tl.arange(0, BLOCK)
        copy_ptr += tl.cast(first, tl.int64) * PAD  # leaves offsets that are the same for all tiles
        return tl.load(copy_ptr + row[:, None] * PAD + d[None, :], mask=(row < count - first)[:, None], other=0)

    @triton.jit
    def load_passing(descriptor, begin, copy_ptr, first, count, d, PAD: tl.constexpr, BLOCK: tl.constexpr):
        """The same of rows that pass by; row `begin` of all is the first.

        Through a tensor descriptor of all rows, if given: one thread asks for a tile, and nothing is masked. Beyond
        `count` it has other rows, of which nothing is used.
        """
        if descriptor is not None:
            return descriptor.load([(begin + first).to(tl.int32), 0])
        else:
            return load_copy(copy_ptr, first, count, d, PAD, BLOCK)

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
    def _load_index(marks, row, inside):
        """Which key is the positive of each query, -1 for none."""
        g, index_ptr, stride_g, stride_r = marks[:4]
        if index_ptr is not None:
            return tl.load(index_ptr + g * stride_g + row.to(tl.int64) * stride_r, mask=inside, other=-1).to(tl.int32)
        else:
            return tl.full(row.shape, -1, tl.int32)

    @triton.jit
    def _load_excluded(marks, row, inside, e):
        g, exclude_ptr, stride_g, stride_r, stride_e = marks[0], marks[4], marks[5], marks[6], marks[7]
        offset = g * stride_g + row.to(tl.int64) * stride_r + tl.cast(e, tl.int64) * stride_e
        return tl.load(exclude_ptr + offset, mask=inside, other=-1).to(tl.int32)

    @triton.jit
    def _widened(low, high, mark):
        return tl.minimum(low, tl.where(mark < 0, 2147483647, mark)), tl.maximum(high, mark)

    @triton.jit
    def marked_spans(marks, row, inside, E: tl.constexpr):
        """First and last key that is the positive of one of the queries `row`, then that one of them excludes."""
        low, high = tl.full(row.shape, 2147483647, tl.int32), tl.full(row.shape, -1, tl.int32)
        if E < MANY:
            for e in tl.static_range(E):
                low, high = _widened(low, high, _load_excluded(marks, row, inside, e))
        else:
            for e in range(marks[8]):
                low, high = _widened(low, high, _load_excluded(marks, row, inside, e))
        index = _load_index(marks, row, inside)
        index_low = tl.min(tl.where(index < 0, 2147483647, index), 0)
        return index_low, tl.max(index, 0), tl.min(low, 0), tl.max(high, 0)

    @triton.jit
    def touched(marks, spans, row, inside, first, E: tl.constexpr, BLOCK: tl.constexpr):
        """Whether one of the queries `row` has its positive or an excluded key among [first, first + BLOCK).

        Their `marked_spans` rule most tiles out at once.
        """
        last = first + BLOCK - 1
        hit = ((spans[0] <= last) & (spans[1] >= first)) | ((spans[2] <= last) & (spans[3] >= first))
        if hit:
            index = _load_index(marks, row, inside)
            marked = (index >= first) & (index <= last)
            if E < MANY:
                for e in tl.static_range(E):
                    mark = _load_excluded(marks, row, inside, e)
                    marked = marked | ((mark >= first) & (mark <= last))
            else:
                for e in range(marks[8]):
                    mark = _load_excluded(marks, row, inside, e)
                    marked = marked | ((mark >= first) & (mark <= last))
            hit = tl.max(marked.to(tl.int32), 0) > 0
        return hit

    @triton.jit
    def set_marked(tile, marks, at_positive, at_excluded, row, inside, key, E: tl.constexpr, AXIS: tl.constexpr):
        """Sets a tile at the excluded keys and at the positives, which win. Queries `row` lie along AXIS."""
        key = tl.expand_dims(key, AXIS)
        if E < MANY:
            for e in tl.static_range(E):
                mark = _load_excluded(marks, row, inside, e)
                tile = tl.where(tl.expand_dims(mark, 1 - AXIS) == key, at_excluded, tile)
        else:
            for e in range(marks[8]):
                mark = _load_excluded(marks, row, inside, e)
                tile = tl.where(tl.expand_dims(mark, 1 - AXIS) == key, at_excluded, tile)
        index = _load_index(marks, row, inside)
        return tl.where(tl.expand_dims(index, 1 - AXIS) == key, tl.expand_dims(at_positive, 1 - AXIS), tile)

    @triton.jit(
        do_not_specialize=[
            "index_stride_g", "index_stride_r", "exclude_stride_g", "exclude_stride_r", "exclude_stride_e", "excluded",
            "G", "R", "P", "part",
        ]
    )  # fmt: skip
    def forward_kernel(
        copy_ptr, descriptor, scale_ptr, first_ptr, index_ptr, index_stride_g, index_stride_r,
        exclude_ptr, exclude_stride_g, exclude_stride_r, exclude_stride_e, excluded,
        partial_ptr, sharpness, G, R, P, part,
        E: tl.constexpr, SHARED: tl.constexpr, BOUNDED: tl.constexpr, PAD: tl.constexpr,
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
        first_query, first_key = first_rows(first_ptr, g, G, R, P, SHARED)
        query_ptr, key_ptr = copy_ptr + first_query * PAD, copy_ptr + first_key * PAD
        marks = (
            g, index_ptr, index_stride_g, index_stride_r,
            exclude_ptr, exclude_stride_g, exclude_stride_r, exclude_stride_e, excluded,
        )  # fmt: skip
        spans = marked_spans(marks, row, inside, E)
        nothing = tl.full((BLOCK_A,), float("-inf"), tl.float32)
        row_scale = tl.load(scale_ptr + first_query + row, mask=inside, other=0) * sharpness
        d = tl.arange(0, BLOCK_D)
        if BLOCK_D == PAD:
            a = load_copy(query_ptr, a_first, R, d, PAD, BLOCK_A)
        total, top = tl.zeros((BLOCK_A,), tl.float32), nothing
        begin = tl.program_id(1) * part
        for first in tl.range(begin, tl.minimum(begin + part, P), BLOCK_B, num_stages=STAGES):
            key = first + tl.arange(0, BLOCK_B)
            if BLOCK_D == PAD:
                b = load_passing(descriptor, first_key, key_ptr, first, P, d, PAD, BLOCK_B)
                score = dot(a, tl.trans(b), tl.zeros((BLOCK_A, BLOCK_B), tl.float32), PRECISION, UPCAST)
            else:
                score = dot_chunks(
                    query_ptr, a_first, R, key_ptr, first, P, PAD, BLOCK_A, BLOCK_B, BLOCK_D, STAGES, PRECISION, UPCAST
                )
            column_scale = tl.load(scale_ptr + first_key + key)  # without a mask: see `workspace`
            score = score * column_scale[None, :] * row_scale[:, None]
            if touched(marks, spans, row, inside, first, E, BLOCK_B) | (first + BLOCK_B > P):
                score = set_marked(score, marks, nothing, float("-inf"), row, inside, key, E, 0)
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
        partial_ptr, pair_ptr, weight_ptr, begin_ptr, bound_ptr, loss_ptr, share_ptr, sharpness, factor,
        G, R, longest, splits, BOUNDED: tl.constexpr, TOTAL: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Losses of BLOCK queries of a group from the parts of their sums, times `factor` and their weight if given.

        `begin_ptr` (losses + 1,), if given: which of all queries count as a group here, at most `longest`; `bound_ptr`
        (losses,), if given: what one of them counts for at most.
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
            for split in tl.range(0, splits, loop_unroll_factor=4):
                top = tl.maximum(top, tl.load(partial_ptr + (2 * split + 1) * stride + row, mask=inside, other=0))
            top = tl.where(top == float("-inf"), 0.0, top)
        total = tl.zeros((BLOCK,), tl.float32)
        for split in tl.range(0, splits, loop_unroll_factor=4):
            part = tl.load(partial_ptr + 2 * split * stride + row, mask=inside, other=0)
            if not BOUNDED:
                part *= tl.exp2(tl.load(partial_ptr + (2 * split + 1) * stride + row, mask=inside, other=0) - top)
            total += part
        negative = tl.log2(total) + top
        positive = tl.load(pair_ptr + row, mask=inside, other=0) * sharpness
        gap = (negative - positive) * LN2
        high = tl.maximum(negative, positive)
        both = high + tl.log2(tl.exp2(negative - high) + tl.exp2(positive - high))
        loss, apart = _softplus(gap), 1 / (1 + tl.exp(-gap))
        if bound_ptr is not None:
            bound = tl.load(bound_ptr + g).to(tl.float32)
            beyond = loss > bound
            loss = tl.where(beyond, bound, loss)
            # No share of an infinite sum: the gradient is 0.
            both, apart = tl.where(beyond, float("inf"), both), tl.where(beyond, 0.0, apart)
        tl.store(share_ptr + row, both, mask=inside)
        tl.store(share_ptr + stride + row, apart, mask=inside)
        loss *= factor
        if weight_ptr is not None:
            loss *= tl.load(weight_ptr + row, mask=inside, other=0).to(tl.float32)
        if TOTAL:
            tl.store(loss_ptr + tl.program_id(0), tl.sum(tl.where(inside, loss, 0.0), 0))
        else:
            tl.store(loss_ptr + row, loss, mask=inside)
