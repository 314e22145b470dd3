"""Prepared videos: small files that decode fast, and from every 8th frame.

MPEG-4 Part 2 (at equal quality its decoder needs a third less time than H.264's) in BT.601, the short side at most 128,
every 8th frame a key frame, no B-frames. Nothing marks them: they are read as any other video.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from dclr.data.container import VideoError, decoded_frames, open_video, video_stream
from dclr.data.pictures import display_matrix, progressive, upright
from dclr.data.planes import BT601, LUMA_SHARES
from dclr.data.seeking import Known, learn

SHORT_SIDE = 128
GROUP = 8
# MP4 for every other suffix; FFmpeg goes by the content.
CONTAINERS = {".avi": "avi", ".mkv": "matroska", ".webm": "matroska"}
ENCODER = {"qmin": "3", "qmax": "3", "g": str(GROUP), "bf": "0", "sc_threshold": "1000000000"}
# The folder's trouble, not the video's: the next video would meet it too.
FOLDER_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES)


def is_prepared(known: Known) -> bool:
    """Whether a video has the form that `write_prepared` gives."""
    starts = [entry.number for entry in known.entries]
    return starts == list(range(0, known.count, GROUP)) and min(known.height, known.width) <= SHORT_SIDE


def write_prepared(source: str | os.PathLike, target: str | os.PathLike) -> Known:
    """Transcodes a video, without its sound, and reads the copy back; returns what is known of it.

    The copy has the frames that `read_clips` counts, upright, in their order, at the video's average rate. It is
    scaled down to a short side of 128, or to the next even size below where it is smaller. `target` appears only
    when all of it is written.

    Raises `VideoError` where the video cannot be read, and `OSError` where the folder of `target` cannot be
    written to.
    """
    source, target = os.fspath(source), Path(target)
    # A name as long as may be has no room for a suffix.
    partial = target.with_name(f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}.part")
    try:
        count = _transcode(source, partial, CONTAINERS.get(target.suffix.lower(), "mp4"))
        known = _verify(source, partial, count)
        os.replace(partial, target)
    except av.FFmpegError as error:
        if error.errno in FOLDER_ERRORS:
            raise OSError(error.errno, f"{partial} cannot be written ({error.strerror})") from error
        raise VideoError(source, f"cannot be transcoded ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)
    return known


def _transcode(source: str, target: Path, container_format: str) -> int:
    rate = _rate(source)
    with av.open(f"file:{target}", "w", format=container_format) as container:
        stream = container.add_stream("mpeg4", rate=rate, options=ENCODER)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = 1 / rate
        # One process per core prepares a video of its own.
        stream.codec_context.thread_count = 1
        stream.codec_context.color_range, stream.codec_context.colorspace = ColorRange.MPEG, Colorspace.ITU601
        for number, frame in enumerate(small_frames(source)):
            if number == 0:
                stream.width, stream.height = frame.width, frame.height
            # Times count frames: those of the source may stand still, jump or run backwards.
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return number + 1


def _rate(path: str) -> Fraction:
    """Frames per second, or 25 where the header says none that can be."""
    with open_video(path) as container:
        rate = video_stream(container, path).average_rate
    if not rate or not 1 <= rate <= 240:
        return Fraction(25)
    # MPEG-4 has 16 bits for the numerator.
    return rate.limit_denominator(1001 if rate <= 60 else 250)


def small_frames(path: str) -> Iterator[av.VideoFrame]:
    """Every frame that decodes, upright, scaled as the first, as yuv420p of limited range by BT.601."""
    to_rgb, to_yuv = VideoReformatter(), VideoReformatter()
    options = {"interpolation": "BICUBIC", "threads": 1}
    for number, frame in enumerate(decoded_frames(path)):
        if number == 0:
            size, matrix = small_size(frame.width, frame.height), display_matrix(frame)
        small = progressive(frame)
        if LUMA_SHARES.get(frame.colorspace) != BT601:
            # FFmpeg's way from one luma to another is up to 6 of 255 off.
            small = to_rgb.reformat(small, *size, format="gbrp", **options)
        yuv = {"format": "yuv420p", "dst_colorspace": Colorspace.ITU601, "dst_color_range": ColorRange.MPEG}
        yield _upright_yuv(to_yuv.reformat(small, *size, **yuv, **options), matrix)


def _upright_yuv(frame: av.VideoFrame, matrix: np.ndarray) -> av.VideoFrame:
    """A new frame, without the old one's picture type, which the encoder would obey."""
    height, width = frame.height, frame.width
    y, u, v = np.split(frame.to_ndarray().ravel(), (height * width, height * width * 5 // 4))
    chroma = (plane.reshape(height // 2, width // 2) for plane in (u, v))
    planes = [upright(plane, matrix) for plane in (y.reshape(height, width), *chroma)]
    height, width = planes[0].shape
    data = np.concatenate([plane.ravel() for plane in planes]).reshape(height * 3 // 2, width)
    turned = av.VideoFrame.from_ndarray(data, format="yuv420p")
    turned.colorspace = Colorspace.ITU601
    return turned


def small_size(width: int, height: int) -> tuple[int, int]:
    """Even width and height: short side 128 where it is more, else what is there less an odd pixel (at least 2)."""
    short = min(width, height)
    if short <= SHORT_SIDE:
        return max(width // 2 * 2, 2), max(height // 2 * 2, 2)
    return 2 * round(width * SHORT_SIDE / short / 2), 2 * round(height * SHORT_SIDE / short / 2)


def _verify(source: str, copy: Path, count: int) -> Known:
    """What is known of a copy. Raises `VideoError` where it is not what was to be written."""
    known = learn(copy)
    if known.count != count:
        raise VideoError(source, f"its copy has {known.count} frames of the {count}")
    if not is_prepared(known):
        raise VideoError(source, f"its copy cannot be decoded from every {GROUP}th frame")
    return known
