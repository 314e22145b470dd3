"""The most similar rows of a queue: `reference.py` has the formula, `search.py` the Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from .._common import check_count, check_float, check_kind, check_tensors, expect, register_op
from .launch import launch_search
from .reference import TopK, topk_similarity_reference

MAX_K = 64


# Op


def _empty_neighbours(query: Tensor, queue: Tensor, k: int, *_) -> tuple[Tensor, Tensor]:
    shape = query.shape[0], k
    return query.new_empty(shape, dtype=torch.float32), query.new_empty(shape, dtype=torch.int64)


register_op(
    "topk_similarity(Tensor query, Tensor queue, int k, SymInt limit, Tensor? size, Tensor? query_id, "
    "Tensor? queue_id) -> (Tensor, Tensor)",
    _empty_neighbours,
    topk_similarity_reference,
    launch_search,
)


# Public function


def topk_similarity(
    query: Tensor,
    queue: Tensor,
    k: int,
    *,
    size: int | Tensor | None = None,
    query_id: Tensor | None = None,
    queue_id: Tensor | None = None,
) -> TopK:
    """The k rows of a queue most similar to each query by cosine.

    Args:
        query: (M, D) floating.
        queue: (L, D) floating, also as the transposed view of a (D, L) buffer.
        k: how many, 1 to 64 and at most L.
        size: how many of the first rows hold entries, an int or a 0-d int64 tensor; default all.
        query_id, queue_id: (M,) and (L,) int64; entries with the query's id are never returned.

    Returns:
        TopK(values, indices), (M, k) float32 and int64: descending, ties to the lower index, NaN after every number,
        -inf and -1 where there are fewer than k. Not differentiable.

    Raises:
        TypeError, ValueError: a wrong rank, size, dtype or device, named.
    """
    check_tensors(query=query, queue=queue, optional={"query_id": query_id, "queue_id": queue_id})
    check_float("query", query, 2)
    check_float("queue", queue, 2)
    length = queue.shape[0]
    expect(query.dtype == queue.dtype, "queue", queue.dtype, f"the query's {query.dtype}", TypeError)
    expect(query.shape[1] == queue.shape[1], "queue", tuple(queue.shape), lambda: f"(L, {query.shape[1]})")
    check_count("k", k, 1, min(MAX_K, length))
    for name, value, other in (("query_id", query_id, queue_id), ("queue_id", queue_id, query_id)):
        expect((value is None) <= (other is None), name, "None", "both query_id and queue_id, or neither")
    for name, value, rows in (("query_id", query_id, query.shape[0]), ("queue_id", queue_id, length)):
        check_kind(name, value, torch.int64, (rows,))
    if isinstance(size, Tensor):
        check_kind("size", size, torch.int64)
        expect(size.dim() == 0, "size", tuple(size.shape), "an int or a 0-d tensor")
        check_tensors(query=query, size=size)
        limit = length
    else:
        limit, size = length if size is None else size, None
        check_count("size", limit, 0, length)
    return TopK(*torch.ops.dclr.topk_similarity(query, queue, k, limit, size, query_id, queue_id))
