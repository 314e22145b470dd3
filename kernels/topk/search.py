"""Triton kernels of `topk_similarity`. Neither holds the M x L matrix.

search   a block of queries walks its part of the queue tile by tile and keeps the K best entries of each row
merge    sorts what the parts have kept

The kept entries are an unordered list of keys. A tile is looked at closely only where the best of some row could beat
the least that is kept: that entry takes the least one's place, until no row has a better one. The first look knows
nothing of ids, and plain sums of squares are enough for it. A key is an int64 of the rank (a cosine, or one of the
marks below it) over the inverted index, so that larger keys are nearer and, of equal cosines, the ones with the lower
index.

Shape letters: M queries, L rows of the queue, D features, K results, N keys of a query from all parts.
"""

from __future__ import annotations

from .._common import tl, triton

if triton is not None:
    from ..rows import dot, inverse_norm, load_rows

    # Ranks below every cosine: a NaN, an empty place of the list, an entry that must not be found.
    NAN = tl.constexpr(-2.0)
    EMPTY = tl.constexpr(-3.0)
    ABSENT = tl.constexpr(-4.0)

    # More than rounding can part two ways to one cosine.
    SLACK = tl.constexpr(2.0**-20)
    # Sums of squares that are good as they are.
    SMALL = tl.constexpr(2.0**-60)
    LARGE = tl.constexpr(2.0**60)
    FIRST_SCALE = tl.constexpr(2.0**127)
    ZERO_SCALE = tl.constexpr(2.0**120)
    LAST_INDEX = tl.constexpr(2**31 - 1)
    LOWEST_KEY = tl.constexpr(-(2**63))
    HIGHEST_KEY = tl.constexpr(2**63 - 1)

    @triton.jit
    def _key(rank, index):
        """Floats order as integers do once the lower bits of the negative ones are inverted."""
        bits = tl.where(rank == 0, 0.0, rank).to(tl.int32, bitcast=True)  # -0 is 0
        ordered = bits ^ ((bits >> 31) & LAST_INDEX)
        return (ordered.to(tl.int64) << 32) | (index ^ LAST_INDEX).to(tl.int64)

    @triton.jit
    def _rank(key):
        ordered = (key >> 32).to(tl.int32)
        return (ordered ^ ((ordered >> 31) & LAST_INDEX)).to(tl.float32, bitcast=True)

    @triton.jit
    def _index(key):
        return (key & LAST_INDEX) ^ LAST_INDEX

    @triton.jit
    def _add_squares(square, scale, x):
        """Adds columns of rows to their scaled sums of squares; 0 and FIRST_SCALE to start with.

        The scale is the power of two that brings the largest element to [1, 2) for float16, whose small elements need
        it, and to [1/128, 1/64) for the others, so that squares and products stay in float32's range.
        """
        TOP: tl.constexpr = 254 if x.dtype == tl.float16 else 247
        x = x.to(tl.float32)
        largest = tl.max(tl.minimum(tl.abs(x), float("inf")), 1)
        exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
        new = tl.minimum(scale, ((TOP - tl.minimum(exponent, TOP - 1)) << 23).to(tl.float32, bitcast=True))
        x *= new[:, None]
        change = new / scale
        return square * change * change + tl.sum(x * x, 1), new

    @triton.jit
    def _load_query(ptr, row, rows, stride_row, d, D, stride_d, scale):
        """In its own dtype, rows scaled."""
        query = load_rows(ptr, row, row < rows, stride_row, d, D, stride_d)
        return (query.to(tl.float32) * scale[:, None]).to(ptr.dtype.element_ty)

    @triton.jit
    def _any(flags):
        """Of a vector, taken as a column: Triton 3.7 cannot reduce a vector that comes of a tensor-memory product."""
        return tl.max(flags[:, None].to(tl.int32), 0).item() > 0

    @triton.jit
    def _larger(a, b):
        return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)

    @triton.jit
    def _plain_inverse_norm(x):
        """Of rows in one block; NaN where the plain sum of squares says too little."""
        square = tl.sum(x.to(tl.float32) * x.to(tl.float32), 1)
        plain = (square < LARGE) & ((square > SMALL) | (square == 0))
        return tl.where(plain, tl.rsqrt(tl.maximum(square, SMALL)), float("nan"))

    @triton.jit
    def _keep_better(kept, bar, rank, l):
        """`kept` (BLOCK_M, WIDTH) and its least rank `bar` after a tile of ranks whose indices are above all kept."""
        best = tl.max(rank, 1)
        better = best > bar
        while _any(better):
            index = tl.min(tl.where(rank == best[:, None], l[None, :], LAST_INDEX), 1)
            least = tl.min(kept, 1)
            kept = tl.where((kept == least[:, None]) & better[:, None], _key(best, index)[:, None], kept)
            bar = tl.maximum(bar, _rank(tl.min(kept, 1)))
            rank = tl.where(l[None, :] == index[:, None], ABSENT, rank)
            best = tl.max(rank, 1)
            better = best > bar
        return kept, bar

    @triton.jit(do_not_specialize=["M", "limit"])
    def search_kernel(
        query_ptr, query_stride_m, query_stride_d, queue_ptr, queue_stride_l, queue_stride_d,
        query_id_ptr, query_id_stride, queue_id_ptr, queue_id_stride, size_ptr, least_ptr, key_ptr, M, L, D, limit,
        K: tl.constexpr, WIDTH: tl.constexpr, UPCAST: tl.constexpr,
        BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr,
    ):  # fmt: skip
        """Programs are blocks of queries by parts of the queue; `key_ptr` (M, parts, K). WHOLE: D is one block.

        `least_ptr` (M, K), if given: the K best of some of the queue. What is less than all of them is not looked for.
        """
        m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        if size_ptr is not None:
            limit = tl.maximum(tl.minimum(tl.load(size_ptr), L), 0).to(tl.int32)
        part_size = tl.cdiv(tl.cdiv(limit, BLOCK_L), tl.num_programs(1)) * BLOCK_L
        start = tl.program_id(1) * part_size
        d = tl.arange(0, BLOCK_D)
        query_square = tl.zeros((BLOCK_M,), tl.float32)
        query_scale = tl.full((BLOCK_M,), FIRST_SCALE, tl.float32)
        for first_d in range(0, D, BLOCK_D):
            query = load_rows(query_ptr, m, m < M, query_stride_m, first_d + d, D, query_stride_d)
            query_square, query_scale = _add_squares(query_square, query_scale, query)
        query_inverse = inverse_norm(query_square, query_scale >= ZERO_SCALE)
        if WHOLE:
            whole_query = _load_query(query_ptr, m, M, query_stride_m, d, D, query_stride_d, query_scale)
        if query_id_ptr is not None:
            query_id = tl.load(query_id_ptr + m.to(tl.int64) * query_id_stride, mask=m < M, other=0)

        slot = tl.arange(0, WIDTH)[None, :] + tl.zeros((BLOCK_M, 1), tl.int32)
        kept = tl.where(slot < K, _key(tl.full(slot.shape, EMPTY, tl.float32), slot), HIGHEST_KEY)
        bar = tl.where(m < M, EMPTY, float("inf"))
        if least_ptr is not None:
            least = tl.load(least_ptr + m.to(tl.int64) * K + K - 1, mask=m < M, other=float("inf"))
            bar = tl.maximum(tl.where(least == least, least, NAN) - SLACK, EMPTY)
        for first in range(start, tl.minimum(start + part_size, limit), BLOCK_L):
            l = first + tl.arange(0, BLOCK_L)
            product = tl.zeros((BLOCK_M, BLOCK_L), tl.float32)
            square = tl.zeros((BLOCK_L,), tl.float32)
            scale = tl.full((BLOCK_L,), FIRST_SCALE, tl.float32)
            if WHOLE:
                queue = load_rows(queue_ptr, l, l < L, queue_stride_l, d, D, queue_stride_d)
                product = dot(whole_query, tl.trans(queue), product, "ieee", UPCAST)
                inverse = _plain_inverse_norm(queue)
            else:
                for first_d in range(0, D, BLOCK_D):
                    queue = load_rows(queue_ptr, l, l < L, queue_stride_l, first_d + d, D, queue_stride_d)
                    query = _load_query(query_ptr, m, M, query_stride_m, first_d + d, D, query_stride_d, query_scale)
                    product = dot(query, tl.trans(queue), product, "ieee", UPCAST)
                    square, scale = _add_squares(square, scale, queue)
                inverse = inverse_norm(square, scale >= ZERO_SCALE) * scale
            largest = tl.reduce(product * inverse[None, :], 1, _larger) * query_inverse
            if (first + BLOCK_L > limit) | _any(~(largest + SLACK <= bar)):  # so that NaN is looked at
                if WHOLE:
                    square, scale = _add_squares(square, scale, queue)
                    inverse = inverse_norm(square, scale >= ZERO_SCALE) * scale
                cosine = product * inverse[None, :] * query_inverse[:, None]
                found = (l < limit)[None, :]
                if query_id_ptr is not None:
                    queue_id = tl.load(queue_id_ptr + l.to(tl.int64) * queue_id_stride, mask=l < limit, other=0)
                    found = found & (query_id[:, None] != queue_id[None, :])
                rank = tl.where(found, tl.where(cosine == cosine, cosine, NAN), ABSENT)
                kept, bar = _keep_better(kept, bar, rank, l)
        row = m.to(tl.int64)[:, None] * tl.num_programs(1) + tl.program_id(1)
        tl.store(key_ptr + row * K + slot, kept, mask=(m < M)[:, None] & (slot < K))

    @triton.jit(do_not_specialize=["M", "N", "K"])
    def merge_kernel(key_ptr, value_ptr, index_ptr, M, N, K, ROWS: tl.constexpr, WIDTH: tl.constexpr):
        """Takes the largest of the (M, N) keys K times."""
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, WIDTH)[None, :]
        mask = (row < M)[:, None] & (column < N)
        keys = tl.load(key_ptr + row[:, None] * N + column, mask=mask, other=LOWEST_KEY)
        for place in range(0, K):
            best = tl.max(keys, 1)
            rank = _rank(best)
            found = rank > EMPTY
            value = tl.where(found, tl.where(rank == NAN, float("nan"), rank), -float("inf"))
            tl.store(value_ptr + row * K + place, value, mask=row < M)
            tl.store(index_ptr + row * K + place, tl.where(found, _index(best), -1), mask=row < M)
            keys = tl.where(keys == best[:, None], LOWEST_KEY, keys)
