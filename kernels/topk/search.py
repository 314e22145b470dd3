"""Triton kernels of `topk_similarity`. Neither holds the M x L matrix.

maxima   a block of queries walks its part of the queue tile by tile; of each tile, and of the part, it notes the best
         cosine of each query
choose   looks again, closely, at the K tiles of a query that have the best: its K nearest are among them

The K best parts have the K best tiles, and those the K best entries. What is chosen is a key, an int64 of the rank (a
cosine, or one of the marks below it) over the inverted index, so that larger keys are nearer and, of equal cosines, the
ones with the lower index. Both kernels round alike, but for the order of a sum: entries whose cosines differ by less
than that may change places.

Shape letters: M queries, L rows of the queue, D features, K results.
"""

from __future__ import annotations

from .._common import tl, triton

if triton is not None:
    from ..rows import dot, inverse_norm, load_rows

    # Ranks below every cosine: a NaN, nothing, an entry that must not be found.
    NAN = tl.constexpr(-2.0)
    EMPTY = tl.constexpr(-3.0)
    ABSENT = tl.constexpr(-4.0)

    # Sums of squares that are good as they are.
    SMALL = tl.constexpr(2.0**-60)
    LARGE = tl.constexpr(2.0**60)
    FIRST_SCALE = tl.constexpr(2.0**127)
    ZERO_SCALE = tl.constexpr(2.0**120)
    LAST_INDEX = tl.constexpr(2**31 - 1)
    LOWEST_KEY = tl.constexpr(-(2**63))

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
    def _query_norms(ptr, m, M, stride_m, D, stride_d, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
        """Scales of the queries `m`, and the inverse norms of the scaled ones: NaN where one is not finite."""
        square, scale = tl.zeros((BLOCK_M,), tl.float32), tl.full((BLOCK_M,), FIRST_SCALE, tl.float32)
        for first_d in range(0, D, BLOCK_D):
            query = load_rows(ptr, m, m < M, stride_m, first_d + tl.arange(0, BLOCK_D), D, stride_d)
            square, scale = _add_squares(square, scale, query)
        return scale, inverse_norm(square, scale >= ZERO_SCALE)

    @triton.jit
    def _load_query(ptr, m, inside, stride_m, d, D, stride_d, scale):
        """Scaled, in its own dtype; 0 outside."""
        query = load_rows(ptr, m, inside, stride_m, d, D, stride_d)
        return (query.to(tl.float32) * scale[:, None]).to(ptr.dtype.element_ty)

    @triton.jit
    def _any(flags):
        """Of a vector, taken as a column: Triton 3.7 cannot reduce a vector that comes of a tensor-memory product."""
        return tl.max(flags[:, None].to(tl.int32), 0).item() > 0

    @triton.jit
    def _plain_inverse_norm(x):
        """Of rows in one block; NaN where the plain sum of squares says too little."""
        square = tl.sum(x.to(tl.float32) * x.to(tl.float32), 1)
        plain = (square < LARGE) & ((square > SMALL) | (square == 0))
        return tl.where(plain, tl.rsqrt(tl.maximum(square, SMALL)), float("nan"))

    @triton.jit
    def _limit(size_ptr, L, limit):
        """How many of the first rows count."""
        if size_ptr is not None:
            limit = tl.maximum(tl.minimum(tl.load(size_ptr), L), 0).to(tl.int32)
        return limit

    @triton.jit
    def _ranks(cosine, found):
        return tl.where(found, tl.where(cosine == cosine, cosine, NAN), ABSENT)

    @triton.jit(do_not_specialize=["M", "limit", "part_tiles"])
    def maxima_kernel(
        query_ptr, query_stride_m, query_stride_d, queue_ptr, queue_stride_l, queue_stride_d,
        query_id_ptr, query_id_stride, queue_id_ptr, queue_id_stride, size_ptr, tile_ptr, part_ptr,
        M, L, D, limit, part_tiles, UPCAST: tl.constexpr,
        BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr,
        IN_ROWS: tl.constexpr,
    ):  # fmt: skip
        """Programs are blocks of queries by parts of `part_tiles` tiles.

        WHOLE: D is one block; IN_ROWS: and the rows of the queue can be read 16 bytes at a time.

        `tile_ptr` (tiles, M), `part_ptr` (parts, M): best ranks. Tiles behind the limit are left as they are.
        """
        m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        limit = _limit(size_ptr, L, limit)
        start = tl.program_id(1) * part_tiles * BLOCK_L
        d = tl.arange(0, BLOCK_D)
        query_scale, query_inverse = _query_norms(query_ptr, m, M, query_stride_m, D, query_stride_d, BLOCK_M, BLOCK_D)
        # One that is not finite is taken for a zero row: which entries it may find says the rest.
        finite = query_inverse == query_inverse
        if WHOLE:
            whole_query = _load_query(query_ptr, m, (m < M) & finite, query_stride_m, d, D, query_stride_d, query_scale)
        if IN_ROWS:
            # What is the same in all tiles of its offsets, few where an access spans a run of features.
            tile_of_queue = queue_ptr + tl.arange(0, BLOCK_L).to(tl.int64)[:, None] * queue_stride_l
            tile_of_queue += d.to(tl.int64)[None, :] * queue_stride_d
        if query_id_ptr is not None:
            query_id = tl.load(query_id_ptr + m.to(tl.int64) * query_id_stride, mask=m < M, other=0)
            short_query_id = query_id.to(tl.int32)
            long_ids = _any(short_query_id != query_id)
        best = tl.full((BLOCK_M,), ABSENT, tl.float32)
        for first in range(start, tl.minimum(start + part_tiles * BLOCK_L, limit), BLOCK_L):
            l = first + tl.arange(0, BLOCK_L)
            product = tl.zeros((BLOCK_M, BLOCK_L), tl.float32)
            square, scale = tl.zeros((BLOCK_L,), tl.float32), tl.full((BLOCK_L,), FIRST_SCALE, tl.float32)
            if query_id_ptr is not None:
                queue_id = tl.load(queue_id_ptr + l.to(tl.int64) * queue_id_stride, mask=l < limit, other=0)
            if WHOLE:
                if IN_ROWS:
                    queue = tl.load(
                        tile_of_queue + tl.cast(first, tl.int64) * queue_stride_l,
                        mask=(l < L)[:, None] & (d < D)[None, :], other=0,
                    )  # fmt: skip
                else:
                    queue = load_rows(queue_ptr, l, l < L, queue_stride_l, d, D, queue_stride_d)
                product = dot(whole_query, tl.trans(queue), product, "ieee", UPCAST)
                inverse = _plain_inverse_norm(queue)
                odd = inverse != inverse
                if query_id_ptr is not None:
                    odd = odd | long_ids | (queue_id.to(tl.int32) != queue_id)
                special = (first + BLOCK_L > limit) | _any(odd)
            else:
                for first_d in range(0, D, BLOCK_D):
                    queue = load_rows(queue_ptr, l, l < L, queue_stride_l, first_d + d, D, queue_stride_d)
                    query = _load_query(
                        query_ptr, m, (m < M) & finite, query_stride_m, first_d + d, D, query_stride_d, query_scale
                    )
                    product = dot(query, tl.trans(queue), product, "ieee", UPCAST)
                    square, scale = _add_squares(square, scale, queue)
                inverse = inverse_norm(square, scale >= ZERO_SCALE) * scale
                special = True
            score = product * inverse[None, :]
            if special:
                if WHOLE:
                    square, scale = _add_squares(square, scale, queue)
                    exact = inverse_norm(square, scale >= ZERO_SCALE) * scale
                    score = product * tl.where(inverse == inverse, inverse, exact)[None, :]
                found = (l < limit)[None, :]
                if query_id_ptr is not None:
                    found = found & (query_id[:, None] != queue_id[None, :])
                largest = tl.max(_ranks(score * query_inverse[:, None], found), 1)
            else:
                if query_id_ptr is not None:
                    # Half of an id decides where the other half says nothing.
                    same = short_query_id[:, None] == queue_id.to(tl.int32)[None, :]
                    score = tl.where(same, float("-inf"), score)
                largest = tl.max(score, 1)
                largest = tl.where(largest > float("-inf"), tl.where(finite, largest * query_inverse, NAN), ABSENT)
            tl.store(tile_ptr + tl.cast(first // BLOCK_L, tl.int64) * M + m, largest, mask=m < M)
            best = tl.maximum(best, largest)
        tl.store(part_ptr + tl.program_id(1).to(tl.int64) * M + m, best, mask=m < M)

    @triton.jit(do_not_specialize=["M", "limit", "parts", "part_tiles", "K"])
    def choose_kernel(
        query_ptr, query_stride_m, query_stride_d, queue_ptr, queue_stride_l, queue_stride_d,
        query_id_ptr, query_id_stride, queue_id_ptr, queue_id_stride, size_ptr, tile_ptr, part_ptr,
        value_ptr, index_ptr, M, L, D, limit, parts, part_tiles, K,
        SLOTS: tl.constexpr, PARTS: tl.constexpr, TILES: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        """Programs are queries. SLOTS, PARTS and TILES are K, `parts` and `part_tiles` to the next power of two."""
        m = tl.program_id(0)
        limit = _limit(size_ptr, L, limit)
        slot = tl.arange(0, SLOTS)
        part = tl.arange(0, PARTS)
        rank = tl.load(part_ptr + part.to(tl.int64) * M + m, mask=part < parts, other=ABSENT)
        keys = tl.where(rank > EMPTY, _key(rank, part), LOWEST_KEY)
        chosen = tl.full((SLOTS,), LOWEST_KEY, tl.int64)
        for place in range(0, K):
            best = tl.max(keys, 0)
            chosen = tl.where(slot == place, best, chosen)
            keys = tl.where(keys == best, LOWEST_KEY, keys)

        step = tl.arange(0, TILES)[None, :]
        tile = _index(chosen).to(tl.int32)[:, None] * part_tiles + step
        inside = (chosen != LOWEST_KEY)[:, None] & (step < part_tiles) & (tile < tl.cdiv(limit, BLOCK_L))
        rank = tl.load(tile_ptr + tile.to(tl.int64) * M + m, mask=inside, other=ABSENT)
        tiles = tl.where(rank > EMPTY, _key(rank, tile), LOWEST_KEY)

        row = m + tl.zeros((1,), tl.int32)
        query_scale, query_inverse = _query_norms(query_ptr, row, M, query_stride_m, D, query_stride_d, 1, BLOCK_D)
        keys = tl.full((SLOTS, BLOCK_L), LOWEST_KEY, tl.int64)
        for place in range(0, K):
            best = tl.max(tl.max(tiles, 1), 0)
            tiles = tl.where(tiles == best, LOWEST_KEY, tiles)
            l = _index(best).to(tl.int32) * BLOCK_L + tl.arange(0, BLOCK_L)
            found = tl.where(best != LOWEST_KEY, l < limit, False)
            if query_id_ptr is not None:
                query_id = tl.load(query_id_ptr + m.to(tl.int64) * query_id_stride)
                queue_id = tl.load(queue_id_ptr + l.to(tl.int64) * queue_id_stride, mask=found, other=0)
                found = found & (query_id != queue_id)
            product, square = tl.zeros((BLOCK_L,), tl.float32), tl.zeros((BLOCK_L,), tl.float32)
            scale = tl.full((BLOCK_L,), FIRST_SCALE, tl.float32)
            for first_d in range(0, D, BLOCK_D):
                d = first_d + tl.arange(0, BLOCK_D)
                queue = load_rows(queue_ptr, l, found, queue_stride_l, d, D, queue_stride_d)
                query = _load_query(query_ptr, row, row < M, query_stride_m, d, D, query_stride_d, query_scale)
                product += tl.sum(query.to(tl.float32) * queue.to(tl.float32), 1)
                square, scale = _add_squares(square, scale, queue)
            inverse = inverse_norm(square, scale >= ZERO_SCALE) * scale
            key = _key(_ranks(product * inverse * query_inverse, found), l)
            keys = tl.where((slot == place)[:, None], tl.where(found, key, LOWEST_KEY)[None, :], keys)

        for place in range(0, K):
            best = tl.max(tl.max(keys, 1), 0)
            found, at = _rank(best), m.to(tl.int64) * K + place
            value = tl.where(found == NAN, float("nan"), found)
            tl.store(value_ptr + at, tl.where(best == LOWEST_KEY, -float("inf"), value))
            tl.store(index_ptr + at, tl.where(best == LOWEST_KEY, -1, _index(best)))
            keys = tl.where(keys == best, LOWEST_KEY, keys)
