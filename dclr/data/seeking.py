"""Frames by number, decoded from the key frames before them where that is exact, else from the file's beginning.

A frame's number is its place among the frames that decode: time stamps and the counts in headers are never trusted,
because AVI files with B-frames and truncated files have them wrong. A video is decoded once as a whole to learn how
many frames it has, and where else decoding may begin. That is at key frames which a seek reaches, in files whose every
packet passes the decoder's strictest checks; from them the frames that follow are the same, bit for bit.
"""

import os
from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice
from typing import NamedTuple

import av

from dclr.data.container import decoded_frames, open_video, read_packets, video_stream
from dclr.data.pictures import display_matrix_bytes

# In their streams nothing after a key frame, in the order of display, needs what was before it. H.264 has other key
# frames beside those (`_starts_afresh`). The decoders of MJPEG, MPEG-1 and MPEG-2 may show old memory in damaged frames
# without complaint: what that is depends on the frames before, and on how many of them are still held.
CODECS = frozenset(["av1", "h264", "hevc", "mpeg4", "vp8", "vp9"])
STRICT = {"err_detect": "explode"}
# Entries nearer than this would only make the index longer.
MIN_DISTANCE = 8
MAX_HELD = 1 << 26  # bytes of the frames of one video, at two a pixel
MAX_PASSED = 300  # packets between where a seek leads to and an entry


class Entry(NamedTuple):
    """A packet that decoding may begin at: its frame's number, the time to seek to, and where in the file it lies."""

    number: int
    time: int
    position: int


class Known(NamedTuple):
    """What decoding a whole video told.

    count: frames that decode, at least 1. height, width: of the first one as it is stored.
    step: the time from each frame's packet to the next one's, where all are alike and each packet is a frame; else 0.
    entries: ascending, the first one is the file's beginning; none where all must be decoded from there.
    """

    count: int
    height: int
    width: int
    step: int = 0
    entries: tuple[Entry, ...] = ()


class _Key(NamedTuple):
    """A packet at which decoding might begin: its place among all, times, and where in the file it lies."""

    ordinal: int
    pts: int | None
    dts: int | None
    position: int | None


class _Untidy(Exception):
    """Frames of this file depend on where decoding begins, or may do so."""


def learn(path: str | os.PathLike, held: list[av.VideoFrame] | None = None) -> Known:
    """Decodes a whole video. Raises `VideoError` where no frame of it decodes.

    held: gets the frames, so that they need not be decoded again, of a video of `CODECS` whose frames take up to
        `MAX_HELD` bytes.
    """
    path, held = os.fspath(path), [] if held is None else held
    try:
        return _learn_strictly(path, held)
    except (av.FFmpegError, _Untidy):
        held.clear()
        for number, frame in enumerate(decoded_frames(path)):
            if number == 0:
                size = frame.height, frame.width
        return Known(number + 1, *size)


def _learn_strictly(path: str, held: list[av.VideoFrame]) -> Known:
    """As `learn`. Raises `av.FFmpegError` or `_Untidy` for a file that is not perfectly in order."""
    keys, times, shown, looks = [], [], [], set()
    with open_video(path) as container:
        stream = video_stream(container, path)
        stream.codec_context.options = STRICT
        seekable = stream.codec_context.codec.canonical_name in CODECS
        for ordinal, packet in enumerate(read_packets(container, stream, path, strict=True)):
            if packet is not None:
                if packet.is_corrupt:
                    raise _Untidy
                if seekable and (not ordinal or _starts_afresh(stream.codec_context, packet)):
                    keys.append(_Key(ordinal, packet.pts, packet.dts, packet.pos))
                times.append(packet.pts)
                packet.pts = ordinal
            for frame in stream.decode(packet):
                shown.append(frame.pts)
                looks.add(_picture_kind(frame))
                if seekable:
                    held.append(frame)
                if frame.is_corrupt or len(looks) > 1:
                    raise _Untidy
                if 2 * len(shown) * frame.width * frame.height > MAX_HELD:
                    held.clear()
        if not shown or None in shown or len(set(shown)) < len(shown):
            raise _Untidy
    [(height, width, *_)] = looks
    return Known(len(shown), height, width, _step(times, shown), _entries(path, _beginnings(keys, shown), times))


def _step(times: list[int | None], shown: list[int]) -> int:
    """`Known.step` of packets with these times, whose ordinals are `shown` in this order."""
    if len(times) != len(shown) or len(times) < 2 or None in times:
        return 0
    step = times[shown[1]] - times[shown[0]]
    regular = all(times[ordinal] == times[shown[0]] + number * step for number, ordinal in enumerate(shown))
    return step if regular and step > 0 else 0


def _picture_kind(frame: av.VideoFrame) -> tuple:
    """What pictures are made by."""
    size = frame.height, frame.width
    return *size, frame.format.name, frame.colorspace, frame.color_range, display_matrix_bytes(frame)


def _starts_afresh(codec: av.VideoCodecContext, packet: av.Packet) -> bool:
    """Whether nothing after this packet needs what was before it."""
    return packet.is_keyframe and (codec.name != "h264" or _is_idr(bytes(packet), codec.extradata or b""))


def _is_idr(data: bytes, extradata: bytes) -> bool:
    """Whether the first slice of an H.264 access unit is of type 5 (ITU-T H.264, table 7-1)."""
    start = 0
    if extradata[:1] == b"\x01":  # each unit is preceded by its length
        length = (extradata[4] & 3) + 1
        while start + length < len(data):
            kind = data[start + length] & 31
            if 1 <= kind <= 5:
                return kind == 5
            start += length + int.from_bytes(data[start : start + length], "big")
        return False
    while (start := data.find(b"\0\0\1", start) + 3) > 2 and start < len(data):
        kind = data[start] & 31
        if 1 <= kind <= 5:
            return kind == 5
    return False


def _beginnings(keys: Sequence[_Key], shown: Sequence[int]) -> Iterator[tuple[_Key, int]]:
    """The first packet, and the later keys before whose frame all is shown that precedes them; and frame numbers.

    shown: of every frame, in the order in which they are shown, the ordinal of its packet.
    """
    numbers = {ordinal: number for number, ordinal in enumerate(shown)}
    earliest_after = list(accumulate(reversed(shown), min))[::-1]
    last = 0
    for key in keys:
        number = numbers.get(key.ordinal, 0) if key.ordinal else 0
        if not key.ordinal or (number >= last + MIN_DISTANCE and earliest_after[number] == key.ordinal):
            yield key, number
            last = number


def _entries(path: str, beginnings: Iterable[tuple[_Key, int]], times: Sequence[int | None]) -> tuple[Entry, ...]:
    """`Known.entries` of those that a seek leads to."""
    found = []
    with open_video(path) as container:
        stream = video_stream(container, path)
        # Backwards, because some files are known to FFmpeg only as far as it has read.
        for key, number in reversed(list(beginnings)):
            time = key.dts if key.pts is None else key.pts
            if time is None or key.position is None or key.position < 0:
                continue
            entry = Entry(number, time, key.position)
            if _is_reached(container, stream, path, entry, times[key.ordinal :]):
                found.append(entry)
    return tuple(reversed(found)) if found and found[-1].number == 0 else ()


def _is_reached(
    container: av.container.InputContainer, stream: av.VideoStream, path: str, entry: Entry, times: Sequence[int | None]
) -> bool:
    """Whether a seek leads to an entry, and the packets after it then have the times that they had before."""
    try:
        packets = list(islice(_packets_from(container, stream, path, entry), 8))
    except (av.FFmpegError, _Untidy):
        return False
    return all(packet is None or packet.pts == time for packet, time in zip(packets, times))


def _packets_from(
    container: av.container.InputContainer, stream: av.VideoStream, path: str, entry: Entry
) -> Iterator[av.Packet | None]:
    """The packets from that of the entry on, then None. A seek may lead to before it, to the key frame before."""
    container.seek(entry.time, stream=stream)
    packets = read_packets(container, stream, path, strict=True)
    for packet in islice(packets, MAX_PASSED):
        if packet is None or packet.pos != entry.position:
            continue
        if entry.time == (packet.dts if packet.pts is None else packet.pts):
            yield packet
            yield from packets
            return
    raise _Untidy


def frames_by_number(
    path: str | os.PathLike, numbers: Sequence[int], known: Known | None = None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Numbers and frames, ascending, and among them all of `numbers` (ascending, too) that the video has.

    known: what `learn` told of this file; without it, the file is decoded from its beginning. Raises `VideoError`.
    """
    path, done = os.fspath(path), -1
    if known is not None and known.entries:
        try:
            for done, frame in _sought(path, numbers, known):
                yield done, frame
            return
        except (av.FFmpegError, _Untidy):
            pass  # not the file that it was
    for number, frame in enumerate(decoded_frames(path)):
        if number > done:
            yield number, frame


def _sought(path: str, numbers: Sequence[int], known: Known) -> Iterator[tuple[int, av.VideoFrame]]:
    """Raises `av.FFmpegError` or `_Untidy` where the file is not as it is known."""
    starts, wanted = [entry.number for entry in known.entries], set(numbers)
    with open_video(path) as container:
        stream = video_stream(container, path)
        stream.codec_context.options = STRICT
        frames, last = iter(()), -2  # the frame after the last must be sought, even number 0
        for number in numbers:
            entry = known.entries[bisect_right(starts, number) - 1]
            if entry.number > last + 1:
                frames = _frames_from(container, stream, path, entry, known.step, wanted)
            while last < number:
                last, frame = next(frames, (-1, None))
                if frame is None or (last > number):
                    raise _Untidy
                yield last, frame


def _frames_from(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    path: str,
    entry: Entry,
    step: int,
    wanted: Container[int],
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Numbers and frames from that of the entry on, ascending; with a `step`, perhaps without some that none wants."""
    packets = _packets_from(container, stream, path, entry)
    first = next(packets)
    start, count = first.pts, None
    for ordinal, packet in enumerate(chain([first], packets)):
        if packet is not None and step:
            if packet.pts is None:
                raise _Untidy
            packet.pts = entry.number + (packet.pts - start) // step
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        elif packet is not None:
            packet.pts = ordinal
        for frame in stream.decode(packet):
            # What is shown before the key frame needs what was before it in the file, too.
            if step and frame.pts >= entry.number:
                yield frame.pts, frame
            elif not step and (count is not None or frame.pts == 0 or entry.number == 0):
                count = entry.number if count is None else count + 1
                yield count, frame
