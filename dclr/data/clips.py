"""Clips for pretraining and evaluation: which frames, which crop, at which size.

Shapes: V views or clips of a video, B batch, T frames, H height, W width, 3 RGB; uint8 throughout.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from dclr.data.container import VideoError
from dclr.data.datasets import DatasetError, VideoDataset
from dclr.data.index import FrameIndex
from dclr.data.pictures import ToRGB
from dclr.data.planes import Box, PackedCrops, PlanarCrops, join
from dclr.data.prepared import small_frames, small_size
from dclr.data.video import make_clips, read_clips

TestCrop = Literal["square_resize", "native", "short128"]
REPLACEMENTS = 10


class Batch(NamedTuple):
    """What a loader yields.

    clips: uint8 (V, B, T, H, W, 3); T counts one more than the encoder's frames in pretraining (DCLR Eq. 4). Before
        `to_device`, with planes: their `PackedCrops`.
    video_id: int64 (B,), the video's number in the dataset: equal numbers, same video.
    label: int64 (B,), class number, -1 unknown.
    failures: the videos that could not be read. In pretraining others stand in for them; in evaluation they
        are left out of the batch.
    """

    clips: Tensor | PackedCrops
    video_id: Tensor
    label: Tensor
    failures: Sequence[VideoError] = ()


class Sample(NamedTuple):
    """One video of a `Batch`: clips (V, T, H, W, 3) or `PackedCrops`. `video_id` is -1 where it could not be read."""

    clips: Tensor | PackedCrops
    video_id: int
    label: int
    failures: tuple[VideoError, ...] = ()


def collate(samples: list[Sample]) -> Batch:
    """Stacks the samples that could be read and gathers the failures of all."""
    read = [sample for sample in samples if sample.video_id >= 0]
    return Batch(
        _stacked([sample.clips for sample in read]) if read else samples[0].clips[:, None][:, :0],
        torch.tensor([sample.video_id for sample in read], dtype=torch.int64),
        torch.tensor([sample.label for sample in read], dtype=torch.int64),
        tuple(failure for sample in samples for failure in sample.failures),
    )


def _stacked(clips: list[Tensor] | list[PackedCrops]) -> Tensor | PackedCrops:
    return join(clips) if isinstance(clips[0], PackedCrops) else torch.stack(clips, dim=1)


def sample_starts(n_frames: int, span: int, views: int, rng: np.random.Generator) -> list[int]:
    """First frames of `views` clips of `span` raw frames: distinct, uniform over all n_frames - span + 1 starts.

    A video with fewer starts than views is a loop, and every one of its frames a start; they repeat only where
    there are fewer frames than views.
    """
    starts = n_frames - span + 1
    if starts < views:
        starts = n_frames
    return rng.choice(starts, size=views, replace=starts < views).tolist()


def uniform_starts(n_frames: int, span: int, clips: int) -> list[int]:
    """First frames of `clips` test clips: floor(linspace(0, n_frames - span, clips)), 0 for a shorter video."""
    last = max(n_frames - span, 0)
    return [i * last // max(clips - 1, 1) for i in range(clips)]


def random_resized_crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """A box (top, left, height, width) of random area, as a share of the frame, and aspect ratio (width / height).

    The area is uniform in `scale`, the logarithm of the ratio uniform; after ten boxes that do not fit, the
    largest centred one whose ratio is allowed.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    h = max(min(height, round(width / aspect)), 1)
    w = max(min(width, round(height * aspect)), 1)
    return (height - h) // 2, (width - w) // 2, h, w


def resize(clip_thwc: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize with antialiasing of a uint8 clip (T, H, W, 3) to (T, height, width, 3)."""
    if clip_thwc.shape[1:3] == (height, width):
        return clip_thwc.contiguous()
    # THWC memory is channels-last, which the uint8 kernel is fastest in.
    clip_tchw = clip_thwc.permute(0, 3, 1, 2)
    clip_tchw = F.interpolate(clip_tchw, size=(height, width), mode="bilinear", antialias=True)
    return clip_tchw.permute(0, 2, 3, 1).contiguous()


def crop_resize(clip_thwc: Tensor, box: Box, size: int) -> Tensor:
    """The box (top, left, height, width) of every frame of a clip, resized: uint8 (T, size, size, 3)."""
    top, left, height, width = box
    return resize(clip_thwc[:, top : top + height, left : left + width], size, size)


def centre_crop(clip_thwc: Tensor, size: int, test_crop: TestCrop) -> Tensor:
    """The centre of a clip for evaluation: uint8 (T, size, size, 3).

    "square_resize": the largest square, resized; "native": `size` pixels of the frame as it is, or the largest
    square of a smaller frame, resized; "short128": the frame resized to a short side of 128 (or `size` if that
    is more), then `size` pixels of it.
    """
    height, width = clip_thwc.shape[1:3]
    if test_crop == "short128":
        zoom = max(128, size) / min(height, width)
        height, width = round(height * zoom), round(width * zoom)
        clip_thwc = resize(clip_thwc, height, width)
    side = min(height, width)
    if test_crop != "square_resize":
        side = min(side, size)
    return crop_resize(clip_thwc, ((height - side) // 2, (width - side) // 2, side, side), size)


class RGBCrops:
    """Crops of a video's clips, resized as the frames come: uint8 (crops, F, size, size, 3).

    draw: called with H and W gives the boxes (top, left, height, width); box i is of clip i modulo their number.
    """

    def __init__(
        self, first: av.VideoFrame, clips: int, frames: int, *, draw: Callable[[int, int], Sequence[Box]], size: int
    ):
        self.convert, self.clips, self.size = ToRGB(first), clips, size
        self.boxes = draw(*self.convert.size)
        self.crops = torch.empty((len(self.boxes), frames, size, size, 3), dtype=torch.uint8)

    def put(self, frame: av.VideoFrame, places: Sequence[tuple[int, int]]) -> None:
        picture = _one_frame_clip(self.convert(frame))
        for clip, t in places:
            for crop in range(clip, len(self.boxes), self.clips):
                self.crops[crop, t] = crop_resize(picture, self.boxes[crop], self.size)[0]

    def done(self) -> Tensor:
        return self.crops


class CentreCrops:
    """The `centre_crop` of a video's clips, made as the frames come: uint8 (S, F, size, size, 3)."""

    def __init__(self, first: av.VideoFrame, clips: int, frames: int, *, size: int, test_crop: TestCrop):
        self.convert, self.size, self.test_crop = ToRGB(first), size, test_crop
        self.crops = torch.empty((clips, frames, size, size, 3), dtype=torch.uint8)

    def put(self, frame: av.VideoFrame, places: Sequence[tuple[int, int]]) -> None:
        [picture] = centre_crop(_one_frame_clip(self.convert(frame)), self.size, self.test_crop)
        for place in places:
            self.crops[place] = picture

    def done(self) -> Tensor:
        return self.crops


def _one_frame_clip(picture: np.ndarray) -> Tensor:
    # Torch takes no arrays that run backwards, as those of a turned video do.
    return torch.from_numpy(picture[None] if min(picture.strides) > 0 else picture[None].copy())


class _Videos:
    """The videos of a dataset by number, and, if asked, whole videos in memory as small as prepared copies.

    cache: None or "memory".
    """

    def __init__(self, paths: Sequence[str], cache: str | None = None):
        if cache not in (None, "memory"):
            raise ValueError(f'cache must be None or "memory", got {cache!r}')
        self.paths, self.index = paths, FrameIndex(paths)
        self.whole: dict[int, list[av.VideoFrame]] | None = {} if cache == "memory" else None
        # The frames of the video that was just counted, which is asked for its clips next.
        self.held: tuple[int, list[av.VideoFrame]] = -1, []

    def __getstate__(self) -> dict[str, Any]:
        # A worker keeps videos of its own: frames cannot be pickled.
        return {**self.__dict__, "whole": None if self.whole is None else {}, "held": (-1, [])}

    def count(self, index: int) -> int:
        if self.whole is not None:
            return len(self._frames(index))
        self.held = index, []
        return self.index.known(self.paths[index], self.held[1]).count

    def clips(self, index: int, starts: Sequence[int], frames: int, stride: int, into: Callable) -> Any:
        """As `read_clips`."""
        path = self.paths[index]
        (held, whole), self.held = self.held, (-1, [])
        if self.whole is not None:
            whole = self._frames(index)
        elif held != index or not whole:
            return read_clips(path, starts, frames, stride, into, self.index.known(path))
        numbers_sf = np.add.outer(np.asarray(starts), stride * np.arange(frames))
        return make_clips(path, numbers_sf, partial(_chosen, whole), into, len(whole))

    def _frames(self, index: int) -> list[av.VideoFrame]:
        if index not in self.whole:
            self.whole[index] = list(small_frames(self.paths[index]))
        return self.whole[index]

    def memory_needed(self) -> int:
        """Bytes that all the videos take in memory, as far as 32 of them tell."""
        sizes = []
        for path in self.paths[:: max(len(self.paths) // 32, 1)]:
            try:
                known = self.index.known(path)
            except VideoError:
                continue
            sizes.append(known.count * math.prod(small_size(known.width, known.height)) * 3 // 2)
        return len(self.paths) * sum(sizes) // max(len(sizes), 1)


def _chosen(frames: list[av.VideoFrame], numbers: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    return ((number, frames[number]) for number in numbers)


class PretrainClips(Dataset):
    """Randomly placed and cropped clips by (epoch, index, *stand_ins): `Sample`s of (views, frames + 1, size, size, 3).

    Every draw comes from a generator seeded by (seed, epoch, index), so a sample is the same whoever loads it.
    The crop is one for all frames of a clip and is not mirrored. A video that cannot be read is replaced by the
    first of its stand-ins that can, or else by any of the dataset, and named in `failures`; `DatasetError` after ten
    in a row.

    frames, stride: frames + 1 are taken, every stride-th raw frame (DCLR Eq. 4 needs one more than the encoder).
    crops: crops of each view, each with a box of its own: (crops * views, ...), all views of a crop together.
    scale, ratio: of `random_resized_crop_box`.
    cache: "memory" keeps whole videos as small as prepared copies, in each worker its own; for sets that fit several
        times.
    planes: a sample has `PackedCrops` of the same draws, which `to_device` resizes and turns into RGB.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        *,
        frames: int = 16,
        stride: int = 2,
        size: int = 112,
        views: int = 2,
        crops: int = 1,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        seed: int = 0,
        cache: str | None = None,
        planes: bool = False,
    ):
        self.dataset = dataset
        self.frames, self.stride, self.size, self.views, self.crops = frames, stride, size, views, crops
        self.scale, self.ratio, self.seed = scale, ratio, seed
        self.span, self.planes = 1 + frames * stride, planes
        self.videos = _Videos(dataset.paths, cache)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, ...]) -> Sample:
        epoch, index, *stand_ins = key
        # A seed's trailing zeros are not told apart, and (seed, epoch) seeds the order of the epoch.
        rng = np.random.default_rng((self.seed, epoch, index + 1))
        failures = []
        for _ in range(REPLACEMENTS):
            try:
                return Sample(self._draw(index, rng), index, int(self.dataset.labels[index]), tuple(failures))
            except VideoError as error:
                failures.append(_bare(error))
                index = stand_ins.pop(0) if stand_ins else int(rng.integers(len(self.dataset)))
        raise DatasetError(f"{REPLACEMENTS} videos in a row cannot be read, the last one {failures[-1]}")

    def _draw(self, index: int, rng: np.random.Generator) -> Tensor | PackedCrops:
        starts = sample_starts(self.videos.count(index), self.span, self.views, rng)

        def boxes(height: int, width: int) -> list[Box]:
            count = self.crops * self.views
            return [random_resized_crop_box(height, width, self.scale, self.ratio, rng) for _ in range(count)]

        into = partial(PlanarCrops if self.planes else RGBCrops, draw=boxes, size=self.size)
        return self.videos.clips(index, starts, self.frames + 1, self.stride, into)

    def check_span(self) -> None:
        """Raises `DatasetError` where no video can be read, or none is as long as a clip. Counts until one is."""
        longest, failures = 0, []
        for index in range(len(self)):
            try:
                longest = max(longest, self.videos.count(index))
            except VideoError as error:
                failures.append(_bare(error))
            if longest >= self.span:
                return
        if failures and not longest:
            raise DatasetError(f"{self.dataset.name}: none of the {len(self)} videos can be read; {failures[0]}")
        raise DatasetError(
            f"{self.dataset.name}: a clip spans {self.span} raw frames ({self.frames} + 1 frames, "
            f"stride {self.stride}), but the longest of the {len(self)} videos has {longest}"
        )


class EvaluationClips(Dataset):
    """Evenly spaced, centred clips of each video: a `Sample` with clips (clips, frames, size, size, 3).

    Starts are those of `uniform_starts` with a span of frames * stride raw frames. A video that cannot be read
    comes back with `video_id` -1 and its failure; `collate` leaves it out.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        *,
        frames: int = 16,
        stride: int = 2,
        size: int = 112,
        clips: int = 10,
        test_crop: TestCrop = "square_resize",
    ):
        if test_crop not in get_args(TestCrop):
            raise ValueError(f"test_crop must be one of {', '.join(get_args(TestCrop))}, got {test_crop!r}")
        self.dataset = dataset
        self.frames, self.stride, self.size, self.clips = frames, stride, size, clips
        self.test_crop = test_crop
        self.videos = _Videos(dataset.paths)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        try:
            starts = uniform_starts(self.videos.count(index), self.frames * self.stride, self.clips)
            into = partial(CentreCrops, size=self.size, test_crop=self.test_crop)
            clips = self.videos.clips(index, starts, self.frames, self.stride, into)
        except VideoError as error:
            nothing = torch.empty((self.clips, self.frames, self.size, self.size, 3), dtype=torch.uint8)
            return Sample(nothing, -1, -1, (_bare(error),))
        return Sample(clips, index, int(self.dataset.labels[index]))


def _bare(error: VideoError) -> VideoError:
    # The traceback would keep the frames of all callers alive, and the loader's workers with them.
    return VideoError(error.path, error.reason)
