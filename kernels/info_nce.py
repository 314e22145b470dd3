"""Cosine InfoNCE.

    s[i, j] = cos(query_i, key_j) / temperature
    loss_i = -s[i, +] + log(exp s[i, +] + sum over negatives j of exp s[i, j])            DCLR Eq. 1-2, 6-10

Shape suffixes: g groups (independent losses), m queries, p keys, k explicit positives of a query, e excluded rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import check, check_float, check_same_device, unit

REDUCTIONS = ("mean", "sum", "none")


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
    similarity_gmp = query_gmd @ key_gpd.mT / temperature
    if not positive.is_floating_point():
        positive = positive.long()[..., None]
        negative = ~_marked(exclude, similarity_gmp.shape)
        negative = negative.scatter(2, positive, True)  # a positive that also stands in `exclude` stays
        total = similarity_gmp.masked_fill(~negative, -torch.inf).logsumexp(2)
        return total - similarity_gmp.gather(2, positive)[..., 0]
    positive_gmkd = unit(positive, wide)
    similarity_gmk = (query_gmd[:, :, None] * positive_gmkd).sum(-1) / temperature
    if exclude is not None and exclude.dim() == 3:
        exclude = exclude[:, :, None].expand(-1, -1, similarity_gmk.shape[2], -1)
    shape = (*similarity_gmk.shape, key.shape[1])
    negative_gmkp = similarity_gmp[:, :, None].expand(shape).masked_fill(_marked(exclude, shape), -torch.inf)
    loss_gmk = torch.cat([similarity_gmk[..., None], negative_gmkp], -1).logsumexp(-1) - similarity_gmk
    return loss_gmk.mean(2) if weight is None else (loss_gmk * weight.to(wide)).sum(2)


def _marked(rows: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """True at the given indices of the last axis of `shape`; -1 marks nothing."""
    device = None if rows is None else rows.device
    marked = torch.zeros((*shape[:-1], shape[-1] + 1), dtype=torch.bool, device=device)
    if rows is not None:
        rows = rows.long()
        marked = marked.scatter(-1, torch.where(rows < 0, shape[-1], rows), True)
    return marked[..., :-1]


def info_nce(
    query: Tensor,
    key: Tensor,
    *,
    positive: Tensor | None = None,
    exclude: Tensor | None = None,
    weight: Tensor | None = None,
    temperature: float = 0.07,
    reduction: str = "mean",
) -> Tensor:
    """InfoNCE of cosine similarities; every tensor may have one more leading axis G of independent losses.

    Args:
        query: (M, D) floating.
        key: (P, D) of the same dtype.
        positive: None (row i of `key`, P == M), (M,) rows of `key`, or (M, K, D) positives outside of `key`.
        exclude: (M,), (M, E), or (M, K, E) with explicit positives: rows of `key` that are no negatives, -1 none.
        weight: (M, K) of the explicit positives, default 1 / K; gets no gradient.
        temperature: above 0.
        reduction: `mean`, `sum` or `none`, over the M rows.

    Returns:
        (), or (M,) with `none`, float32 (float64 for float64); with groups (G,) or (G, M). An empty batch gives 0.

    Raises:
        TypeError, ValueError: a wrong rank, size, dtype, device or value, named.
    """
    check_float("query", query, (2, 3))
    check_float("key", key, query.dim())
    check(temperature > 0, "temperature", temperature, "a number above 0")
    check(reduction in REDUCTIONS, "reduction", reduction, "mean, sum or none")
    grouped = query.dim() == 3
    if not grouped:
        query, key, positive, exclude, weight = (
            None if value is None else value[None] for value in (query, key, positive, exclude, weight)
        )
    positive, exclude, weight = _check(query, key, positive, exclude, weight)
    loss_gm = info_nce_reference(query, key, positive, exclude, weight, temperature)
    if reduction == "mean":
        loss_gm = loss_gm.sum(1) / max(1, query.shape[1])
    elif reduction == "sum":
        loss_gm = loss_gm.sum(1)
    return loss_gm if grouped else loss_gm[0]


def _check(
    query: Tensor, key: Tensor, positive: Tensor | None, exclude: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sizes and dtypes of everything, in grouped form; returns positive, exclude (with its E axis) and weight."""
    groups, rows, dim = query.shape
    check(query.dtype == key.dtype, "key", key.dtype, f"the query's {query.dtype}", TypeError)
    check((key.shape[0], key.shape[2]) == (groups, dim), "key", f"shape {tuple(key.shape)}", f"({groups}, P, {dim})")
    check_same_device(query=query, key=key, positive=positive, exclude=exclude, weight=weight)
    if positive is None:
        check(key.shape[1] == rows, "positive", "None", f"rows of key, unless key has as many rows as query ({rows})")
        positive = torch.arange(rows, device=query.device).expand(groups, rows)
    explicit = positive.is_floating_point()
    lead = (groups, rows)
    if explicit:
        good = positive.dim() == 4 and positive.shape[:2] == lead and positive.shape[3] == dim and positive.shape[2] > 0
        check(good, "positive", f"shape {tuple(positive.shape)}", f"({groups}, {rows}, K, {dim})")
        check(positive.dtype == query.dtype, "positive", positive.dtype, f"the query's {query.dtype}", TypeError)
    else:
        _check_rows("positive", positive, key.shape[1], least=0)
        check(tuple(positive.shape) == lead, "positive", f"shape {tuple(positive.shape)}", f"({groups}, {rows})")
    if exclude is not None:
        _check_rows("exclude", exclude, key.shape[1], least=-1)
        exclude = exclude[..., None] if exclude.dim() == 2 else exclude
        fits = exclude.shape[:2] == lead and (
            exclude.dim() == 3 or (explicit and exclude.dim() == 4 and exclude.shape[2] == positive.shape[2])
        )
        check(fits, "exclude", f"shape {tuple(exclude.shape)}", "(M,), (M, E), or (M, K, E) with explicit positives")
    if weight is not None:
        check(explicit, "weight", "a tensor", "None unless the positives are explicit")
        wanted = (*lead, positive.shape[2])
        check(tuple(weight.shape) == wanted, "weight", f"shape {tuple(weight.shape)}", f"{wanted}")
        weight = weight.detach()
    return positive, exclude, weight


def _check_rows(name: str, rows: Tensor, count: int, least: int) -> None:
    check(rows.dtype in (torch.int64, torch.int32), name, rows.dtype, "int64 or int32", TypeError)
    if rows.device.type == "cpu" and rows.numel() and not torch.compiler.is_compiling():
        low, high = int(rows.min()), int(rows.max())
        check(low >= least and high < count, name, f"values in [{low}, {high}]", f"values in [{least}, {count})")
