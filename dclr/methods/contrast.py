"""Contrastive terms of a step (DCLR Eq. 1-2, 6-10), in their one general form and in one launch.

Shapes: n videos on this rank, N in the global batch, d features, K entries retrieved for a clip. Anchors are (2n, d),
view i before view j; keys are gathered from every rank, (2N, d) in the same order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from dclr.distributed import gather_rows, rank, world
from dclr.kernels import Ranges, info_nce_ranges
from dclr.phases import phase

Denominator = Literal["others", "literal", "all", "joint"]


class Rows(NamedTuple):
    """Where each of the 2n local anchors finds its own video among the 2N keys: (2n,) int64 each."""

    same_view: Tensor
    other_view: Tensor


class Term(NamedTuple):
    """Anchors against keys of another (or the same) modality: 2 x the mean over all 2n anchors.

    That is the paper's sum of the means over each view.

    Attributes:
        anchor: (2n, d) with gradient.
        key: (2N, d), gathered, with gradient.
        same_view: whether the positive is the anchor's own row (L_SD) instead of the other view's (L_VS, L_VD).
    """

    anchor: Tensor
    key: Tensor
    same_view: bool = False


class CrossTerm(NamedTuple):
    """DCLR Eq. 10, and with K = 1 Eq. 9: mean_n sum_k p_k [I(v; d~_k) + I(v~_k; d)], for view i.

    The negatives of both are the in-batch rows of d whose video is neither the own nor the retrieved one.

    Attributes:
        anchor: (2n, d) projected clips v, with gradient.
        key: (2N, d) projected d (or s), gathered, with gradient.
        rgb, mode: (n, K, d) projections v~_k and d~_k of the retrieved entries.
        weight: (n, K) p_k.
        exclude: (n, K, E) int64 rows of `key` that are no negatives, -1 for none.
    """

    anchor: Tensor
    key: Tensor
    rgb: Tensor
    mode: Tensor
    weight: Tensor
    exclude: Tensor


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
def contrast(
    terms: Sequence[Term],
    temperature: float,
    denominator: Denominator = "others",
    crossing: Sequence[CrossTerm] = (),
) -> Tensor:
    """All terms in one launch, but for `joint` ones, which have more keys than those across videos.

    The denominator of an anchor of `terms` holds its positive and
      `others`: the keys of other videos, 2N - 1 in all (DCLR Eq. 2 for two modalities);
      `literal`: every key but the anchor's own row, as Eq. 2 is printed. The same for other-view positives; with
        same-view ones the positive is then not in the sum, and the loss can be negative;
      `all`: all 2N keys;
      `joint`: `others` and the anchor modality's rows of other videos.

    Returns:
        (len(terms) + len(crossing),) float32 losses.
    """
    if denominator == "joint" and terms and crossing:
        return torch.cat([contrast(terms, temperature, "joint"), contrast((), temperature, "others", crossing)])
    anchor, key, *_ = (*terms, *crossing)[0]
    n, total = len(anchor) // 2, len(key) // 2
    pieces: list[Tensor] = []

    def place(piece: Tensor) -> int:
        """The first of its rows among all; a tensor in several roles has one place."""
        first = 0
        for other in pieces:
            if other is piece:
                return first
            first += len(other)
        pieces.append(piece)
        return first

    keys = [torch.cat([term.key, gather_views(term.anchor)]) if denominator == "joint" else term.key for term in terms]
    in_batch = tuple((place(term.anchor), place(key), term.same_view) for term, key in zip(terms, keys))
    across = [(place(term.anchor), place(term.key)) for term in crossing]
    learned = sum(map(len, pieces))
    across = tuple(
        (*places, place(term.rgb.flatten(0, 1)), place(term.mode.flatten(0, 1)), term.rgb.shape[1])
        for places, term in zip(across, crossing)
    )
    rows = torch.cat(pieces)
    width = crossing[0].exclude.shape[2] if crossing else 1
    sizes = n, total, len(rows), learned, width
    layout = _layout(in_batch, across, denominator, rank() * n, *sizes, rows.device)
    weight, exclude = None, layout.exclude
    if crossing:  # for v with each d~ a group, then for the entries as they lie, n to a group
        weight = torch.cat(
            [layout.weight, *(w for term in crossing for w in (term.weight.T, term.weight.reshape(-1, n)))]
        )
        excluded = (e for term in crossing for e in (term.exclude.transpose(0, 1), term.exclude.reshape(-1, n, width)))
        exclude = torch.cat([exclude, *excluded])
    losses = info_nce_ranges(rows, layout.ranges, exclude=exclude, weight=weight, temperature=temperature, scale=1 / n)
    if denominator == "literal" and terms:
        places = own_rows(n, rows.device)
        moved = [_positive_moved(term, places) for term in terms] + [losses.new_zeros(()) for _ in crossing]
        losses = losses + torch.stack(moved) / temperature
    return losses


class _Layout(NamedTuple):
    """What of a launch is the same in every step; `exclude` (g, m, E) and `weight` (g, m) are of in-batch groups."""

    ranges: Ranges
    exclude: Tensor
    weight: Tensor


@torch.compiler.assume_constant_result
def _layout(*what: Any) -> _Layout:
    """As `_new_layout`; a compiled step holds it as a constant."""
    return _new_layout(*what)


@functools.lru_cache(maxsize=64)
def _new_layout(
    terms: tuple[tuple[int, int, bool], ...],
    crossing: tuple[tuple[int, int, int, int, int], ...],
    denominator: Denominator,
    start: int,
    n: int,
    total: int,
    count: int,
    learned: int,
    width: int,
    device: torch.device,
) -> _Layout:
    """Groups of n queries, or of 2n where all are in-batch.

    Args:
        terms: first rows of anchors and keys, and whether positives are of the same view.
        crossing: first rows of anchors, keys, v~ and d~, and K.
        width: least number of excluded keys.
    """
    size = n if crossing else 2 * n
    rows = _rows(start, n, total, torch.device("cpu"))
    query, key, positive, exclude, owner = [], [], [], [], []
    for number, (anchor_first, key_first, same_view) in enumerate(terms):
        found, left_out = _choose(rows, same_view and denominator != "literal")
        left_out = left_out[:, None]
        if denominator == "joint":
            left_out = torch.cat([left_out, torch.stack(rows, dim=-1) + 2 * total], dim=-1)
        for first in range(0, 2 * n, size):
            part = slice(first, first + size)
            query.append(anchor_first + first)
            key.append(key_first)
            positive.append(key_first + found[part])
            exclude.append(left_out[part])
            owner.append(number)
    for number, (anchor_first, key_first, rgb_first, mode_first, entries) in enumerate(crossing, start=len(terms)):
        entry = torch.arange(n * entries)
        for k in range(entries):  # v with d~_k
            query.append(anchor_first)
            positive.append(mode_first + entry[k::entries])
        for first in range(0, n * entries, n):  # v~ with d
            query.append(rgb_first + first)
            positive.append(key_first + start + entry[first : first + n] // entries)
        key += [key_first] * 2 * entries
        owner += [number] * 2 * entries
    keys = 4 * total if denominator == "joint" else 2 * total
    where = Ranges.of(query, key, torch.stack(positive), rows=count, keys=keys, learned=learned, loss=owner)
    left_out = torch.stack(exclude) if exclude else torch.empty(0, n, 1, dtype=torch.int64)
    if denominator == "all":
        left_out = torch.full_like(left_out, -1)
    left_out = pad(left_out, (0, max(0, width - left_out.shape[2])), value=-1)
    return _Layout(where.to(device), left_out.to(device), torch.ones(left_out.shape[:2], device=device))


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
