"""What every method is: a configuration, and a module from a batch of clips to named losses.

The trainer minimises the sum of the losses weighted by `loss_weights`, and knows nothing else of the method.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dclr.augment import Draw
from dclr.data.clips import Batch


@dataclass
class MethodConfig:
    """Base of the methods' configurations.

    Each field is a flag `--method.FIELD`, and the line below it is its help. `__post_init__` refuses values that
    cannot work, so that a wrong flag is reported before any video is read.

    Attributes:
        views: clips of each video that a batch holds, each from another time of the video.
        crops: crops of each view, each with a random window of its own. A batch then holds `views * crops` clips of
            a video: all views with their first crop, then all views with their second.
    """

    views: ClassVar[int] = 2
    crops: ClassVar[int] = 1

    def require(self, field: str, good: bool, expected: str) -> None:
        """Raise ValueError naming the field, its value and what was expected, unless `good`."""
        if not good:
            raise ValueError(f"method.{field}: got {getattr(self, field)}, expected {expected}")


@dataclass
class ContrastiveConfig(MethodConfig):
    """What every contrastive method has: a temperature, and projection heads."""

    temperature: float = 0.07
    """Cosines are divided by it in the loss; the smaller, the more the hardest negatives count."""
    dim: int = 128
    """Features that a projection head returns."""
    hidden: int = 512
    """Features of a projection head's hidden layer."""
    center: bool = False
    """Standardise the input of the heads over the batch; not in the papers, for short runs."""

    def __post_init__(self) -> None:
        self.require("temperature", self.temperature > 0, "a temperature above 0")
        for width in ("dim", "hidden"):
            self.require(width, getattr(self, width) >= 1, "at least 1")


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

        The gradient of the sum with respect to a loss is its weight. Passing the weights to autograd directly, instead
        of computing the sum first, saves the launches of the sum's own backward pass.
        """
        values = list(self.losses.values())
        weight = tuple(weights[name] for name in self.losses)
        gradients = constant(tuple(share * each for each in weight), values[0].device).unbind()
        learned = [(value, gradient) for value, gradient in zip(values, gradients) if value.requires_grad]
        torch.autograd.backward(*zip(*learned))
        return torch.stack([value.detach() for value in values]) @ constant(weight, values[0].device)


@functools.lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A float32 tensor, copied to the device at the first call only."""
    return torch.tensor(values, device=device)


class Method(nn.Module, ABC):
    """Base of the methods. `encoder` is what evaluation takes; `state_dict()` holds all state, queues included."""

    encoder: nn.Module
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
        """Feature map (b, C, T', h', w') of the encoder's inputs, brought to the layout that convolutions are fastest
        in."""
        return self.encoder(*(clip.contiguous(memory_format=torch.channels_last_3d) for clip in clips_bcthw))

    def check(self, global_batch: int, steps_per_epoch: int) -> None:
        """Raise ValueError if the run's sizes cannot work with this method."""

    def start_epoch(self, epoch: int, resumed: bool = False) -> None:
        """Switch on what starts at this epoch, before its first step.

        Args:
            resumed: whether the epoch goes on from a checkpoint, so that what happens once an epoch has happened.
        """

    def after_step(self) -> None:
        """Update the state that changes after the optimiser's step: queues, momentum encoders."""
