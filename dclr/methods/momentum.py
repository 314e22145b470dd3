"""What the momentum methods share: the averaged key encoder, the queue of negatives, the losses against it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dclr.augment import Draw
from dclr.distributed import gather_rows, rank, world
from dclr.kernels import info_nce


class MomentumCopy(nn.Module):
    """A slow copy of a module: k <- m k + (1 - m) q for its parameters (MoCo Eq. 2).

    BatchNorm's running statistics are not averaged: the copy keeps those of its own forward passes.

    Args:
        source: the module to follow.
        momentum: m.
    """

    def __init__(self, source: nn.Module, momentum: float = 0.999) -> None:
        super().__init__()
        self.module, self.momentum = copy.deepcopy(source).requires_grad_(False), momentum

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """Move the copy towards `source` by one step."""
        for own, new in zip(self.module.parameters(), source.parameters()):
            own.lerp_(new, 1 - self.momentum)


class KeyQueue(nn.Module):
    """Unit keys, (length, dim) float32, first in, first out. It starts full of random directions, as MoCo's does."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", normalize(torch.randn(length, dim), dim=1))
        self.pointer = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"pointer": self.pointer}

    def set_extra_state(self, state: dict[str, int]) -> None:
        if not 0 <= state["pointer"] < len(self.keys):
            raise ValueError(f"a queue of {len(self.keys)} keys with {state}")
        self.pointer = state["pointer"]

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Overwrite the oldest keys with (m, dim) new ones, wrapping at the end."""
        length = self.keys.shape[0]
        keys = keys[-length:]
        rows = (self.pointer + torch.arange(keys.shape[0], device=keys.device)) % length
        self.keys.index_copy_(0, rows, keys.to(self.keys.dtype))
        self.pointer = (self.pointer + keys.shape[0]) % length


@torch.no_grad()
def encode_shuffled(encode: Callable[[Tensor], Tensor], clip: Tensor, draw: Draw) -> Tensor:
    """`encode(clip)`, but the clips of all processes are first shuffled among them (MoCo Sec. 3.3).

    BatchNorm mixes the clips that a process encodes together. If a query and its key were encoded among the same
    videos, their common statistics would give the key away, and the loss would fall without learning.

    Args:
        encode: (n, ...) to (n, d), each row from its own clip, but for BatchNorm's statistics.
        clip: (n, ...), of one shape on every process.

    Returns:
        (n, d), in the order of `clip`.
    """
    n = clip.shape[0]
    order = torch.randperm(n * world(), generator=draw.generator).to(clip.device, non_blocking=True)
    own = slice(rank() * n, (rank() + 1) * n)
    keys = encode(gather_rows(clip)[order[own]])
    return gather_rows(keys)[order.argsort()[own]]


def queue_contrast(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE of queries with their own keys against a queue of negatives (MoCo Eq. 1), by cosine.

    Args:
        query: (n, d) floating, with gradient.
        key: (n, d) of the same dtype, taken without gradient.
        queue: (length, d) of the same dtype.

    Returns:
        () mean over the queries.
    """
    return info_nce(query, queue, positive=key.detach()[:, None], temperature=temperature)


def queue_chance(length: int) -> float:
    """`queue_contrast` where all similarities are the same: the log of the candidates."""
    return math.log(1 + length)


@torch.no_grad()
def queue_similarities(query: Tensor, key: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine of queries (n, d) with their keys (n, d) and with a queue (length, d) of unit rows."""
    query, key = normalize(query, dim=1), normalize(key, dim=1)
    return (query * key).sum(1).mean(), (query.mean(0) * queue.mean(0)).sum()


def check_queue(length: int, keys: int) -> None:
    """Raise ValueError where a queue of `length` cannot hold the `keys` of one step."""
    if length < keys:
        raise ValueError(f"method.queue: got {length}, expected at least the {keys} keys of one step")


def multi_positive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """-log of the summed softmax over the positives, averaged over rows (the released DCLR code's loss).

    Args:
        logits: (n, 1 + L), already divided by the temperature.
        positive: (n, 1 + L) bool, at least one per row.

    Returns:
        () tensor, computed as the difference of two logsumexp: the softmax of every positive may be 0 in float32,
        whose logarithm would be infinite.
    """
    chosen = logits.masked_fill(~positive, -torch.inf)
    return (logits.logsumexp(1) - chosen.logsumexp(1)).mean()
