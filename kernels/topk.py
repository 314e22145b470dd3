"""The most similar rows of a queue.

S[i, j] = cos(query_i, queue_j);  the k largest of each row, ties to the lower j      DCLR Sec. 3.2
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._common import check, check_float, check_same_device, unit

MAX_K = 64


class TopK(NamedTuple):
    """`values` (M, k) float32, descending, `indices` (M, k) int64; -inf and -1 where there are fewer."""

    values: Tensor
    indices: Tensor


def topk_similarity_reference(
    query: Tensor, queue: Tensor, k: int, size: Tensor | int, query_id: Tensor | None, queue_id: Tensor | None
) -> TopK:
    """Plain PyTorch form of `topk_similarity`."""
    # In float64, so that equal rows tie wherever in the matrix product they stand.
    similarity = (unit(query, torch.float64) @ unit(queue, torch.float64).T).float()
    allowed = (torch.arange(queue.shape[0], device=queue.device) < size).expand_as(similarity)
    if query_id is not None:
        allowed = allowed & (query_id[:, None] != queue_id[None])
    # Rank: a number before NaN, NaN before what is not allowed.
    number = allowed & ~similarity.isnan()
    ranked = torch.where(number, similarity, torch.where(allowed, -2.0, -3.0))
    order = ranked.sort(dim=1, descending=True, stable=True).indices[:, :k]
    found = allowed.gather(1, order)
    values = similarity.gather(1, order).masked_fill(~found, -torch.inf)
    return TopK(values, order.masked_fill(~found, -1))


@torch.no_grad()
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
        TopK, descending, ties to the lower index, NaN after every number; not differentiable.

    Raises:
        TypeError, ValueError: a wrong rank, size, dtype or device, named.
    """
    check_float("query", query, 2)
    check_float("queue", queue, 2)
    length = queue.shape[0]
    check(query.dtype == queue.dtype, "queue", queue.dtype, f"the query's {query.dtype}", TypeError)
    check(query.shape[1] == queue.shape[1], "queue", f"shape {tuple(queue.shape)}", f"(L, {query.shape[1]})")
    check(isinstance(k, int) and 1 <= k <= min(MAX_K, length), "k", k, f"1 to {min(MAX_K, length)}")
    check((query_id is None) == (queue_id is None), "queue_id", queue_id, "both query_id and queue_id, or neither")
    for name, value, rows in (("query_id", query_id, query.shape[0]), ("queue_id", queue_id, length)):
        if value is not None:
            check(value.dtype == torch.int64, name, value.dtype, "int64", TypeError)
            check(tuple(value.shape) == (rows,), name, f"shape {tuple(value.shape)}", f"({rows},)")
    check_same_device(query=query, queue=queue, query_id=query_id, queue_id=queue_id)
    if size is None:
        size = length
    elif not isinstance(size, Tensor):
        check(0 <= size <= length, "size", size, f"0 to {length}")
    return topk_similarity_reference(query, queue, k, size, query_id, queue_id)
