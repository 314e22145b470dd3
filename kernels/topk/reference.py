"""The most similar rows of a queue.

S[i, j] = cos(query_i, queue_j);  the k largest of each row, ties to the lower j      DCLR Sec. 3.2
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TopK(NamedTuple):
    """`values` (M, k) float32, descending, `indices` (M, k) int64; -inf and -1 where there are fewer."""

    values: Tensor
    indices: Tensor


def topk_similarity_reference(
    query: Tensor, queue: Tensor, k: int, limit: int, size: Tensor | None, query_id: Tensor | None,
    queue_id: Tensor | None,
) -> TopK:  # fmt: skip
    """Plain PyTorch form of `topk_similarity`. Without a `size`, `limit` rows count."""
    size = limit if size is None else size
    # In float64 and normalised last, so that equal cosines tie once rounded to float32.
    query, queue = query.double(), queue.double()
    norms = query.norm(dim=1)[:, None] * queue.norm(dim=1)[None]
    similarity = torch.where(norms == 0, 0, query @ queue.T / norms).float()
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
