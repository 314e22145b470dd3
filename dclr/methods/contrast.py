"""The contrastive terms of a step, as the paper prints them (DCLR Eq. 1-2, 6-10).

A term is data: whose features are contrasted with whose. `in_batch_loss` and `cross_video_loss` are the equations.
Training computes all terms of a step in one kernel launch instead (`dclr.methods.packing`), with equal results.

Shapes: n videos on this rank, N in the global batch, d features, K entries retrieved for a clip. Anchors are (2n, d),
view i before view j; keys are gathered from every rank, (2N, d) in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dclr.distributed import gather_rows, mean_over_ranks, rank, world
from dclr.phases import phase

Denominator = Literal["others", "literal", "all", "joint"]
Bound = Literal["anchor", "batch", "none"]


class Term(NamedTuple):
    """Anchors against keys of another (or the same) modality, among the videos of the batch.

    Attributes:
        anchor: (2n, d) with gradient.
        key: (2N, d), gathered, with gradient.
        same_view: whether the positive is the anchor's own row (L_SD) instead of the other view's (L_VS, L_VD).
        bound: whether I ends at chance, the value for features that know nothing of each other: of each `anchor`, of
            the mean over the `batch`, or not at all. For a term that is maximised.
    """

    anchor: Tensor
    key: Tensor
    same_view: bool = False
    bound: Bound = "none"


class CrossTerm(NamedTuple):
    """Anchors of view i and entries that a search retrieved for them from other videos.

    Attributes:
        anchor: (2n, d) projected clips v, with gradient.
        key: (2N, d) projected differences d (or static clips s), gathered, with gradient.
        stored_rgb, stored_modality: (n, K, d) projections v~_k and d~_k (or s~_k) of the retrieved entries.
        weight: (n, K) p_k.
        exclude: (n, K, E) int64 rows of `key` that are no negatives, -1 for none.
        stored_key: (2N, d) what v tells d~_k from, without gradient: entries of the queue, or `key` itself.
        stored_exclude: (n, K, E) int64 rows of `stored_key` that are no negatives, -1 for none.
    """

    anchor: Tensor
    key: Tensor
    stored_rgb: Tensor
    stored_modality: Tensor
    weight: Tensor
    exclude: Tensor
    stored_key: Tensor
    stored_exclude: Tensor


def in_batch_loss(term: Term, temperature: float, denominator: Denominator = "others") -> Tensor:
    """L_VV, L_VS, L_VD or L_SD: the mean over the videos of I(x_i; y+) + I(x_j; y+) (DCLR Eq. 1, 6-8).

        I(x; y+) = -<x, y+> / tau + log sum over y of exp(<x, y> / tau)                           (Eq. 2)

    The sum has the positive y+ and, by `denominator`,
      `others`: the keys of other videos, 2N - 1 in all (Eq. 2 for two modalities);
      `literal`: every key but the anchor's own row, as Eq. 2 is printed. That is the same where the positive is the
        other view's; where it is the own row, it is then missing from the sum, and the loss can be negative;
      `all`: all 2N keys;
      `joint`: `others`, and the rows of other videos in the anchor's modality.

    Returns:
        () float32, float64 for float64 inputs.
    """
    rows = local_rows(len(term.anchor) // 2, term.anchor.device)
    positive, other = (rows.same_view, rows.other_view) if term.same_view else (rows.other_view, rows.same_view)
    logits = unit_vectors(term.anchor) @ unit_vectors(term.key).T / temperature
    attracted = logits.gather(1, positive[:, None])
    if denominator != "all":
        left_out = rows.same_view if denominator == "literal" else other
        logits = logits.scatter(1, left_out[:, None], -torch.inf)
    if denominator == "joint":
        own_modality = unit_vectors(term.anchor) @ unit_vectors(gather_views(term.anchor)).T / temperature
        logits = torch.cat([logits, own_modality.scatter(1, torch.stack(rows, dim=1), -torch.inf)], dim=1)
    return sum_over_views(logits.logsumexp(1) - attracted[:, 0], term, denominator)


def sum_over_views(losses: Tensor, term: Term, denominator: Denominator) -> Tensor:
    """The sum of the means over each view, which is twice the mean over the 2n anchors, of I (2n,), bounded: ()."""
    if term.bound == "anchor":
        losses = losses.clamp(max=chance(len(term.key) // 2, denominator) / 2)
    total = 2 * losses.mean()
    return bounded_over_batch(total, term, denominator) if term.bound == "batch" else total


def bounded_over_batch(loss: Tensor, term: Term, denominator: Denominator) -> Tensor:
    """The loss of a term, or chance where the mean over the global batch is above it."""
    end = chance(len(term.key) // 2, denominator)
    return torch.where(mean_over_ranks(loss) < end, loss, end)


def chance(videos: int, denominator: Denominator = "others") -> float:
    """`in_batch_loss` where all similarities are the same: 2 x the log of the candidates, in a batch of `videos`."""
    candidates = {"others": 2 * videos - 1, "literal": 2 * videos - 1, "all": 2 * videos, "joint": 4 * videos - 3}
    return 2 * math.log(candidates[denominator])


def cross_video_loss(term: CrossTerm, temperature: float) -> Tensor:
    """L_VD (or L_VS) across videos: the mean over the videos of view i of

        sum over k of p_k [I(v; d~_k) + I(v~_k; d)]                                              (DCLR Eq. 10)

    which for K = 1 is Eq. 9. Rows of the own video and of the retrieved one are no negatives. Those of d are of the
    batch. Those of d~, which is of the queue, are of the queue too: among rows of the batch, v would know d~ by its
    age, and turn against every d that is new.

    Returns:
        () float32, float64 for float64 inputs.
    """
    n = len(term.anchor) // 2
    v = unit_vectors(term.anchor[:n, None])
    d = unit_vectors(term.key[local_rows(n, term.key.device).same_view[:n], None])
    v_stored, d_stored = unit_vectors(term.stored_rgb), unit_vectors(term.stored_modality)

    def contrast(x: Tensor, positive: Tensor, key: Tensor, exclude: Tensor) -> Tensor:
        """I(x; y+) of Eq. 2, (n, K)."""
        attracted = (x * positive).sum(-1, keepdim=True) / temperature
        excluded = (exclude[..., None] == torch.arange(len(key), device=key.device)).any(2)
        repelled = (x @ unit_vectors(key).T / temperature).masked_fill(excluded, -torch.inf)
        return torch.cat([attracted, repelled], dim=-1).logsumexp(-1) - attracted[..., 0]

    to_found = contrast(v, d_stored, term.stored_key, term.stored_exclude)
    from_found = contrast(v_stored, d, term.key, term.exclude)
    return (term.weight * (to_found + from_found)).sum(1).mean()


@phase("loss")
def reference_losses(
    terms: Sequence[Term],
    temperature: float,
    denominator: Denominator = "others",
    crossing: Sequence[CrossTerm] = (),
) -> Tensor:
    """The losses of `terms`, then of `crossing`, one after the other: (len(terms) + len(crossing),)."""
    in_batch = [in_batch_loss(term, temperature, denominator) for term in terms]
    return torch.stack([*in_batch, *(cross_video_loss(term, temperature) for term in crossing)])


def unit_vectors(features: Tensor) -> Tensor:
    """Unit vectors along the last axis, at least float32; a zero vector stays zero."""
    return normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


class VideoRows(NamedTuple):
    """Where each of the 2n local anchors finds its own video among the 2N keys: (2n,) int64 each."""

    same_view: Tensor
    other_view: Tensor


def local_rows(n: int, device: torch.device) -> VideoRows:
    """Rows of this rank's n videos in the global batch."""
    return video_rows(rank() * n, n, world() * n, device)


def video_rows(first: int, n: int, total: int, device: torch.device) -> VideoRows:
    """Rows of the n videos from number `first` on, in a global batch of `total` videos."""
    view_i = torch.arange(first, first + n, device=device)
    view_j = view_i + total
    return VideoRows(torch.cat([view_i, view_j]), torch.cat([view_j, view_i]))


def gather_views(features: Tensor) -> Tensor:
    """(2n, ...) of every rank to (2N, ...), views kept in order; the gradient comes back summed over ranks."""
    if world() == 1:
        return features
    return gather_rows(features.unflatten(0, (2, -1)), dim=1).flatten(0, 1)


@torch.no_grad()
def similarities(term: Term) -> tuple[Tensor, Tensor]:
    """Mean cosine of an anchor with its positive and with the rows of other videos, for the log.

    The mean over all pairs is the product of the sums, so that no 2n x 2N matrix is needed.
    """
    n = term.anchor.shape[0] // 2
    rows = local_rows(n, term.anchor.device)
    anchor, key = normalize(term.anchor.float(), dim=1), normalize(term.key.float(), dim=1)
    own = torch.stack([(anchor * key[row]).sum(1) for row in rows])
    positive = own[0 if term.same_view else 1].mean()
    others = anchor.sum(0) @ key.sum(0) - own.sum()
    return positive, others / max(1, anchor.shape[0] * (key.shape[0] - 2))
