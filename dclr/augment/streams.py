"""From decoded clips to what an encoder sees: the clip v, its static frame s and its frame difference d (DCLR Eq. 3-4).

A whole batch at once, on its device. On CPUs the steps are those of `dclr.augment.color`, one after the other; on a GPU
one kernel does them all.
Shapes: b clips, c = 3 channels, t frames, h x w pixels; a batch of n videos has b = 2n clips, view i before view j.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dclr.augment.color import augment_color
from dclr.augment.draws import AugmentConfig, ColorDraw, Draw, color_table, draw_color
from dclr.augment.foreground import blur_size, foreground_mask
from dclr.kernels import Augmented, augment_clip, decouple, merge_foreground
from dclr.kernels._common import runs_triton
from dclr.phases import phase

Difference = Literal["forward", "backward_cyclic"]
DifferenceSource = Literal["raw", "augmented"]


class Streams(NamedTuple):
    """Normalised encoder inputs, (b, 3, T, h, w) each: the clip v, its static frame s, its frame difference d."""

    rgb: Tensor
    static: Tensor
    difference: Tensor


def _clips_bcthw(clips: Tensor) -> Tensor:
    """(views, n, t, h, w, 3) to (views * n, 3, t, h, w), a view: nothing is copied."""
    return clips.flatten(0, 1).permute(0, 4, 1, 2, 3)


class Augment:
    """Builds a step's encoder inputs from decoded clips, on the clips' device.

    Args:
        config: flip and colour augmentation.
        difference: `forward`: x_{t+1} - x_t over T+1 frames (DCLR Eq. 4); `backward_cyclic`: x_t - x_{t-1} over T
            frames, the first minus the last (the released code).
        difference_source: difference of the `raw` clip or of the colour-`augmented` one.
    """

    def __init__(
        self, config: AugmentConfig, difference: Difference = "forward", difference_source: DifferenceSource = "raw"
    ) -> None:
        self.config, self.difference, self.difference_source = config, difference, difference_source
        #: For the log: the share of the last clips merged in which nothing moves, so that their masks are arbitrary.
        self.statistics: dict[str, Tensor] = {}

    @phase("augment")
    def rgb(self, clips: Tensor, draw: Draw) -> Tensor:
        """Flipped, colour-augmented, normalised clips.

        Args:
            clips: (views, n, T+1, h, w, 3) uint8; the last frame, which only the difference needs, is left out.

        Returns:
            (views * n, 3, T, h, w) float32. The kernel gives autocast's dtype, in channels_last_3d.
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
            Streams of (views * n, 3, T, h, w) float32. The kernel, which makes those of Eq. 3-4, gives autocast's
            dtype, in channels_last_3d. The static frame is expanded over T, not copied.
        """
        views, n, frames = clips.shape[:3]
        flip = self._flip(clips, draw)
        index = draw.integers(views, n, frames - 1).to(clips.device, non_blocking=True)
        colors = draw_color(self.config, draw, views, n)
        static_colors = colors if self.config.color_shared else draw_color(self.config, draw, views, n)
        background = self._background(views, n, draw)

        whole, flip = self._merged(_clips_bcthw(clips), flip, background)
        as_published = (self.difference, self.difference_source) == ("forward", "raw")
        if as_published and static_clips is None and runs_triton(whole):
            rgb, static, difference = self._fused(whole, flip, colors, index, static_colors)
            return Streams(rgb, static.expand_as(rgb), difference)
        raw = decouple(whole, index, flip=flip)
        rgb, static, difference = raw.rgb, raw.static, raw.difference
        if static_clips is not None:
            # Another crop needs another mask; the background is of the same video as the clip's.
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
        """The same augmentation by the kernel.

        Args:
            flip_b: clips still to be mirrored; None where merging has mirrored them already.
        """
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
        """Number of the clip that each clip takes its background from, for the clips of view 0 or of all views.

        None where no clip does: a batch of one video, or for `intra` a single view, has no other to merge with.
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
        """Clips after FAME's merge, and the flip still to do: none after a merge, which mirrors the clips too."""
        if background is None:
            return clip_bcthw, flip_b
        config, count = self.config.foreground, len(background)
        mask = foreground_mask(clip_bcthw[:count], config, flip_b[:count])
        self.statistics = {"augment/still_clips": mask.still.float().mean()}
        # A mask of 0 and 1 takes each pixel whole from one clip or the other, so that clips can stay uint8.
        dtype = torch.float32 if config.mask == "gauss" else clip_bcthw.dtype
        background = background.to(clip_bcthw.device, non_blocking=True)
        return merge_foreground(clip_bcthw, background, mask.weight, flip=flip_b, dtype=dtype), None

    def _difference_variant(self, raw_bcthw: Tensor, colors: ColorDraw) -> tuple[Tensor, Tensor]:
        """Colour-augmented rgb (T frames), and the difference by `difference` and `difference_source`."""
        augmented = augment_color(raw_bcthw, self.config, colors)
        source = augmented if self.difference_source == "augmented" else raw_bcthw
        if self.difference == "backward_cyclic":
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
    """Clips of uint8, or of float32 in [0, 1], as float32 in [0, 1], mirrored where `flip_b` says so."""
    clip = clip_bcthw.float() / 255 if clip_bcthw.dtype == torch.uint8 else clip_bcthw
    return clip if flip_b is None else torch.where(flip_b.view(-1, 1, 1, 1, 1), clip.flip(-1), clip)
