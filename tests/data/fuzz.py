"""Damaged videos, decoded from the key frames before the clips and from the beginning: the same pictures or error.

As a program, `python -m tests.data.fuzz FOLDER FIRST LAST SOURCE...` damages the sources in turn, a file for each seed
from FIRST to before LAST. It writes each file to FOLDER, where the last one is left if it ends the process, and prints
of how many the frames are sought, how many are decoded from the beginning, and how many are no videos any more.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from dclr.data import VideoError, read_clips
from dclr.data.container import decoded_frames
from dclr.data.pictures import RGBClips
from dclr.data.planes import Box, PlanarCrops
from dclr.data.seeking import learn
from dclr.data.video import make_clips

PAGE = 4096


def damaged(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """With bits flipped, a page of zeros, or bytes that are noise, twice there, lost, cut off or of another file."""
    at, length, start = (int(rng.integers(limit)) for limit in (len(data), 400, len(other)))
    head, middle, tail = data[:at], data[at : at + length], data[at + length :]
    kind = rng.integers(8)
    if kind == 0:
        flipped = bytearray(data)
        for place in rng.integers(len(data), size=rng.integers(1, 20)):
            flipped[place] ^= 1 << int(rng.integers(8))
        return bytes(flipped)
    if kind == 1:
        page = at - at % PAGE
        return data[:page] + bytes(len(data[page : page + PAGE])) + data[page + PAGE :]
    return {
        2: lambda: head + rng.bytes(len(middle)) + tail,
        3: lambda: head + middle + middle + tail,
        4: lambda: head + tail,
        5: lambda: head,
        6: lambda: head + other[start : start + length] + tail,
        7: lambda: head + other[start:],
    }[int(kind)]()


def pictures(read: Callable, *arguments: Any) -> Any:
    """What is read, or in words why there is nothing."""
    try:
        return read(*arguments)
    except VideoError as error:
        return str(error)


def from_held(path: Path, held: list[av.VideoFrame], numbers: Sequence[int], into: Callable) -> Any:
    """Clips of one frame each, of the frames that were decoded in learning."""
    return make_clips(path, np.array(numbers)[:, None], lambda wanted: ((n, held[n]) for n in wanted), into, len(held))


def parts(result: Any) -> list[bytes | str]:
    return [part if isinstance(part, str) else np.asarray(part).tobytes() for part in result]


def assert_same_both_ways(path: Path, rng: np.random.Generator) -> str:
    """Whether the file is "in order", so that frames are sought, "out of order", or "no video"."""
    try:
        count = sum(1 for _ in decoded_frames(path))
    except VideoError as error:
        count = str(error)
    held: list[av.VideoFrame] = []
    try:
        known = learn(path, held)
    except VideoError as error:
        assert count == str(error)
        return "no video"
    assert known.count == count
    some = rng.integers(count, size=6).tolist()
    numbers = sorted({count - 1, *(entry.number for entry in known.entries[1:4]), *some})

    def draw(height: int, width: int) -> list[Box]:
        return [(height // 4, width // 3, height - height // 4, width - width // 3)] * len(numbers)

    for into in (RGBClips, partial(PlanarCrops, draw=draw, size=16)):
        expected = parts(pictures(read_clips, path, numbers, 1, 1, into))
        assert parts(pictures(read_clips, path, numbers, 1, 1, into, known)) == expected, (numbers, into)
        if held:
            assert parts(pictures(from_held, path, held, numbers, into)) == expected, (numbers, into)
    return "in order" if known.entries else "out of order"


def main(folder: str, first: str, last: str, *sources: str) -> None:
    """See the module."""
    contents = [Path(source).read_bytes() for source in sources]
    counts = Counter()
    for seed in range(int(first), int(last)):
        rng = np.random.default_rng(seed)
        mine = seed % len(sources)
        path = Path(folder, f"{seed}{Path(sources[mine]).suffix}")
        path.write_bytes(damaged(contents[mine], contents[rng.integers(len(sources))], rng))
        counts[assert_same_both_ways(path, rng)] += 1
        path.unlink()
    print(*(f"{counts[kind]} {kind}" for kind in ("in order", "out of order", "no video")), sep=", ")


if __name__ == "__main__":
    main(*sys.argv[1:])
