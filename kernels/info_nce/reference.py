"""Cosine InfoNCE as its formula reads, in plain PyTorch: what CPUs and float64 run, and what the kernels are held to.

    s[i, j] = cos(query_i, key_j) / temperature
    loss_i = -s[i, +] + log(exp s[i, +] + sum over negatives j of exp s[i, j])            DCLR Eq. 1-2, 6-9

Shapes: m queries, each with a positive of its own; p keys; e rows of `key` that are no negatives of a query, -1 for
none; d features. Any leading axes before these.
"""

from __future__ import annotations

import torch
from torch import Tensor


def info_nce_reference(
    query: Tensor, key: Tensor, positive: Tensor, exclude: Tensor | None, temperature: float
) -> Tensor:
    """Losses (..., m) of `query` (..., m, d) with `positive` (..., m, d), against `key` (..., p, d) but `exclude`."""
    query, key, positive = unit(query), unit(key), unit(positive)
    own = (query * positive).sum(-1) / temperature
    score = query @ key.mT / temperature
    # log(exp(own) + sum of exp(negatives)) - own, without the difference of two large numbers.
    gap = score.masked_fill(marked(exclude, score), -torch.inf).logsumexp(-1) - own
    return torch.logaddexp(gap, torch.zeros_like(gap))


def cross_video_reference(
    clip: Tensor, difference: Tensor, found_clip: Tensor, found_difference: Tensor, weight: Tensor,
    key: Tensor, exclude: Tensor, entry: Tensor, entry_exclude: Tensor, temperature: float,
) -> Tensor:  # fmt: skip
    """DCLR Eq. 10: mean over n of sum over k of p_nk [I(v_n; d~_nk) + I(v~_nk; d_n)].

    `clip`, `difference` (n, d) are v and d; `found_clip`, `found_difference` (n, k, d) v~ and d~ of the entries found
    for each; `weight` (n, k) is p. The negatives of d~ are the rows of `entry` (p, d) but `entry_exclude` (n, k, e),
    those of d the rows of `key` but `exclude`.
    """
    loss = 0
    for k in range(weight.shape[1]):
        to_found = info_nce_reference(clip, entry, found_difference[:, k], entry_exclude[:, k], temperature)
        from_found = info_nce_reference(found_clip[:, k], key, difference, exclude[:, k], temperature)
        loss = loss + weight[:, k] * (to_found + from_found)
    return loss.mean()


def info_nce_gradient_reference(
    grad: Tensor, query: Tensor, key: Tensor, positive: Tensor, exclude: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to `query`, `key` and `positive` from that to the losses (..., m), in float32 at least.

    A query whose loss has gradient 0 gives nothing to the keys and its positive, even where it is not finite.
    """
    u_query, u_key, u_positive = unit(query), unit(key), unit(positive)
    score = u_query @ u_key.mT / temperature
    score = score.masked_fill(marked(exclude, score), -torch.inf)
    total = score.logsumexp(-1, keepdim=True)
    grad, unused = grad[..., None], grad[..., None] == 0
    # What the positive lacks of all: 1 - its share would cancel.
    apart = torch.sigmoid(total - (u_query * u_positive).sum(-1, keepdim=True) / temperature)
    pull = torch.where(unused, 0, grad / temperature * apart)
    share = torch.where(unused | (score == -torch.inf), 0, pull * (score - total).exp())
    used = torch.where(unused, 0, u_query)
    to_query = share @ u_key - pull * u_positive
    found = (to_query, u_query, query), (share.mT @ used, u_key, key), (-pull * used, u_positive, positive)
    return tuple(_to_row(*one) for one in found)


def unit(rows: Tensor) -> Tensor:
    """Rows divided by their norm, in float32 at least; a zero row stays zero and has zero gradient."""
    rows = rows.to(wide(rows))
    # Brought to about 1 first: the squares of very small and very large elements leave the range of a float.
    largest = rows.detach().abs().amax(-1, keepdim=True) if rows.shape[-1] else rows.new_ones(())
    zero = largest == 0
    rows = rows / torch.where(zero, 1, largest)
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.where(zero, 0, rows / torch.where(zero, 1, norm))


def marked(rows: Tensor | None, score: Tensor) -> Tensor:
    """True where `score` (..., m, p) has one of its `rows` (..., m, e); -1 marks nothing."""
    found = torch.zeros((*score.shape[:-1], score.shape[-1] + 1), dtype=torch.bool, device=score.device)
    if rows is not None:
        rows = rows.long()
        found = found.scatter(-1, torch.where(rows < 0, score.shape[-1], rows), True)
    return found[..., :-1]


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype of arithmetic on a tensor."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _to_row(grad: Tensor, unit_row: Tensor, row: Tensor) -> Tensor:
    """Gradient to a row from that to its unit row."""
    norm = (row.to(grad.dtype) * unit_row).sum(-1, keepdim=True)  # without squares, which leave the range of a float
    grad = (grad - (grad * unit_row).sum(-1, keepdim=True) * unit_row) / torch.where(norm == 0, 1, norm)
    return torch.where(norm == 0, 0, grad)
