"""Signs that a run learns, or does not: the spread of its features, and warnings, each given once.

Shapes: b rows of C pooled features.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, median

import torch
from torch import Tensor

# A cosine's difference between positives and negatives that is as good as none: 0.14 in the logits at temperature 0.07.
SAME = 0.01
# Share by which a loss that is pushed up may pass chance.
BEYOND = 1.1
# Of features of length 1: a standard deviation (1 is the most) and an effective rank that are no description any more.
FLAT, FEW = 0.02, 1.5
# A gradient's norm, in medians of those before.
EXPLODED = 100
# Lines of the log that a median is taken of at least.
ENOUGH = 10


@torch.no_grad()
def effective_rank(features_bc: Tensor) -> Tensor:
    """exp of the entropy of the centred features' normalised singular values: 1 to min(b - 1, C); () float32.

    Roy and Vetterli, EUSIPCO 2007. Features that are all alike have rank 1.
    """
    values = torch.linalg.svdvals(features_bc.float() - features_bc.float().mean(0))
    share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(share).sum().exp()


@torch.no_grad()
def spread(features_bc: Tensor) -> Tensor:
    """Standard deviation over the rows of features of length 1, times sqrt(C), mean over the channels; () float32.

    0 where all are alike, at most 1.
    """
    unit = torch.nn.functional.normalize(features_bc.float(), dim=1)
    return unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5


class Watch:
    """Looks at an epoch's lines of the log for what should not be.

    Args:
        chance: loss -> its value where nothing is told apart.
        pushed_apart: losses whose positives are to be no more alike than others.
    """

    def __init__(self, chance: Mapping[str, float], pushed_apart: frozenset[str]) -> None:
        self.chance, self.pushed_apart = chance, pushed_apart
        self.lines: list[Mapping[str, float]] = []
        self.norms: list[float] = []
        self.given: set[str] = set()

    def add(self, line: Mapping[str, float]) -> None:
        """Note a line of the log."""
        self.lines.append(line)

    def end_epoch(self) -> list[str]:
        """Warnings that the epoch's lines give rise to and that were not given before."""
        found = {**self._similarities(), **self._bounds(), **self._features(), **self._gradients()}
        self.lines.clear()
        new = [text for name, text in found.items() if name not in self.given]
        self.given |= found.keys()
        return new

    def _mean(self, name: str) -> float | None:
        """Mean of a number over the epoch's lines that have it."""
        values = [line[name] for line in self.lines if name in line]
        return fmean(values) if values else None

    def _similarities(self) -> dict[str, str]:
        found = {}
        pairs = {key[: -len("_positive")] for line in self.lines for key in line if key.endswith("_positive")}
        for pair in sorted(pairs):
            term = pair.rpartition("/")[2]
            both = [
                (line[f"{pair}_positive"], line[f"{pair}_negative"])
                for line in self.lines
                if f"{pair}_negative" in line
            ]
            if both and term not in self.pushed_apart and all(p - n < SAME for p, n in both):
                found[pair] = (
                    f"loss/{term} tells nothing apart: through this epoch the similarity of its positives was "
                    f"{fmean(p for p, _ in both):.3f}, and that of its negatives {fmean(n for _, n in both):.3f}"
                )
        return found

    def _bounds(self) -> dict[str, str]:
        found = {}
        for term in sorted(self.pushed_apart & self.chance.keys()):
            value, chance = self._mean(f"loss/{term}"), self.chance[term]
            if value is not None and value > BEYOND * chance:
                found[f"bound/{term}"] = (
                    f"loss/{term} has left its bound: {value:.1f}, where {chance:.1f} means that its two sides know "
                    f"nothing of each other; beyond that it undoes the other terms"
                )
        return found

    def _features(self) -> dict[str, str]:
        rank, std = self._mean("features/rank"), self._mean("features/std")
        if rank is None or std is None or (rank >= FEW and std >= FLAT):
            return {}
        return {"features": f"the features have collapsed: effective rank {rank:.1f}, standard deviation {std:.3f}"}

    def _gradients(self) -> dict[str, str]:
        before, new = self.norms, [line["gradient_norm"] for line in self.lines if "gradient_norm" in line]
        self.norms = (before + new)[-1000:]
        if len(before) < ENOUGH or not new or max(new) <= EXPLODED * median(before):
            return {}
        return {
            "gradients": f"the gradient's norm rose to {max(new):.3g}, from {median(before):.3g} in the median before; "
            f"a lower optim.lr or optim.clip holds it"
        }
