import math
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dclr.data import DatasetError, EvaluationClips, PretrainClips, VideoDataset, read_clips, seeking
from dclr.data import clips as clips_module
from dclr.data.clips import (
    Sample,
    centre_crop,
    collate,
    crop_resize,
    random_resized_crop_box,
    sample_starts,
    uniform_starts,
)

from . import conftest as make


def dataset_of(*paths, labels=None):
    return VideoDataset("test", tuple(map(str, paths)), tuple(labels or range(len(paths))), ("a", "b", "c"))


def rng(seed=0):
    return np.random.default_rng(seed)


def test_starts_are_distinct_and_uniform_over_all():
    """12 frames, span 9: every ordered pair of distinct starts out of 4 is equally likely."""
    generator = rng()
    draws = [tuple(sample_starts(12, 9, 2, generator)) for _ in range(6000)]
    pairs, counts = np.unique(draws, axis=0, return_counts=True)
    assert [tuple(pair) for pair in pairs] == [(i, j) for i in range(4) for j in range(4) if i != j]
    chi_square = ((counts - 500) ** 2 / 500).sum()
    assert chi_square < 31.3  # the 0.1% quantile with 11 degrees of freedom


@pytest.mark.parametrize(
    "n_frames, span, views, allowed, distinct",
    [
        (33, 33, 1, 1, 1),
        (33, 33, 2, 33, 2),
        (34, 33, 2, 2, 2),
        (5, 33, 2, 5, 2),
        (1, 33, 2, 1, 1),
        (3, 9, 5, 3, 1),
    ],
)
def test_starts_of_short_videos(n_frames, span, views, allowed, distinct):
    generator = rng()
    draws = [sample_starts(n_frames, span, views, generator) for _ in range(400)]
    assert {start for draw in draws for start in draw} == set(range(allowed))
    assert all(len(draw) == views and len(set(draw)) >= distinct for draw in draws)


@pytest.mark.parametrize("n_frames", [1, 31, 32, 33, 41, 42, 100, 163, 251, 300])
@pytest.mark.parametrize("clips", [1, 2, 10])
def test_uniform_starts(n_frames, clips):
    exact = [math.floor(round(start, 9)) for start in np.linspace(0, max(n_frames - 32, 0), clips)]
    assert uniform_starts(n_frames, 32, clips) == exact


def test_uniform_starts_of_100_frames():
    assert uniform_starts(100, 32, 10) == [0, 7, 15, 22, 30, 37, 45, 52, 60, 68]


@pytest.mark.parametrize("height, width", [(240, 320), (333, 41), (2, 3), (1, 1)])
def test_crop_boxes_lie_in_the_frame(height, width):
    generator = rng()
    for _ in range(300):
        top, left, h, w = random_resized_crop_box(height, width, (0.2, 1), (3 / 4, 4 / 3), generator)
        assert h >= 1 and w >= 1 and top >= 0 and left >= 0 and top + h <= height and left + w <= width


def test_crop_boxes_follow_scale_and_ratio():
    """In a frame so large that every box fits, area is uniform and log ratio is uniform, and so is the place."""
    generator = rng()
    boxes = np.array([random_resized_crop_box(4000, 4000, (0.2, 0.5), (0.5, 2), generator) for _ in range(4000)])
    top, left, h, w = boxes.T.astype(float)
    for value, low, high in (
        (h * w / 4000**2, 0.2, 0.5),
        (np.log2(w / h), -1, 1),
        (top / (4000 - h), 0, 1),
        (left / (4000 - w), 0, 1),
    ):
        unit = np.sort((value - low) / (high - low))
        assert np.abs(unit - np.linspace(0, 1, len(unit))).max() < 1.95 / math.sqrt(len(unit))


def test_a_crop_that_never_fits_is_the_centre():
    assert random_resized_crop_box(100, 1000, (1, 1), (3 / 4, 4 / 3), rng()) == (0, 433, 100, 133)
    assert random_resized_crop_box(1000, 100, (1, 1), (3 / 4, 4 / 3), rng()) == (433, 0, 133, 100)


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("box", [(3, 5, 50, 61), (0, 0, 61, 83), (7, 1, 9, 11), (2, 2, 32, 32)])
def test_crop_resize_against_float64(box):
    clip = noise(3, 61, 83, 3)
    top, left, h, w = box
    crop = clip[:, top : top + h, left : left + w].permute(0, 3, 1, 2).double()
    expected = F.interpolate(crop, size=(32, 32), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    got = crop_resize(clip, box, 32)
    assert got.dtype == torch.uint8 and got.is_contiguous() and got.shape == (3, 32, 32, 3)
    assert (got.double() - expected).abs().max() <= 1


def test_halving_is_the_triangle_filter():
    """Weights 1/8, 3/8, 3/8, 1/8 along each axis, inside the frame."""
    clip = noise(1, 16, 16, 3)
    weights = np.zeros((8, 16))
    for i in range(1, 7):
        weights[i, 2 * i - 1 : 2 * i + 3] = np.array([1, 3, 3, 1]) / 8
    expected = np.einsum("ih,jw,thwc->tijc", weights, weights, clip.double().numpy())
    got = crop_resize(clip, (0, 0, 16, 16), 8).double().numpy()
    assert np.abs(got - expected)[:, 1:7, 1:7].max() <= 1


@pytest.mark.parametrize(
    "height, width, test_crop, box",
    [
        (60, 80, "square_resize", (0, 10, 60, 60)),
        (80, 61, "square_resize", (9, 0, 61, 61)),
        (60, 80, "native", (14, 24, 32, 32)),
        (20, 80, "native", (0, 30, 20, 20)),
        (128, 160, "short128", (48, 64, 32, 32)),
    ],
)
def test_centre_crop(height, width, test_crop, box):
    clip = noise(2, height, width, 3)
    assert torch.equal(centre_crop(clip, 32, test_crop), crop_resize(clip, box, 32))


def test_short128_resizes_first():
    clip = noise(1, 64, 96, 3)
    large = F.interpolate(clip.permute(0, 3, 1, 2).double(), size=(128, 192), mode="bilinear", antialias=True)
    expected = large.permute(0, 2, 3, 1)[:, 8:120, 40:152]
    assert (centre_crop(clip, 112, "short128").double() - expected).abs().max() <= 1


@pytest.fixture(scope="module")
def clips(files):
    return PretrainClips(dataset_of(files["h264"], files["avi"]), frames=3, stride=2, size=32, scale=(0.9, 1.0))


def test_pretrain_sample(clips, files):
    sample = clips[0, 1]
    assert sample.clips.shape == (2, 4, 32, 32, 3) and sample.clips.dtype == torch.uint8
    assert (sample.video_id, sample.label, sample.failures) == (1, 1, ())
    views = make.numbers_of(sample.clips.numpy())
    assert views[0] != views[1]
    assert all(later - first == 2 for view in views for first, later in pairwise(view))


def test_draws_depend_on_seed_epoch_and_index_alone(clips, files):
    again = PretrainClips(clips.dataset, frames=3, stride=2, size=32, scale=(0.9, 1.0))
    other = PretrainClips(clips.dataset, frames=3, stride=2, size=32, scale=(0.9, 1.0), seed=1)
    first = clips[4, 0].clips
    assert torch.equal(again[4, 0].clips, first)
    for changed in (clips[5, 0], clips[4, 1], other[4, 0]):
        assert not torch.equal(changed.clips, first)


def test_kept_videos_give_the_same_clips(clips, files, monkeypatch):
    kept = PretrainClips(clips.dataset, frames=3, stride=2, size=32, scale=(0.9, 1.0), cache="memory")
    for key in ((0, 0), (3, 1)):
        assert torch.equal(kept[key].clips, clips[key].clips)
    monkeypatch.setattr("dclr.data.clips.small_frames", None)
    assert torch.equal(kept[1, 0].clips, clips[1, 0].clips)
    with pytest.raises(ValueError, match="cache"):
        PretrainClips(clips.dataset, cache="disk")


def test_a_crop_is_one_for_the_whole_clip(files):
    """With a still video all frames of a crop are equal, and the two views differ."""
    still = dataset_of(make.write(files["folder"] / "still.avi", [make.numbered(77)] * 40, "ffv1", "bgr0"))
    sample = PretrainClips(still, frames=4, stride=2, size=48)[0, 0]
    assert (sample.clips == sample.clips[:, :1]).all()
    assert not torch.equal(sample.clips[0], sample.clips[1])


def test_crops_of_a_view_show_the_same_frames(clips, files):
    twice = PretrainClips(clips.dataset, frames=3, stride=2, size=32, scale=(0.9, 1.0), crops=2)
    cropped = twice[4, 0].clips
    assert cropped.shape[0] == 4
    numbers = make.numbers_of(cropped.numpy())
    assert numbers[:2] == numbers[2:] and numbers[0] != numbers[1]
    loose = PretrainClips(clips.dataset, frames=3, stride=2, size=32, crops=2)[4, 0].clips
    assert not torch.equal(loose[0], loose[2])


def test_unreadable_videos_are_replaced_and_named(files):
    mixed = dataset_of(files["text"], files["h264"], files["audio"])
    clips = PretrainClips(mixed, frames=3, size=32)
    sample = clips[0, 0]
    assert sample.video_id == 1 and sample.label == 1
    assert sample.failures[0].path == str(files["text"]) and "not a video" in sample.failures[0].reason
    assert torch.equal(clips[0, 0].clips, sample.clips)
    stood_in = clips[0, 0, 2, 1]
    assert stood_in.video_id == 1 and [error.path for error in stood_in.failures] == [mixed.paths[0], mixed.paths[2]]
    batch = collate([sample, clips[0, 1], sample])
    assert batch.video_id.tolist() == [1, 1, 1] and batch.failures == 2 * sample.failures
    with pytest.raises(DatasetError, match=r"10 videos in a row cannot be read, the last one .*text.mp4"):
        PretrainClips(dataset_of(files["text"]))[0, 0]


def test_clip_longer_than_every_video(files):
    videos = dataset_of(files["text"], files["truncated"], files["h264"])
    PretrainClips(videos, frames=29, stride=1).check_span()
    with pytest.raises(DatasetError, match=r"31 raw frames .* but the longest of the 3 videos has 30"):
        PretrainClips(videos, frames=30, stride=1).check_span()
    with pytest.raises(DatasetError, match=r"none of the 2 videos can be read; .*text.mp4: .*not a video"):
        PretrainClips(dataset_of(files["text"], files["audio"])).check_span()


def test_videos_that_change_during_a_run(files, tmp_path):
    """Replaced by a longer one, grown, cut short, and deleted."""
    paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for path in paths:
        path.write_bytes(files["h264"].read_bytes())
    clips = PretrainClips(dataset_of(*paths), frames=3, size=32)
    assert clips.videos.count(0) == 30
    make.write(paths[0], [make.numbered(n) for n in range(50)])
    assert clips.videos.count(0) == 50 and clips[0, 0].video_id == 0
    whole = paths[0].read_bytes()
    paths[0].write_bytes(whole + bytes(5000))
    assert clips.videos.count(0) == 50 and clips[0, 0].failures == ()
    paths[0].write_bytes(whole[:2000])
    sample = clips[0, 0, 1]
    assert sample.video_id == 1 and sample.failures[0].path == str(paths[0])
    paths[0].unlink()
    sample = clips[0, 0, 1]
    assert sample.video_id == 1 and "No such file" in sample.failures[0].reason


def test_kept_videos_are_small(tmp_path):
    with av.open(str(tmp_path / "large.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 8 * make.WIDTH, 8 * make.HEIGHT, "yuv420p"
        for number in range(12):
            picture = np.kron(make.numbered(number), np.ones((8, 8, 1), np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    options = {"frames": 3, "stride": 1, "size": 64, "scale": (1.0, 1.0), "ratio": (4 / 3, 4 / 3)}
    plain = PretrainClips(dataset_of(tmp_path / "large.mp4"), **options)
    kept = PretrainClips(dataset_of(tmp_path / "large.mp4"), cache="memory", **options)
    assert make.numbers_of(kept[0, 0].clips.numpy()) == make.numbers_of(plain[0, 0].clips.numpy())
    sizes = {(frame.width, frame.height) for frame in kept.videos.whole[0]}
    assert sizes == {(170, 128)} and kept.videos.memory_needed() == 12 * 170 * 128 * 3 // 2


@pytest.mark.parametrize("limit, decoded", [(1 << 26, 30), (0, 60)])
def test_a_video_that_must_be_counted_is_decoded_once(files, monkeypatch, tmp_path, limit, decoded):
    """The first clips are made of the frames that were counted, if they are not too many."""
    path = tmp_path / "a.mp4"
    path.write_bytes(files["h264"].read_bytes())
    monkeypatch.setattr("dclr.data.seeking.MAX_HELD", limit)
    looks = []
    monkeypatch.setattr(
        "dclr.data.seeking._picture_kind", lambda frame, real=seeking._picture_kind: looks.append(0) or real(frame)
    )
    frames = []
    real = seeking._frames_from
    monkeypatch.setattr("dclr.data.seeking._frames_from", lambda *a: (frames.append(0) or part for part in real(*a)))
    clips = EvaluationClips(dataset_of(path), frames=15, stride=1, size=32, clips=2)
    first = clips[0].clips
    assert len(looks) + len(frames) == decoded and clips.videos.held == (-1, [])
    assert torch.equal(clips[0].clips, first) and len(looks) == 30


def test_evaluation_decodes_and_converts_each_frame_once(files, monkeypatch):
    """Ten clips that overlap."""
    videos = EvaluationClips(dataset_of(files["h264"]), frames=8, stride=2, size=32, clips=10)
    videos[0]
    converted = []
    convert = clips_module.ToRGB.__call__
    monkeypatch.setattr(
        clips_module.ToRGB, "__call__", lambda self, frame: converted.append(frame.pts) or convert(self, frame)
    )
    monkeypatch.setattr("dclr.data.index.learn", None)
    videos[0]
    wanted = {start + 2 * frame for start in uniform_starts(30, 16, 10) for frame in range(8)}
    assert len(converted) == len(wanted)


def test_evaluation_sample(files):
    videos = dataset_of(files["avi"], files["h264"], labels=(2, 1))
    sample = EvaluationClips(videos, frames=4, stride=3, size=32, clips=4)[0]
    assert (sample.video_id, sample.label, sample.failures) == (0, 2, ())
    starts = [0, 6, 12, 18]
    raw = torch.from_numpy(read_clips(files["avi"], starts, 4, 3))
    expected = torch.stack([crop_resize(clip, (0, 8, 48, 48), 32) for clip in raw])
    assert torch.equal(sample.clips, expected)


def test_evaluation_of_a_short_video_loops(files):
    sample = EvaluationClips(dataset_of(files["h264"]), frames=20, stride=2, size=64, clips=3)[0]
    assert sample.clips.shape == (3, 20, 64, 64, 3) and torch.equal(sample.clips[0], sample.clips[2])
    assert torch.equal(sample.clips[0, 0], sample.clips[0, 15])


def test_evaluation_leaves_out_what_cannot_be_read(files):
    videos = EvaluationClips(dataset_of(files["text"], files["h264"]), frames=4, size=32, clips=2)
    batch = collate([videos[0], videos[1]])
    assert batch.clips.shape == (2, 1, 4, 32, 32, 3) and batch.video_id.tolist() == [1]
    assert [failure.path for failure in batch.failures] == [str(files["text"])]
    empty = collate([videos[0]])
    assert empty.clips.shape == (2, 0, 4, 32, 32, 3) and len(empty.video_id) == 0 and len(empty.failures) == 1
    with pytest.raises(ValueError, match="test_crop must be one of square_resize, native, short128, got 'centre'"):
        EvaluationClips(videos.dataset, test_crop="centre")


def test_collate():
    samples = [Sample(torch.full((2, 3, 4, 4, 3), i, dtype=torch.uint8), 10 + i, i - 1) for i in range(5)]
    batch = collate(samples)
    assert batch.clips.shape == (2, 5, 3, 4, 4, 3) and batch.clips.dtype == torch.uint8
    assert (batch.clips.float().mean(dim=(0, 2, 3, 4, 5)) == torch.arange(5)).all()
    assert batch.video_id.tolist() == [10, 11, 12, 13, 14] and batch.label.tolist() == [-1, 0, 1, 2, 3]
    assert batch.video_id.dtype == batch.label.dtype == torch.int64 and batch.failures == ()
