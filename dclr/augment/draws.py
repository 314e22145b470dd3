"""Random draws of a step: mirror flips and colours, one of each per clip, shared by its frames (DCLR Sec. 4.1).

Shapes: n videos on this rank with `views` clips each; rows are those of view 0, then of view 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from dclr.augment.foreground import ForegroundConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
KINETICS_MEAN = (0.43216, 0.394666, 0.37645)
KINETICS_STD = (0.22803, 0.22145, 0.216989)


class Draw:
    """Random numbers of one step.

    They are drawn for the whole global batch, and each rank keeps the rows of its own videos. Several ranks therefore
    see the same numbers as one process with the same global batch.

    Args:
        generator: CPU generator, seeded from the run's seed and the step.
        rank, world: this process and how many there are.
    """

    def __init__(self, generator: torch.Generator, rank: int = 0, world: int = 1) -> None:
        self.generator, self.rank, self.world = generator, rank, world

    def _own(self, drawn_vn: Tensor, n: int) -> Tensor:
        return drawn_vn[:, self.rank * n : (self.rank + 1) * n].reshape(-1)

    def uniform(self, views: int, n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(views * n,) float32 in [low, high): rows of view 0, then of view 1, ..."""
        drawn = torch.rand(views, n * self.world, generator=self.generator)
        return self._own(low + (high - low) * drawn, n)

    def integers(self, views: int, n: int, high: int) -> Tensor:
        """(views * n,) int64 in [0, high)."""
        return self._own(torch.randint(high, (views, n * self.world), generator=self.generator), n)

    def permutations(self, views: int, n: int, derangement: bool = False) -> Tensor:
        """(views, n) int64: a permutation of this rank's n videos for each view.

        Args:
            derangement: only permutations that move every video, for n > 1.
        """
        drawn = [self._permutation(n, derangement) for _ in range(views * self.world)]
        return torch.stack(drawn).unflatten(0, (views, self.world))[:, self.rank]

    def _permutation(self, n: int, derangement: bool) -> Tensor:
        while True:  # about one permutation in three is a derangement, so that few draws suffice
            order = torch.randperm(n, generator=self.generator)
            if not derangement or n == 1 or not (order == torch.arange(n)).any():
                return order

    def chance(self, views: int, n: int, probability: float) -> Tensor:
        """(views * n,) bool, True with the given probability."""
        return self.uniform(views, n) < probability


@dataclass
class AugmentConfig:
    """Mirror flip and colour augmentation of a clip; defaults are DCLR's. A probability or strength of 0 is off."""

    flip: float = 0.5
    """Probability of a mirror flip."""
    grayscale: float = 0.2
    """Probability that a clip loses its colours."""
    jitter: float = 0.8
    """Probability of the colour jitter."""
    brightness: float = 0.4
    """The jitter multiplies the brightness by a factor in [1 - this, 1 + this]."""
    contrast: float = 0.4
    """The same for the contrast."""
    saturation: float = 0.4
    """The same for the saturation."""
    hue: float = 0.1
    """Largest hue shift, as a share of the colour circle."""
    blur: float = 0.5
    """Probability of the Gaussian blur; its kernel is a tenth of the clip's height."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from each colour of a frame in [0, 1], before the encoder."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Then each colour is divided by it; frame differences are only divided."""
    color_shared: bool = False
    """Give a clip and its static frame the same colour augmentation."""
    foreground: ForegroundConfig = field(default_factory=ForegroundConfig)
    """FAME: merge a clip's foreground with another background, before the colours."""

    def __post_init__(self) -> None:
        for name in ("flip", "grayscale", "jitter", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name}: got {getattr(self, name)}, expected a probability in [0, 1]")
        for name in ("brightness", "contrast", "saturation", "hue"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"augment.{name}: got {getattr(self, name)}, expected a strength of at least 0")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"augment.blur_sigma: got {self.blur_sigma}, expected pixels, 0 < low <= high")


class ColorDraw(NamedTuple):
    """Colour parameters of b clips, (b,) each: whether a step is taken (bool), and how strongly (float32)."""

    grayscale: Tensor
    jitter: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    blur: Tensor
    sigma: Tensor


def draw_color(config: AugmentConfig, draw: Draw, views: int, n: int) -> ColorDraw:
    """One colour augmentation per clip of `views * n` clips."""

    def around_one(strength: float) -> Tensor:
        return draw.uniform(views, n, max(0.0, 1 - strength), 1 + strength)

    return ColorDraw(
        grayscale=draw.chance(views, n, config.grayscale),
        jitter=draw.chance(views, n, config.jitter),
        brightness=around_one(config.brightness),
        contrast=around_one(config.contrast),
        saturation=around_one(config.saturation),
        hue=draw.uniform(views, n, -config.hue, config.hue),
        blur=draw.chance(views, n, config.blur),
        sigma=draw.uniform(views, n, *config.blur_sigma),
    )


def color_table(params: ColorDraw) -> Tensor:
    """The same as (b, 6) float32 rows for the kernel `augment_clip`: a step that a clip leaves out has a value that
    changes nothing."""

    def drawn(chosen_b: Tensor, value_b: Tensor, neutral: float) -> Tensor:
        return torch.where(chosen_b, value_b, neutral)

    factors = (drawn(params.jitter, value, 1.0) for value in (params.brightness, params.contrast, params.saturation))
    hue, sigma = drawn(params.jitter, params.hue, 0.0), drawn(params.blur, params.sigma, 0.0)
    return torch.stack([params.grayscale.float(), *factors, hue, sigma], 1)
