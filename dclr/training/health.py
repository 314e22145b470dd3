"""Signs that a run learns, or does not: the spread of its features, and warnings, each given once.

Shapes: b rows of C pooled features.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, median

import torch
from torch import Tensor

# Bounds between what runs logged that learned, and what others did whose objective kept a term at chance or had a
# degenerate optimum: on moving scenes, on two sets of real clips, with batches of 16 and 32 videos.

# Steps that numbers are averaged over, and none is judged before: so long some runs stay on a plateau and learn after.
PATIENCE = 150
# A cosine's difference between positives and negatives: from 0.011 on in runs that learned, at most 0.004 in terms that
# did not. 0.007 is 0.1 in the logits at temperature 0.07.
SAME = 0.007
# Share by which a loss that is pushed up may pass chance: 1.0 within its bound, above 3.5 without.
BEYOND = 1.1
# Effective rank of the features, from 2.5 on in runs that learned. Standard deviation of features of length 1, where 1
# is the most: from 0.43 on in those. No run was seen below these bounds; features that are all alike have 1 and 0.
FEW, FLAT = 2.0, 0.02
# A gradient's norm, in medians of those before: at most 11, and 16 to 92.
EXPLODED = 20
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
    """Looks at the lines of the log, at the end of each epoch, for what should not be.

    Args:
        chance: loss -> its value where nothing is told apart.
        pushed_apart: losses whose positives are to be no more alike than others.
    """

    def __init__(self, chance: Mapping[str, float], pushed_apart: frozenset[str]) -> None:
        self.chance, self.pushed_apart = chance, pushed_apart
        self.first_step: int | None = None
        self.recent: list[tuple[int, Mapping[str, float]]] = []  # of the last PATIENCE steps
        self.norms: list[float] = []  # of the epochs before
        self.new_norms: list[float] = []
        self.given: set[str] = set()

    def add(self, step: int, line: Mapping[str, float]) -> None:
        """Note the line of the log that was written after `step` steps of the run."""
        if self.first_step is None:
            self.first_step = step
        self.recent = [noted for noted in self.recent if noted[0] > step - PATIENCE] + [(step, line)]
        if "gradient_norm" in line:
            self.new_norms.append(line["gradient_norm"])

    def end_epoch(self) -> list[str]:
        """Warnings that the last steps give rise to and that were not given before."""
        found = {**self._bounds(), **self._gradients()}
        if self.recent and self.recent[-1][0] - self.first_step >= PATIENCE:
            found |= {**self._similarities(), **self._features()}
        new = [text for name, text in found.items() if name not in self.given]
        self.given |= found.keys()
        return new

    def _mean(self, name: str) -> float | None:
        """Mean of a number over the recent lines that have it."""
        values = [line[name] for _, line in self.recent if name in line]
        return fmean(values) if values else None

    def _similarities(self) -> dict[str, str]:
        found = {}
        for pair in sorted({key[: -len("_positive")] for _, line in self.recent for key in line if "_positive" in key}):
            term = pair.rpartition("/")[2]
            positive, negative = self._mean(f"{pair}_positive"), self._mean(f"{pair}_negative")
            if term not in self.pushed_apart and negative is not None and positive - negative < SAME:
                found[pair] = (
                    f"loss/{term} tells nothing apart: over the last {PATIENCE} steps the similarity of its positives "
                    f"was {positive:.3f}, and that of its negatives {negative:.3f}"
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
        before, new = self.norms, self.new_norms
        self.norms, self.new_norms = (before + new)[-1000:], []
        if len(before) < ENOUGH or not new or max(new) <= EXPLODED * median(before):
            return {}
        return {
            "gradients": f"the gradient's norm rose to {max(new):.3g}, from {median(before):.3g} in the median before; "
            f"a lower optim.lr or optim.clip holds it"
        }
