"""Random draws of a training step, and the augmentation of a whole batch of clips on its device.

kornia's functions are the reference, and run on CPUs; on a GPU `dclr.kernels.augment_clip` does the same in one op.
Every draw is temporally consistent: one per clip, shared by its frames (DCLR Sec. 4.1).
Shapes: b clips, c = 3 channels, t frames, h x w pixels; a batch of n videos has b = 2n clips, view i before view j.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from kornia.enhance import adjust_hue, adjust_saturation
from kornia.filters import gaussian_blur2d
from torch import Tensor

from dclr.foreground import ForegroundConfig, blur_size, foreground_mask
from dclr.kernels import Augmented, augment_clip, decouple, merge_foreground
from dclr.kernels._common import runs_triton
from dclr.phases import phase

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)


class Draw:
    """Random numbers of one step, drawn for the global batch, of which a rank keeps the rows of its own videos.

    R ranks therefore see the same numbers as one process with the same global batch.

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
        """(views, n) int64: a permutation of this rank's n videos for each view; as derangement, n > 1, none stays."""
        drawn = [self._permutation(n, derangement) for _ in range(views * self.world)]
        return torch.stack(drawn).unflatten(0, (views, self.world))[:, self.rank]

    def _permutation(self, n: int, derangement: bool) -> Tensor:
        while True:  # every third permutation or so is a derangement
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
    jitter: float = 0.8
    """Probability of the colour jitter."""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    """Largest hue shift, as a share of the colour circle."""
    blur: float = 0.5
    """Probability of the Gaussian blur; its kernel is a tenth of the clip's height."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
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
    """Colour parameters, one of each per clip, (b,)."""

    grayscale: Tensor
    jitter: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    blur: Tensor
    sigma: Tensor


class Streams(NamedTuple):
    """Normalised encoder inputs, (b, 3, T, h, w) each: the clip v, its static frame s, its frame difference d."""

    rgb: Tensor
    static: Tensor
    difference: Tensor


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
    """(b, 6) float32 rows of `augment_clip`, neutral where a clip's draw leaves a step out."""

    def drawn(chosen_b: Tensor, value_b: Tensor, neutral: float) -> Tensor:
        return torch.where(chosen_b, value_b, neutral)

    factors = (drawn(params.jitter, value, 1.0) for value in (params.brightness, params.contrast, params.saturation))
    hue, sigma = drawn(params.jitter, params.hue, 0.0), drawn(params.blur, params.sigma, 0.0)
    return torch.stack([params.grayscale.float(), *factors, hue, sigma], 1)


def _where(mask_b: Tensor, changed: Tensor, clip_bcthw: Tensor) -> Tensor:
    return torch.where(mask_b.view(-1, 1, 1, 1, 1), changed, clip_bcthw)


def _luma(clip_bcthw: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, device=clip_bcthw.device, dtype=clip_bcthw.dtype).view(1, 3, 1, 1, 1)
    return (clip_bcthw * weights).sum(1, keepdim=True)


def _jitter(clip_bcthw: Tensor, config: AugmentConfig, params: ColorDraw) -> Tensor:
    """Brightness, contrast, saturation, hue, each multiplicative about its neutral value and clamped to [0, 1]."""
    b, c, t, h, w = clip_bcthw.shape
    out = clip_bcthw
    if config.brightness:
        out = (out * params.brightness.view(-1, 1, 1, 1, 1)).clamp(0, 1)
    if config.contrast:
        mean = _luma(out).mean((1, 2, 3, 4), keepdim=True)
        out = (mean + (out - mean) * params.contrast.view(-1, 1, 1, 1, 1)).clamp(0, 1)
    tall = out.reshape(b, c, t * h, w)  # pointwise steps need no notion of frames
    if config.saturation:
        tall = adjust_saturation(tall, params.saturation)
    if config.hue:
        tall = adjust_hue(tall, params.hue * 2 * math.pi)
    return tall.view(b, c, t, h, w)


def _blur(clip_bcthw: Tensor, sigma_b: Tensor) -> Tensor:
    b, c, t, h, w = clip_bcthw.shape
    kernel = blur_size(h)
    frames = clip_bcthw.transpose(1, 2).reshape(b * t, c, h, w).contiguous()  # kornia 0.8 takes views of them
    sigma = sigma_b.repeat_interleave(t)[:, None].expand(-1, 2)
    return gaussian_blur2d(frames, (kernel, kernel), sigma).view(b, t, c, h, w).transpose(1, 2)


def augment_color(clip_bcthw: Tensor, config: AugmentConfig, params: ColorDraw) -> Tensor:
    """Grayscale, jitter and blur, in this order, each on the clips whose draw says so.

    Args:
        clip_bcthw: (b, 3, t, h, w) float in [0, 1].

    Returns:
        A new tensor of the same shape and dtype in [0, 1].
    """
    params = ColorDraw(*(value.to(clip_bcthw.device, non_blocking=True) for value in params))
    out = clip_bcthw
    if config.grayscale:
        out = _where(params.grayscale, _luma(out).expand_as(out), out)
    if config.jitter:
        out = _where(params.jitter, _jitter(out, config, params), out)
    if config.blur and blur_size(out.shape[-2]) > 1:  # a kernel of one pixel is the identity
        out = _where(params.blur, _blur(out, params.sigma), out)
    return out


def _clips_bcthw(clips: Tensor) -> Tensor:
    """(views, n, t, h, w, 3) to (views * n, 3, t, h, w), a view: nothing is copied."""
    return clips.flatten(0, 1).permute(0, 4, 1, 2, 3)


class Augment:
    """Builds a step's encoder inputs from decoded clips, on the clips' device.

    Args:
        config: flip and colour augmentation.
        diff: `forward17`: x_{t+1} - x_t over T+1 frames (DCLR Eq. 4); `roll16`: x_t - x_{t-1} over T frames, the
            first minus the last (the released code).
        diff_source: difference of the `raw` clip or of the colour-`augmented` one.
    """

    def __init__(self, config: AugmentConfig, diff: str = "forward17", diff_source: str = "raw") -> None:
        self.config, self.diff, self.diff_source = config, diff, diff_source
        #: Of the last clips merged, for the log: the share in which nothing moves, so that a mask says nothing.
        self.statistics: dict[str, Tensor] = {}

    @phase("augment")
    def rgb(self, clips: Tensor, draw: Draw) -> Tensor:
        """Flipped, colour-augmented, normalised clips.

        Args:
            clips: (views, n, T+1, h, w, 3) uint8; the last frame, which only the difference needs, is left out.

        Returns:
            (views * n, 3, T, h, w) float32; from the fused kernel in autocast's dtype and channels_last_3d.
        """
        views, n, frames = clips.shape[:3]
        flip = self._flip(clips, draw)
        colors = draw_color(self.config, draw, views, n)
        background = self._background(views, n, draw)
        clip, flip = self._merged(_clips_bcthw(clips)[:, :, : frames - 1], flip, background)
        if runs_triton(clip):
            return self._fused(clip, flip, colors).rgb
        return self._normalize(augment_color(_flipped(clip, flip), self.config, colors))

    @phase("augment")
    def streams(self, clips: Tensor, draw: Draw, static_clips: Tensor | None = None) -> Streams:
        """Clip, static frame and frame difference (DCLR Eq. 3-4), sharing crop and flip.

        Args:
            clips: (views, n, T+1, h, w, 3) uint8.
            static_clips: clips to take the static frame from instead, with a crop of their own; they get a flip of
                their own too (the released code). Same shape.

        Returns:
            Streams of (views * n, 3, T, h, w) float32; from the fused kernel, which makes those of Eq. 3-4, in
            autocast's dtype and channels_last_3d. The static frame is expanded over T, not copied.
        """
        views, n, frames = clips.shape[:3]
        flip = self._flip(clips, draw)
        index = draw.integers(views, n, frames - 1).to(clips.device, non_blocking=True)
        colors = draw_color(self.config, draw, views, n)
        static_colors = colors if self.config.color_shared else draw_color(self.config, draw, views, n)
        background = self._background(views, n, draw)

        whole, flip = self._merged(_clips_bcthw(clips), flip, background)
        as_published = (self.diff, self.diff_source) == ("forward17", "raw")
        if as_published and static_clips is None and runs_triton(whole):
            rgb, static, difference = self._fused(whole, flip, colors, index, static_colors)
            return Streams(rgb, static.expand_as(rgb), difference)
        raw = decouple(whole, index, flip=flip)
        rgb, static, difference = raw.rgb, raw.static, raw.difference
        if static_clips is not None:
            # A crop of its own has a mask of its own, but the background of the same video.
            own, own_flip = self._merged(_clips_bcthw(static_clips), self._flip(clips, draw), background)
            static = decouple(own, index, flip=own_flip).static
        if as_published:
            rgb = augment_color(rgb, self.config, colors)
        else:
            rgb, difference = self._difference_variant(_flipped(whole, flip), colors)
        static = self._normalize(augment_color(static[:, :, :1], self.config, static_colors))
        return Streams(self._normalize(rgb), static.expand_as(rgb), difference / self._channel(self.config.std, rgb))

    def _fused(
        self,
        clip_bcthw: Tensor,
        flip_b: Tensor | None,
        colors: ColorDraw,
        index: Tensor | None = None,
        static_colors: ColorDraw | None = None,
    ) -> Augmented:
        """The same augmentation by the kernel; clips that were merged are flipped already."""
        config, device = self.config, clip_bcthw.device

        def table(drawn: ColorDraw | None) -> Tensor | None:
            return None if drawn is None else color_table(drawn).to(device, non_blocking=True)

        autocast = torch.is_autocast_enabled(device.type)
        return augment_clip(
            clip_bcthw,
            table(colors),
            static_index=index,
            static_color=table(static_colors),
            flip=flip_b,
            mean=config.mean,
            std=config.std,
            blur_size=blur_size(clip_bcthw.shape[-2]) if config.blur else 1,
            dtype=torch.get_autocast_dtype(device.type) if autocast else torch.float32,
        )

    def _background(self, views: int, n: int, draw: Draw) -> Tensor | None:
        """Clip that each of the first clips, of one view or of all, takes its background from; None where none does.

        A batch of one video, or for `intra` a single view, has no other to merge with.
        """
        config = self.config.foreground
        if not config.merges or (views if config.background == "intra" else n) < 2:
            return None
        order = torch.arange(views * n).view(views, n)
        if config.background == "intra":
            other = order.roll(-1, 0)
        else:
            other = order[:, :1] + draw.permutations(views, n, config.perm == "derangement")
        return (other[:1] if config.views == "single" else other).flatten()

    def _merged(self, clip_bcthw: Tensor, flip_b: Tensor, background: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Clips after FAME's merge, and the flip that is still to do: none where they were flipped to be merged."""
        if background is None:
            return clip_bcthw, flip_b
        config, count = self.config.foreground, len(background)
        mask = foreground_mask(clip_bcthw[:count], config, flip_b[:count])
        self.statistics = {"augment/still_clips": mask.still.float().mean()}
        # Clips stay uint8 where each pixel is of one or the other.
        dtype = torch.float32 if config.mask == "gauss" else clip_bcthw.dtype
        background = background.to(clip_bcthw.device, non_blocking=True)
        return merge_foreground(clip_bcthw, background, mask.weight, flip=flip_b, dtype=dtype), None

    def _difference_variant(self, raw_bcthw: Tensor, colors: ColorDraw) -> tuple[Tensor, Tensor]:
        """Colour-augmented rgb (T frames) and the difference of the source and kind that were asked for."""
        augmented = augment_color(raw_bcthw, self.config, colors)
        source = augmented if self.diff_source == "augmented" else raw_bcthw
        if self.diff == "roll16":
            difference = source[:, :, :-1] - source[:, :, :-1].roll(1, dims=2)
        else:
            difference = source[:, :, 1:] - source[:, :, :-1]
        return augmented[:, :, :-1], difference

    def _flip(self, clips: Tensor, draw: Draw) -> Tensor:
        views, n = clips.shape[:2]
        return draw.chance(views, n, self.config.flip).to(clips.device, non_blocking=True)

    def _channel(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, 3, 1, 1, 1)

    def _normalize(self, clip_bcthw: Tensor) -> Tensor:
        mean, std = self._channel(self.config.mean, clip_bcthw), self._channel(self.config.std, clip_bcthw)
        return (clip_bcthw - mean) / std


def _flipped(clip_bcthw: Tensor, flip_b: Tensor | None) -> Tensor:
    """uint8, or float32 in [0, 1], to float32 in [0, 1], mirrored where `flip_b`."""
    clip = clip_bcthw.float() / 255 if clip_bcthw.dtype == torch.uint8 else clip_bcthw
    return clip if flip_b is None else _where(flip_b, clip.flip(-1), clip)
