"""The most similar rows of a queue.

S[i, j] = cos(query_i, queue_j);  the k largest of each row, ties to the lower j      DCLR Sec. 3.2
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._common import (
    INTERPRET,
    check,
    check_count,
    check_float,
    check_tensors,
    define_op,
    device_class,
    runs_triton,
    triton,
)

if triton is not None:
    from ._topk import merge_kernel, search_kernel

MAX_K = 64

# Tiles of 16-bit (2 bytes) and of 32-bit inputs; up to `whole` features are kept whole, BLOCK_D at a time are taken of
# more. `programs` share a multiprocessor. `long` is BLOCK_M for lists of more than 16, which take registers.
_PROGRAM = {"num_warps": 8, "programs": 2}
_HALF = {"BLOCK_M": 128, "long": 64, "BLOCK_L": 64, "BLOCK_D": 32, "whole": 128, "num_stages": 3, **_PROGRAM}
_SINGLE = {"BLOCK_M": 64, "long": 64, "BLOCK_L": 32, "BLOCK_D": 16, "whole": 16, "num_stages": 2, **_PROGRAM}
CONFIGS = {
    "default": {2: {**_HALF, "num_stages": 2}, 4: _SINGLE},
    "sm_80": {2: {**_HALF, "whole": 64}, 4: {**_SINGLE, "long": 32, "maxnreg": 128}},
    "sm_90": {2: {**_HALF, "num_warps": 4}, 4: {**_SINGLE, "long": 32, "maxnreg": 168}},
    "sm_100": {
        2: {**_HALF, "maxnreg": 224},
        4: {**_SINGLE, "BLOCK_M": 32, "long": 16, "num_stages": 3, "maxnreg": 168},
    },
}
# Of a queue of LONG rows or more, one SHARE-th is searched first: few of the rest beat the k best of that.
LONG, SHARE = 65_536, 16
# Of all parts of the queue together, for one query: the merge has them in registers.
MAX_CANDIDATES = 8192

_library = torch.library.Library("dclr", "FRAGMENT")


class TopK(NamedTuple):
    """`values` (M, k) float32, descending, `indices` (M, k) int64; -inf and -1 where there are fewer."""

    values: Tensor
    indices: Tensor


def topk_similarity_reference(
    query: Tensor, queue: Tensor, k: int, size: Tensor | int, query_id: Tensor | None, queue_id: Tensor | None
) -> TopK:
    """Plain PyTorch form of `topk_similarity`."""
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


# Op


def search_sizes(config: dict[str, int], query: Tensor, queue: Tensor, k: int) -> dict[str, int]:
    """Constants of a launch of the search: tiles no larger than the query needs, warps and stages."""
    rows, features = query.shape
    aligned = all(length % 8 == 0 for length in (features, *query.stride(), *queue.stride()) if length != 1)
    whole = features <= (config["whole"] if aligned else config["BLOCK_D"])
    block_m = config["long"] if k > 16 else config["BLOCK_M"]
    if not aligned:  # each element is a load of its own: small tiles, or they do not fit
        block_m = min(block_m, config["BLOCK_M"] // 2)
    return {
        "K": k,
        "WIDTH": triton.next_power_of_2(k),
        "UPCAST": INTERPRET,
        "BLOCK_M": min(64, block_m) if rows <= 64 else block_m,
        "BLOCK_L": config["BLOCK_L"],
        "BLOCK_D": max(16, triton.next_power_of_2(features)) if whole else config["BLOCK_D"],
        "WHOLE": whole,
        **{name: config[name] for name in ("num_warps", "num_stages", "maxnreg") if name in config},
    }


def merge_sizes(candidates: int) -> dict[str, int]:
    """Constants of a launch of the merge."""
    width = triton.next_power_of_2(candidates)
    return {"ROWS": max(1, 1024 // width), "WIDTH": width, "num_warps": 4 if width <= 2048 else 8}


def _part_count(device: torch.device, programs: int, blocks: int, tiles: int, k: int) -> int:
    """Parts of the queue: so many that the device is full once, but a tile each at least."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return max(1, min(programs * processors // blocks, tiles, MAX_CANDIDATES // k))


def _topk(
    query: Tensor,
    queue: Tensor,
    k: int,
    limit: int,
    size: Tensor | None,
    query_id: Tensor | None,
    queue_id: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if not runs_triton(query):
        return topk_similarity_reference(query, queue, k, limit if size is None else size, query_id, queue_id)
    least = None
    if len(queue) >= LONG:
        first = len(queue) // SHARE
        ids = None if queue_id is None else queue_id[:first]
        least, _ = _search(query, queue[:first], k, min(limit, first), size, query_id, ids, None)
    return _search(query, queue, k, limit, size, query_id, queue_id, least)


def _search(
    query: Tensor,
    queue: Tensor,
    k: int,
    limit: int,
    size: Tensor | None,
    query_id: Tensor | None,
    queue_id: Tensor | None,
    least: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One search and its merge; `least` (M, k): the k best of some of the rows, if they are known."""
    rows, length = len(query), len(queue)
    values = query.new_empty((rows, k), dtype=torch.float32)
    indices = query.new_empty((rows, k), dtype=torch.int64)
    if rows == 0:
        return values, indices
    config = CONFIGS.get(device_class(query.device), CONFIGS["default"])[query.element_size()]
    sizes = search_sizes(config, query, queue, k)
    blocks, tiles = triton.cdiv(rows, sizes["BLOCK_M"]), triton.cdiv(length, sizes["BLOCK_L"])
    parts = _part_count(query.device, config["programs"], blocks, tiles, k)
    keys = query.new_empty((rows, parts, k), dtype=torch.int64)
    id_strides = [None if ids is None else ids.stride(0) for ids in (query_id, queue_id)]
    merge = merge_sizes(parts * k)
    with torch.cuda.device_of(query):
        search_kernel[blocks, parts](
            query, *query.stride(), queue, *queue.stride(), query_id, id_strides[0], queue_id, id_strides[1],
            size, least, keys, rows, length, query.shape[1], limit, **sizes,
        )  # fmt: skip
        merge_kernel[(triton.cdiv(rows, merge["ROWS"]),)](keys, values, indices, rows, parts * k, k, **merge)
    return values, indices


define_op(
    _library,
    "topk_similarity(Tensor query, Tensor queue, int k, SymInt limit, Tensor? size, Tensor? query_id, "
    "Tensor? queue_id) -> (Tensor, Tensor)",
    _topk,
)


def _detached(*arguments):
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.dclr.topk_similarity(*arguments)


_library.impl("topk_similarity", _detached, "Autograd")


@torch.library.register_fake("dclr::topk_similarity", lib=_library)
def _(query, queue, k, limit, size, query_id, queue_id):
    shape = query.shape[0], k
    return query.new_empty(shape, dtype=torch.float32), query.new_empty(shape, dtype=torch.int64)


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
        TopK, descending, ties to the lower index, NaN after every number; not differentiable.

    Raises:
        TypeError, ValueError: a wrong rank, size, dtype or device, named.
    """
    check_tensors(query=query, queue=queue, optional={"query_id": query_id, "queue_id": queue_id})
    check_float("query", query, 2)
    check_float("queue", queue, 2)
    length = queue.shape[0]
    check(query.dtype == queue.dtype, "queue", queue.dtype, f"the query's {query.dtype}", TypeError)
    check(query.shape[1] == queue.shape[1], "queue", tuple(queue.shape), lambda: f"(L, {query.shape[1]})")
    check_count("k", k, 1, min(MAX_K, length))
    for name, value, other in (("query_id", query_id, queue_id), ("queue_id", queue_id, query_id)):
        check((value is None) <= (other is None), name, "None", "both query_id and queue_id, or neither")
    for name, value, rows in (("query_id", query_id, query.shape[0]), ("queue_id", queue_id, length)):
        if value is not None:
            check(value.dtype == torch.int64, name, value.dtype, "int64", TypeError)
            check(tuple(value.shape) == (rows,), name, tuple(value.shape), (rows,))
    if isinstance(size, Tensor):
        check(size.dtype == torch.int64, "size", size.dtype, "int64", TypeError)
        check(size.dim() == 0, "size", tuple(size.shape), "an int or a 0-d tensor")
        check_tensors(query=query, size=size)
        limit = length
    else:
        limit, size = length if size is None else size, None
        check_count("size", limit, 0, length)
    return TopK(*torch.ops.dclr.topk_similarity(query, queue, k, limit, size, query_id, queue_id))
