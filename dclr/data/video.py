"""Frame-exact reading of video files.

Shapes: S clips, F frames, H height, W width, 3 RGB.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import av
import numpy as np

from dclr.data.container import VideoError, decoded_frames
from dclr.data.pictures import RGBClips
from dclr.data.seeking import Known, frames_by_number


def read_clips(
    path: str | os.PathLike,
    starts: Sequence[int],
    frames: int,
    stride: int = 1,
    into: Callable[[av.VideoFrame, int, int], Any] = RGBClips,
    known: Known | None = None,
) -> Any:
    """Clips of one video.

    Clip s is made of frames `starts[s] + stride * (0 ... frames - 1)`, counted from 0 in the order in which
    the file shows them; past the end the video starts again (the number modulo the count of frames). The
    file's rotation is applied; its pixels are taken as square. A frame whose size differs from the first frame's is
    scaled to it.

    into: what the frames become, as they are decoded: called with the video's first frame, S and F it gives an
        object whose `put(frame, places)` takes each wanted frame once, with its places (s, f), and whose `done()` is
        returned.
    known: what `learn` told of this file. Decoding then begins at the key frames before the clips where it can;
        without it, at the beginning of the file.

    Returns uint8 RGB (S, F, H, W, 3). Raises `VideoError` where the file holds nothing that decodes, and
    `ValueError` for a negative start, no start, or `frames` or `stride` below 1.
    """
    if not len(starts) or min(starts) < 0 or frames < 1 or stride < 1:
        raise ValueError(
            "read_clips needs at least one start, starts >= 0, frames >= 1 and stride >= 1, "
            f"got starts={list(starts)}, frames={frames}, stride={stride}"
        )
    numbers_sf = np.add.outer(np.asarray(starts, dtype=np.int64), stride * np.arange(frames))
    source = partial(frames_by_number, path, known=known)
    return make_clips(path, numbers_sf, source, into, None if known is None else known.count)


def make_clips(
    path: str | os.PathLike,
    numbers_sf: np.ndarray,
    source: Callable[[Sequence[int]], Iterator[tuple[int, av.VideoFrame]]],
    into: Callable[[av.VideoFrame, int, int], Any],
    count: int | None,
) -> Any:
    """Clips of the frames of these numbers, modulo `count`, from a `source` like `frames_by_number`.

    count: how many frames the video has; None finds out where a clip goes past the end.
    """
    places = defaultdict(list)
    for place, number in np.ndenumerate(numbers_sf if count is None else numbers_sf % count):
        places[int(number)].append(place)
    clips, seen = None, 0
    for number, frame in source(sorted(places)):
        try:
            if clips is None:
                clips = into(frame, *numbers_sf.shape)
            if number in places:
                clips.put(frame, places.pop(number))
        except av.FFmpegError as error:
            reason = f"frame {number} cannot be converted to RGB ({error.strerror})"
            raise VideoError(os.fspath(path), reason) from error
        if not places:
            return clips.done()
        seen = number + 1
    if count is not None:
        raise VideoError(os.fspath(path), f"had {count} frames, and now {seen} decode")
    return make_clips(path, numbers_sf, source, into, seen)


def count_frames(path: str | os.PathLike) -> int:
    """How many frames of a video decode (at least 1). Raises `VideoError`."""
    return sum(1 for _ in decoded_frames(path))
