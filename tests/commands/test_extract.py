"""Extracted features: rows, paths and labels belong together, also with a video that cannot be read in the middle."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dclr.cli import main
from dclr.commands.evaluate import LinearProbeConfig
from dclr.commands.extract import ExtractConfig, extract
from dclr.config import PretrainConfig, to_dict, update
from dclr.data import read_clips
from dclr.data.clips import centre_crop, uniform_starts
from dclr.data.synth import SynthConfig, synthesize
from dclr.evaluation.checkpoint import features_of
from dclr.evaluation.dataset import EvaluationDataConfig
from dclr.methods import build_method
from dclr.models import build_encoder
from dclr.training import load_method, save_checkpoint

FRAMES, SIZE, CLIPS = 4, 16, 2


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Nine videos to train on, the fifth of which is no video, and eight to test."""
    root = tmp_path_factory.mktemp("videos")
    synthesize(root, SynthConfig(train=9, test=8, size=SIZE, frames=8, objects=2), progress=False)
    broken = root / rows(root, "train")[4]["path"]
    broken.write_bytes(b"no video")
    return root


def rows(root, split):
    with open(root / "labels.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == split]


@pytest.fixture(scope="module")
def run(tmp_path_factory, videos):
    """A run folder with the checkpoint of an encoder as it was initialised."""
    folder = tmp_path_factory.mktemp("run")
    data = {"dataset": "folder", "root": str(videos), "label": "motion", "frames": FRAMES, "stride": 1, "size": SIZE}
    values = {"encoder": "r2plus1d_tiny", "data": data, "method": {"name": "simclr"}}
    config = update(PretrainConfig(), values)
    torch.manual_seed(0)
    method = build_method(config.method, build_encoder(config.encoder), config.augment)
    state = {"config": to_dict(config), "method": method.state_dict(), "position": {"epoch": 3, "step": 0}}
    save_checkpoint(folder / "checkpoints" / "last.pt", state)
    return folder


def config(run, **options):
    data = EvaluationDataConfig(clips=CLIPS, workers=0, batch_videos=3, max_failed_share=0.2)
    return ExtractConfig(str(run), device="cpu", data=data, **options)


@pytest.fixture(scope="module")
def folder(run):
    return extract(config(run))


def feature(encoder, augment, path):
    """(clips, D) of one video, one clip at a time."""
    starts = uniform_starts(8, FRAMES, CLIPS)
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (augment.mean, augment.std))
    pooled = []
    for clip in torch.from_numpy(read_clips(path, starts, FRAMES)):
        clip_cthw = centre_crop(clip, SIZE, "square_resize").permute(3, 0, 1, 2).float() / 255
        pooled.append(encoder(((clip_cthw - mean) / std)[None]).mean((2, 3, 4))[0])
    return torch.stack(pooled).detach().numpy()


@pytest.mark.parametrize("subset", ["train", "test"])
def test_rows_paths_and_labels_belong_together(run, videos, folder, subset):
    assert folder == run / "extract_folder"
    expected = rows(videos, subset)
    if subset == "train":
        del expected[4]
    found = np.load(folder / f"{subset}.npz", allow_pickle=False)
    assert set(found) == {"clips", "labels", "paths", "classes", "protocol"}
    assert found["clips"].shape == (8, CLIPS, 96) and found["clips"].dtype == np.float32
    assert found["labels"].shape == (8,) and found["labels"].dtype == np.int64
    assert found["paths"].tolist() == [str(videos / row["path"]) for row in expected]
    assert found["classes"][found["labels"]].tolist() == [row["motion"] for row in expected]
    method, pretraining, _ = load_method(run)
    method.encoder.eval()
    for clips, path in zip(found["clips"], found["paths"]):
        np.testing.assert_allclose(clips, feature(method.encoder, pretraining.augment, str(path)), rtol=1e-4, atol=1e-6)


def test_the_protocol_names_videos_clips_and_encoder(run, folder, capsys):
    capsys.readouterr()
    extract(config(run))
    out = capsys.readouterr().out
    for subset in ("train", "test"):
        protocol = str(np.load(folder / f"{subset}.npz")["protocol"])
        assert protocol in out and f"{subset}.npz: 8 videos x 2 clips x 96 features" in out
    for part in ("label motion", "2 evenly spaced clips of 4 frames", "r2plus1d_tiny", "not normalised", "3 epochs"):
        assert part in protocol


def test_unreadable_videos_are_listed_and_counted(run, videos, folder, capsys):
    capsys.readouterr()
    extract(config(run))
    lines = [line for line in capsys.readouterr().out.splitlines() if "unreadable" in line]
    name = Path(rows(videos, "train")[4]["path"]).name
    assert len(lines) == 1 and lines[0].startswith("left out, unreadable (1): ") and name in lines[0]


def test_same_bytes_again_and_nothing_else(run, folder, tmp_path):
    torch.rand(3)
    again = extract(config(run, output=str(tmp_path / "again")))
    assert sorted(path.name for path in again.iterdir()) == ["test.npz", "train.npz"]
    for path in again.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_a_file_that_cannot_be_written_leaves_the_previous(run, tmp_path, monkeypatch):
    (tmp_path / "train.npz").write_bytes(b"previous")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"train.npz: cannot be written \(No space left on device\)"):
        extract(config(run, output=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["train.npz"]
    assert (tmp_path / "train.npz").read_bytes() == b"previous"


def test_features_of_says_which_video_a_row_is_of(run, videos):
    found = features_of("linear", LinearProbeConfig(str(run), device="cpu", data=config(run).data))
    readable = [row["path"] for i, row in enumerate(rows(videos, "train")) if i != 4]
    assert found.train.paths == tuple(str(videos / path) for path in readable)
    assert len(found.test.paths) == 8


def test_command(run, tmp_path, capsys):
    argv = ["extract", "--checkpoint", str(run), "--data.clips", "1", "--data.workers", "0", "--device", "cpu"]
    output = tmp_path / "features"
    main([*argv, "--data.max-failed-share", "0.2", "--output", str(output)])
    assert f"{output}/train.npz: 8 videos x 1 clips" in capsys.readouterr().out
    assert np.load(output / "test.npz")["clips"].shape == (8, 1, 96)
    for flags, message in (
        (["--outptu", "x"], "dclr: unknown argument '--outptu'; did you mean --output?"),
        (["--output", f"{run}/checkpoints/last.pt/x"], "output: got "),
        (["--output", str(tmp_path / "none")], "1 of 9 videos could not be read, more than the share of 0.01"),
    ):
        with pytest.raises(SystemExit):
            main([*argv, *flags])
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "none").exists()
