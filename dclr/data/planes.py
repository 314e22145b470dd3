"""Clips as the YUV 4:2:0 planes that decoders give, cropped on the CPU, resized and turned into RGB on the device.

Shapes: V crops of a video's clips, B batch, T frames, H height, W width, h and w those of a crop box.
"""

import errno
import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, VideoReformatter
from torch import Tensor

from dclr.data.pictures import display_matrix, progressive, quarter_turns, upright
from dclr.kernels import crop_resize_yuv

# Shares of red and blue in the luma, by the number of the colour space in H.273; without a mark FFmpeg takes BT.601.
BT601, BT709 = (0.299, 0.114), (0.2126, 0.0722)
LUMA_SHARES = {0: BT601, 1: BT709, 2: BT601, 4: BT601, 5: BT601, 6: BT601, 7: (0.212, 0.087), 9: (0.2627, 0.0593)}

# Crops of larger frames would be most of a machine's memory: 4 views of 17 frames of 8192 x 8192 are 7 GB.
MAX_SHORT_SIDE = 1088

Box = tuple[int, int, int, int]


class Planes(NamedTuple):
    """One frame: luma (H, W) and the chroma (H', W') of 2 x 2 pixels each; uint8, in the decoder's own memory."""

    y: np.ndarray
    u: np.ndarray
    v: np.ndarray


class ToPlanes:
    """Frames to upright `Planes` of the first one's size, rotation and colours; 8-bit 4:2:0 goes out as it is.

    Frames with a short side above 1088 are scaled down to it.

    size: H and W. matrix: float32 (3, 4): R, G and B are `matrix @ (Y, U, V, 1)`, all in [0, 255].
    offset: pixel (row, column) has the chroma at ((row + offset[0]) // 2, (column + offset[1]) // 2).
    """

    def __init__(self, first: av.VideoFrame):
        self.reformatter = VideoReformatter()
        zoom = min(1, MAX_SHORT_SIDE / min(first.width, first.height))
        width, height = round(first.width * zoom), round(first.height * zoom)
        self.options = {"width": width, "height": height, "interpolation": "BICUBIC", "threads": 1}
        self.options |= {"format": "yuv420p", "dst_colorspace": first.colorspace, "dst_color_range": ColorRange.MPEG}
        if first.format.name in ("yuv420p", "yuvj420p"):
            self.options |= {"format": first.format.name, "dst_color_range": first.color_range}
        full = self.options["format"] == "yuvj420p" or self.options["dst_color_range"] == ColorRange.JPEG
        if first.colorspace not in LUMA_SHARES:
            # FFmpeg, too, refuses to convert these to RGB.
            raise av.FFmpegError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        self.matrix = rgb_matrix(*LUMA_SHARES[first.colorspace], full)
        self.turns = display_matrix(first)
        transposed, flip_y, flip_x = quarter_turns(self.turns)
        self.size = (width, height) if transposed else (height, width)
        # The last chroma of an odd side has one pixel, and comes first once it is mirrored.
        self.offset = flip_y * self.size[0] % 2, flip_x * self.size[1] % 2

    def __call__(self, frame: av.VideoFrame) -> Planes:
        if not self._fits(frame):  # PyAV 17 would convert even so, and lose the last chroma of odd sizes
            frame = self.reformatter.reformat(progressive(frame), **self.options)
        return Planes(*(upright(_view(plane), self.turns) for plane in frame.planes))

    def _fits(self, frame: av.VideoFrame) -> bool:
        """Whether a frame is already what `options` ask for."""
        wanted = (self.options[name] for name in ("width", "height", "format", "dst_colorspace", "dst_color_range"))
        return (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range) == tuple(wanted)


def _view(plane: av.video.plane.VideoPlane) -> np.ndarray:
    return np.ndarray((plane.height, plane.width), np.uint8, plane, strides=(plane.line_size, 1))


@cache
def rgb_matrix(red: float, blue: float, full: bool) -> np.ndarray:
    """`ToPlanes.matrix` for these shares in the luma (ITU-T H.273), for values of full or of limited range."""
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
    matrix: float32 (V, 3, 4), in a batch (V, B, 3, 4), from YUV to RGB, as in `ToPlanes`.
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


class PlanarCrops:
    """Crops of a video's clips, copied out of the decoder's memory as the frames come: `PackedCrops` of V crops.

    draw: called with H and W gives V boxes (top, left, height, width); box i is of clip i modulo their number.
    size: of the sides that the crops will be resized to.
    """

    def __init__(
        self, first: av.VideoFrame, clips: int, frames: int, *, draw: Callable[[int, int], Sequence[Box]], size: int
    ):
        self.convert, self.clips, self.frames, self.size = ToPlanes(first), clips, frames, size
        self.regions, self.geometry, shapes = [], [], []
        start = 0
        for top, left, height, width in draw(*self.convert.size):
            row, column = top + self.convert.offset[0], left + self.convert.offset[1]
            luma = slice(top, top + height), slice(left, left + width)
            chroma = _halves(row, height), _halves(column, width)
            self.regions.append((luma, chroma, chroma))
            self.geometry.append([start, height, width, row % 2, column % 2])
            shapes.append([(frames, *(part.stop - part.start for part in region)) for region in self.regions[-1]])
            start += sum(map(math.prod, shapes[-1]))
        self.packed = np.empty(start, np.uint8)
        self.targets = [self._places(geometry[0], planes) for geometry, planes in zip(self.geometry, shapes)]

    def _places(self, start: int, shapes: Sequence[tuple[int, int, int]]) -> list[np.ndarray]:
        """Of one crop the planes (T, h, w) within `packed`."""
        ends = accumulate(map(math.prod, shapes), initial=start)
        return [self.packed[at : at + math.prod(shape)].reshape(shape) for at, shape in zip(ends, shapes)]

    def put(self, frame: av.VideoFrame, places: Sequence[tuple[int, int]]) -> None:
        planes = self.convert(frame)
        for clip, t in places:
            for crop in range(clip, len(self.targets), self.clips):
                for target, plane, region in zip(self.targets[crop], planes, self.regions[crop]):
                    target[t] = plane[region]

    def done(self) -> PackedCrops:
        matrix = torch.from_numpy(self.convert.matrix).expand(len(self.geometry), 3, 4)
        return PackedCrops(torch.from_numpy(self.packed), torch.tensor(self.geometry), matrix, self.frames, self.size)


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
