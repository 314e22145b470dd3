"""Cosine InfoNCE among the rows of one tensor: the losses of a training step, of several kinds, in one launch.

A row can be a query of one loss and a key of another; its gradient is the sum over all of them. The formula is that
of `info_nce`. Shape suffixes: r rows, g groups of queries, m queries of a group, l losses, e excluded keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._common import (
    check,
    check_float,
    check_number,
    check_rows,
    check_tensors,
    define_op,
    first_derivative,
    runs_triton,
)
from ._nce_launch import range_gradients, range_losses, range_workspace
from .info_nce import info_nce_gradient_reference, info_nce_reference

_library = torch.library.Library("dclr", "FRAGMENT")


class Ranges(NamedTuple):
    """Which rows are what; made by `of`.

    Attributes:
        first: (2, G) int64, the rows at which the queries and the keys of each group begin.
        positive: (G, M) int64, the row of each query's positive.
        column: (G, M) int64, which of the group's keys that is; -1 for a constant row elsewhere.
        loss: (G,) int64, the loss that each group adds to.
        begin: (L + 1,) int64, the queries at which each loss begins, and the number of all.
        rows: number of rows that there must be.
        keys: keys of a group.
        learned: rows that get a gradient, the first ones.
        longest: queries of the longest loss.
    """

    first: Tensor
    positive: Tensor
    column: Tensor
    loss: Tensor
    begin: Tensor
    rows: int
    keys: int
    learned: int
    longest: int

    @classmethod
    def of(
        cls,
        query: Sequence[int],
        key: Sequence[int],
        positive: Tensor,
        *,
        rows: int,
        keys: int,
        learned: int | None = None,
        loss: Sequence[int] | None = None,
    ) -> Ranges:
        """Put down once, for every step.

        Args:
            query, key: the first of the M queries and of the `keys` keys of each of G groups.
            positive: (G, M) int64 rows on the CPU: one of the group's keys, or a constant row.
            rows: number of rows, all in all.
            learned: the first of them get a gradient, the others are constants; default all.
            loss: the loss that each group adds to, 0, 1, ... in this order; default one for each.

        Raises:
            TypeError, ValueError: rows that are not there, or a positive that could get no gradient.
        """
        learned = rows if learned is None else learned
        check_tensors(positive=positive)
        check(positive.dtype == torch.int64, "positive", positive.dtype, "int64", TypeError)
        check(positive.device.type == "cpu", "positive", positive.device, "a tensor on the CPU")
        groups = len(query)
        check(len(key) == groups, "key", f"{len(key)} first rows", f"as many as of query ({groups})")
        check(positive.dim() == 2 and len(positive) == groups, "positive", tuple(positive.shape), f"({groups}, M)")
        check(0 <= learned <= rows, "learned", learned, f"at most the {rows} rows")
        first = torch.tensor([list(query), list(key)], dtype=torch.int64)
        for name, begin, count in (("query", first[0], positive.shape[1]), ("key", first[1], keys)):
            good = not groups or (begin.min() >= 0 and begin.max() + count <= rows)
            check(good, name, begin.tolist(), f"first of {count} among {rows} rows")
        column = positive - first[1][:, None]
        column = torch.where((column >= 0) & (column < keys), column, -1)
        good = (positive >= 0) & (positive < rows) & ((column >= 0) | (positive >= learned))
        check(
            bool(good.all()), "positive", positive[~good].tolist(), f"keys of the group, or rows in [{learned}, {rows})"
        )
        loss = list(range(groups) if loss is None else loss)
        ordered = loss == sorted(loss) and set(loss) == set(range(len(set(loss)))) and len(loss) == groups
        check(ordered, "loss", loss, f"a number for each of {groups} groups: 0, then the same or one more")
        sizes = torch.bincount(torch.tensor(loss, dtype=torch.int64)) * positive.shape[1]
        begin = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        longest = int(sizes.max()) if groups else 0
        return cls(first, positive, column, torch.tensor(loss, dtype=torch.int64), begin, rows, keys, learned, longest)

    def to(self, device: torch.device | str) -> Ranges:
        """The same on another device."""
        return Ranges(*(value.to(device) if isinstance(value, Tensor) else value for value in self))


def _members(rows: Tensor, where: Ranges, exclude: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (G, M) of the queries and (G, P) of the keys; of the keys those excluded and the positive, (G, M, E + 1)."""
    query_gm = where.first[0][:, None] + torch.arange(where.positive.shape[1], device=rows.device)
    key_gp = where.first[1][:, None] + torch.arange(where.keys, device=rows.device)
    own = where.column[..., None]
    return query_gm, key_gp, own if exclude is None else torch.cat([exclude, own], -1)


def info_nce_ranges_reference(
    rows: Tensor, where: Ranges, exclude: Tensor | None, weight: Tensor | None, temperature: float
) -> Tensor:
    """Plain PyTorch form: the losses (L,)."""
    query_gm, key_gp, exclude = _members(rows, where, exclude)
    positive = rows[where.positive].unsqueeze(2)
    loss_gm = info_nce_reference(rows[query_gm], rows[key_gp], positive, exclude, None, temperature)
    loss_gm = loss_gm if weight is None else loss_gm * weight.to(loss_gm.dtype)
    return loss_gm.new_zeros(len(where.begin) - 1).index_add(0, where.loss, loss_gm.sum(1))


# Op


def _forward(
    rows: Tensor,
    first: Tensor,
    positive: Tensor,
    column: Tensor,
    loss: Tensor,
    begin: Tensor,
    exclude: Tensor | None,
    weight: Tensor | None,
    keys: int,
    learned: int,
    longest: int,
    temperature: float,
    scale: float,
    allow_tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses (L,) and the workspace."""
    if runs_triton(rows):
        tables = first, positive, column, begin
        return range_losses(rows, *tables, exclude, weight, keys, longest, temperature, scale, allow_tf32)
    where = Ranges(first, positive, column, loss, begin, len(rows), keys, learned, longest)
    with torch.autocast(rows.device.type, enabled=False):
        loss = info_nce_ranges_reference(rows, where, exclude, weight, temperature) * scale
    return loss, *range_workspace(rows, *positive.shape, positive.shape[1] + keys)


def _backward(
    grad: Tensor,
    rows: Tensor,
    first: Tensor,
    positive: Tensor,
    column: Tensor,
    loss: Tensor,
    begin: Tensor,
    exclude: Tensor | None,
    weight: Tensor | None,
    copy: Tensor,
    inverse: Tensor,
    state: Tensor,
    keys: int,
    learned: int,
    longest: int,
    temperature: float,
    scale: float,
    allow_tf32: bool,
) -> Tensor:
    """Gradient (R, D) to the rows."""
    if runs_triton(rows):
        inputs = grad, rows, first, positive, column, loss, exclude, weight, copy, inverse, state
        return range_gradients(*inputs, keys, learned, temperature, scale, allow_tf32)
    where = Ranges(first, positive, column, loss, begin, len(rows), keys, learned, longest)
    grad = grad.index_select(0, loss)[:, None].expand(positive.shape)
    if weight is not None:
        grad = grad * weight.to(grad.dtype)
    with torch.autocast(rows.device.type, enabled=False):
        query_gm, key_gp, exclude = _members(rows, where, exclude)
        places = query_gm, key_gp, positive
        wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
        query, key, found = (rows[place].to(wide) for place in places)
        values = info_nce_gradient_reference(grad * scale, query, key, None, found, exclude, temperature)
        out = torch.zeros_like(rows, dtype=wide, memory_format=torch.contiguous_format)
        for place, value in zip(places, values):
            out.index_add_(0, place.flatten(), value.flatten(0, 1))
        out[learned:] = 0
    return out.to(rows.dtype)


_INPUTS = (
    "Tensor rows, Tensor first, Tensor positive, Tensor column, Tensor loss, Tensor begin, "
    "Tensor? exclude, Tensor? weight"
)
_OPTIONS = "SymInt keys, SymInt learned, SymInt longest, float temperature, float scale, bool allow_tf32"
define_op(_library, f"info_nce_ranges({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)", _forward)
define_op(
    _library,
    f"info_nce_ranges_backward(Tensor grad, {_INPUTS}, Tensor copy, Tensor inverse, Tensor state, {_OPTIONS}) "
    "-> Tensor",
    _backward,
)


@torch.library.register_fake("dclr::info_nce_ranges", lib=_library)
def _(rows, first, positive, column, loss, begin, exclude, weight, keys, *options):
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    workspace = range_workspace(rows, *positive.shape, positive.shape[1] + keys)
    return rows.new_empty(begin.shape[0] - 1, dtype=wide), *workspace


@torch.library.register_fake("dclr::info_nce_ranges_backward", lib=_library)
def _(grad, rows, *rest):
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


class _InfoNCERanges(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        inputs, options = inputs[:8], inputs[8:]
        with torch._C._AutoDispatchBelowAutograd():
            loss, *workspace = torch.ops.dclr.info_nce_ranges(*inputs, *options)
        ctx.save_for_backward(*inputs, *workspace)
        ctx.options = options
        ctx.mark_non_differentiable(*workspace)
        ctx.set_materialize_grads(False)
        return loss, *workspace

    @staticmethod
    @first_derivative
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 14
        return torch.ops.dclr.info_nce_ranges_backward(grad, *ctx.saved_tensors, *ctx.options), *(None,) * 13


_library.impl("info_nce_ranges", _InfoNCERanges.apply, "Autograd")


# Public function


def info_nce_ranges(
    rows: Tensor,
    where: Ranges,
    *,
    exclude: Tensor | None = None,
    weight: Tensor | None = None,
    temperature: float = 0.07,
    scale: float = 1.0,
    allow_tf32: bool = False,
) -> Tensor:
    """Sums of InfoNCE losses whose queries and keys are ranges of `rows`, which may overlap, in one launch.

    Args:
        rows: (R, D) floating; those from `where.learned` on get no gradient.
        where: from `Ranges.of`, on the same device.
        exclude: (G, M, E) int64, keys of the group that are no negatives of a query, -1 none. A key that the group does
            not have is an error on the CPU, and ignored on a GPU.
        weight: (G, M) of the losses, default 1; gets no gradient.
        temperature: above 0.
        scale: what the result is multiplied by.
        allow_tf32: multiply float32 inputs as TF32 on GPUs that have it.

    Returns:
        (L,) float32 (float64 for float64).

    Raises:
        TypeError, ValueError: a wrong rank, size, dtype, device or value, named.
    """
    check(isinstance(where, Ranges), "where", type(where).__name__, "Ranges", TypeError)
    check_tensors(rows=rows, where=where.first, optional={"exclude": exclude, "weight": weight})
    check_float("rows", rows, 2)
    check(len(rows) == where.rows, "rows", tuple(rows.shape), lambda: f"({where.rows}, D)")
    check_number("temperature", temperature)
    check_number("scale", scale)
    check(temperature > 0, "temperature", temperature, "a number above 0")
    lead = tuple(where.positive.shape)
    if exclude is not None:
        check(exclude.dim() == 3 and exclude.shape[:2] == lead, "exclude", tuple(exclude.shape), f"{(*lead, 'E')}")
        check_rows("exclude", exclude, where.keys, least=-1)
    if weight is not None:
        check(tuple(weight.shape) == lead, "weight", tuple(weight.shape), lead)
        weight = weight.detach()
    tables = where[:5]
    options = where.keys, where.learned, where.longest, float(temperature), float(scale), allow_tf32
    return torch.ops.dclr.info_nce_ranges(rows, *tables, exclude, weight, *options)[0]
