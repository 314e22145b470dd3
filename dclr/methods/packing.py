"""All contrastive terms of a step in one kernel launch; equal to the equations of `dclr.methods.contrast`.

A launch for each term would leave a GPU idle: a term of the paper's batch is 80 anchors against 80 keys. Instead, the
tensors of all terms are stacked to one, `rows`, and the kernel is told which rows are the anchors, the keys and the
positives of each group of anchors. That plan depends on sizes alone, and is made once.

Shapes: n videos on this rank, N in the global batch, d features, K entries retrieved for a clip, E excluded keys;
g groups of m anchors.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from dclr.distributed import rank
from dclr.kernels import Ranges, info_nce_ranges
from dclr.methods.contrast import (
    CrossTerm,
    Denominator,
    Term,
    bounded_over_batch,
    chance,
    gather_views,
    in_batch_loss,
    video_rows,
)
from dclr.phases import phase


class LaunchPlan(NamedTuple):
    """What is the same in every step of a launch.

    A group is m anchors that share their keys; the losses of its anchors are added to the loss of one term. An
    in-batch term is one group of all 2n anchors, or two of n where a term across videos needs groups of n. A term
    across videos is 2K groups of n: v with each d~_k as positive, then the K n entries v~ with d, n at a time.

    Attributes:
        ranges: of each group the first rows of its anchors and of its keys, the row of each anchor's positive, and the
            number of its term.
        exclude: (g, m, E) int64 keys that are no negatives, -1 for none, of the groups of the in-batch terms.
        weight: (g, m) ones, the weights of the anchors of the in-batch terms.
    """

    ranges: Ranges
    exclude: Tensor
    weight: Tensor


class TermRows(NamedTuple):
    """Rows at which the tensors of a `Term` begin; whether the loss of each anchor ends at chance."""

    anchor: int
    key: int
    same_view: bool
    bounded: bool


class CrossTermRows(NamedTuple):
    """Rows at which the tensors of a `CrossTerm` begin, and its K."""

    anchor: int
    key: int
    stored_rgb: int
    stored_modality: int
    stored_key: int
    entries: int


class PackedRows(NamedTuple):
    """The tensors of all terms, one below the other.

    Attributes:
        rows: (r, d), each tensor once, however many terms it is part of.
        grad_rows: how many of them, the first ones, get a gradient.
    """

    rows: Tensor
    grad_rows: int
    terms: tuple[TermRows, ...]
    crossing: tuple[CrossTermRows, ...]


class Sizes(NamedTuple):
    """The numbers that a plan depends on: n, N, the number of this rank's first video, r, `grad_rows`, and E."""

    videos: int
    total: int
    first_video: int
    rows: int
    grad_rows: int
    max_excluded: int


@phase("loss")
def packed_losses(
    terms: Sequence[Term],
    temperature: float,
    denominator: Denominator = "others",
    crossing: Sequence[CrossTerm] = (),
) -> Tensor:
    """As `reference_losses`: the losses of `terms`, then of `crossing`, (len(terms) + len(crossing),).

    `joint` terms have more keys than those across videos, and get a launch of their own. A `literal` term of the same
    view, whose positive is missing from its denominator, is computed as its equation reads.
    """
    if denominator == "literal" and any(term.same_view for term in terms):
        rest = [term for term in terms if not term.same_view]
        packed = iter(packed_losses(rest, temperature, denominator, crossing).unbind() if rest or crossing else ())
        alone = [in_batch_loss(term, temperature, denominator) if term.same_view else next(packed) for term in terms]
        return torch.stack([*alone, *packed])
    if denominator == "joint" and terms and crossing:
        in_batch = packed_losses(terms, temperature, "joint")
        return torch.cat([in_batch, packed_losses((), temperature, crossing=crossing)])
    anchor, key, *_ = (*terms, *crossing)[0]
    n, total = len(anchor) // 2, len(key) // 2
    packed = _pack(terms, crossing, denominator == "joint")
    max_excluded = crossing[0].exclude.shape[2] if crossing else 1
    sizes = n, total, rank() * n, len(packed.rows), packed.grad_rows, max_excluded
    plan = _plan(packed.terms, packed.crossing, denominator, sizes, packed.rows.device)
    exclude, weight = plan.exclude, None
    if crossing:
        weight = torch.cat([plan.weight, *(part for term in crossing for part in _by_group(term.weight))])
        excludes = ((_by_group(term.stored_exclude)[0], _by_group(term.exclude)[1]) for term in crossing)
        exclude = torch.cat([exclude, *(part for parts in excludes for part in parts)])
    losses = info_nce_ranges(
        packed.rows, plan.ranges, exclude=exclude, weight=weight, temperature=temperature, scale=1 / n
    )
    if any(term.bound == "batch" for term in terms):
        parts = [
            bounded_over_batch(loss, term, denominator) if term.bound == "batch" else loss
            for loss, term in zip(losses, terms)
        ]
        losses = torch.stack([*parts, *losses[len(terms) :]])
    return losses


def _by_group(values: Tensor) -> tuple[Tensor, Tensor]:
    """(n, K, ...) values of the retrieved entries in the order of the 2K groups of `LaunchPlan`: (K, n, ...) twice."""
    return values.transpose(0, 1), values.reshape(-1, len(values), *values.shape[2:])


def _pack(terms: Sequence[Term], crossing: Sequence[CrossTerm], joint: bool) -> PackedRows:
    """Stack the tensors; with `joint`, an anchor's modality is among the keys of its term."""
    pieces: list[Tensor] = []
    keys = [torch.cat([term.key, gather_views(term.anchor)]) if joint else term.key for term in terms]
    in_batch = [
        TermRows(_row_offset(pieces, term.anchor), _row_offset(pieces, key), term.same_view, term.bound == "anchor")
        for term, key in zip(terms, keys)
    ]
    learned = [(_row_offset(pieces, term.anchor), _row_offset(pieces, term.key)) for term in crossing]
    grad_rows = sum(map(len, pieces))
    across = [
        CrossTermRows(
            *offsets,
            _row_offset(pieces, term.stored_rgb.flatten(0, 1)),
            _row_offset(pieces, term.stored_modality.flatten(0, 1)),
            _row_offset(pieces, term.stored_key),
            term.weight.shape[1],
        )
        for offsets, term in zip(learned, crossing)
    ]
    return PackedRows(torch.cat(pieces), grad_rows, tuple(in_batch), tuple(across))


def _row_offset(pieces: list[Tensor], piece: Tensor) -> int:
    """Row at which `piece` begins; it is added to the pieces unless it is one of them."""
    offset = 0
    for other in pieces:
        if other is piece:
            return offset
        offset += len(other)
    pieces.append(piece)
    return offset


@torch.compiler.assume_constant_result
def _plan(
    terms: tuple[TermRows, ...],
    crossing: tuple[CrossTermRows, ...],
    denominator: Denominator,
    sizes: tuple[int, ...],
    device: torch.device,
) -> LaunchPlan:
    """As `_new_plan`; a compiled step holds it as a constant.

    The sizes come as a plain tuple: torch.compile would hand a `Sizes` over without its values.
    """
    return _new_plan(terms, crossing, denominator, Sizes(*sizes), device)


class _Group(NamedTuple):
    """First rows of the anchors and of the keys, (m,) rows of the positives, number of the term, and (m, E) `exclude`,
    which the terms across videos bring anew in each step."""

    anchor: int
    key: int
    positive: Tensor
    loss_index: int
    exclude: Tensor | None = None


@functools.lru_cache(maxsize=64)
def _new_plan(
    terms: tuple[TermRows, ...],
    crossing: tuple[CrossTermRows, ...],
    denominator: Denominator,
    sizes: Sizes,
    device: torch.device,
) -> LaunchPlan:
    group_size = sizes.videos if crossing else 2 * sizes.videos
    groups: list[_Group] = []
    for number, term in enumerate(terms):
        groups += _in_batch_groups(number, term, denominator, sizes, group_size)
    for number, term in enumerate(crossing, start=len(terms)):
        groups += _cross_video_groups(number, term, sizes)
    ranges = Ranges.of(
        [group.anchor for group in groups],
        [group.key for group in groups],
        torch.stack([group.positive for group in groups]),
        rows=sizes.rows,
        keys=(4 if denominator == "joint" else 2) * sizes.total,
        learned=sizes.grad_rows,
        loss=[group.loss_index for group in groups],
        bound=_bounds_of_terms(terms, crossing, denominator, sizes.total),
    )
    given = [group.exclude for group in groups if group.exclude is not None]
    exclude = torch.stack(given) if given else torch.empty(0, group_size, 1, dtype=torch.int64)
    exclude = pad(exclude, (0, max(0, sizes.max_excluded - exclude.shape[2])), value=-1)
    return LaunchPlan(ranges.to(device), exclude.to(device), torch.ones(exclude.shape[:2], device=device))


def _bounds_of_terms(
    terms: Sequence[TermRows], crossing: Sequence[CrossTermRows], denominator: Denominator, total: int
) -> list[float] | None:
    """What an anchor of each term counts for at most: chance, or anything. None where nothing is bounded."""
    if not any(term.bounded for term in terms):
        return None
    end = chance(total, denominator) / 2
    return [end if term.bounded else math.inf for term in terms] + [math.inf] * len(crossing)


def _in_batch_groups(
    number: int, term: TermRows, denominator: Denominator, sizes: Sizes, group_size: int
) -> Iterator[_Group]:
    rows = video_rows(sizes.first_video, sizes.videos, sizes.total, torch.device("cpu"))
    positive, exclude = (rows.same_view, rows.other_view) if term.same_view else (rows.other_view, rows.same_view)
    exclude = exclude[:, None]
    if denominator == "joint":
        exclude = torch.cat([exclude, torch.stack(rows, dim=-1) + 2 * sizes.total], dim=-1)
    if denominator == "all":
        exclude = torch.full_like(exclude, -1)
    for first in range(0, 2 * sizes.videos, group_size):
        part = slice(first, first + group_size)
        yield _Group(term.anchor + first, term.key, term.key + positive[part], number, exclude[part])


def _cross_video_groups(number: int, term: CrossTermRows, sizes: Sizes) -> Iterator[_Group]:
    n, entries = sizes.videos, term.entries
    entry = torch.arange(n * entries)  # of video `entry // K`
    for k in range(entries):  # v with d~_k
        yield _Group(term.anchor, term.stored_key, term.stored_modality + entry[k::entries], number)
    for first in range(0, n * entries, n):  # v~ with d
        own = term.key + sizes.first_video + entry[first : first + n] // entries
        yield _Group(term.stored_rgb + first, term.key, own, number)
