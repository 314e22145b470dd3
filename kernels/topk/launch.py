"""Launches of the top-K kernels: tiles and parts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._common import INTERPRET, Config, cdiv, device_row, next_power_of_2, processors, strided, triton

if triton is not None:
    from .search import choose_kernel, maxima_kernel


@dataclass(frozen=True)
class SearchTile(Config):
    """Queries by rows of the queue; up to `whole` features are kept whole, of more BLOCK_D are taken at a time.

    `programs` share a multiprocessor; ids take registers, and `id_warps`.
    """

    BLOCK_M: int
    BLOCK_L: int
    BLOCK_D: int
    whole: int
    num_stages: int
    programs: int = 2
    id_warps: int = 8


_HALF, _SINGLE = SearchTile(8, 128, 64, 32, 128, 3), SearchTile(8, 64, 32, 16, 16, 2)
# Of 16-bit (2 bytes) and of 32-bit inputs. Without `maxnreg`, NVIDIA's assembler would spill a value or two.
CONFIGS = {
    "default": {2: replace(_HALF, num_stages=2), 4: _SINGLE},
    "sm_80": {2: replace(_HALF, whole=64, maxnreg=160), 4: replace(_SINGLE, maxnreg=128)},
    "sm_90": {2: replace(_HALF, num_warps=4), 4: replace(_SINGLE, maxnreg=168)},
    "sm_100": {2: replace(_HALF, maxnreg=224), 4: replace(_SINGLE, BLOCK_M=32, num_stages=3, maxnreg=168)},
}
# Parts, and tiles of the parts that are looked at, which the choosing kernel has in registers.
MOST = 8192


def launch_search(
    query: Tensor, queue: Tensor, k: int, limit: int, size: Tensor | None, query_id: Tensor | None,
    queue_id: Tensor | None, values: Tensor, indices: Tensor,
) -> None:  # fmt: skip
    """Fill values and indices (M, k) of the nearest of the first `size`, or `limit`, rows."""
    rows, length = len(query), len(queue)
    config = device_row(CONFIGS, query.device)[query.element_size()]
    tile = tile_sizes(config, query, queue, query_id is not None)
    blocks, tiles = cdiv(rows, tile["BLOCK_M"]), cdiv(length, tile["BLOCK_L"])
    part_tiles = tiles_of_part(query.device, config.programs, blocks, tiles, k)
    parts = cdiv(tiles, part_tiles)
    best = values.new_empty((tiles + parts, rows))
    arguments = *strided(query, queue, query_id, queue_id, rank=1), size, best, best[tiles:]
    sizes = rows, length, query.shape[1], limit
    maxima_kernel[blocks, parts](*arguments, *sizes, part_tiles, **tile)
    choose_kernel[(rows,)](
        *arguments, values, indices, *sizes, parts, part_tiles, k,
        SLOTS=next_power_of_2(k), PARTS=next_power_of_2(parts), TILES=next_power_of_2(part_tiles),
        BLOCK_L=tile["BLOCK_L"], BLOCK_D=min(64, tile["BLOCK_D"]),
        **Config(8 if k > 16 else 4, maxnreg=config.maxnreg and 255).options(),
    )  # fmt: skip


def tile_sizes(config: SearchTile, query: Tensor, queue: Tensor, ids: bool) -> dict[str, int]:
    """Constants of a launch over the queue: tiles no larger than the query needs, warps and stages."""
    rows, features = query.shape
    aligned = all(length % 8 == 0 for length in (features, *query.stride(), *queue.stride()) if length != 1)
    whole = features <= (config.whole if aligned else config.BLOCK_D)
    block_m = config.BLOCK_M
    if not aligned:  # each element is a load of its own: small tiles, or they do not fit
        block_m //= 2
    return {
        "UPCAST": INTERPRET,
        "BLOCK_M": min(64, block_m) if rows <= 64 else block_m,
        "BLOCK_L": config.BLOCK_L,
        "BLOCK_D": max(16, next_power_of_2(features)) if whole else config.BLOCK_D,
        "WHOLE": whole,
        "IN_ROWS": whole and aligned and queue.stride(1) == 1,
        **config.options(),
        **({"num_warps": config.id_warps} if ids else {}),
    }


def tiles_of_part(device: torch.device, programs: int, blocks: int, tiles: int, k: int) -> int:
    """So many that the device is full once, but no more than the choosing kernel can look at."""
    # The interpreter is one processor.
    places = programs * (processors(device) if device.type == "cuda" else 1)
    wanted = cdiv(tiles, max(1, places // blocks))
    return max(min(wanted, MOST // next_power_of_2(k)), cdiv(tiles, MOST))
