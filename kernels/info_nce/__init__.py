"""Cosine InfoNCE: `reference.py` has the formula.

Op and public functions stand here, the Triton kernels in `forward.py` and `backward.py`, the tables of tiles and the
launches in `launch.py`. Both functions are one op: where `Ranges` are given, the queries and the keys of each group are
ranges of one tensor of rows, else tensors of their own.

Shape suffixes: g groups (independent losses), m queries, p keys, e excluded keys, k explicit positives of a query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._common import check_float, check_number, check_rows, check_tensors, expect, register_op, wide_dtype
from .launch import Inputs, Options, launch_gradients, launch_losses, workspace
from .ranges import Ranges
from .reference import info_nce_gradient_reference, info_nce_reference

__all__ = ["Ranges", "info_nce", "info_nce_ranges"]

REDUCTIONS = ("mean", "sum", "none")
INPUTS = len(Inputs._fields)  # of the op's arguments; the options follow
_NO_RANGES = None, None, None, None, None, []


# Op


def _empty_losses(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses (G, M), their sums (G,) if `total`, or with ranges those of each loss (L,); and the workspace."""
    inputs, options = Inputs(*arguments[:INPUTS]), Options(*arguments[INPUTS:])
    lead = (inputs.losses,) if inputs.ranges else (inputs.groups, inputs.queries)[: 1 if options.total else 2]
    return inputs.query.new_empty(lead, dtype=wide_dtype(inputs.query)), *workspace(inputs)


def _reference_losses(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs, options = Inputs(*arguments[:INPUTS]), Options(*arguments[INPUTS:])
    with torch.autocast(inputs.query.device.type, enabled=False):
        loss = info_nce_reference(*_compared(inputs), options.temperature)
    if inputs.bound is not None:
        loss = loss.minimum(_bounds(inputs, loss))
    loss = loss * options.factor
    loss = loss if inputs.weight is None else loss * inputs.weight.to(loss.dtype)
    if inputs.ranges:
        loss = loss.new_zeros(inputs.losses).index_add(0, inputs.loss, loss.sum(1))
    elif options.total:
        loss = loss.sum(1)
    return loss, *workspace(inputs)


def _launch_losses(*arguments) -> None:
    launch_losses(Inputs(*arguments[:INPUTS]), Options(*arguments[INPUTS:-4]), *arguments[-4:])


def _empty_gradients(grad: Tensor, *arguments) -> tuple[Tensor, Tensor, Tensor]:
    """To query, key and explicit positives; empty where not asked for. Those of a `key` None are the query's."""
    inputs = Inputs(*arguments[:INPUTS])
    like = zip((inputs.query, inputs.key, inputs.positive), _wanted(inputs, *arguments[-2:]))
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) if asked else inputs.query.new_empty(0)
        for x, asked in like
    )


def _wanted(inputs: Inputs, to_query: bool, to_key: bool) -> tuple[bool, bool, bool]:
    return to_query, to_key and inputs.key is not None, inputs.positive is not None


def _reference_gradients(grad: Tensor, *arguments) -> list[Tensor]:
    inputs, options = Inputs(*arguments[:INPUTS]), Options(*arguments[INPUTS:-5])
    if inputs.ranges:
        grad = grad.index_select(0, inputs.loss)
    grad = grad[:, None].expand(inputs.groups, inputs.queries) if options.total else grad
    grad = grad * options.factor if inputs.weight is None else grad * inputs.weight.to(grad.dtype) * options.factor
    with torch.autocast(inputs.query.device.type, enabled=False):
        compared = _compared(inputs)
        if inputs.bound is not None:
            loss = info_nce_reference(*compared, options.temperature)
            grad = torch.where(loss > _bounds(inputs, loss), 0, grad)
        found = info_nce_gradient_reference(grad, *compared, options.temperature)
    given_back, wanted = _given_back(inputs, found), _wanted(inputs, *arguments[-2:])
    return [value if asked else inputs.query.new_empty(0) for value, asked in zip(given_back, wanted)]


def _launch_gradients(grad: Tensor, *arguments) -> None:
    inputs, options = Inputs(*arguments[:INPUTS]), Options(*arguments[INPUTS:-8])
    *saved, to_query, to_key = arguments[-8:-3]
    launch_gradients(grad, inputs, options, saved, to_query, to_key, arguments[-3:])


def _save(ctx, arguments, results) -> None:
    ctx.save_for_backward(*arguments[: INPUTS - 1], *results[1:])
    ctx.mark_non_differentiable(*results[1:])
    ctx.rest = arguments[INPUTS - 1 :]


def _to_inputs(ctx, grad: Tensor, *_) -> list[Tensor | None]:
    to_query, to_key, _, to_positive, *_ = ctx.needs_input_grad
    inputs, saved = ctx.saved_tensors[:-3], ctx.saved_tensors[-3:]
    # The explicit positives are written together with the queries.
    with_query = to_query or to_positive or inputs[1] is None
    grads = torch.ops.dclr.info_nce_backward(grad, *inputs, *ctx.rest, *saved, with_query, to_key)
    of_query, of_key, of_positive = (
        value if asked else None for value, asked in zip(grads, (to_query, to_key, to_positive))
    )
    return of_query, of_key, None, of_positive


def _bounds(inputs: Inputs, loss: Tensor) -> Tensor:
    """(G, 1) of each group's loss, in the dtype of `loss`."""
    return inputs.bound.index_select(0, inputs.loss).to(loss.dtype)[:, None]


def _positive_places(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the rows (R,) are the queries (G, M), the keys (G, P) and the positives (G, M)."""
    first = inputs.first[:, :, None]
    count = torch.arange(max(inputs.queries, inputs.keys), device=first.device)
    return first[0] + count[: inputs.queries], first[1] + count[: inputs.keys], inputs.index


def _compared(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries, keys, positives and excluded keys, with the positive's own, as the reference takes them."""
    query, key, index, positive, exclude, *_ = inputs
    if inputs.ranges:
        own = inputs.column
        query, key, positive = (query[0].to(wide_dtype(query))[place] for place in _positive_places(inputs))
    else:
        own, key = index, query if key is None else key
        if index is not None:
            positive = key.gather(1, index.long()[..., None].expand(-1, -1, key.shape[2]))
    if own is not None:
        exclude = own[..., None] if exclude is None else torch.cat([exclude, own[..., None]], 2)
    return query, key, positive, exclude


def _given_back(inputs: Inputs, found: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients to the inputs from those to what was compared: where a row has several uses, their sum."""
    to_query, to_key, to_positive = found
    if inputs.ranges:
        out = torch.zeros_like(inputs.query[0], dtype=to_query.dtype, memory_format=torch.contiguous_format)
        for place, value in zip(_positive_places(inputs), found):
            out.index_add_(0, place.flatten(), value.flatten(0, 1))
        out[inputs.learned :] = 0
        return out[None], None, None
    if inputs.index is not None:
        to_key = to_key.scatter_add(1, inputs.index.long()[..., None].expand_as(to_positive), to_positive)
    return to_query + to_key if inputs.shared else to_query, to_key, to_positive


_INPUTS = (
    "Tensor query, Tensor? key, Tensor? index, Tensor? positive, Tensor? exclude, Tensor? weight, "
    "Tensor? first, Tensor? key_column, Tensor? loss, Tensor? begin, Tensor? bound, SymInt[] sizes"
)
_OPTIONS = "float temperature, float scale, SymInt count, bool total, bool allow_tf32"
_LOSSES = f"info_nce({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)"
_GRADIENTS = (
    f"info_nce_backward(Tensor grad, {_INPUTS}, {_OPTIONS}, Tensor copy, Tensor scale_of_rows, Tensor state, "
    "bool to_query, bool to_key) -> (Tensor, Tensor, Tensor)"
)
register_op(_LOSSES, _empty_losses, _reference_losses, _launch_losses, _save, _to_inputs)
register_op(_GRADIENTS, _empty_gradients, _reference_gradients, _launch_gradients)


# Public functions


def info_nce(
    query: Tensor,
    key: Tensor,
    *,
    positive: Tensor | None = None,
    exclude: Tensor | None = None,
    weight: Tensor | None = None,
    temperature: float = 0.07,
    reduction: str = "mean",
    scale: float = 1.0,
    allow_tf32: bool = False,
) -> Tensor:
    """InfoNCE of cosine similarities; every tensor may have one more leading axis G of independent losses.

    Args:
        query: (M, D) floating.
        key: (P, D) of the same dtype.
        positive: None (row i of `key`, P == M), (M,) rows of `key`, or (M, K, D) positives outside of `key`. A row
            that `key` does not have is an error where the tensor is on the CPU; on a GPU it counts as a zero row.
        exclude: (M,), (M, E), or (M, K, E) with explicit positives: rows of `key` that are no negatives, -1 none. A
            row that `key` does not have is an error on the CPU, and ignored on a GPU.
        weight: (M, K) of the explicit positives, default 1 / K, or (M,) of the losses with others, default 1; gets no
            gradient.
        temperature: above 0.
        reduction: `mean`, `sum` or `none`, over the M rows.
        scale: what the result is multiplied by.
        allow_tf32: multiply float32 inputs as TF32 on GPUs that have it.

    Returns:
        (), or (M,) with `none`, float32 (float64 for float64); with groups (G,) or (G, M). An empty batch gives 0.
        A query whose loss has gradient 0 gives nothing to the keys and its positive, even where it is not finite.

    Raises:
        TypeError, ValueError: a wrong rank, size, dtype, device or value, named.
    """
    check_tensors(query=query, key=key, optional={"positive": positive, "exclude": exclude, "weight": weight})
    check_float("query", query, (2, 3))
    check_float("key", key, query.dim())
    check_number("temperature", temperature)
    check_number("scale", scale)
    expect(temperature > 0, "temperature", temperature, "a number above 0")
    expect(reduction in REDUCTIONS, "reduction", reduction, "mean, sum or none")
    grouped, shared = query.dim() == 3, key is query
    if not grouped:
        given = query, key, positive, exclude, weight
        query, key, positive, exclude, weight = (None if value is None else value[None] for value in given)
    positive, exclude, weight = _check_info_nce(query, key, positive, exclude, weight)
    rows, positives = query.shape[1], 1
    if not positive.is_floating_point():
        inputs = query, None if shared else key, positive, None, exclude, weight
    else:
        positives = positive.shape[2]
        inputs = _each_positive_a_query(query, None if shared else key, positive, exclude, weight)
    count = (rows if reduction == "mean" else 1) * (positives if weight is None else 1)
    options = float(temperature), float(scale), count, reduction != "none", allow_tf32
    loss, *_ = torch.ops.dclr.info_nce(*inputs, *_NO_RANGES, *options)
    if reduction == "none" and positives > 1:
        loss = loss.unflatten(1, (rows, positives)).sum(2)
    return loss if grouped else loss.squeeze(0)


def _each_positive_a_query(
    query: Tensor, key: Tensor | None, positive: Tensor, exclude: Tensor | None, weight: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Inputs of the op, where each of the K positives of a query has a query of its own."""
    positives = positive.shape[2]
    if positives > 1:
        key = query if key is None else key
        query = query.unsqueeze(2).expand(-1, -1, positives, -1).flatten(1, 2)
    if exclude is not None:
        exclude = exclude if exclude.dim() == 4 else exclude.unsqueeze(2).expand(-1, -1, positives, -1)
        exclude = exclude.flatten(1, 2)
    return query, key, None, positive.flatten(1, 2), exclude, None if weight is None else weight.flatten(1)


def _check_info_nce(
    query: Tensor, key: Tensor, positive: Tensor | None, exclude: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sizes and dtypes of everything, in grouped form; returns positive, exclude (with its E axis) and weight."""
    groups, rows, dim = query.shape
    expect(query.dtype == key.dtype, "key", key.dtype, f"the query's {query.dtype}", TypeError)
    expect((key.shape[0], key.shape[2]) == (groups, dim), "key", tuple(key.shape), lambda: f"({groups}, P, {dim})")
    if positive is None:
        expect(
            key.shape[1] == rows,
            "positive",
            "None",
            lambda: f"rows of key, unless key has as many rows as query ({rows})",
        )
        positive = torch.arange(rows, device=query.device).expand(groups, rows)
    explicit = positive.is_floating_point()
    lead = (groups, rows)
    if explicit:
        good = positive.dim() == 4 and positive.shape[:2] == lead and positive.shape[3] == dim and positive.shape[2] > 0
        expect(good, "positive", tuple(positive.shape), lambda: f"({groups}, {rows}, K, {dim})")
        expect(positive.dtype == query.dtype, "positive", positive.dtype, f"the query's {query.dtype}", TypeError)
    else:
        check_rows("positive", positive, key.shape[1])
        expect(tuple(positive.shape) == lead, "positive", tuple(positive.shape), lead)
    if exclude is not None:
        check_rows("exclude", exclude, key.shape[1], least=-1)
        exclude = exclude[..., None] if exclude.dim() == 2 else exclude
        fits = exclude.shape[:2] == lead and (
            exclude.dim() == 3 or (explicit and exclude.dim() == 4 and exclude.shape[2] == positive.shape[2])
        )
        expect(fits, "exclude", tuple(exclude.shape), "(M,), (M, E), or (M, K, E) with explicit positives")
    if weight is not None:
        wanted = (*lead, positive.shape[2]) if explicit else lead
        expect(tuple(weight.shape) == wanted, "weight", tuple(weight.shape), wanted)
        weight = weight.detach()
    return positive, exclude, weight


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
    expect(isinstance(where, Ranges), "where", type(where).__name__, "Ranges", TypeError)
    check_tensors(rows=rows, where=where.first, optional={"exclude": exclude, "weight": weight})
    check_float("rows", rows, 2)
    expect(len(rows) == where.rows, "rows", tuple(rows.shape), lambda: f"({where.rows}, D)")
    check_number("temperature", temperature)
    check_number("scale", scale)
    expect(temperature > 0, "temperature", temperature, "a number above 0")
    lead = tuple(where.positive.shape)
    if exclude is not None:
        expect(exclude.dim() == 3 and exclude.shape[:2] == lead, "exclude", tuple(exclude.shape), f"{(*lead, 'E')}")
        check_rows("exclude", exclude, where.keys, least=-1)
    if weight is not None:
        expect(tuple(weight.shape) == lead, "weight", tuple(weight.shape), lead)
        weight = weight.detach()
    sizes = [where.keys, where.learned, where.longest]
    ranges = where.first, where.column, where.loss, where.begin, where.bound, sizes
    options = float(temperature), float(scale), 1, True, allow_tf32
    inputs = rows[None], None, where.positive, None, exclude, weight
    loss, *_ = torch.ops.dclr.info_nce(*inputs, *ranges, *options)
    return loss
