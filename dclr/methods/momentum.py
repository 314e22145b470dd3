"""What the momentum methods share: the averaged key encoder, the queue of negatives, the multi-positive loss."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class MomentumCopy(nn.Module):
    """k <- m k + (1 - m) q for the parameters of a module; its BatchNorm buffers run their own course.

    Args:
        source: the module to follow.
        momentum: m.
    """

    def __init__(self, source: nn.Module, momentum: float = 0.999) -> None:
        super().__init__()
        self.module, self.momentum = copy.deepcopy(source).requires_grad_(False), momentum

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """One step of the average."""
        for own, new in zip(self.module.parameters(), source.parameters()):
            own.lerp_(new, 1 - self.momentum)


class KeyQueue(nn.Module):
    """Normalised keys, (length, dim) float32, first in, first out; random directions until they are overwritten."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", normalize(torch.randn(length, dim), dim=1))
        self.pointer = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"pointer": self.pointer}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.pointer = state["pointer"]

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Overwrite the oldest keys with (m, dim) new ones, wrapping at the end."""
        length = self.keys.shape[0]
        keys = keys[-length:]
        rows = (self.pointer + torch.arange(keys.shape[0], device=keys.device)) % length
        self.keys.index_copy_(0, rows, keys.to(self.keys.dtype))
        self.pointer = (self.pointer + keys.shape[0]) % length


def multi_positive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """-log of the summed softmax over the positives, averaged over rows (the released DCLR code's loss).

    Args:
        logits: (n, 1 + L), already divided by the temperature.
        positive: (n, 1 + L) bool, at least one per row.

    Returns:
        () tensor; the difference of two logsumexp, so that it stays finite where every positive underflows.
    """
    chosen = logits.masked_fill(~positive, -torch.inf)
    return (logits.logsumexp(1) - chosen.logsumexp(1)).mean()
