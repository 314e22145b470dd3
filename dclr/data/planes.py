"""Clips as the YUV 4:2:0 planes that decoders give, cropped on the CPU, resized and turned into RGB on the device.

Shapes: V clips of a video, B batch, T frames, H height, W width, h and w those of a crop box.
"""

import errno
import os
from collections.abc import Sequence
from functools import cache
from itertools import cycle
from typing import NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, VideoReformatter
from torch import Tensor

from dclr.data.video import display_matrix, quarter_turns, upright
from dclr.kernels import crop_resize_yuv

# Shares of red and blue in the luma, by the number of the colour space in H.273; without a mark FFmpeg takes BT.601.
BT601, BT709 = (0.299, 0.114), (0.2126, 0.0722)
LUMA_SHARES = {0: BT601, 1: BT709, 2: BT601, 4: BT601, 5: BT601, 6: BT601, 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


class Planes(NamedTuple):
    """One frame: luma (H, W) and the chroma (H', W') of 2 x 2 pixels each; uint8, in the decoder's own memory."""

    y: np.ndarray
    u: np.ndarray
    v: np.ndarray


class PlanarClips(NamedTuple):
    """Clips of one video.

    clips: of each clip its frames; frames that clips share are the same.
    matrix: float32 (3, 4): R, G and B are `matrix @ (Y, U, V, 1)`, all in [0, 255].
    offset: pixel (row, column) has the chroma at ((row + offset[0]) // 2, (column + offset[1]) // 2).
    """

    clips: list[list[Planes]]
    matrix: np.ndarray
    offset: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """H and W."""
        return self.clips[0][0].y.shape


class ToPlanes:
    """Frames to upright `Planes` of the first one's size, rotation and colours; 8-bit 4:2:0 goes out as it is."""

    def __init__(self, first: av.VideoFrame):
        self.reformatter = VideoReformatter()
        self.options = {"width": first.width, "height": first.height, "interpolation": "BICUBIC", "threads": 1}
        self.options |= {"format": "yuv420p", "dst_colorspace": first.colorspace, "dst_color_range": ColorRange.MPEG}
        if first.format.name in ("yuv420p", "yuvj420p"):
            self.options |= {"format": first.format.name, "dst_color_range": first.color_range}
        full = self.options["format"] == "yuvj420p" or self.options["dst_color_range"] == ColorRange.JPEG
        if first.colorspace not in LUMA_SHARES:
            # FFmpeg, too, refuses to convert these to RGB.
            raise av.FFmpegError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        self.matrix = rgb_matrix(*LUMA_SHARES[first.colorspace], full)
        self.turns = display_matrix(first)

    def __call__(self, frame: av.VideoFrame) -> Planes:
        if not self._fits(frame):  # PyAV 17 would convert even so, and lose the last chroma of odd sizes
            frame = self.reformatter.reformat(frame, **self.options)
        return Planes(*(upright(_view(plane), self.turns) for plane in frame.planes))

    def _fits(self, frame: av.VideoFrame) -> bool:
        """Whether a frame is already what `options` ask for."""
        wanted = (self.options[name] for name in ("width", "height", "format", "dst_colorspace", "dst_color_range"))
        return (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range) == tuple(wanted)

    def clips(self, pictures: list[list[Planes]]) -> PlanarClips:
        height, width = pictures[0][0].y.shape
        _, flip_y, flip_x = quarter_turns(self.turns)
        # The last chroma of an odd side has one pixel, and comes first once it is mirrored.
        return PlanarClips(pictures, self.matrix, (flip_y * height % 2, flip_x * width % 2))


def _view(plane: av.video.plane.VideoPlane) -> np.ndarray:
    return np.ndarray((plane.height, plane.width), np.uint8, plane, strides=(plane.line_size, 1))


@cache
def rgb_matrix(red: float, blue: float, full: bool) -> np.ndarray:
    """`PlanarClips.matrix` of these shares in the luma (ITU-T H.273), for values of full or of limited range."""
    green = 1 - red - blue
    linear = np.array([
        [1, 0, 2 - 2 * red],
        [1, -2 * (1 - blue) * blue / green, -2 * (1 - red) * red / green],
        [1, 2 - 2 * blue, 0],
    ])  # fmt: skip
    foot, linear = (0, linear) if full else (16, linear * 255 / [219, 224, 224])
    return np.c_[linear, -linear @ [foot, 128, 128]].astype(np.float32)


class PackedCrops(NamedTuple):
    """Crop boxes of clips, before they are resized: what `crop_resize_yuv` takes.

    planes: uint8 (N,), of each clip the luma (T, h, w) and both chroma planes of its box.
    geometry: int64 (V, 5), in a batch (V, B, 5): a clip's place in `planes`, h, w, and where its chroma begins.
    matrix: float32 (V, 3, 4), in a batch (V, B, 3, 4), from YUV to RGB.
    frames: T. size: of the resized clips' sides.
    """

    planes: Tensor
    geometry: Tensor
    matrix: Tensor
    frames: int
    size: int

    def to_rgb(self, device: torch.device) -> Tensor:
        """The resized clips on `device`: uint8 (V, B, T, size, size, 3)."""
        planes, geometry, matrix = (tensor.to(device, non_blocking=True) for tensor in self[:3])
        clips = crop_resize_yuv(planes, geometry.flatten(0, -2), matrix.flatten(0, -3), self.frames, self.size)
        return clips.unflatten(0, self.geometry.shape[:-1])


def pack(video: PlanarClips, boxes: Sequence[tuple[int, int, int, int]], size: int) -> PackedCrops:
    """The boxes (top, left, height, width) copied into one tensor; box i is of clip i modulo their number."""
    runs, geometry, start = [], [], 0
    for clip, (top, left, height, width) in zip(cycle(video.clips), boxes):
        luma = slice(top, top + height), slice(left, left + width)
        first = top + video.offset[0], left + video.offset[1]
        chroma = _halves(first[0], height), _halves(first[1], width)
        geometry.append([start, height, width, first[0] % 2, first[1] % 2])
        for planes, box in zip(zip(*clip), (luma, chroma, chroma)):
            runs.append([plane[box] for plane in planes])
            start += len(planes) * runs[-1][0].size
    packed, start = np.empty(start, np.uint8), 0
    for crops in runs:
        end = start + len(crops) * crops[0].size
        np.concatenate(crops, out=packed[start:end].reshape(-1, crops[0].shape[1]))
        start = end
    matrix = torch.from_numpy(video.matrix).expand(len(boxes), 3, 4)
    return PackedCrops(torch.from_numpy(packed), torch.tensor(geometry), matrix, len(video.clips[0]), size)


def _halves(start: int, length: int) -> slice:
    """Chroma values of a run of pixels."""
    return slice(start // 2, (start + length - 1) // 2 + 1)


def join(samples: Sequence[PackedCrops]) -> PackedCrops:
    """The crops of a batch of samples of as many clips each."""
    geometry_vbg = torch.stack([sample.geometry for sample in samples], 1)
    lengths = torch.tensor([0, *(sample.planes.numel() for sample in samples[:-1])])
    geometry_vbg[..., 0] += lengths.cumsum(0)
    matrix = torch.stack([sample.matrix for sample in samples], 1)
    return PackedCrops(torch.cat([sample.planes for sample in samples]), geometry_vbg, matrix, *samples[0][3:])
