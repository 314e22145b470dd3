"""Prepared videos: small h264 files in which a clip is decoded without what comes before it.

The short side is at most 128, every 8th frame is a key frame and there are no B-frames, so that packet n is frame n
and decoding can begin at every multiple of 8. A comment in the file says so; only what was read back has it.

Shapes: S clips, F frames, H height, W width, 3 RGB.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from dclr.data.video import (
    ToRGB,
    VideoError,
    decoded_frames,
    display_matrix,
    open_video,
    read_packets,
    upright,
    video_stream,
)

SHORT_SIDE = 128
GROUP = 8
COMMENT = f"dclr prepare: packet n is frame n, a key frame every {GROUP}"
# MP4 for every other suffix; FFmpeg goes by the content.
CONTAINERS = {".avi": "avi", ".mkv": "matroska", ".webm": "matroska"}
ENCODER = {"crf": "18", "tune": "fastdecode", "g": str(GROUP), "bf": "0", "sc_threshold": "0"}
# The folder's trouble, not the video's: the next video would meet it too.
FOLDER_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES)


def count_prepared(path: str | os.PathLike) -> int:
    """How many frames a prepared file has, without decoding them; 0 for any other video. Raises `VideoError`."""
    path = os.fspath(path)
    with open_video(path) as container:
        if not _is_prepared(container):
            return 0
        return sum(1 for _ in read_packets(container, video_stream(container, path))) - 1


def read_prepared(
    path: str | os.PathLike, starts: Sequence[int], frames: int, stride: int = 1, into: Callable = ToRGB
) -> Any:
    """What `read_clips` gives for a prepared file, from the groups of 8 frames alone that hold a wanted one.

    Returns uint8 RGB (S, F, H, W, 3), or what `into` makes of the frames, as in `read_clips`. Raises `VideoError`,
    also for a file that is not prepared.
    """
    path = os.fspath(path)
    numbers_sf = np.add.outer(np.asarray(starts, dtype=np.int64), stride * np.arange(frames))
    with open_video(path) as container:
        if not _is_prepared(container):
            raise VideoError(path, "is not a prepared video")
        stream = video_stream(container, path)
        *packets, _ = read_packets(container, stream)
        numbers_sf %= max(len(packets), 1)
        pictures, convert = _pictures(path, stream, packets, numbers_sf.ravel().tolist(), into)
    return convert.clips([[pictures[number] for number in row] for row in numbers_sf.tolist()])


def _pictures(
    path: str, stream: av.VideoStream, packets: list[av.Packet], numbers: Iterable[int], into: Callable
) -> tuple[dict[int, Any], Any]:
    """The wanted frames by number, and what converted them."""
    wanted = set(numbers)
    last = {number // GROUP: number for number in sorted(wanted)}
    needed = [number for number in range(len(packets)) if number <= last.get(number // GROUP, -1)]
    pictures = {}
    try:
        decoded = chain.from_iterable(stream.decode(packet) for packet in [*(packets[i] for i in needed), None])
        for number, frame in zip(needed, decoded):
            if not pictures:
                convert = into(frame)
            if number in wanted:
                pictures[number] = convert(frame)
    except av.FFmpegError as error:
        raise VideoError(path, f"is damaged since it was prepared ({error.strerror})") from error
    if len(pictures) < len(wanted):
        raise VideoError(path, "is damaged since it was prepared (frames are missing)")
    return pictures, convert


def write_prepared(source: str | os.PathLike, target: str | os.PathLike) -> int:
    """Transcodes a video, without its sound, and reads the copy back; returns its number of frames.

    The copy has the frames that `read_clips` counts, upright, in their order, at the video's average rate. It is
    scaled down to a short side of 128, or to the next even size below where it is smaller. `target` appears only
    when all of it is written.

    Raises `VideoError` where the video cannot be read, and `OSError` where the folder of `target` cannot be
    written to.
    """
    source, target = os.fspath(source), Path(target)
    partial = target.with_name(f".{target.name}.part")
    try:
        count = _transcode(source, partial, CONTAINERS.get(target.suffix.lower(), "mp4"))
        _verify(source, partial, count)
        os.replace(partial, target)
    except av.FFmpegError as error:
        if error.errno in FOLDER_ERRORS:
            raise OSError(error.errno, f"{partial} cannot be written ({error.strerror})") from error
        raise VideoError(source, f"cannot be transcoded ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)
    return count


def _transcode(source: str, target: Path, container_format: str) -> int:
    rate = _rate(source)
    with av.open(f"file:{target}", "w", format=container_format) as container:
        container.metadata["comment"] = COMMENT
        stream = container.add_stream("libx264", rate=rate, options=ENCODER)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = 1 / rate
        # One process per core prepares a video of its own.
        stream.codec_context.thread_count = 1
        stream.codec_context.color_range = ColorRange.MPEG
        for number, frame in enumerate(_small_frames(source)):
            if number == 0:
                stream.width, stream.height = frame.width, frame.height
                stream.codec_context.colorspace = frame.colorspace
            # Times count frames: those of the source may stand still, jump or run backwards.
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return number + 1


def _rate(path: str) -> Fraction:
    """Frames per second, or 25 where the header says none that can be."""
    with open_video(path) as container:
        rate = video_stream(container, path).average_rate
    return rate.limit_denominator(1001) if rate and 1 <= rate <= 240 else Fraction(25)


def _small_frames(path: str) -> Iterator[av.VideoFrame]:
    """Every frame that decodes, upright, scaled as the first, as yuv420p of limited range."""
    reformatter = VideoReformatter()
    for number, frame in enumerate(decoded_frames(path)):
        if number == 0:
            size, matrix = small_size(frame.width, frame.height), display_matrix(frame)
        small = reformatter.reformat(
            frame,
            *size,
            format="yuv420p",
            dst_color_range=ColorRange.MPEG,
            interpolation="BICUBIC",
            threads=1,
        )
        yield _upright_yuv(small, matrix)


def _upright_yuv(frame: av.VideoFrame, matrix: np.ndarray) -> av.VideoFrame:
    """A new frame, without the old one's picture type, which the encoder would obey."""
    height, width = frame.height, frame.width
    y, u, v = np.split(frame.to_ndarray().ravel(), (height * width, height * width * 5 // 4))
    chroma = (plane.reshape(height // 2, width // 2) for plane in (u, v))
    planes = [upright(plane, matrix) for plane in (y.reshape(height, width), *chroma)]
    height, width = planes[0].shape
    data = np.concatenate([plane.ravel() for plane in planes]).reshape(height * 3 // 2, width)
    turned = av.VideoFrame.from_ndarray(data, format="yuv420p")
    # A source in RGB says 0; converted it is BT.601.
    turned.colorspace = frame.colorspace or Colorspace.ITU601
    return turned


def small_size(width: int, height: int) -> tuple[int, int]:
    """Even width and height: short side 128 where it is more, else what is there less an odd pixel (at least 2)."""
    short = min(width, height)
    if short <= SHORT_SIDE:
        return max(width // 2 * 2, 2), max(height // 2 * 2, 2)
    return 2 * round(width * SHORT_SIDE / short / 2), 2 * round(height * SHORT_SIDE / short / 2)


def _verify(source: str, copy: Path, count: int) -> None:
    """Raises `VideoError` where the copy is not what `read_prepared` takes it for."""
    with open_video(os.fspath(copy)) as container:
        marked = _is_prepared(container)
        *packets, _ = read_packets(container, video_stream(container, os.fspath(copy)))
        keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    sizes = [(frame.width, frame.height) for frame in decoded_frames(copy)]
    if not marked or not len(packets) == len(sizes) == count or len(set(sizes)) > 1:
        raise VideoError(source, f"its copy has {len(packets)} packets and {len(sizes)} frames of the {count}")
    if not set(range(0, count, GROUP)) <= set(keys):
        raise VideoError(source, f"its copy has no key frame every {GROUP} frames")


def _is_prepared(container: av.container.InputContainer) -> bool:
    # Matroska writes the names of its tags in capitals.
    return any(key.lower() == "comment" and text == COMMENT for key, text in container.metadata.items())
