"""Cosine InfoNCE.

    s[i, j] = cos(query_i, key_j) / temperature
    loss_i = -s[i, +] + log(exp s[i, +] + sum over negatives j of exp s[i, j])            DCLR Eq. 1-2, 6-10

Shape suffixes: g groups (independent losses), m queries, p keys, k explicit positives of a query, e excluded rows.
"""

from __future__ import annotations

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
    unit,
)
from ._nce_launch import gradients, losses, new_gradients, workspace

REDUCTIONS = ("mean", "sum", "none")

_library = torch.library.Library("dclr", "FRAGMENT")


def info_nce_reference(
    query: Tensor, key: Tensor, positive: Tensor, exclude: Tensor | None, weight: Tensor | None, temperature: float
) -> Tensor:
    """Plain PyTorch form, losses (G, M).

    Args:
        query, key: (G, M, D) and (G, P, D).
        positive: (G, M) rows of `key`, or (G, M, K, D).
        exclude: (G, M, E), or (G, M, K, E) with explicit positives; -1 is none.
        weight: (G, M, K) or None, with explicit positives.
    """
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    query_gmd, key_gpd = (unit(value, wide) for value in (query, key))
    score_gmp = query_gmd @ key_gpd.mT / temperature
    if not positive.is_floating_point():
        positive = positive.long()[..., None]
        negative_gmp = score_gmp.masked_fill(_marked(exclude, score_gmp.shape), -torch.inf)
        return _loss(score_gmp.gather(2, positive)[..., 0], negative_gmp.scatter(2, positive, -torch.inf))
    score_gmk = (query_gmd[:, :, None] * unit(positive, wide)).sum(-1) / temperature
    if exclude is not None and exclude.dim() == 3:
        exclude = exclude[:, :, None].expand(-1, -1, score_gmk.shape[2], -1)
    shape = (*score_gmk.shape, key.shape[1])
    loss_gmk = _loss(score_gmk, score_gmp[:, :, None].expand(shape).masked_fill(_marked(exclude, shape), -torch.inf))
    return loss_gmk.mean(2) if weight is None else (loss_gmk * weight.to(wide)).sum(2)


def _loss(positive: Tensor, negative: Tensor) -> Tensor:
    """-s+ + log(exp s+ + sum over negatives (last axis) of exp s), without the difference of two large numbers."""
    gap = negative.logsumexp(-1) - positive
    return torch.logaddexp(gap, torch.zeros_like(gap))


def _marked(rows: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """True at the given indices of the last axis of `shape`; -1 marks nothing."""
    device = None if rows is None else rows.device
    marked = torch.zeros((*shape[:-1], shape[-1] + 1), dtype=torch.bool, device=device)
    if rows is not None:
        rows = rows.long()
        marked = marked.scatter(-1, torch.where(rows < 0, shape[-1], rows), True)
    return marked[..., :-1]


def info_nce_gradient_reference(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    index: Tensor | None,
    positive: Tensor | None,
    exclude: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients to query (G, M, D), key (G, P, D) and explicit positives (G, M, D), from that to the losses (G, M).

    In float32 at least: they are added up before they are rounded. A query whose loss has gradient 0 gives nothing to
    the keys, even where it is not finite.
    """
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    query_gmd, key_gpd = unit(query, wide), unit(key, wide)
    score_gmp = query_gmd @ key_gpd.mT / temperature
    score_gmp = score_gmp.masked_fill(_marked(exclude, score_gmp.shape), -torch.inf)
    if index is not None:
        index = index.long()[..., None]
        positive_gmd = key_gpd.gather(1, index.expand(-1, -1, key.shape[2]))
        score_gmp = score_gmp.scatter(2, index, -torch.inf)
    else:
        positive_gmd = unit(positive, wide)
    total_gm1 = score_gmp.logsumexp(2, keepdim=True)
    # What the positive lacks of all: 1 - its share would cancel.
    apart_gm1 = torch.sigmoid(total_gm1 - (query_gmd * positive_gmd).sum(2, keepdim=True) / temperature)
    unused_gm1 = grad[..., None] == 0
    pull_gm1 = torch.where(unused_gm1, 0, grad[..., None] / temperature * apart_gm1)
    share_gmp = torch.where(score_gmp == -torch.inf, 0, pull_gm1 * (score_gmp - total_gm1).exp())
    share_gmp = torch.where(unused_gm1, 0, share_gmp)
    if index is not None:
        share_gmp = share_gmp.scatter(2, index, -pull_gm1)
        to_query, to_positive = share_gmp @ key_gpd, None
    else:
        to_query = share_gmp @ key_gpd - pull_gm1 * positive_gmd
        to_positive = _to_row(-pull_gm1 * query_gmd, positive_gmd, positive)
    to_key = share_gmp.mT @ torch.where(unused_gm1, 0, query_gmd)
    return _to_row(to_query, query_gmd, query), _to_row(to_key, key_gpd, key), to_positive


def _to_row(grad: Tensor, unit_row: Tensor, row: Tensor) -> Tensor:
    """Gradient to a row from that to its unit row."""
    norm = (row.to(grad.dtype) * unit_row).sum(-1, keepdim=True)  # without squares, which leave the range of a float
    grad = (grad - (grad * unit_row).sum(-1, keepdim=True) * unit_row) / torch.where(norm == 0, 1, norm)
    return torch.where(norm == 0, 0, grad)


# Ops


def _factor(rows: int, weight: Tensor | None, scale: float, reduction: str, positives: int) -> float:
    """What each of the `rows` losses counts, `positives` of them belonging to one query."""
    queries = rows // positives if reduction == "mean" else 1
    return scale / max(1, queries * (positives if weight is None else 1))


def _forward(
    query: Tensor,
    key: Tensor | None,
    index: Tensor | None,
    positive: Tensor | None,
    exclude: Tensor | None,
    weight: Tensor | None,
    temperature: float,
    scale: float,
    reduction: str,
    positives: int,
    allow_tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses (G, M), or (G,) if reduced, and the workspace.

    `key` None is the query; either `index` (G, M) or `positive` (G, M, D) is given; `weight` (G, M) of the losses.
    """
    factor, total = _factor(query.shape[1], weight, scale, reduction, positives), reduction != "none"
    if runs_triton(query):
        return losses(query, key, index, positive, exclude, weight, temperature, factor, total, allow_tf32)
    chosen = index if positive is None else positive.unsqueeze(2)
    with torch.autocast(query.device.type, enabled=False):
        loss = info_nce_reference(query, query if key is None else key, chosen, exclude, None, temperature) * factor
    loss = loss if weight is None else loss * weight.to(loss.dtype)
    return loss.sum(1) if total else loss, *workspace(query, key)


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor | None,
    index: Tensor | None,
    positive: Tensor | None,
    exclude: Tensor | None,
    weight: Tensor | None,
    copy: Tensor,
    inverse: Tensor,
    state: Tensor,
    temperature: float,
    scale: float,
    reduction: str,
    positives: int,
    allow_tf32: bool,
    to_query: bool,
    to_key: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to query, key and explicit positives; empty where not asked for. A `key` None adds to the query's."""
    factor = _factor(query.shape[1], weight, scale, reduction, positives)
    if reduction != "none":
        grad = grad[:, None].expand(query.shape[:2])
    inputs = query, key, index, positive, exclude, weight
    if runs_triton(query):
        return gradients(grad, *inputs, copy, inverse, state, temperature, factor, allow_tf32, to_query, to_key)
    if weight is not None:
        grad = grad * weight.to(grad.dtype)
    keys = query if key is None else key
    with torch.autocast(query.device.type, enabled=False):
        of_query, of_key, of_positive = info_nce_gradient_reference(
            grad * factor, query, keys, index, positive, exclude, temperature
        )
    of_query = of_query + of_key if key is None else of_query
    outputs = new_gradients(query, key, positive, to_query, to_key)
    for out, value in zip(outputs, (of_query, of_key, of_positive)):
        if out.numel():
            out.copy_(value)
    return outputs


_INPUTS = "Tensor query, Tensor? key, Tensor? index, Tensor? positive, Tensor? exclude, Tensor? weight"
_OPTIONS = "float temperature, float scale, str reduction, SymInt positives, bool allow_tf32"
define_op(_library, f"info_nce({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)", _forward)
define_op(
    _library,
    f"info_nce_backward(Tensor grad, {_INPUTS}, Tensor copy, Tensor inverse, Tensor state, {_OPTIONS}, "
    "bool to_query, bool to_key) -> (Tensor, Tensor, Tensor)",
    _backward,
)


@torch.library.register_fake("dclr::info_nce", lib=_library)
def _(query, key, index, positive, exclude, weight, temperature, scale, reduction, positives, allow_tf32):
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    shape = query.shape[:2] if reduction == "none" else query.shape[:1]
    return query.new_empty(shape, dtype=wide), *workspace(query, key)


@torch.library.register_fake("dclr::info_nce_backward", lib=_library)
def _(grad, query, key, index, positive, *rest):
    *_, to_query, to_key = rest
    return new_gradients(query, key, positive, to_query, to_key)


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, index, positive, exclude, weight, *options):
        with torch._C._AutoDispatchBelowAutograd():
            loss, *workspace = torch.ops.dclr.info_nce(query, key, index, positive, exclude, weight, *options)
        ctx.save_for_backward(query, key, index, positive, exclude, weight, *workspace)
        ctx.options = options
        ctx.mark_non_differentiable(*workspace)
        ctx.set_materialize_grads(False)
        return loss, *workspace

    @staticmethod
    @first_derivative
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 11
        to_query, to_key, _, to_positive, *_ = ctx.needs_input_grad
        # The explicit positives are written together with the queries.
        grads = torch.ops.dclr.info_nce_backward(
            grad, *ctx.saved_tensors, *ctx.options, to_query or to_positive or ctx.saved_tensors[1] is None, to_key
        )
        of_query, of_key, of_positive = (
            value if wanted else None for value, wanted in zip(grads, (to_query, to_key, to_positive))
        )
        return of_query, of_key, None, of_positive, *(None,) * 7


_library.impl("info_nce", _InfoNCE.apply, "Autograd")


# Public function


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
        A query whose loss has gradient 0 gives nothing to the keys, even where it is not finite.

    Raises:
        TypeError, ValueError: a wrong rank, size, dtype, device or value, named.
    """
    check_tensors(query=query, key=key, optional={"positive": positive, "exclude": exclude, "weight": weight})
    check_float("query", query, (2, 3))
    check_float("key", key, query.dim())
    check_number("temperature", temperature)
    check_number("scale", scale)
    check(temperature > 0, "temperature", temperature, "a number above 0")
    check(reduction in REDUCTIONS, "reduction", reduction, "mean, sum or none")
    grouped = query.dim() == 3
    shared = key is query
    if not grouped:
        query, key, positive, exclude, weight = (
            None if value is None else value[None] for value in (query, key, positive, exclude, weight)
        )
    positive, exclude, weight = _check(query, key, positive, exclude, weight)
    loss = _losses(
        query,
        None if shared else key,
        positive,
        exclude,
        weight,
        float(temperature),
        float(scale),
        reduction,
        allow_tf32,
    )
    return loss if grouped else loss.squeeze(0)


def _losses(
    query: Tensor,
    key: Tensor | None,
    positive: Tensor,
    exclude: Tensor | None,
    weight: Tensor | None,
    temperature: float,
    scale: float,
    reduction: str,
    allow_tf32: bool,
) -> Tensor:
    """(G,), or (G, M) losses: each explicit positive has a query of its own in the op."""
    options = temperature, scale, reduction
    if not positive.is_floating_point():
        return torch.ops.dclr.info_nce(query, key, positive, None, exclude, weight, *options, 1, allow_tf32)[0]
    rows, positives = positive.shape[1:3]
    if positives > 1:
        key = query if key is None else key
        query = query.unsqueeze(2).expand(-1, -1, positives, -1).flatten(1, 2)
    if exclude is not None:
        exclude = exclude if exclude.dim() == 4 else exclude.unsqueeze(2).expand(-1, -1, positives, -1)
        exclude = exclude.flatten(1, 2)
    weight = None if weight is None else weight.flatten(1)
    positive = positive.flatten(1, 2)
    loss = torch.ops.dclr.info_nce(query, key, None, positive, exclude, weight, *options, positives, allow_tf32)[0]
    return loss.unflatten(1, (rows, positives)).sum(2) if reduction == "none" and positives > 1 else loss


def _check(
    query: Tensor, key: Tensor, positive: Tensor | None, exclude: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sizes and dtypes of everything, in grouped form; returns positive, exclude (with its E axis) and weight."""
    groups, rows, dim = query.shape
    check(query.dtype == key.dtype, "key", key.dtype, f"the query's {query.dtype}", TypeError)
    check((key.shape[0], key.shape[2]) == (groups, dim), "key", tuple(key.shape), lambda: f"({groups}, P, {dim})")
    if positive is None:
        check(
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
        check(good, "positive", tuple(positive.shape), lambda: f"({groups}, {rows}, K, {dim})")
        check(positive.dtype == query.dtype, "positive", positive.dtype, f"the query's {query.dtype}", TypeError)
    else:
        check_rows("positive", positive, key.shape[1])
        check(tuple(positive.shape) == lead, "positive", tuple(positive.shape), lead)
    if exclude is not None:
        check_rows("exclude", exclude, key.shape[1], least=-1)
        exclude = exclude[..., None] if exclude.dim() == 2 else exclude
        fits = exclude.shape[:2] == lead and (
            exclude.dim() == 3 or (explicit and exclude.dim() == 4 and exclude.shape[2] == positive.shape[2])
        )
        check(fits, "exclude", tuple(exclude.shape), "(M,), (M, E), or (M, K, E) with explicit positives")
    if weight is not None:
        wanted = (*lead, positive.shape[2]) if explicit else lead
        check(tuple(weight.shape) == wanted, "weight", tuple(weight.shape), wanted)
        weight = weight.detach()
    return positive, exclude, weight
