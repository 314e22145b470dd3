"""What every method is: a module from a batch of clips to named losses.

The trainer sums the losses by `loss_weights`, and knows nothing else of the method.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dclr.augment import Draw
from dclr.data.clips import Batch


class Output(NamedTuple):
    """One step's result.

    Attributes:
        losses: name -> () float32 tensor with gradient, unweighted.
        statistics: name -> () tensor without gradient, for the log.
        features: (b, C) pooled features of clips as evaluation sees them, without gradient, for the log; or None.
    """

    losses: dict[str, Tensor]
    statistics: dict[str, Tensor]
    features: Tensor | None = None

    def backward(self, weights: Mapping[str, float], share: float = 1.0) -> Tensor:
        """Add `share` times the gradients of the sum of the losses times their `weights`; returns the sum, ().

        The gradient to a loss is its weight: handed over as such, it costs no launches.
        """
        values = list(self.losses.values())
        weight = tuple(weights[name] for name in self.losses)
        gradients = _constant(tuple(share * each for each in weight), values[0].device).unbind()
        learned = [(value, gradient) for value, gradient in zip(values, gradients) if value.requires_grad]
        torch.autograd.backward(*zip(*learned))
        return torch.stack([value.detach() for value in values]) @ _constant(weight, values[0].device)


@functools.lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 on the device, copied there once."""
    return torch.tensor(values, device=device)


class Method(nn.Module, ABC):
    """Base of the methods. `encoder` is what evaluation takes; `state_dict()` holds all state, queues included."""

    encoder: nn.Module
    #: Whether some parameters get no gradient in some epochs (terms that start late).
    conditional = False
    #: Losses whose positives are to become no more alike than others.
    pushed_apart: frozenset[str] = frozenset()

    @property
    @abstractmethod
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss in the sum that is minimised."""

    def chance(self, global_batch: int) -> dict[str, float]:
        """Value of losses where nothing is told apart: of a contrastive one, the log of its candidates."""
        return {}

    @abstractmethod
    def forward(self, batch: Batch, draw: Draw) -> Output:
        """Losses of this rank's videos against the global batch."""

    def encode(self, *clips_bcthw: Tensor) -> Tensor:
        """Feature map (b, C, T', h', w') of what the encoder takes, in the layout that convolutions like best."""
        return self.encoder(*(clip.contiguous(memory_format=torch.channels_last_3d) for clip in clips_bcthw))

    def check(self, global_batch: int, steps_per_epoch: int) -> None:
        """Raise ValueError if the run's sizes cannot work with this method."""

    def start_epoch(self, epoch: int, resumed: bool = False) -> None:
        """Switch on what starts at this epoch, before its first step; `resumed` where it goes on from a checkpoint."""

    def after_step(self) -> None:
        """State that changes once the optimiser has stepped: queues, momentum encoders."""
