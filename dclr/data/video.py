"""Frame-exact reading of video files.

A frame's number is its place among the frames that decode: time stamps and the counts in headers are never
asked, because AVI files with B-frames and truncated files have them wrong.

Shapes: S clips, F frames, H height, W width, 3 RGB.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter


class VideoError(Exception):
    """A video that cannot be read: `path` and `reason`."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class ToRGB:
    """Frames to upright RGB (H, W, 3) of the first one's size and rotation, as FFmpeg itself converts."""

    def __init__(self, first: av.VideoFrame):
        self.reformatter = VideoReformatter()
        self.size = {"width": first.width, "height": first.height}
        self.matrix = display_matrix(first)

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        # Bicubic is FFmpeg's default, and decides how subsampled colour is filled in.
        picture = self.reformatter.reformat(frame, **self.size, format="rgb24", interpolation="BICUBIC", threads=1)
        return upright(picture.to_ndarray(), self.matrix)

    def clips(self, pictures: list[list[np.ndarray]]) -> np.ndarray:
        """Clips of as many frames each as one array (S, F, H, W, 3)."""
        joined = np.ascontiguousarray(np.stack([picture for clip in pictures for picture in clip]))
        return joined.reshape(len(pictures), -1, *joined.shape[1:])


def read_clips(
    path: str | os.PathLike, starts: Sequence[int], frames: int, stride: int = 1, into: Callable = ToRGB
) -> Any:
    """Clips of one video, decoded from its beginning to the last frame that is needed.

    Clip s is made of frames `starts[s] + stride * (0 ... frames - 1)`, counted from 0 in the order in which
    the file shows them; past the end the video starts again (the number modulo the count of frames). The
    file's rotation is applied. A frame whose size differs from the first frame's is scaled to it.

    into: what the frames become: `ToRGB` (the default), or `ToPlanes`, which gives `PlanarClips`.

    Returns uint8 RGB (S, F, H, W, 3). Raises `VideoError` where the file holds nothing that decodes, and
    `ValueError` for a negative start, no start, or `frames` or `stride` below 1.
    """
    if not len(starts) or min(starts) < 0 or frames < 1 or stride < 1:
        raise ValueError(
            "read_clips needs at least one start, starts >= 0, frames >= 1 and stride >= 1, "
            f"got starts={list(starts)}, frames={frames}, stride={stride}"
        )
    numbers_sf = np.add.outer(np.asarray(starts, dtype=np.int64), stride * np.arange(frames))
    pictures, convert, seen = _pictures(path, into, numbers_sf.ravel().tolist())
    if numbers_sf.max() >= seen:
        numbers_sf %= seen
        unread = [number for number in numbers_sf.ravel().tolist() if number not in pictures]
        if unread:
            pictures |= _pictures(path, into, unread)[0]
    return convert.clips([[pictures[number] for number in row] for row in numbers_sf.tolist()])


def read_video(path: str | os.PathLike) -> np.ndarray:
    """Every frame of a video: uint8 RGB (F, H, W, 3). Raises `VideoError`."""
    pictures, convert = read_pictures(path)
    return convert.clips([pictures])[0]


def read_pictures(path: str | os.PathLike, into: Callable = ToRGB) -> tuple[list[Any], Any]:
    """Every frame of a video, converted, and the converter, which makes clips of them. Raises `VideoError`."""
    pictures, convert, _ = _pictures(path, into)
    return list(pictures.values()), convert


def count_frames(path: str | os.PathLike) -> int:
    """How many frames of a video decode (at least 1). Raises `VideoError`."""
    return sum(1 for _ in decoded_frames(path))


def _pictures(
    path: str | os.PathLike, into: Callable, numbers: Iterable[int] | None = None
) -> tuple[dict[int, Any], Any, int]:
    """The wanted frames (default: all) by number, what converted them, and how many were decoded to have them."""
    wanted = None if numbers is None else set(numbers)
    last = None if wanted is None else max(wanted)
    pictures = {}
    for number, frame in enumerate(decoded_frames(path)):
        try:
            if number == 0:
                convert = into(frame)
            if wanted is None or number in wanted:
                pictures[number] = convert(frame)
        except av.FFmpegError as error:
            reason = f"frame {number} cannot be converted to RGB ({error.strerror})"
            raise VideoError(os.fspath(path), reason) from error
        if number == last:
            break
    return pictures, convert, number + 1


def decoded_frames(path: str | os.PathLike) -> Iterator[av.VideoFrame]:
    """Every frame that decodes. A packet that does not is left out; a broken container ends the video."""
    path = os.fspath(path)
    damage = "the video stream is empty"
    decoded = False
    with open_video(path) as container:
        stream = video_stream(container, path)
        for packet in read_packets(container, stream):
            try:
                frames = stream.decode(packet)
            except av.FFmpegError as error:
                damage = error.strerror
                continue
            decoded = decoded or bool(frames)
            yield from frames
    if not decoded:
        raise VideoError(path, f"no frame of it decodes ({damage})")


def open_video(path: str) -> av.container.InputContainer:
    if os.path.isdir(path):
        raise VideoError(path, "is a directory, not a video")
    try:
        # The prefix keeps a colon in the name from being taken for a protocol.
        return av.open(f"file:{path}", metadata_errors="ignore")
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, av.InvalidDataError):
            raise VideoError(path, f"is not a video, or is damaged ({error.strerror})") from error
        raise VideoError(path, f"cannot be opened ({error.strerror})") from error


def video_stream(container: av.container.InputContainer, path: str) -> av.VideoStream:
    """The first video stream; a cover picture in a sound file is none."""
    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            continue
        if stream.codec_context is None:
            raise VideoError(path, "its video codec has no decoder in this build of FFmpeg")
        # Loader workers already fill the cores; a thread pool per open file would only cost.
        stream.codec_context.thread_count = 1
        return stream
    raise VideoError(path, "has no video stream")


def read_packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet | None]:
    """The stream's packets as far as the file goes, then None, which draws the last frames from the decoder."""
    try:
        for packet in container.demux(stream):
            # A decoder takes an empty packet (a dropped frame) for the end of the stream.
            if packet.size:
                yield packet
    except av.FFmpegError:
        pass
    yield None


def display_matrix(frame: av.VideoFrame) -> np.ndarray:
    """The linear part ((a, b), (c, d)) of the display matrix: x' = a x + c y, y' = b x + d y."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return np.eye(2, dtype=np.int32)
    return np.frombuffer(side_data, dtype=np.int32).reshape(3, 3)[:2, :2].copy()


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
