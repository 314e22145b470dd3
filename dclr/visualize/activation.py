"""Where an encoder looks: activation maps (DCLR Eq. 11) of a clip, its static clip and its frame difference.

T frames of H x W pixels in a clip, C channels of features; the streams rgb, static and difference are a batch of 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dclr.augment.color import GRAY_WEIGHTS
from dclr.data import count_frames, read_clips
from dclr.data.clips import centre_crop
from dclr.evaluation.dataset import EvaluationDataConfig
from dclr.kernels import activation_map, decouple
from dclr.kernels.activation import min_max_reference
from dclr.visualize.drawing import WIDTH, bare, short

STREAMS = ("rgb", "static", "difference")
TIMES = 3
CLEAR = 0.55  # of an overlay: the picture below stays visible


def evaluation_clip(path: str, data: EvaluationDataConfig, frames: int, share: float = 0.5) -> Tensor:
    """A clip of a video, cropped as in evaluation: uint8 (frames, size, size, 3).

    Args:
        share: where it begins, of where a clip can begin; by default the clip lies in the middle.

    Raises:
        VideoError: the video cannot be read.
    """
    start = int(share * max(count_frames(path) - frames * data.stride, 0))
    clip_thwc = torch.from_numpy(read_clips(path, [start], frames, data.stride)[0])
    return centre_crop(clip_thwc, data.size, data.test_crop)


def activation_maps(encoder: nn.Module, clip: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Maps of the three streams, each normalised to [0, 1] by its minimum and maximum over time and space.

    Args:
        encoder: (B, 3, T, H, W) -> (B, C, T', H', W'), in evaluation mode.
        clip: uint8 (T+1, H, W, 3), on the encoder's device; the static clip is its frame T // 2.
        mean, std: of each channel, those of the pretraining.

    Returns:
        (3, T', H', W') float32 on the CPU.
    """
    middle = torch.tensor([(clip.shape[0] - 1) // 2], device=clip.device)
    with torch.inference_mode():
        streams = decouple(clip.permute(3, 0, 1, 2)[None], middle, mean=mean, std=std)
        return min_max_reference(activation_map(encoder(torch.cat(streams)))).cpu()


def draw_activation(clip: Tensor, maps: Tensor, title: str) -> Figure:
    """The clip's frames, and each stream's map over what the encoder saw of it, at a few times.

    Args:
        clip: uint8 (T+1, H, W, 3).
        maps: (3, T', H', W') in [0, 1]; drawn at (T, H, W), trilinear.
    """
    frames_thwc = clip.numpy()
    shape = len(clip) - 1, *clip.shape[1:3]
    maps_sthw = interpolate(maps[:, None], shape, mode="trilinear", align_corners=False)[:, 0].numpy()
    times = np.linspace(0, shape[0] - 1, min(TIMES, shape[0])).round().astype(int)
    figure = Figure(figsize=(WIDTH, 1.15 * (1 + len(STREAMS)) + 0.8), layout="constrained")
    grid = figure.subplots(1 + len(STREAMS), len(times), squeeze=False)
    for axes, time in zip(grid[0], times):
        axes.imshow(frames_thwc[time])
        axes.set_title(f"frame {time}", fontsize=9)
    for row, below_thw, map_thw in zip(grid[1:], _grey(frames_thwc), maps_sthw):
        for axes, time in zip(row, times):
            axes.imshow(below_thw[time], cmap="gray", vmin=0, vmax=1)
            overlay = axes.imshow(map_thw[time], cmap="inferno", vmin=0, vmax=1, alpha=CLEAR)
    for row, name in zip(grid, ("clip", *STREAMS)):
        row[0].set_ylabel(name, fontsize=10)
        for axes in row:
            bare(axes)
    bar = figure.colorbar(overlay, ax=grid[1:], location="bottom", shrink=0.8, aspect=40)
    bar.set_label(f"activation of {' x '.join(map(str, maps.shape[1:]))} positions", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(short(title, 48), fontsize=10, parse_math=False)
    return figure


def _grey(frames_thwc: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Luma (T, H, W) in [0, 1] of what the encoder sees as rgb, static and difference, whose zero is mid-grey."""
    luma_thw = frames_thwc.astype(np.float32) @ np.array(GRAY_WEIGHTS, np.float32) / 255
    rgb, difference = luma_thw[:-1], np.diff(luma_thw, axis=0)
    static = np.broadcast_to(rgb[len(rgb) // 2], rgb.shape)
    largest = np.abs(difference).max() or 1
    return rgb, static, 0.5 + difference / (2 * largest)
