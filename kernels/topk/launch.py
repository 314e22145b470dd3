"""Launches of the top-K kernels: tiles, parts, rounds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._common import INTERPRET, Config, cdiv, device_class, next_power_of_2, processors, triton

if triton is not None:
    from .search import merge_kernel, search_kernel


@dataclass(frozen=True)
class SearchTile(Config):
    """Queries by rows of the queue; up to `whole` features are kept whole, of more BLOCK_D are taken at a time.

    `programs` share a multiprocessor; `long` is BLOCK_M for lists of more than 16, which take registers.
    """

    BLOCK_M: int
    BLOCK_L: int
    BLOCK_D: int
    whole: int
    num_stages: int
    long: int = 64
    programs: int = 2


_HALF, _SINGLE = SearchTile(8, 128, 64, 32, 128, 3), SearchTile(8, 64, 32, 16, 16, 2)
# Of 16-bit (2 bytes) and of 32-bit inputs.
CONFIGS = {
    "default": {2: replace(_HALF, num_stages=2), 4: _SINGLE},
    "sm_80": {2: replace(_HALF, whole=64), 4: replace(_SINGLE, long=32, maxnreg=128)},
    "sm_90": {2: replace(_HALF, num_warps=4), 4: replace(_SINGLE, long=32, maxnreg=168)},
    "sm_100": {
        2: replace(_HALF, maxnreg=224),
        4: replace(_SINGLE, BLOCK_M=32, long=16, num_stages=3, maxnreg=168),
    },
}
# Of a queue of LONG rows or more, one SHARE-th is searched first: few of the rest beat the k best of that.
LONG, SHARE = 65_536, 16
# Of all parts of the queue together, for one query: the merge has them in registers.
MAX_CANDIDATES = 8192


def launch_search(
    query: Tensor,
    queue: Tensor,
    k: int,
    limit: int,
    size: Tensor | None,
    query_id: Tensor | None,
    queue_id: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Values and indices (M, k) of the nearest of the first `size`, or `limit`, rows."""
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
    blocks, tiles = cdiv(rows, sizes["BLOCK_M"]), cdiv(length, sizes["BLOCK_L"])
    parts = _part_count(query.device, config.programs, blocks, tiles, k)
    keys = query.new_empty((rows, parts, k), dtype=torch.int64)
    id_strides = [None if ids is None else ids.stride(0) for ids in (query_id, queue_id)]
    merge = merge_sizes(parts * k)
    with torch.cuda.device_of(query):
        search_kernel[blocks, parts](
            query, *query.stride(), queue, *queue.stride(), query_id, id_strides[0], queue_id, id_strides[1],
            size, least, keys, rows, length, query.shape[1], limit, **sizes,
        )  # fmt: skip
        merge_kernel[(cdiv(rows, merge["ROWS"]),)](keys, values, indices, rows, parts * k, k, **merge)
    return values, indices


def search_sizes(config: SearchTile, query: Tensor, queue: Tensor, k: int) -> dict[str, int]:
    """Constants of a launch of the search: tiles no larger than the query needs, warps and stages."""
    rows, features = query.shape
    aligned = all(length % 8 == 0 for length in (features, *query.stride(), *queue.stride()) if length != 1)
    whole = features <= (config.whole if aligned else config.BLOCK_D)
    block_m = config.long if k > 16 else config.BLOCK_M
    if not aligned:  # each element is a load of its own: small tiles, or they do not fit
        block_m = min(block_m, config.BLOCK_M // 2)
    return {
        "K": k,
        "WIDTH": next_power_of_2(k),
        "UPCAST": INTERPRET,
        "BLOCK_M": min(64, block_m) if rows <= 64 else block_m,
        "BLOCK_L": config.BLOCK_L,
        "BLOCK_D": max(16, next_power_of_2(features)) if whole else config.BLOCK_D,
        "WHOLE": whole,
        **config.options(),
    }


def merge_sizes(candidates: int) -> dict[str, int]:
    """Constants of a launch of the merge."""
    width = next_power_of_2(candidates)
    return {"ROWS": max(1, 1024 // width), "WIDTH": width, "num_warps": 4 if width <= 2048 else 8}


def _part_count(device: torch.device, programs: int, blocks: int, tiles: int, k: int) -> int:
    """Parts of the queue: so many that the device is full once, but a tile each at least."""
    # The interpreter is one processor: more parts would only have more candidates to merge.
    places = programs * (processors(device) if device.type == "cuda" else 1)
    return max(1, min(places // blocks, tiles, MAX_CANDIDATES // k))
