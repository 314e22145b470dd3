"""Moving scenes: independent labels, motion that is what the label says, the two knobs, reproducible files."""

import csv
import math
from collections import Counter

import numpy as np
import pytest

from dclr.data.synth import LABELS_FILE, MOTIONS, SCENES, SynthConfig, background, moving_scene, synthesize
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
    for row in rows:
        one, two = (read_clips(tmp_path / name / row["path"], [0], 6) for name in ("one", "two"))
        assert one.shape == (1, 6, 24, 24, 3)
        assert np.array_equal(one, two)
    assert count_frames(tmp_path / "one" / rows[0]["path"]) == 6


@pytest.mark.parametrize("motion", range(8))
def test_blobs_move_as_labelled(motion):
    """The shift that best aligns consecutive frames lies in the label's sector (image y points down)."""
    config = SynthConfig(size=32, frames=4, contrast=0.0, blobs=3, speed=(3.0, 3.0))
    video = moving_scene(motion, 0, config, np.random.default_rng(motion)).astype(float).mean(-1)
    before, after = np.fft.fft2(video[0]), np.fft.fft2(video[1])
    peak = np.unravel_index(np.fft.ifft2(after * before.conj()).real.argmax(), (32, 32))
    dy, dx = ((p + 16) % 32 - 16 for p in peak)
    off = (math.atan2(dy, dx) - motion * math.pi / 4 + math.pi) % (2 * math.pi) - math.pi
    assert abs(off) < math.pi / 8 + 0.25


def test_scene_is_independent_of_motion():
    """No motion tells anything of the scene: each of the 64 pairs appears about as often as the others."""
    counts = np.zeros((8, 8))
    for number in range(1024):
        counts[number % 8, int(np.random.default_rng((0, number)).integers(8))] += 1
    assert counts.min() >= 4 and counts.max() <= 32


def test_adding_blobs_keep_the_background_out_of_the_difference():
    moving = {}
    for blend in ("add", "cover"):
        config = SynthConfig(blend=blend, brightness=0.3, contrast=0.3, frames=3)
        videos = [moving_scene(0, scene, config, np.random.default_rng(5)) for scene in (1, 5)]
        first, second = (np.diff(v.astype(int), axis=0) for v in videos)
        moving[blend] = np.abs(first - second).max()
    assert moving["add"] <= 2
    assert moving["cover"] > 10


def test_contrast_zero_is_flat():
    assert np.ptp(background(1, 16, 0.0, np.random.default_rng(0))) == 0


@pytest.mark.parametrize("bad", [{"train": 0}, {"size": 33}, {"frames": 1}, {"blobs": 0}])
def test_bad_configuration(bad):
    with pytest.raises(ValueError, match=r"synth\."):
        SynthConfig(**bad)
