"""The table of a launch over ranges: which rows of one tensor are the queries and the keys of each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._common import check_tensors, expect


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
        bound: (L,) float64, what a query counts for in each loss at most, or None.
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
    bound: Tensor | None = None

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
        bound: Sequence[float] | None = None,
    ) -> Ranges:
        """Put down once, for every step.

        Args:
            query, key: the first of the M queries and of the `keys` keys of each of G groups.
            positive: (G, M) int64 rows on the CPU: one of the group's keys, or a constant row.
            rows: number of rows, all in all.
            learned: the first of them get a gradient, the others are constants; default all.
            loss: the loss that each group adds to, 0, 1, ... in this order; default one for each.
            bound: of each loss, what a query counts for at most; above it, it gives no gradient. Default no bounds.

        Raises:
            TypeError, ValueError: rows that are not there, or a positive that could get no gradient.
        """
        learned = rows if learned is None else learned
        check_tensors(positive=positive)
        expect(positive.dtype == torch.int64, "positive", positive.dtype, "int64", TypeError)
        expect(positive.device.type == "cpu", "positive", positive.device, "a tensor on the CPU")
        groups = len(query)
        expect(len(key) == groups, "key", f"{len(key)} first rows", f"as many as of query ({groups})")
        expect(positive.dim() == 2 and len(positive) == groups, "positive", tuple(positive.shape), f"({groups}, M)")
        expect(0 <= learned <= rows, "learned", learned, f"at most the {rows} rows")
        first = torch.tensor([list(query), list(key)], dtype=torch.int64)
        for name, begin, count in (("query", first[0], positive.shape[1]), ("key", first[1], keys)):
            good = not groups or (begin.min() >= 0 and begin.max() + count <= rows)
            expect(good, name, begin.tolist(), f"first of {count} among {rows} rows")
        column = positive - first[1][:, None]
        column = torch.where((column >= 0) & (column < keys), column, -1)
        good = (positive >= 0) & (positive < rows) & ((column >= 0) | (positive >= learned))
        expect(
            bool(good.all()), "positive", positive[~good].tolist(), f"keys of the group, or rows in [{learned}, {rows})"
        )
        loss = list(range(groups) if loss is None else loss)
        ordered = loss == sorted(loss) and set(loss) == set(range(len(set(loss)))) and len(loss) == groups
        expect(ordered, "loss", loss, f"a number for each of {groups} groups: 0, then the same or one more")
        sizes = torch.bincount(torch.tensor(loss, dtype=torch.int64)) * positive.shape[1]
        begin = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        longest = int(sizes.max()) if groups else 0
        if bound is not None:
            expect(len(bound) == len(sizes), "bound", list(bound), f"a number for each of {len(sizes)} losses")
            bound = torch.tensor(bound, dtype=torch.float64)
        loss = torch.tensor(loss, dtype=torch.int64)
        return cls(first, positive, column, loss, begin, rows, keys, learned, longest, bound)

    def to(self, device: torch.device | str) -> Ranges:
        """The same on another device."""
        return Ranges(*(value.to(device) if isinstance(value, Tensor) else value for value in self))
