"""What every method is: a module from a batch of clips to named losses.

The trainer sums the losses by `loss_weights`, and knows nothing else of the method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
    """

    losses: dict[str, Tensor]
    statistics: dict[str, Tensor]


class Method(nn.Module, ABC):
    """Base of the methods. `encoder` is what evaluation takes; `state_dict()` holds all state, queues included."""

    encoder: nn.Module
    #: Whether some parameters get no gradient in some epochs (terms that start late).
    conditional = False

    @property
    @abstractmethod
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss in the sum that is minimised."""

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
