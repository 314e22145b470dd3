"""Launches of the InfoNCE kernels: tiles, workspace, grids."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .._common import INTERPRET, Config, cdiv, device_row, next_power_of_2, processors, runs_triton, strided, triton

if triton is not None:
    from triton.tools.tensor_descriptor import TensorDescriptor

    from .backward import finish_kernel, gradient_kernel, product_kernel, slopes_kernel
    from .forward import MANY_EXCLUDED, forward_kernel, losses_kernel
    from .prepare import prepare_kernel


@dataclass(frozen=True)
class ScoreTile(Config):
    """Rows kept, rows that pass by in STAGES at a time, columns at a time: a power of two up to LONGEST.

    Where they can, two or three `programs` share a multiprocessor: the exponentials of one run beside the products of
    another. `descriptor`: the rows that pass by come through a tensor descriptor.
    """

    BLOCK_A: int
    BLOCK_B: int
    BLOCK_D: int
    STAGES: int = 2
    programs: int = 1
    descriptor: bool = False


@dataclass(frozen=True)
class RowBlock(Config):
    """Rows of a program that goes through the inputs row by row."""

    ROWS: int


LONGEST = 128
_FORWARD_16, _FORWARD_32 = ScoreTile(4, 128, 64, 128, programs=3), ScoreTile(4, 64, 32, 32, programs=3)
_GRADIENT_16, _GRADIENT_32 = ScoreTile(4, 64, 32, 128, programs=2), ScoreTile(4, 32, 16, 128, programs=3)
# Without `maxnreg`, NVIDIA's assembler would spill a value or two for one more block.
_GRADIENT_32_SM90 = replace(_GRADIENT_32, maxnreg=168)
_FINISH, _FINISH_SM90 = RowBlock(4, 8), RowBlock(4, 8, maxnreg=112)
# Of each kernel, by the size of an element in bytes; "small": where the tiles of the others are too few for the device.
CONFIGS = {
    "default": {
        "forward": {2: _FORWARD_16, 4: _FORWARD_32},
        "gradient": {2: _GRADIENT_16, 4: _GRADIENT_32},
        "finish": _FINISH,
    },
    "sm_90": {
        "forward": {2: replace(_FORWARD_16, BLOCK_B=128, programs=2), 4: _FORWARD_32},
        "small forward": {2: replace(_FORWARD_16, BLOCK_A=64, programs=4)},
        "gradient": {2: replace(_GRADIENT_16, BLOCK_B=128, programs=1), 4: _GRADIENT_32_SM90},
        "small gradient": {2: replace(_GRADIENT_16, programs=3)},
        "finish": _FINISH_SM90,
    },
    "sm_100": {
        "forward": {2: replace(_FORWARD_16, programs=2, descriptor=True), 4: _FORWARD_32},
        "gradient": {2: replace(_GRADIENT_16, BLOCK_B=64, descriptor=True), 4: _GRADIENT_32_SM90},
        "finish": _FINISH_SM90,
    },
    "gfx942": {
        "forward": {2: ScoreTile(8, 128, 64, 128), 4: _FORWARD_32},
        "gradient": {2: replace(_GRADIENT_16, programs=1), 4: _GRADIENT_32},
        "finish": _FINISH,
    },
}
# Rows of a program that prepares them, and losses of one that adds them up: as many are one sum without a further
# launch.
ROWS, BLOCK_LOSSES = 16, 1024
# No less than any BLOCK_B.
BEYOND = 256
# Coefficients of long rows that are written at a time: 128 MiB in 16 bits.
COEFFICIENTS = 2**26
# Above this 1 / temperature, sums of exponentials need a running maximum; above half of it, so does their product.
BOUND = 85.0


class Inputs(NamedTuple):
    """What is compared with what: the tensors of the op, in its order.

    `query` (G, M, D); `key` (G, P, D), None where the queries are the keys; either `index` (G, M), rows of `key`, or
    `positive` (G, M, D); `exclude` (G, M, E); `weight` (G, M).
    With ranges, `first`, `key_column` (its `column`), `loss`, `begin` and `bound` are the tensors of `Ranges`, and
    `sizes` its `keys`, `learned` and `longest`: `query` has all rows (1, R, D), and `index` says which is the positive.
    """

    query: Tensor
    key: Tensor | None
    index: Tensor | None
    positive: Tensor | None
    exclude: Tensor | None
    weight: Tensor | None
    first: Tensor | None
    key_column: Tensor | None
    loss: Tensor | None
    begin: Tensor | None
    bound: Tensor | None
    sizes: list[int]

    ranges = property(lambda self: self.first is not None)
    column = property(lambda self: self.key_column if self.ranges else self.index)
    learned = property(lambda self: self.sizes[1] if self.ranges else 0)
    shared = property(lambda self: self.key is None and not self.ranges)
    groups = property(lambda self: (self.positive if self.index is None else self.index).shape[0])
    queries = property(lambda self: (self.positive if self.index is None else self.index).shape[1])
    losses = property(lambda self: self.begin.shape[0] - 1)

    @property
    def keys(self) -> int:
        """Keys of a group."""
        return self.sizes[0] if self.ranges else (self.query if self.key is None else self.key).shape[1]

    @property
    def copied(self) -> int:
        """Rows that are copied, all in all."""
        rows = self.query.shape[0] * self.query.shape[1]
        return rows if self.key is None else rows + self.key.shape[0] * self.key.shape[1]


class Options(NamedTuple):
    """Losses are multiplied by `scale` and divided by `count`; `total`: each group's are added up."""

    temperature: float
    scale: float
    count: int
    total: bool
    allow_tf32: bool

    factor = property(lambda self: self.scale / max(1, self.count))
    sharpness = property(lambda self: math.log2(math.e) / self.temperature)
    precision = property(lambda self: "tf32" if self.allow_tf32 and not INTERPRET else "ieee")


def workspace(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """What the forward kernels leave for the backward ones; the reference leaves nothing.

    Copied rows (C, padded D); their inverse norms and scales (2, C), flat; of each query, (5, G, M): cosine, inverse
    norm and scale of its positive, the log sum, and the pull of the positive.
    The last tile of a group reads scales BEYOND its rows, of which nothing is used: masks would cost as much time as
    the arithmetic.
    """
    query = inputs.query
    if not runs_triton(query):
        return tuple(query.new_empty(0) for _ in range(3))
    return (
        query.new_empty(inputs.copied, padded(query.shape[2])),
        query.new_empty(2 * inputs.copied + BEYOND, dtype=torch.float32),
        query.new_empty(5, inputs.groups, inputs.queries, dtype=torch.float32),
    )


def padded(features: int) -> int:
    """Columns of a copied row."""
    return max(16, next_power_of_2(features)) if features <= LONGEST else cdiv(features, LONGEST) * LONGEST


def kernel_config(kind: str, tensor: Tensor) -> Config:
    """The entry of the table for a kernel."""
    entry = device_row(CONFIGS, tensor.device)[kind]
    return entry[tensor.element_size()] if isinstance(entry, dict) else entry


def score_tile(kind: str, tensor: Tensor, groups: int, queries: int, keys: int) -> ScoreTile:
    """The entry of the table for so many scores."""
    tile, table = kernel_config(kind, tensor), device_row(CONFIGS, tensor.device)
    tiles = groups * cdiv(queries, tile.BLOCK_A) * cdiv(keys, tile.BLOCK_B)
    small = table.get(f"small {kind}", {}).get(tensor.element_size())
    return small if small is not None and tiles < processors(tensor.device) else tile


@lru_cache
def tile_options(tile: ScoreTile, pad: int) -> dict[str, int | bool]:
    """Constants of a kernel over copied rows of `pad` columns."""
    tile = replace(tile, BLOCK_D=min(tile.BLOCK_D, pad))
    # The interpreter has no bfloat16: it multiplies in float32.
    return {**tile.options("BLOCK_A", "BLOCK_B", "BLOCK_D", "STAGES"), "PAD": pad, "UPCAST": INTERPRET}


def _descriptor(tile: ScoreTile, copy: Tensor) -> TensorDescriptor | None:
    """Of tiles of copied rows that pass by, if they are whole rows."""
    whole = tile.descriptor and copy.shape[1] <= LONGEST
    return TensorDescriptor.from_tensor(copy, [tile.BLOCK_B, copy.shape[1]]) if whole else None


@lru_cache
def split_count(tiles: int, count: int, tile: ScoreTile, multiprocessors: int) -> int:
    """Programs that share the `count` rows that pass by, none of them without a block of its own.

    So many that few tiles fill the device once, and that the rounds of many are nearly full.
    """
    blocks, places = max(1, cdiv(count, tile.BLOCK_B)), tile.programs * multiprocessors
    full = (splits for splits in (1, 2, 3) if tiles * splits >= 0.9 * places * cdiv(tiles * splits, places))
    splits = min(blocks, next(full, 1) if tiles >= places else places // max(1, tiles))
    return cdiv(blocks, cdiv(blocks, splits))


def _part(count: int, block: int, splits: int) -> int:
    return cdiv(cdiv(count, block), splits) * block


def _marks(inputs: Inputs) -> tuple[tuple, int]:
    """Arguments that say where the positives and the excluded keys are, and the constant E."""
    excluded = 0 if inputs.exclude is None else inputs.exclude.shape[2]
    marks = inputs.first, *strided(inputs.column, rank=2), *strided(inputs.exclude, rank=3), excluded
    return marks, min(excluded, MANY_EXCLUDED)


def _rows_with_positives(inputs: Inputs) -> Tensor:
    """(G, rows, D), some of whose rows are the positives."""
    if inputs.positive is not None:
        return inputs.positive
    return (inputs.query if inputs.key is None else inputs.key).expand(inputs.groups, -1, -1)


def launch_losses(inputs: Inputs, options: Options, loss: Tensor, copy: Tensor, scale: Tensor, state: Tensor) -> None:
    """Fill losses (G, M) times the factor and `weight`, their sums (G,), or (L,) with ranges; and the workspace."""
    query, groups, queries, keys = inputs.query, inputs.groups, inputs.queries, inputs.keys
    sums, longest = (inputs.losses, inputs.sizes[2]) if inputs.ranges else (groups, queries)
    if not groups * queries:
        loss.zero_()
        return
    tile, pad = score_tile("forward", query, groups, queries, keys), copy.shape[1]
    constants = tile_options(tile, pad)
    tiles = groups * cdiv(queries, tile.BLOCK_A)
    splits = split_count(tiles, keys, tile, processors(query.device))
    programs = cdiv(longest, BLOCK_LOSSES)
    partial = state.new_empty(splits, 2, groups, queries)
    parts = state.new_empty(sums, programs) if options.total and programs > 1 else loss
    weight = None if inputs.weight is None else inputs.weight.contiguous()
    bounded = 1 / options.temperature + math.log(keys + 1) < BOUND
    marks, excluded = _marks(inputs)
    _prepare(inputs, copy, scale, state, constants["BLOCK_D"])
    forward_kernel[(tiles, splits)](
        copy, _descriptor(tile, copy), scale, *marks, partial, options.sharpness, groups, queries, keys,
        _part(keys, tile.BLOCK_B, splits), E=excluded, SHARED=inputs.shared, BOUNDED=bounded,
        PRECISION=options.precision, **constants,
    )  # fmt: skip
    losses_kernel[(sums * programs,)](
        partial, state, weight, inputs.begin, inputs.bound, parts, state[3:], options.sharpness, options.factor,
        groups, queries, longest, splits, BOUNDED=bounded, TOTAL=options.total, BLOCK=BLOCK_LOSSES,
    )  # fmt: skip
    if parts is not loss:
        torch.sum(parts, 1, out=loss)


def _prepare(inputs: Inputs, copy: Tensor, scale: Tensor, state: Tensor, block_d: int) -> None:
    """Fill `copy` and `scale`, and of `state` what it has of each positive."""
    query, key = inputs.query, inputs.key
    sources, rows, features = query.shape
    key_rows = 0 if key is None else key.shape[1]
    others = _rows_with_positives(inputs)
    programs = sources * (cdiv(rows, ROWS) + cdiv(key_rows, ROWS)) + inputs.groups * cdiv(inputs.queries, ROWS)
    prepare_kernel[(programs,)](
        *strided(query, key, others, rank=3), *strided(inputs.index, rank=2), inputs.first, copy, scale, state,
        sources, rows, key_rows, inputs.groups, inputs.queries, others.shape[1], features,
        PAD=copy.shape[1], ROWS=ROWS, BLOCK_D=block_d, BEYOND=BEYOND,
    )  # fmt: skip


def launch_gradients(
    grad: Tensor, inputs: Inputs, options: Options, saved: Sequence[Tensor], to_query: bool, to_key: bool,
    outs: Sequence[Tensor],
) -> None:  # fmt: skip
    """Fill the gradients to query, key and explicit positives that have elements, from that to the losses."""
    groups, queries, keys, features = inputs.groups, inputs.queries, inputs.keys, inputs.query.shape[2]
    if not groups * queries * features:
        for out in outs:
            out.zero_()
        return
    copy, scale, state = saved
    grad = grad[:, None].expand(-1, queries) if options.total else grad
    size = _unit_of(grad, inputs)
    partial, slopes = _gradient_parts(grad, size, inputs, saved, options, to_query, to_key)
    rows = kernel_config("finish", copy)
    if inputs.ranges:
        programs = cdiv(inputs.copied, rows.ROWS)
    else:
        programs = groups * (cdiv(queries, rows.ROWS) + (cdiv(keys, rows.ROWS) if outs[1].numel() else 0))
    apart = _rows_with_positives(inputs) if inputs.ranges or inputs.index is None else None  # what is no key
    finish_kernel[(programs,)](
        size, copy, scale, slopes, state, partial, *strided(apart, rank=3),
        inputs.index if inputs.ranges else None, inputs.column if inputs.ranges else None, inputs.first,
        *(out if out.numel() else None for out in outs), options.factor / options.temperature,
        groups, queries, keys, features, inputs.copied, inputs.learned, len(partial),
        SHARED=inputs.shared, PAD=copy.shape[1], BLOCK_D=min(LONGEST, copy.shape[1]), **rows.options("ROWS"),
    )  # fmt: skip


def _unit_of(grad: Tensor, inputs: Inputs) -> Tensor | None:
    """(G,): what the gradients of a group are measured in, where float16 cannot hold those of a mean over many rows.

    Gradients that are not finite do not count: they would spoil the others of their group.
    """
    if inputs.query.dtype != torch.float16:
        return None
    if inputs.loss is not None:
        grad = grad.index_select(0, inputs.loss)
    if inputs.weight is None and grad.stride(1) == 0:
        return grad[:, 0].contiguous()
    grad = grad if inputs.weight is None else grad * inputs.weight
    return grad.nan_to_num(0, 0, 0).abs().amax(1)


def _gradient_parts(
    grad: Tensor, size: Tensor | None, inputs: Inputs, saved: Sequence[Tensor], options: Options,
    to_query: bool, to_key: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Parts (splits, G, N, padded D) of the gradients to unit rows, queries before keys, and slopes (4, G, M).

    `grad` (G, M), or (L, M) with ranges: a row of it for each loss.
    """
    copy, scale, state = saved
    groups, queries, keys, shared = inputs.groups, inputs.queries, inputs.keys, inputs.shared
    to_query, to_key = to_query or inputs.ranges, (to_key or inputs.ranges) and not shared
    tile, pad = score_tile("gradient", copy, groups, queries, keys), copy.shape[1]
    if pad > LONGEST:  # Chunks of both sides take registers beside the scores.
        tile = replace(tile, BLOCK_B=max(16, tile.BLOCK_B // 2))
    constants = {**tile_options(tile, pad), "PRECISION": options.precision, "SHARED": shared}
    tiles = cdiv(queries, tile.BLOCK_A) * to_query, cdiv(keys, tile.BLOCK_A) * to_key
    blocks = cdiv(queries, tile.BLOCK_B)
    slopes = state.new_empty(4 * groups * queries + BEYOND)
    spans = state.new_empty(groups, blocks, 4, dtype=torch.int32)
    weight = None if inputs.weight is None else inputs.weight.contiguous()
    marks, excluded = _marks(inputs)
    one_exp = shared and 2 / options.temperature < BOUND
    sizes = groups, queries, keys

    def gradient(out: Tensor, first: int, count: int, splits: int, to_query: bool, to_key: bool) -> None:
        gradient_kernel[(groups * count, splits)](
            copy, _descriptor(tile, copy), scale, slopes, spans, *marks, out, options.sharpness, *sizes,
            _part(keys, tile.BLOCK_B, splits), _part(queries, tile.BLOCK_B, splits), first, count,
            E=excluded, ONE_EXP=one_exp, QUERY=to_query, KEY=to_key, **constants,
        )  # fmt: skip

    slopes_kernel[(groups * blocks,)](
        grad, *grad.stride(), inputs.loss, weight, size, scale, state[3:], *marks, slopes, spans,
        *sizes, E=excluded, SHARED=shared, ONE_EXP=one_exp, BLOCK=tile.BLOCK_B,
    )  # fmt: skip
    rows = groups, queries + (0 if shared else keys), pad
    if pad <= LONGEST:
        splits = split_count(groups * sum(tiles), max(queries, keys), tile, processors(copy.device))
        partial = state.new_empty(splits, *rows)
        gradient(partial, 0, sum(tiles), splits, to_query, to_key)
    else:
        partial = state.new_empty(1, *rows)
        _multiply_coefficients(gradient, copy, inputs.first, partial, sizes, tiles, tile, constants)
    return partial, slopes


def _multiply_coefficients(
    gradient: Callable, copy: Tensor, first_rows: Tensor | None, partial: Tensor, sizes: tuple[int, int, int],
    tiles: tuple[int, int], tile: ScoreTile, constants: dict[str, int | bool],
) -> None:  # fmt: skip
    """Fill `partial` for long rows: some tiles at a time, `gradient` writes their coefficients."""
    groups, queries, keys = sizes
    for of_keys, count, others in ((False, tiles[0], keys), (True, tiles[1], queries)):
        most = max(1, COEFFICIENTS // (groups * tile.BLOCK_A * others))
        for first in range(0, count, most):
            some = min(most, count - first)
            coefficients = copy.new_empty(groups * some, tile.BLOCK_A, others)
            splits = split_count(groups * some, others, tile, processors(copy.device))
            gradient(coefficients, first, some, splits, not of_keys, of_keys)
            product_kernel[(groups * some, copy.shape[1] // constants["BLOCK_D"])](
                coefficients, copy, first_rows, partial, *sizes, first, some, KEY=of_keys, **constants
            )
