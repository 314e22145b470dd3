"""Contrastive terms over the two views of a batch (DCLR Eq. 1-2, 6-8), in their one general form.

Shapes: n videos on this rank, N in the global batch, d features. Anchors are (2n, d), view i before view j; keys are
gathered from every rank, (2N, d) in the same order. A term is 2 x the mean over all 2N anchors, which is the paper's
sum of the means over each view.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dclr.distributed import gather_rows, rank, world
from dclr.kernels import info_nce
from dclr.phases import phase

Denominator = Literal["others", "literal", "all", "joint"]


class Rows(NamedTuple):
    """Where each of the 2n local anchors finds its own video among the 2N keys: (2n,) int64 each."""

    same_view: Tensor
    other_view: Tensor


class Term(NamedTuple):
    """Anchors against keys of another (or the same) modality.

    Attributes:
        anchor: (2n, d) with gradient.
        key: (2N, d), gathered, with gradient.
        same_view: whether the positive is the anchor's own row (L_SD) instead of the other view's (L_VS, L_VD).
    """

    anchor: Tensor
    key: Tensor
    same_view: bool = False


def own_rows(n: int, device: torch.device) -> Rows:
    """Rows of this rank's n videos in the global batch."""
    return _rows(rank() * n, n, world() * n, device)


def _rows(start: int, n: int, total: int, device: torch.device) -> Rows:
    first = torch.arange(start, start + n, device=device)
    second = first + total
    return Rows(torch.cat([first, second]), torch.cat([second, first]))


def gather_views(features: Tensor) -> Tensor:
    """(2n, ...) of every rank to (2N, ...), views kept in order; the gradient comes back summed over ranks."""
    if world() == 1:
        return features
    return gather_rows(features.unflatten(0, (2, -1)), dim=1).flatten(0, 1)


@phase("loss")
def contrast(terms: list[Term], temperature: float, denominator: Denominator = "others") -> Tensor:
    """All terms in one launch.

    The denominator of an anchor holds its positive and
      `others`: the keys of other videos, 2N - 1 in all (DCLR Eq. 2 for two modalities);
      `literal`: every key but the anchor's own row, as Eq. 2 is printed. The same for other-view positives; with
        same-view ones the positive is then not in the sum, and the loss can be negative;
      `all`: all 2N keys;
      `joint`: `others` and the anchor modality's rows of other videos.

    Returns:
        (len(terms),) float32 losses.
    """
    n = terms[0].anchor.shape[0] // 2
    literal = denominator == "literal"
    same_view = tuple(term.same_view and not literal for term in terms)
    place = rank() * n, n, world() * n, terms[0].anchor.device
    positive, exclude = _positive_and_excluded(same_view, denominator, *place)
    anchor = key = torch.stack([term.anchor for term in terms])
    if any(term.key is not term.anchor for term in terms):
        key = torch.stack([term.key for term in terms])
    if denominator == "joint":
        own_modality = torch.stack([gather_views(term.anchor) for term in terms])
        key = torch.cat([key, own_modality], dim=1)
    losses = info_nce(anchor, key, positive=positive, exclude=exclude, temperature=temperature, scale=2)
    if literal:
        rows = own_rows(n, anchor.device)
        losses = losses + torch.stack([_positive_moved(term, rows) for term in terms]) / temperature
    return losses


@functools.lru_cache(maxsize=64)
def _positive_and_excluded(
    same_view: tuple[bool, ...], denominator: Denominator, start: int, n: int, total: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """(terms, 2n) rows of the positives and (terms, 2n, E) rows left out: the same in every step, so kept."""
    rows = _rows(start, n, total, device)
    positive, exclude = zip(*(_choose(rows, same) for same in same_view))
    positive, exclude = torch.stack(positive), torch.stack(exclude).unsqueeze(-1)
    if denominator == "all":
        return positive, None
    if denominator == "joint":
        own = torch.stack(rows, dim=-1) + 2 * total
        exclude = torch.cat([exclude, own.expand(len(same_view), -1, -1)], dim=-1)
    return positive, exclude


def _choose(rows: Rows, same_view: bool) -> tuple[Tensor, Tensor]:
    """Positive row and the row that is left out."""
    return (rows.same_view, rows.other_view) if same_view else (rows.other_view, rows.same_view)


def _positive_moved(term: Term, rows: Rows) -> Tensor:
    """What turns a loss with the other view's row as positive into one with the own row, the denominator kept."""
    if not term.same_view:
        return term.anchor.new_zeros((), dtype=torch.float32)
    anchor, key = normalize(term.anchor.float(), dim=1), normalize(term.key.float(), dim=1)
    return 2 * (anchor * (key[rows.other_view] - key[rows.same_view])).sum(1).mean()


@torch.no_grad()
def similarities(term: Term) -> tuple[Tensor, Tensor]:
    """Mean cosine of an anchor with its positive and with the rows of other videos, without any 2n x 2N matrix."""
    n = term.anchor.shape[0] // 2
    rows = own_rows(n, term.anchor.device)
    anchor, key = normalize(term.anchor.float(), dim=1), normalize(term.key.float(), dim=1)
    own = torch.stack([(anchor * key[row]).sum(1) for row in rows])
    positive = own[0 if term.same_view else 1].mean()
    others = anchor.sum(0) @ key.sum(0) - own.sum()
    return positive, others / max(1, anchor.shape[0] * (key.shape[0] - 2))
