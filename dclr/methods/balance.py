"""How the attracting terms of an objective share the encoder. Ours; the papers add their terms.

Of two terms that share an encoder, the one that leaves chance first moves it steadily, while the gradient of the other
is still little but noise: the other then often stays at chance, whatever fixed weights the two have. So a term that is
ahead waits: instead of the sum of the losses L_k, training minimises

    sum over k of 1 / (c - L_k)

c being chance, the value of a term that knows nothing: it maximises the harmonic mean of the terms' progress. The
gradient of each term is thereby divided by the square of its own progress.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dclr.distributed import mean_over_ranks
from dclr.methods.base import constant

# Nats below chance up to which a term counts as being there.
LEAST_PROGRESS = 0.05


def by_progress(losses: Mapping[str, Tensor], chance: Mapping[str, float]) -> dict[str, Tensor]:
    """The same values, with gradients divided by (c - L_k)^2, and scaled so that the mean of these factors is 1.

    Processes agree on the factors, which are those of the global batch.

    Args:
        losses: () each.
        chance: value of each where it knows nothing.
    """
    values = torch.stack([loss.detach() for loss in losses.values()])
    level = constant(tuple(chance[name] for name in losses), values.device)
    factors = (level - mean_over_ranks(values)).clamp(min=LEAST_PROGRESS) ** -2
    factors = factors / factors.mean()
    return {name: factor * loss + (1 - factor) * loss.detach() for (name, loss), factor in zip(losses.items(), factors)}
