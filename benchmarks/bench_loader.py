"""Sampling of a video for training, on one core and by two loader processes: two clips of 16 + 1 frames, decoded and
cropped to 112 x 112.

From files like UCF-101's and Kinetics', generated, and from their prepared copies. The variants draw the same frames
and crops in turn. With planes, as for a GPU, the crop boxes are packed as they were decoded; there they are resized and
turned into RGB. Ours know the videos' frames from an earlier reading, as from the second epoch on; the first reading of
all decodes the whole video. Floor: the cropped clips written once; decoding has none that could be counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property, partial
from itertools import chain, cycle, product
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dclr.data import read_clips
from dclr.data.clips import RGBCrops, crop_resize, random_resized_crop_box, sample_starts
from dclr.data.loader import worker_options
from dclr.data.planes import Box, PlanarCrops
from dclr.data.prepared import small_size, write_prepared
from dclr.data.seeking import Known, learn
from dclr.data.video import make_clips

from .harness import OURS, Problem, Row, missing

PREPARED = "ours, prepared"
PLANES, PREPARED_PLANES = "ours, planes", "ours, prepared, planes"
FIRST, FROM_START = "ours, planes, first reading", "ours, planes, without seeking"
OF_OURS = {PLANES, PREPARED, PREPARED_PLANES, FIRST, FROM_START}
FRAMES, STRIDE, SIDE, DRAWS = 17, 2, 112, 16


@dataclass(frozen=True)
class Size:
    """A kind of file: codec, picture, length in frames, and bits a second."""

    name: str
    suffix: str
    codec: str
    width: int
    height: int
    frames: int
    fps: int
    bit_rate: int
    gop: int

    def __str__(self) -> str:
        return f"{self.name}-{self.width}x{self.height}"


SIZES = {
    "tiny": [
        Size("ucf", ".avi", "mpeg4", 160, 120, 40, 25, 400_000, 12),
        Size("kinetics", ".mp4", "libx264", 170, 130, 40, 30, 400_000, 250),
    ],
    "cpu": [
        Size("ucf", ".avi", "mpeg4", 320, 240, 180, 25, 400_000, 12),
        Size("kinetics", ".mp4", "libx264", 340, 256, 300, 30, 700_000, 250),
        Size("kinetics", ".mp4", "libx264", 1280, 720, 300, 30, 2_000_000, 250),
    ],
}
SIZES["cuda"] = SIZES["cpu"]


@pytest.fixture
def one_core():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_loader(size, bench, tmp_path, one_core):
    rows = bench(problem(write_videos(size, tmp_path)))
    note_rates(rows, 1, "videos/s a core")


def test_two_workers(size, bench, tmp_path):
    rows = bench(two_workers(write_videos(size, tmp_path)))
    note_rates(rows, DRAWS, "videos/s by two workers")


def note_rates(rows: list[Row], videos: int, unit: str) -> None:
    """In each row's note what its time for so many videos means."""
    raw = next(row.p50_us for row in rows if row.variant == OURS)
    for row in rows:
        if row.p50_us:
            ratio = f", {raw / row.p50_us:.2f}x of raw" if row.variant in OF_OURS else ""
            wrong = f", {row.note}" if row.note.startswith("wrong") else ""
            row.note = f"{1e6 * videos / row.p50_us:.1f} {unit}{ratio}{wrong}"


@dataclass(frozen=True)
class Videos:
    """A video, its prepared copy, and what is known of them."""

    size: Size
    raw: Path
    copy: Path
    of_raw: Known
    of_copy: Known


def write_videos(size: Size, folder: Path) -> Videos:
    raw, copy = write_scene(folder / f"raw{size.suffix}", size), folder / f"prepared{size.suffix}"
    return Videos(size, raw, copy, of_copy=write_prepared(raw, copy), of_raw=learn(raw))


def problem(videos: Videos) -> Problem:
    """Each call takes one of the draws in turn."""
    size, raw, copy, of_raw, of_copy = (getattr(videos, each.name) for each in fields(Videos))
    result = Problem(
        name=f"loader {size}: raw {raw.stat().st_size / 1e6:.2f} MB, prepared {copy.stat().st_size / 1e6:.2f} MB",
        # Decoders round colours in their own ways: two clips are the same if they are as close as bfloat16 values.
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
        expected=Turns(size, whole_clips(lambda starts: read_clips(raw, starts, FRAMES, STRIDE))),
        variants={
            OURS: Turns(size, in_rgb(raw, of_raw)),
            PLANES: Turns(size, in_planes(raw, of_raw)),
            FROM_START: Turns(size, in_planes(raw, of_raw._replace(entries=()))),
            FIRST: Turns(size, first_reading(raw)),
            PREPARED: Turns(size, in_rgb(copy, of_copy), prepared=True),
            PREPARED_PLANES: Turns(size, in_planes(copy, of_copy), prepared=True),
        },
        bytes=2 * FRAMES * SIDE * SIDE * 3,
        other_functions=OF_OURS,
    )
    add_peers(result, size, str(raw))
    return result


def two_workers(videos: Videos) -> Problem:
    """Each call takes all draws, which the two processes of a loader make and hand over."""
    result = problem(videos)
    wanted: list[tuple[str, int]] = []
    loader = DataLoader(Draws(videos), batch_size=None, sampler=wanted, **worker_options(2))

    def by_loader(variant: str) -> tuple[Tensor, ...]:
        wanted[:] = [(variant, number) for number in range(DRAWS)]
        return tuple(chain.from_iterable(loader))

    expected = result.expected
    result.name = f"by two workers, {result.name}"
    result.expected = lambda: tuple(chain.from_iterable(expected() for _ in range(DRAWS)))
    result.variants = {name: partial(by_loader, name) for name in result.variants}
    result.bytes *= DRAWS
    return result


class Draws(Dataset):
    """What a variant makes of a draw, by (variant, number); each process has variants of its own."""

    def __init__(self, videos: Videos):
        self.videos = videos

    @cached_property
    def variants(self) -> dict[str, Turns]:
        return problem(self.videos).variants

    def __getitem__(self, key: tuple[str, int]) -> tuple[Tensor, ...]:
        variant, number = key
        return self.variants[variant].draw(number)


# Starts and boxes of two clips to tensors.
Sample = Callable[[list[int], list[Box]], tuple[Tensor, ...]]


def in_rgb(path: Path, known: Known) -> Sample:
    def sample(starts: list[int], boxes: list[Box]) -> tuple[Tensor, ...]:
        into = partial(RGBCrops, draw=lambda height, width: boxes, size=SIDE)
        return tuple(read_clips(path, starts, FRAMES, STRIDE, into, known))

    return sample


def in_planes(path: Path, known: Known) -> Sample:
    def sample(starts: list[int], boxes: list[Box]) -> tuple[Tensor, ...]:
        into = partial(PlanarCrops, draw=lambda height, width: boxes, size=SIDE)
        return read_clips(path, starts, FRAMES, STRIDE, into, known)[:3]

    return sample


def first_reading(path: Path) -> Sample:
    """Decodes all frames to count them, and makes the clips of these."""

    def sample(starts: list[int], boxes: list[Box]) -> tuple[Tensor, ...]:
        held: list[av.VideoFrame] = []
        known = learn(path, held)
        if not held:  # of large frames none are kept
            return in_planes(path, known)(starts, boxes)
        numbers = np.add.outer(starts, STRIDE * np.arange(FRAMES))
        into = partial(PlanarCrops, draw=lambda height, width: boxes, size=SIDE)
        return make_clips(path, numbers, lambda wanted: ((n, held[n]) for n in wanted), into, known.count)[:3]

    return sample


def whole_clips(read: Callable[[list[int]], np.ndarray]) -> Sample:
    """Of a reader of whole frames (2, 17, H, W, 3)."""

    def sample(starts: list[int], boxes: list[Box]) -> tuple[Tensor, ...]:
        return tuple(crop_resize(torch.from_numpy(clip), box, SIDE) for clip, box in zip(read(starts), boxes))

    return sample


class Turns:
    """A variant, of which each call takes the next of the draws."""

    def __init__(self, size: Size, sample: Sample, prepared: bool = False):
        width, height = small_size(size.width, size.height) if prepared else (size.width, size.height)
        self.sample, self.draws = sample, list(draws(size.frames, height, width))
        self.turns = cycle(range(DRAWS))

    def draw(self, number: int) -> tuple[Tensor, ...]:
        return self.sample(*self.draws[number])

    def __call__(self) -> tuple[Tensor, ...]:
        return self.draw(next(self.turns))


def draws(frames: int, height: int, width: int) -> Iterator[tuple[list[int], list[Box]]]:
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        starts = sample_starts(frames, 1 + (FRAMES - 1) * STRIDE, 2, rng)
        yield starts, [random_resized_crop_box(height, width, (0.2, 1.0), (3 / 4, 4 / 3), rng) for _ in starts]


def write_scene(path: Path, size: Size) -> Path:
    """A textured background that pans, a textured square that crosses it, and grain, so that all blocks move."""
    rng = np.random.default_rng(0)
    height, width = size.height, size.width
    coarse = rng.integers(64, 192, (height // 16 + 8, width // 16 + 24, 3), dtype=np.uint8)
    picture = av.VideoFrame.from_ndarray(coarse, format="rgb24")
    scenery = picture.reformat(width=16 * coarse.shape[1], height=16 * coarse.shape[0], interpolation="BICUBIC")
    scenery = scenery.to_ndarray().astype(np.int16)
    grain = rng.normal(0, 1, (4, height, width, 1)).astype(np.int16)
    side = height // 3
    with av.open(str(path), "w") as container:
        stream = container.add_stream(size.codec, rate=size.fps, options={"g": str(size.gop), "bf": "2"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", size.bit_rate
        for t in range(size.frames):
            x, y = t % 256, t % 64
            frame = scenery[y : y + height, x : x + width] + grain[t % 4]
            left = 2 * t % (width - side)
            frame[side : 2 * side, left : left + side] = scenery[:side, :side]
            frame = np.clip(frame, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def add_peers(problem: Problem, size: Size, path: str) -> None:
    """Other decoders, each with one thread and all frames of both clips in one call."""

    def add(name: str, read: Callable[[list[int]], np.ndarray]) -> None:
        def clips(starts: list[int]) -> np.ndarray:
            numbers = [start + STRIDE * i for start, i in product(starts, range(FRAMES))]
            return read(numbers).reshape(len(starts), FRAMES, size.height, size.width, 3)

        problem.variants[name] = Turns(size, whole_clips(clips))

    def pyav(numbers: list[int]) -> np.ndarray:
        pictures = {}
        with av.open(path) as container:
            container.streams.video[0].thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if number in numbers:
                    pictures[number] = frame.to_ndarray(format="rgb24")
                if number == max(numbers):
                    break
        return np.stack([pictures[number] for number in numbers])

    add("pyav", pyav)
    if not missing(problem, "opencv", "cv2", needs_cuda=False):
        import cv2

        def opencv(numbers: list[int]) -> np.ndarray:
            video = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
            pictures = {}
            for number in range(max(numbers) + 1):
                video.grab()
                if number in numbers:
                    pictures[number] = cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB)
            return np.stack([pictures[number] for number in numbers])

        add("opencv", opencv)
    if not missing(problem, "decord", "decord", needs_cuda=False):
        from decord import VideoReader

        add("decord", lambda numbers: VideoReader(path, num_threads=1).get_batch(numbers).asnumpy())
    if not missing(problem, "torchcodec", "torchcodec.decoders", needs_cuda=False):
        add_torchcodec(add, path)


def add_torchcodec(add: Callable[[str, Callable[[list[int]], np.ndarray]], None], path: str) -> None:
    """Its modes: it looks through the packets first, trusts the header, or is told of the frames as ours are."""
    from torchcodec.decoders import VideoDecoder

    def reader(**options) -> Callable[[list[int]], np.ndarray]:
        options |= {"dimension_order": "NHWC", "num_ffmpeg_threads": 1}

        def read(numbers: list[int]) -> np.ndarray:
            decoder = VideoDecoder(path, **options)
            try:
                return decoder.get_frames_at(numbers).data.numpy()
            except RuntimeError:  # it does not have the last frame of an AVI with B-frames: no clip, at its cost
                height, width = decoder.metadata.height, decoder.metadata.width
                return np.zeros((len(numbers), height, width, 3), np.uint8)

        return read

    add("torchcodec, exact", reader())
    add("torchcodec, approximate", reader(seek_mode="approximate"))
    add("torchcodec, told of the frames", reader(custom_frame_mappings=frame_mappings(path)))


def frame_mappings(path: str) -> str:
    """What ffprobe would print of a file's packets, for torchcodec."""
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    frames = [{"pts": p.pts, "duration": p.duration, "key_frame": int(p.is_keyframe)} for p in packets]
    return json.dumps({"frames": sorted(frames, key=lambda frame: frame["pts"])})
