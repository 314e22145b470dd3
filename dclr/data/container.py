"""Video files as containers: opening one safely, its best video stream, its packets and all frames that decode."""

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import closing

import av
from av.stream import Disposition

# Lists of other files: they would be followed to wherever they point.
PLAYLISTS = {"concat", "dash", "hls", "image2", "imf", "sdp"}
PICTURE_CODECS = ("bmp", "gif", "mjpeg", "png", "tiff", "webp")  # beside another stream, those of stills
MAX_PIXELS = 1 << 26  # of a frame, 8192 x 8192; a decoder holds up to 17 of them
MAX_SECONDS = 600.0  # of computing on one reading of a file; an hour of 1080p takes about five minutes


class VideoError(Exception):
    """A video that cannot be read: `path` and `reason`."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def open_video(path: str) -> av.container.InputContainer:
    """A regular file that holds its video itself, opened. Raises `VideoError`."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise VideoError(path, "is a directory, not a video")
        if not stat.S_ISREG(mode):
            raise VideoError(path, "is not a regular file")  # opening a pipe waits for ever for a writer
        # The prefix keeps a colon in the name from being taken for a protocol.
        return av.open(f"file:{path}", metadata_errors="ignore", options={"format_whitelist": _formats()})
    except (av.FFmpegError, OSError) as error:
        # Of a format that is not allowed FFmpeg says that the argument is invalid.
        if isinstance(error, av.InvalidDataError) or error.errno == errno.EINVAL:
            reason = f"is not a video (playlists are not followed), or is damaged ({error.strerror})"
            raise VideoError(path, reason) from error
        raise VideoError(path, f"cannot be opened ({error.strerror})") from error


def _formats() -> str:
    return ",".join(sorted(av.formats_available - PLAYLISTS))


def video_stream(container: av.container.InputContainer, path: str) -> av.VideoStream:
    """The best video stream: a moving one before a still, the default one before others, then the largest.

    A cover picture in a sound file is none.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError(path, "has no video stream")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise VideoError(path, "its video codec has no decoder in this build of FFmpeg")
    stream = max(decodable, key=_rank)
    codec = stream.codec_context
    if codec.width * codec.height > MAX_PIXELS:
        raise VideoError(path, f"has frames of {codec.width} x {codec.height}, expected at most {MAX_PIXELS} pixels")
    # Loader workers already fill the cores; a thread pool per open file would only cost.
    codec.thread_count = 1
    return stream


def _rank(stream: av.VideoStream) -> tuple[bool, bool, int, int]:
    codec = stream.codec_context
    default = bool(stream.disposition & Disposition.default)
    still = stream.frames == 1 or codec.name in PICTURE_CODECS
    return not still, default, codec.width * codec.height, -stream.index


def read_packets(
    container: av.container.InputContainer, stream: av.VideoStream, path: str, strict: bool = False
) -> Iterator[av.Packet | None]:
    """The stream's packets as far as the file goes, then None, which draws the last frames from the decoder.

    strict: a break in the file raises `av.FFmpegError`; else it is the end. Raises `VideoError` when what is done
    with the packets takes more than `MAX_SECONDS` of computing.
    """
    start = time.thread_time()
    try:
        # One of PyAV's generators that is dropped before its end, and not closed, keeps its memory for ever.
        with closing(container.demux(stream)) as packets:
            for packet in packets:
                if time.thread_time() - start > MAX_SECONDS:
                    raise VideoError(path, f"takes more than {MAX_SECONDS:g} s to decode")
                # A decoder takes an empty packet (a dropped frame) for the end of the stream.
                if packet.size:
                    yield packet
    except av.FFmpegError:
        if strict:
            raise
    yield None


def decoded_frames(path: str | os.PathLike) -> Iterator[av.VideoFrame]:
    """Every frame that decodes. A packet that does not is left out; a broken container ends the video."""
    path = os.fspath(path)
    damage = "the video stream is empty"
    decoded = False
    with open_video(path) as container:
        stream = video_stream(container, path)
        for packet in read_packets(container, stream, path):
            try:
                frames = stream.decode(packet)
            except av.FFmpegError as error:
                damage = error.strerror
                continue
            decoded = decoded or bool(frames)
            yield from frames
    if not decoded:
        raise VideoError(path, f"no frame of it decodes ({damage})")
