"""Moving scenes: independent labels, motion that is what the label says, each knob, reproducible files."""

import csv
import dataclasses
import math
from collections import Counter

import numpy as np
import pytest

from dclr.data.synth import (
    LABELS_FILE,
    MOTIONS,
    OBJECTS,
    SCENES,
    SynthConfig,
    _objects,
    background,
    moving_scene,
    object_picture,
    synthesize,
)
from dclr.data.video import count_frames, read_clips


def test_files_labels_and_seed(tmp_path):
    config = SynthConfig(train=16, test=8, frames=6, size=24)
    for name in ("one", "two"):
        labels = synthesize(tmp_path / name, config, progress=False)
        assert labels == tmp_path / name / LABELS_FILE
    first, second = ((tmp_path / name / LABELS_FILE).read_text() for name in ("one", "two"))
    assert first == second
    rows = list(csv.DictReader(first.splitlines()))
    assert Counter(row["split"] for row in rows) == {"train": 16, "test": 8}
    assert Counter(row["motion"] for row in rows) == dict.fromkeys(MOTIONS, 3)
    assert {row["scene"] for row in rows} <= set(SCENES)
    assert {row["object"] for row in rows} <= set(OBJECTS)
    for row in rows:
        one, two = (read_clips(tmp_path / name / row["path"], [0], 6) for name in ("one", "two"))
        assert one.shape == (1, 6, 24, 24, 3)
        assert np.array_equal(one, two)
    assert count_frames(tmp_path / "one" / rows[0]["path"]) == 6


@pytest.mark.parametrize("motion", range(8))
def test_objects_move_as_labelled(motion):
    """The shift that best aligns consecutive frames lies in the label's sector (image y points down)."""
    config = SynthConfig(size=32, frames=4, contrast=0.0, objects=3, speed=(3.0, 3.0))
    video = moving_scene(motion, 0, motion, config, np.random.default_rng(motion)).astype(float).mean(-1)
    assert between(direction(video[0], video[1]), motion * math.pi / 4) < math.pi / 8 + 0.25


def direction(before, after):
    """Angle of the shift that best aligns two square grey frames."""
    size = len(before)
    peak = np.fft.ifft2(np.fft.fft2(after) * np.fft.fft2(before).conj()).real.argmax()
    dy, dx = ((p + size // 2) % size - size // 2 for p in np.unravel_index(peak, before.shape))
    return math.atan2(dy, dx)


def between(one, other):
    """Angle between two directions, 0 to pi."""
    return abs((one - other + math.pi) % (2 * math.pi) - math.pi)


def test_turned_videos_go_another_way_in_their_second_half():
    config = SynthConfig(size=48, frames=12, contrast=0.0, objects=4, speed=(3.0, 3.0), turn=1.0)
    for seed in range(16):
        video = moving_scene(seed % 8, 0, seed % 8, config, np.random.default_rng(seed)).astype(float).mean(-1)
        first, second = direction(video[0], video[3]), direction(video[7], video[10])
        assert between(first, seed % 8 * math.pi / 4) < math.pi / 8 + 0.15  # the label's
        assert between(first, second) > math.pi / 16
        assert np.abs(video[7] - video[6]).max() < 200  # they turn, and jump nowhere


def test_turn_is_a_share_of_the_videos():
    changed = 0
    for seed in range(200):
        plain, turned = (
            moving_scene(0, 0, 0, SynthConfig(size=16, frames=8, objects=2, turn=turn), np.random.default_rng(seed))
            for turn in (0.0, 0.3)
        )
        assert np.array_equal(plain[:5], turned[:5])
        changed += not np.array_equal(plain, turned)
    assert 40 <= changed <= 80


def test_still_objects_are_in_each_frame_and_not_in_the_difference():
    config = SynthConfig(frames=6, brightness=0.25, contrast=0.2)
    plain, still = (
        moving_scene(2, 5, 2, dataclasses.replace(config, still=number), np.random.default_rng(9)).astype(int)
        for number in (0, 3)
    )
    assert ((still - plain).max((1, 2, 3)) >= 40).all()
    assert np.abs(np.diff(still, axis=0) - np.diff(plain, axis=0)).max() <= 2  # rounding


def test_shared_backgrounds(tmp_path):
    config = SynthConfig(train=40, test=16, frames=2, size=16, objects=1, brightness=0.0, scenes=4)
    rows = list(csv.DictReader(synthesize(tmp_path, config, progress=False).read_text().splitlines()))
    backgrounds = {"train": set(), "test": set()}
    for row in rows:
        frame = read_clips(tmp_path / row["path"], [0], 1)
        backgrounds[row["split"]].add((row["scene"], frame.tobytes()))
    assert len(backgrounds["train"]) == len(backgrounds["test"]) == 4
    assert not backgrounds["train"] & backgrounds["test"]
    assert {scene for scene, _ in backgrounds["train"]} == set(list(SCENES)[:4])
    assert len({(row["motion"], row["scene"]) for row in rows}) > 16  # motion tells nothing of the background


def test_scene_is_independent_of_motion():
    """No motion tells anything of the scene: each of the 64 pairs appears about as often as the others."""
    counts = np.zeros((8, 8))
    for number in range(1024):
        counts[number % 8, int(np.random.default_rng((0, number)).integers(8))] += 1
    assert counts.min() >= 4 and counts.max() <= 32


def test_adding_objects_keep_the_background_out_of_the_difference():
    moving = {}
    for blend in ("add", "cover"):
        config = SynthConfig(blend=blend, brightness=0.3, contrast=0.3, frames=3)
        videos = [moving_scene(0, scene, 2, config, np.random.default_rng(5)) for scene in (1, 5)]
        first, second = (np.diff(v.astype(int), axis=0) for v in videos)
        moving[blend] = np.abs(first - second).max()
    assert moving["add"] <= 2
    assert moving["cover"] > 10


def test_contrast_zero_is_flat():
    assert np.ptp(background(1, 16, 0.0, np.random.default_rng(0))) == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"train": 0},
        {"size": 33},
        {"frames": 1},
        {"objects": 0},
        {"turn": 1.5},
        {"still": -1},
        {"object_size": 3},
        {"object_size": 41},
        {"speed": (2.0, 1.0)},
        {"seed": -1},
    ],
)
def test_bad_configuration(bad):
    with pytest.raises(ValueError, match=r"synth\."):
        SynthConfig(**bad)


@pytest.mark.parametrize("family", range(8))
def test_each_look_is_the_video_s_own(family):
    """A part of the square, not all alike; no family is another one's rest."""
    looks = [object_picture(family, 11, np.random.default_rng((family, seed))) for seed in range(20)]
    for look in looks:
        assert look.shape == (11, 11) and look.min() == 0 and 0.5 < look.max() <= 1
        assert 0.04 < look.mean() < 0.7
    flat = np.array(looks).reshape(20, -1)
    alike = np.corrcoef(flat) - np.eye(20)
    assert alike.max() < 0.97


def test_objects_are_drawn_between_pixels():
    """Half a pixel to the right is the mean of the places to both sides, also over the frame's edge."""
    look = object_picture(2, 8, np.random.default_rng(0))
    for x in (3.0, 19.0):
        left, middle, right = (_objects(np.array([[[x + shift, 5.0]]]), look, 20)[0] for shift in (0.0, 0.5, 1.0))
        np.testing.assert_allclose(middle, (left + right) / 2, atol=1e-6)
    assert np.array_equal(_objects(np.array([[[3.0, 5.0]]]), look, 20)[0, 5:13, 3:11, 0], look)
