"""Launches of the InfoNCE kernels: tiles, workspace, grids."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ._common import INTERPRET, device_class, runs_triton, triton

if triton is not None:
    from ._nce_backward import finish_kernel, finish_ranges_kernel, gradient_kernel, slopes_kernel
    from ._nce_forward import forward_kernel, losses_kernel, prepare_kernel

# Tiles of each kernel by the size of an element in bytes: rows kept, rows that pass by, columns at a time, a
# power of two up to LONGEST.
LONGEST = 128
_FORWARD_16 = {"BLOCK_A": 128, "BLOCK_B": 64, "BLOCK_D": 128, "num_warps": 4, "STAGES": 2, "programs": 3}
_FORWARD_32 = {"BLOCK_A": 64, "BLOCK_B": 32, "BLOCK_D": 32, "num_warps": 4, "STAGES": 2, "programs": 3}
_GRADIENT_16 = {"BLOCK_A": 64, "BLOCK_B": 32, "BLOCK_D": 128, "num_warps": 4, "STAGES": 2, "programs": 2}
_GRADIENT_32 = {"BLOCK_A": 32, "BLOCK_B": 16, "BLOCK_D": 128, "num_warps": 4, "STAGES": 2, "programs": 3}
# Without `maxnreg`, NVIDIA's assembler would spill a value or two for one more block.
_GRADIENT_32_SM90 = _GRADIENT_32 | {"maxnreg": 168}
# Where they can, two or three `programs` share a multiprocessor: the exponentials of one run beside the products of
# another.
CONFIGS = {
    "default": {"forward": {2: _FORWARD_16, 4: _FORWARD_32}, "gradient": {2: _GRADIENT_16, 4: _GRADIENT_32}},
    "sm_90": {
        "forward": {2: _FORWARD_16, 4: _FORWARD_32},
        "gradient": {2: _GRADIENT_16 | {"BLOCK_B": 64}, 4: _GRADIENT_32_SM90},
    },
    "sm_100": {
        "forward": {2: _FORWARD_16 | {"num_warps": 8, "programs": 1}, 4: _FORWARD_32},
        "gradient": {2: _GRADIENT_16 | {"BLOCK_B": 64, "num_warps": 8, "programs": 1}, 4: _GRADIENT_32_SM90},
    },
    "gfx942": {
        "forward": {2: _FORWARD_16 | {"num_warps": 8, "programs": 1}, 4: _FORWARD_32},
        "gradient": {2: _GRADIENT_16 | {"programs": 1}, 4: _GRADIENT_32},
    },
}
# Rows of a program in the kernels that go through the inputs row by row, and in the one over the losses: as many losses
# are added up without a further launch.
ROWS, BLOCK_LOSSES = 16, 1024
# The same where rows have several uses. Without `maxnreg`, NVIDIA's assembler would spill values for more programs.
_RANGES_SM90 = {"ROWS": 8, "maxnreg": 112}
RANGES = {"default": {"ROWS": 8}, "sm_90": _RANGES_SM90, "sm_100": _RANGES_SM90}
# No less than any BLOCK_B.
BEYOND = 256
# Above this 1 / temperature, sums of exponentials need a running maximum; above half of it, so does their product.
BOUND = 85.0


def tile_sizes(features: int, kind: str, like: Tensor) -> tuple[dict[str, Any], int]:
    """Constants of a kernel over copied rows of `features` columns, and their padded length."""
    configs = CONFIGS.get(device_class(like.device), CONFIGS["default"])
    config = dict(configs[kind][like.element_size()])
    pad = max(16, triton.next_power_of_2(features)) if features <= LONGEST else triton.cdiv(features, LONGEST) * LONGEST
    config["BLOCK_D"] = min(config["BLOCK_D"], pad)
    if pad > LONGEST and kind == "gradient":  # Chunks of both sides take registers beside the sums.
        config["BLOCK_B"] = max(16, config["BLOCK_B"] // 2)
    # The interpreter has no bfloat16: it multiplies in float32.
    config["UPCAST"] = INTERPRET
    return config, pad


def workspace(query: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What the forward kernels leave for the backward ones; the reference leaves nothing.

    Copied rows (G, N, padded D); their inverse norms and scales (2, G, N), flat; of each query, (5, G, M): cosine,
    inverse norm and scale of its positive, the log sum, and the pull of the positive.
    """
    groups, rows = query.shape[:2]
    return range_workspace(query, groups, rows, rows + (0 if key is None else key.shape[1]))


def range_workspace(rows: Tensor, groups: int, queries: int, copied: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `workspace`, of `queries` queries and `copied` rows a group; `rows` (..., D).

    The last tile of a group reads scales BEYOND its rows, of which nothing is used: masks would cost as much time as
    the arithmetic.
    """
    if not runs_triton(rows):
        return tuple(rows.new_empty(0) for _ in range(3))
    return (
        rows.new_empty(groups, copied, tile_sizes(rows.shape[-1], "forward", rows)[1]),
        rows.new_empty(2 * groups * copied + BEYOND, dtype=torch.float32),
        rows.new_empty(5, groups, queries, dtype=torch.float32),
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


def _splits(tiles: int, count: int, block: int, programs: int, device: torch.device) -> int:
    """Programs that share `count` rows, none of them without a block of its own.

    So many that few tiles fill the device once, with `programs` to a multiprocessor, and that the rounds of many are
    nearly full.
    """
    blocks = max(1, triton.cdiv(count, block))
    places = programs * _processors(device)
    full = (splits for splits in (1, 2, 3) if tiles * splits >= 0.9 * places * triton.cdiv(tiles * splits, places))
    splits = min(blocks, next(full, 1) if tiles >= places else places // max(1, tiles))
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
    copied = copy.shape[1]
    if not groups * rows:
        return query.new_zeros((groups,) if total else (groups, rows), dtype=torch.float32), copy, scale, state
    config, pad = tile_sizes(features, "forward", query)
    blocks = triton.cdiv(rows, ROWS) + triton.cdiv(copied - rows, ROWS)
    with torch.cuda.device_of(query):
        prepare_kernel[(groups * blocks,)](
            query, *query.stride(), keys, *keys.stride(), positive, *_strides(positive, 3), index, *_strides(index, 2),
            None, copy, scale, state, groups, rows, keys.shape[1], features, copied,
            PAD=pad, ROWS=ROWS, BLOCK_D=config["BLOCK_D"], BEYOND=BEYOND,
        )  # fmt: skip
    options = temperature, factor, total, allow_tf32
    loss = _sum_losses(config, copy, scale, state, index, exclude, weight, keys.shape[1], *options)
    return loss, copy, scale, state


def range_losses(
    rows: Tensor,
    first: Tensor,
    positive: Tensor,
    column: Tensor,
    begin: Tensor,
    exclude: Tensor | None,
    weight: Tensor | None,
    keys: int,
    longest: int,
    temperature: float,
    factor: float,
    allow_tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses (L,) between ranges of `rows` (R, D), times `factor` and `weight` (G, M); and the workspace.

    `first` (2, G): where queries and keys begin; `positive`, `column` (G, M): the row of each query's positive, and
    which of its keys that is, or -1; `begin` (L + 1,): the queries over which each loss is the sum, at most `longest`.
    """
    groups, queries = positive.shape
    copy, scale, state = range_workspace(rows, groups, queries, queries + keys)
    if not groups * queries:
        return rows.new_zeros(len(begin) - 1, dtype=torch.float32), copy, scale, state
    features = rows.shape[1]
    config, pad = tile_sizes(features, "forward", rows)
    blocks = triton.cdiv(queries, ROWS) + triton.cdiv(keys, ROWS)
    source = rows, 0, *rows.stride()
    with torch.cuda.device_of(rows):
        prepare_kernel[(groups * blocks,)](
            *source, *source, *source, positive, *positive.stride(), first, copy, scale, state,
            groups, queries, keys, features, copy.shape[1],
            PAD=pad, ROWS=ROWS, BLOCK_D=config["BLOCK_D"], BEYOND=BEYOND,
        )  # fmt: skip
    options = temperature, factor, True, allow_tf32, begin, longest
    loss = _sum_losses(config, copy, scale, state, column, exclude, weight, keys, *options)
    return loss, copy, scale, state


def _sum_losses(
    config: dict[str, Any],
    copy: Tensor,
    scale: Tensor,
    state: Tensor,
    index: Tensor | None,
    exclude: Tensor | None,
    weight: Tensor | None,
    count: int,
    temperature: float,
    factor: float,
    total: bool,
    allow_tf32: bool,
    begin: Tensor | None = None,
    longest: int = 0,
) -> Tensor:
    """Losses of the prepared rows, the last `count` of which are the keys: (G, M), or (G,) if `total`.

    With `begin` (L + 1,) sums (L,): over all queries from begin[i] up to begin[i + 1], at most `longest`.
    """
    groups, rows = state.shape[1:]
    sums, longest = (groups, rows) if begin is None else (len(begin) - 1, longest)
    programs = triton.cdiv(longest, BLOCK_LOSSES)
    loss = state.new_empty(sums, programs if total else rows)
    sharpness = math.log2(math.e) / temperature
    bounded = 1 / temperature + math.log(count + 1) < BOUND
    tiles = groups * triton.cdiv(rows, config["BLOCK_A"])
    splits = _splits(tiles, count, config["BLOCK_B"], config.pop("programs"), copy.device)
    partial = state.new_empty(splits, 2, groups, rows)
    with torch.cuda.device_of(copy):
        forward_kernel[(tiles, splits)](
            copy, scale, index, *_strides(index, 2), exclude, *_strides(exclude, 3), partial, sharpness,
            groups, rows, count, copy.shape[1], _part(count, config["BLOCK_B"], splits),
            E=_excluded(exclude), BOUNDED=bounded, PAD=copy.shape[2], PRECISION=_precision(allow_tf32), **config,
        )  # fmt: skip
        losses_kernel[(sums * programs,)](
            partial, state, None if weight is None else weight.contiguous(), begin, loss, state[3:], sharpness, factor,
            groups, rows, longest, splits, BOUNDED=bounded, TOTAL=total, BLOCK=BLOCK_LOSSES,
        )  # fmt: skip
    if total:
        loss = loss[:, 0] if programs == 1 else loss.sum(1)
    return loss


def gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor | None,
    index: Tensor | None,
    positive: Tensor | None,
    exclude: Tensor | None,
    weight: Tensor | None,
    copy: Tensor,
    scale: Tensor,
    state: Tensor,
    temperature: float,
    factor: float,
    allow_tf32: bool,
    to_query: bool,
    to_key: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`new_gradients`, filled: from that to the losses, (G, M) with any strides, times `factor` and `weight` (G, M)."""
    outputs = new_gradients(query, key, positive, to_query, to_key)
    shared, keys = key is None, query if key is None else key
    groups, rows, features = query.shape
    count, copied = keys.shape[1], copy.shape[1]
    if not groups * rows * features:
        return tuple(out.zero_() for out in outputs)
    size = _unit_of(grad, None, weight, query.dtype)
    weight = None if weight is None else weight.contiguous()
    config, pad, partial, slopes = _gradient_parts(
        grad, None, weight, size, copy, scale, state, index, exclude, count, features, temperature, allow_tf32,
        to_query, to_key and not shared, shared,
    )  # fmt: skip
    blocks = triton.cdiv(rows, ROWS) + (triton.cdiv(count, ROWS) if to_key and not shared else 0)
    with torch.cuda.device_of(query):
        finish_kernel[(groups * blocks,)](
            size, copy, scale, slopes, state, partial, positive, *_strides(positive, 3),
            *(out if out.numel() else None for out in outputs), factor / temperature,
            groups, rows, count, features, copied, len(partial), PAD=pad, ROWS=ROWS, BLOCK_D=config["BLOCK_D"],
        )  # fmt: skip
    return outputs


def range_gradients(
    grad: Tensor,
    rows: Tensor,
    first: Tensor,
    positive: Tensor,
    column: Tensor,
    loss: Tensor,
    exclude: Tensor | None,
    weight: Tensor | None,
    copy: Tensor,
    scale: Tensor,
    state: Tensor,
    keys: int,
    learned: int,
    temperature: float,
    factor: float,
    allow_tf32: bool,
) -> Tensor:
    """Gradient (R, D) to `rows` from that to the losses (L,), of which group g adds to `loss[g]`, times `factor` and
    `weight` (G, M)."""
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    groups, queries = positive.shape
    if not groups * queries * rows.numel():
        return out.zero_()
    grad = grad[:, None].expand(-1, queries)
    size = _unit_of(grad, loss, weight, rows.dtype)
    weight = None if weight is None else weight.contiguous()
    config, pad, partial, slopes = _gradient_parts(
        grad, loss, weight, size, copy, scale, state, column, exclude, keys, rows.shape[1], temperature, allow_tf32,
        True, True, False,
    )  # fmt: skip
    tiles = RANGES.get(device_class(rows.device), RANGES["default"])
    with torch.cuda.device_of(rows):
        finish_ranges_kernel[(triton.cdiv(len(rows), tiles["ROWS"]),)](
            size, slopes, state, partial, rows, *rows.stride(), first, positive, column, out, factor / temperature,
            groups, queries, keys, rows.shape[1], copy.shape[1], len(rows), learned, len(partial),
            PAD=pad, BLOCK_D=config["BLOCK_D"], **tiles,
        )  # fmt: skip
    return out


def _unit_of(grad: Tensor, loss: Tensor | None, weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(G,): what the gradients of a group are measured in, where `dtype` cannot hold those of a mean over many rows.

    Gradients that are not finite do not count: they would spoil the others of their group.
    """
    if dtype != torch.float16:
        return None
    if loss is not None:
        grad = grad.index_select(0, loss)
    if weight is None and grad.stride(1) == 0:
        return grad[:, 0].contiguous()
    grad = grad if weight is None else grad * weight
    return grad.nan_to_num(0, 0, 0).abs().amax(1)


def _gradient_parts(
    grad: Tensor,
    loss: Tensor | None,
    weight: Tensor | None,
    size: Tensor | None,
    copy: Tensor,
    scale: Tensor,
    state: Tensor,
    index: Tensor | None,
    exclude: Tensor | None,
    count: int,
    features: int,
    temperature: float,
    allow_tf32: bool,
    to_query: bool,
    to_key: bool,
    shared: bool,
) -> tuple[dict[str, Any], int, Tensor, Tensor]:
    """Tiles, padded row length, parts (splits, G, N, padded D) of the gradients to unit rows, and slopes (4, G, M).

    `grad` (G, M), or (L, M) with `loss` (G,), its row of each group. With `shared` the queries are the keys.
    """
    groups, rows = state.shape[1:]
    copied = copy.shape[1]
    config, pad = tile_sizes(features, "gradient", copy)
    tiles = groups * triton.cdiv(rows, config["BLOCK_A"]) * to_query
    if to_key:
        tiles += groups * triton.cdiv(count, config["BLOCK_A"])
    splits = _splits(tiles, max(rows, count), config["BLOCK_B"], config.pop("programs"), copy.device)
    partial = state.new_empty(splits, groups, copied, pad)
    blocks = triton.cdiv(rows, config["BLOCK_B"])
    slopes = state.new_empty(4 * groups * rows + BEYOND)
    spans = state.new_empty(groups, blocks, 4, dtype=torch.int32)
    marks = index, *_strides(index, 2), exclude, *_strides(exclude, 3)
    one_exp = shared and 2 / temperature < BOUND
    with torch.cuda.device_of(copy):
        slopes_kernel[(groups * blocks,)](
            grad, *grad.stride(), loss, weight, size, scale, state[3:], *marks, slopes, spans, groups, rows, copied,
            E=_excluded(exclude), ONE_EXP=one_exp, BLOCK=config["BLOCK_B"],
        )  # fmt: skip
        gradient_kernel[(tiles, splits, pad // config["BLOCK_D"])](
            copy, scale, slopes, spans, *marks, partial, math.log2(math.e) / temperature,
            groups, rows, count, copied,
            _part(count, config["BLOCK_B"], splits), _part(rows, config["BLOCK_B"], splits),
            E=_excluded(exclude), QUERY=to_query, KEY=to_key, SHARED=shared, ONE_EXP=one_exp,
            PAD=pad, PRECISION=_precision(allow_tf32), **config,
        )  # fmt: skip
    return config, pad, partial, slopes
