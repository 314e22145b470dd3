"""Decoded frames to upright RGB pictures.

Pixels are taken as square, whatever the file says of their shape, and frames as progressive: a picture is what is
stored, only turned.

Shapes: S clips, F frames, H height, W width, 3 RGB.
"""

from collections.abc import Sequence

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import VideoReformatter


class ToRGB:
    """Frames to upright RGB (H, W, 3) of the first one's size and rotation, as FFmpeg itself converts.

    size: H and W.
    """

    def __init__(self, first: av.VideoFrame):
        self.reformatter = VideoReformatter()
        self.options = {"width": first.width, "height": first.height, "format": "rgb24"}
        # Bicubic is FFmpeg's default, and decides how subsampled colour is filled in.
        self.options |= {"interpolation": "BICUBIC", "threads": 1}
        self.matrix = display_matrix(first)
        transposed, _, _ = quarter_turns(self.matrix)
        self.size = (first.width, first.height) if transposed else (first.height, first.width)

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        picture = self.reformatter.reformat(progressive(frame), **self.options)
        [plane] = picture.planes
        rows = np.ndarray((plane.height, plane.width, 3), np.uint8, plane, strides=(plane.line_size, 3, 1))
        return upright(rows, self.matrix)


class RGBClips:
    """S clips of F whole frames each: uint8 (S, F, H, W, 3)."""

    def __init__(self, first: av.VideoFrame, clips: int, frames: int):
        self.convert = ToRGB(first)
        self.pictures = np.empty((clips, frames, *self.convert.size, 3), np.uint8)

    def put(self, frame: av.VideoFrame, places: Sequence[tuple[int, int]]) -> None:
        picture = self.convert(frame)
        for place in places:
            self.pictures[place] = picture

    def done(self) -> np.ndarray:
        return self.pictures


def progressive(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame without the mark of interlacing, by which FFmpeg would scale its fields apart.

    The mark is often wrong; and of frames that are interlaced, both fields are kept as they are woven.
    """
    if not frame.interlaced_frame:
        return frame
    plain = av.VideoFrame(frame.width, frame.height, frame.format.name)
    plain.colorspace, plain.color_range = frame.colorspace, frame.color_range
    for mine, plane in zip(plain.planes, frame.planes):
        rows = [np.frombuffer(part, np.uint8).reshape(-1, part.line_size) for part in (mine, plane)]
        width = min(row.shape[1] for row in rows)
        rows[0][: mine.height, :width] = rows[1][: plane.height, :width]
    return plain


def display_matrix(frame: av.VideoFrame) -> np.ndarray:
    """The linear part ((a, b), (c, d)) of the display matrix: x' = a x + c y, y' = b x + d y."""
    data = display_matrix_bytes(frame)
    return np.frombuffer(data, dtype=np.int32).reshape(3, 3)[:2, :2] if data else np.eye(2, dtype=np.int32)


def display_matrix_bytes(frame: av.VideoFrame) -> bytes:
    """The display matrix as the file has it; empty where it has none."""
    # A frame keeps what `frame.side_data` gives, which keeps the frame: until Python looks for such rings, all of a
    # video's frames would stay in memory.
    return bytes(SideDataContainer(frame).get("DISPLAYMATRIX") or b"")


def upright(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`picture` (H, W, 3) or (H, W) turned and mirrored by the nearest matrix of quarter turns, as a view."""
    transposed, flip_y, flip_x = quarter_turns(matrix)
    picture = picture.swapaxes(0, 1) if transposed else picture
    return picture[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def quarter_turns(matrix: np.ndarray) -> tuple[bool, bool, bool]:
    """Whether a picture is to be transposed, and then its rows and its columns to be reversed."""
    (a, b), (c, d) = matrix.tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0
