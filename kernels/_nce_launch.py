"""Launches of the InfoNCE kernels: tiles, workspace, grids."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ._common import INTERPRET, device_class, runs_triton, triton

if triton is not None:
    from ._nce_backward import finish_kernel, gradient_kernel
    from ._nce_forward import forward_kernel, losses_kernel, prepare_kernel

# Tiles of each kernel by the size of an element in bytes: rows kept, rows that pass by, columns at a time, a
# power of two up to LONGEST.
LONGEST = 128
_FORWARD_32 = {"BLOCK_A": 64, "BLOCK_B": 32, "BLOCK_D": 32, "num_warps": 8, "STAGES": 2}
_GRADIENT_32 = {"BLOCK_A": 32, "BLOCK_B": 16, "BLOCK_D": 128, "num_warps": 8, "STAGES": 2}
CONFIGS = {
    "default": {
        "forward": {2: {"BLOCK_A": 128, "BLOCK_B": 64, "BLOCK_D": 128, "num_warps": 8, "STAGES": 2}, 4: _FORWARD_32},
        "gradient": {2: {"BLOCK_A": 64, "BLOCK_B": 32, "BLOCK_D": 128, "num_warps": 8, "STAGES": 2}, 4: _GRADIENT_32},
    },
    "sm_90": {
        "forward": {2: {"BLOCK_A": 128, "BLOCK_B": 128, "BLOCK_D": 128, "num_warps": 8, "STAGES": 3}, 4: _FORWARD_32},
        "gradient": {
            2: {"BLOCK_A": 64, "BLOCK_B": 64, "BLOCK_D": 128, "num_warps": 8, "STAGES": 3},
            4: _GRADIENT_32,
        },
    },
}
CONFIGS["gfx942"] = {
    "forward": CONFIGS["default"]["forward"],
    "gradient": {
        2: {"BLOCK_A": 32, "BLOCK_B": 32, "BLOCK_D": 128, "num_warps": 4, "STAGES": 2},
        4: {"BLOCK_A": 32, "BLOCK_B": 16, "BLOCK_D": 128, "num_warps": 4, "STAGES": 2},
    },
}
# The 32-bit tiles of sm_90 would spill.
CONFIGS["sm_100"] = {
    "forward": CONFIGS["default"]["forward"] | {4: _FORWARD_32 | {"BLOCK_D": 64}},
    "gradient": CONFIGS["sm_90"]["gradient"] | {4: _GRADIENT_32 | {"num_warps": 4}},
}
# Rows of a program in the kernels that go through the inputs row by row, and in the one over the losses: as many losses
# are added up without a further launch.
ROWS, BLOCK_LOSSES = 16, 1024
# Above this 1 / temperature, sums of exponentials need a running maximum; above half of it, so does their product.
BOUND = 85.0


def tile_sizes(features: int, kind: str, like: Tensor) -> tuple[dict[str, Any], int]:
    """Constants of a kernel over copied rows of `features` columns, and their padded length."""
    configs = CONFIGS.get(device_class(like.device), CONFIGS["default"])
    config = dict(configs[kind][like.element_size()])
    pad = max(16, triton.next_power_of_2(features)) if features <= LONGEST else triton.cdiv(features, LONGEST) * LONGEST
    config["BLOCK_D"] = min(config["BLOCK_D"], pad)
    # The interpreter has no bfloat16: it multiplies in float32.
    config["UPCAST"] = INTERPRET
    return config, pad


def workspace(query: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What the forward kernels leave for the backward ones; the reference leaves nothing.

    Copied rows (G, N, padded D); their inverse norms and scales (2, G, N); of each query, (5, G, M): cosine, inverse
    norm and scale of its positive, the log sum, and the pull of the positive.
    """
    if not runs_triton(query):
        return tuple(query.new_empty(0) for _ in range(3))
    groups, rows, features = query.shape
    copied = rows + (0 if key is None else key.shape[1])
    return (
        query.new_empty(groups, copied, tile_sizes(features, "forward", query)[1]),
        query.new_empty(2, groups, copied, dtype=torch.float32),
        query.new_empty(5, groups, rows, dtype=torch.float32),
    )


def new_gradients(
    query: Tensor, key: Tensor | None, positive: Tensor | None, to_query: bool, to_key: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised gradients to query, key and explicit positives, contiguous: empty where not asked for."""
    wanted = (query if to_query else None, key if to_key else None, positive)
    return tuple(
        query.new_empty(0) if like is None else torch.empty_like(like, memory_format=torch.contiguous_format)
        for like in wanted
    )


@functools.lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def _splits(tiles: int, count: int, block: int, device: torch.device) -> int:
    """Programs that share `count` rows, so that few tiles fill the device, none of them without a block of its own."""
    blocks = max(1, triton.cdiv(count, block))
    splits = max(1, min(blocks, 2 * _processors(device) // max(1, tiles)))
    return triton.cdiv(blocks, triton.cdiv(blocks, splits))


def _part(count: int, block: int, splits: int) -> int:
    return triton.cdiv(triton.cdiv(count, block), splits) * block


def _strides(tensor: Tensor | None, rank: int) -> tuple[int, ...]:
    return (0,) * rank if tensor is None else tensor.stride()


def _excluded(exclude: Tensor | None) -> int:
    return 0 if exclude is None else exclude.shape[2]


def _precision(allow_tf32: bool) -> str:
    return "tf32" if allow_tf32 and not INTERPRET else "ieee"


def losses(
    query: Tensor,
    key: Tensor | None,
    index: Tensor | None,
    positive: Tensor | None,
    exclude: Tensor | None,
    weight: Tensor | None,
    temperature: float,
    factor: float,
    total: bool,
    allow_tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses (G, M) times `factor` and `weight` (G, M), or their sums (G,) if `total`; and the workspace.

    `key` None is the query; either `index` (G, M) or `positive` (G, M, D) is given.
    """
    copy, scale, state = workspace(query, key)
    keys = query if key is None else key
    groups, rows, features = query.shape
    count, copied = keys.shape[1], copy.shape[1]
    if not groups * rows:
        return query.new_zeros((groups,) if total else (groups, rows), dtype=torch.float32), copy, scale, state
    programs = triton.cdiv(rows, BLOCK_LOSSES)
    loss = query.new_empty(groups, programs if total else rows, dtype=torch.float32)
    config, pad = tile_sizes(features, "forward", query)
    sharpness = math.log2(math.e) / temperature
    bounded = 1 / temperature + math.log(count + 1) < BOUND
    tiles = groups * triton.cdiv(rows, config["BLOCK_A"])
    splits = _splits(tiles, count, config["BLOCK_B"], query.device)
    partial = query.new_empty(splits, 2, groups, rows, dtype=torch.float32)
    blocks = triton.cdiv(rows, ROWS) + triton.cdiv(copied - rows, ROWS)
    with torch.cuda.device_of(query):
        prepare_kernel[(groups * blocks,)](
            query, *query.stride(), keys, *keys.stride(), positive, *_strides(positive, 3), index, *_strides(index, 2),
            copy, scale, state, groups, rows, count, features, copied, PAD=pad, ROWS=ROWS, BLOCK_D=config["BLOCK_D"],
        )  # fmt: skip
        forward_kernel[(tiles, splits)](
            copy, scale, index, *_strides(index, 2), exclude, *_strides(exclude, 3), partial, sharpness,
            groups, rows, count, copied, _part(count, config["BLOCK_B"], splits),
            E=_excluded(exclude), BOUNDED=bounded, PAD=pad, PRECISION=_precision(allow_tf32), **config,
        )  # fmt: skip
        losses_kernel[(groups * programs,)](
            partial, state, None if weight is None else weight.contiguous(), loss, state[3:], sharpness, factor,
            groups, rows, splits, BOUNDED=bounded, TOTAL=total, BLOCK=BLOCK_LOSSES,
        )  # fmt: skip
    if total:
        loss = loss[:, 0] if programs == 1 else loss.sum(1)
    return loss, copy, scale, state


def gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor | None,
    index: Tensor | None,
    positive: Tensor | None,
    exclude: Tensor | None,
    copy: Tensor,
    scale: Tensor,
    state: Tensor,
    temperature: float,
    factor: float,
    allow_tf32: bool,
    to_query: bool,
    to_key: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`new_gradients`, filled: from the gradient to the weighted losses, (G, M) with any strides, times `factor`."""
    outputs = new_gradients(query, key, positive, to_query, to_key)
    shared, keys = key is None, query if key is None else key
    groups, rows, features = query.shape
    count, copied = keys.shape[1], copy.shape[1]
    if not groups * rows * features:
        return tuple(out.zero_() for out in outputs)
    config, pad = tile_sizes(features, "gradient", query)
    tiles = groups * triton.cdiv(rows, config["BLOCK_A"]) * to_query
    blocks = triton.cdiv(rows, ROWS)
    if to_key and not shared:
        tiles += groups * triton.cdiv(count, config["BLOCK_A"])
        blocks += triton.cdiv(count, ROWS)
    splits = _splits(tiles, max(rows, count), config["BLOCK_B"], query.device)
    partial = query.new_empty(splits, groups, copied, pad, dtype=torch.float32)
    size = None
    if query.dtype == torch.float16:  # cannot hold the small gradients of a mean over many rows
        size = grad[:, 0].contiguous() if grad.stride(1) == 0 else grad.abs().amax(1)
    with torch.cuda.device_of(query):
        gradient_kernel[(tiles, splits, pad // config["BLOCK_D"])](
            grad, *grad.stride(), size, copy, scale, state[3:], index, *_strides(index, 2),
            exclude, *_strides(exclude, 3), partial, math.log2(math.e) / temperature,
            groups, rows, count, copied,
            _part(count, config["BLOCK_B"], splits), _part(rows, config["BLOCK_B"], splits),
            E=_excluded(exclude), QUERY=to_query, KEY=to_key, SHARED=shared,
            ONE_EXP=shared and 2 / temperature < BOUND, PAD=pad, PRECISION=_precision(allow_tf32), **config,
        )  # fmt: skip
        finish_kernel[(groups * blocks,)](
            grad, *grad.stride(), size, copy, scale, state[3:], state, partial, positive, *_strides(positive, 3),
            *(out if out.numel() else None for out in outputs), factor / temperature,
            groups, rows, count, features, copied, splits, PAD=pad, ROWS=ROWS, BLOCK_D=config["BLOCK_D"],
        )  # fmt: skip
    return outputs
