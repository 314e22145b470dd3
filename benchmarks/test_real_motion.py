"""The probes of motion: an encoder that sees it is told from one that sees frames alone."""

import json

import pytest
import torch
from torch import nn

from benchmarks import real_clips, real_motion
from dclr.data.synth import SynthConfig, synthesize


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    labels = synthesize(root, SynthConfig(train=32, test=16, size=32, frames=64), progress=False)
    labels.write_text(labels.read_text().replace("motion", "label", 1))
    return root


class Changes(nn.Module):
    """How much a clip changes from frame to frame, beside a constant, as the probe takes features of length one."""

    feature_dim = 2

    def forward(self, clip_bcthw):
        change = clip_bcthw.diff(dim=2).abs().mean((1, 2, 3, 4), keepdim=True)
        return torch.cat([change, torch.full_like(change, 0.3)], dim=1)


class FirstFrame(nn.Module):
    feature_dim = 3

    def forward(self, clip_bcthw):
        return clip_bcthw[:, :, :1].mean((3, 4), keepdim=True)


def test_backwards_shows_the_last_frame_first():
    clip = torch.arange(4.0).view(1, 1, 4, 1, 1)
    assert real_motion.Backwards(nn.Identity())(clip).flatten().tolist() == [3, 2, 1, 0]


def test_speed_is_known_by_who_sees_changes_and_not_by_who_sees_a_frame(videos):
    speed = {}
    for encoder in (Changes(), FirstFrame()):
        ways = [(encoder, stride) for stride in (1, 8)]
        speed[type(encoder)] = real_motion.probe(ways, videos)["top1"]
    assert speed[Changes] > 80 and speed[FirstFrame] < 65, "chance is 50"


def test_each_run_is_asked_once(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(real_clips, "CLIPS", 1)
    monkeypatch.setattr(real_motion, "CLIPS", 1)
    real_clips.result_of("simclr", videos, "scene", epochs=1, seed=0, folder=tmp_path)
    found = real_motion.motion_of(tmp_path / "simclr_0", videos)
    assert found == json.loads((tmp_path / "simclr_0" / "motion.json").read_text())
    assert all(0 <= found[name] <= 100 for name in real_motion.FIGURES)
    assert "128 training videos" in found["speed protocol"] and "64 training videos" in found["direction protocol"]
    monkeypatch.setattr(real_motion, "encoder_of", None)
    assert real_motion.motion_of(tmp_path / "simclr_0", videos) == found
    text = real_motion.table([found, found | {"seed": 1, "speed": found["speed"] + 2}])
    assert f"| simclr | 2 | {found['speed'] + 1:.1f} ± 1.4 |" in text
