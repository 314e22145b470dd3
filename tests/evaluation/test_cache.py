"""Features are computed once: what is found again, what is not, interruptions and damage."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from dclr.commands.evaluate import EvaluateConfig, KnnConfig, LinearProbeConfig, RetrieveConfig, knn, linear, retrieve
from dclr.commands.evaluate import evaluate as evaluate_command
from dclr.commands.extract import ExtractConfig, extract
from dclr.commands.visualize import VisualizeConfig, visualize
from dclr.evaluation import CacheError, cache
from dclr.evaluation.checkpoint import EvaluationConfig, features_of
from dclr.training import load_checkpoint, save_checkpoint
from tests.evaluation.conftest import CLIPS, save_run

ALL = 29 * CLIPS


def features(run, data, **options):
    return features_of(["knn"], EvaluationConfig(str(run), device="cpu", data=data, **options))


def parts(run):
    return sorted((run / "features").glob("*/*.npz"))


def test_all_verbs_encode_each_video_once(run, data, encoded, capsys):
    common = {"device": "cpu", "data": data}
    evaluate_command(EvaluateConfig(str(run), **common))
    assert sum(encoded) == ALL
    linear(LinearProbeConfig(str(run), **common))
    knn(KnnConfig(str(run), **common))
    retrieve(RetrieveConfig(str(run), **common))
    extract(ExtractConfig(str(run), **common))
    visualize(VisualizeConfig(str(run), videos=1, **common))
    assert sum(encoded) == ALL


def test_features_are_those_of_the_encoder_in_the_dataset_s_order(run, data, encoded):
    first, again = features(run, data), features(run, data, cache=str(run / "elsewhere"))
    assert sum(encoded) == 2 * ALL
    shuffled = replace(data, batch_videos=1)
    for found in (again, features(run, shuffled)):
        for mine, theirs in ((first.train, found.train), (first.test, found.test)):
            torch.testing.assert_close(mine.clips, theirs.clips, rtol=1e-4, atol=1e-6)
            assert torch.equal(mine.labels, theirs.labels) and mine.paths == theirs.paths
    scene = features(run, replace(data, dataset="folder", root=str(first.data.root), label="scene"))
    assert torch.equal(scene.train.clips, first.train.clips) and not torch.equal(scene.train.labels, first.train.labels)
    assert sum(encoded) == 2 * ALL


@pytest.mark.parametrize("change", [{"clips": 3}, {"frames": 3}, {"size": 14}, {"stride": 2}, {"test_crop": "native"}])
def test_other_clips_are_other_features(run, data, encoded, change):
    features(run, data)
    before = sum(encoded)
    features(run, replace(data, **change))
    assert sum(encoded) == before + 29 * change.get("clips", CLIPS)


def test_a_cache_of_another_checkpoint_is_never_used(run, data, encoded, videos):
    first = features(run, data)
    state = load_checkpoint(run)
    state["method"]["encoder.stem.0.0.weight"][0, 0, 0, 0, 0] += 1e-3
    save_checkpoint(run / "checkpoints" / "last.pt", state)
    second = features(run, data)
    assert sum(encoded) == 2 * ALL and not torch.equal(first.train.clips, second.train.clips)
    save_run(run, root=str(videos))
    assert torch.equal(features(run, data).train.clips, first.train.clips) and sum(encoded) == 2 * ALL


def test_features_of_weights_that_are_gone_are_dropped(run, data, encoded, videos):
    """After a day; those of a checkpoint that is kept stay, and so does what is no cache."""
    last, kept = (run / "checkpoints" / name for name in ("last.pt", "epoch_0003.pt"))
    shutil.copy(last, kept)
    state = load_checkpoint(run)
    (run / "features" / "mine").mkdir(parents=True)
    for change in (0, 1e-3, 1e-3, 1e-3):
        state["method"]["encoder.stem.0.0.weight"][0, 0, 0, 0, 0] += change
        save_checkpoint(last, state)
        features_of(["knn"], EvaluationConfig(str(kept if change == 0 else last), device="cpu", data=data))
    folders = {part.parent for part in parts(run)}
    assert len(folders) == 4
    for folder in folders:
        os.utime(folder, (0, 0))
    features(run, replace(data, stride=2))
    assert len({part.parent for part in parts(run)} & folders) == 2 and (run / "features" / "mine").is_dir()
    encoded.clear()
    for checkpoint in (kept, last):
        features_of(["knn"], EvaluationConfig(str(checkpoint), device="cpu", data=data))
    assert not encoded


def test_a_video_that_was_replaced_is_encoded_again(run, data, encoded, videos, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(videos, root)
    data = replace(data, dataset="folder", root=str(root), label="motion")
    features(run, data)
    shutil.copy(root / "videos" / "000001.mp4", root / "videos" / "000000.mp4")
    found = features(run, data)
    assert sum(encoded) == ALL + CLIPS
    torch.testing.assert_close(found.train.clips[0], found.train.clips[1], rtol=1e-4, atol=1e-6)
    before = set(parts(run))
    for path in (root / "videos").iterdir():
        os.utime(path, (1, 1))
    again = features(run, data)
    assert torch.equal(again.train.clips, found.train.clips)
    assert not before & set(parts(run)), "nobody reads what all of its videos have left"


def test_features_of_videos_that_are_away_for_a_while_are_kept(run, data, encoded, videos, tmp_path):
    root, others = tmp_path / "copy", tmp_path / "others"
    shutil.copytree(videos, root)
    shutil.copytree(videos, others)
    data = replace(data, dataset="folder", label="motion")
    features(run, replace(data, root=str(root)))
    root.rename(tmp_path / "away")
    features(run, replace(data, root=str(others)))
    (tmp_path / "away").rename(root)
    encoded.clear()
    features(run, replace(data, root=str(root)))
    assert not encoded


def test_an_interrupted_extraction_goes_on(run, data, encoded, monkeypatch):
    whole = features(run, data, cache=str(run / "whole"))
    encoded.clear()
    monkeypatch.setattr(cache, "PART_VIDEOS", 4)
    take = cache._Writer.take

    def interrupted(writer, batch):
        if sum(encoded) > 20 * CLIPS:
            raise KeyboardInterrupt
        take(writer, batch)

    with monkeypatch.context() as patched:
        patched.setattr(cache._Writer, "take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            features(run, data)
    assert len(parts(run)) == 3
    kept = sum(encoded) - 3 * CLIPS  # but for the batch that was in hand
    encoded.clear()
    found = features(run, data)
    assert sum(encoded) == ALL - kept
    torch.testing.assert_close(found.train.clips, whole.train.clips, rtol=1e-4, atol=1e-6)
    assert torch.equal(found.test.labels, whole.test.labels)


def test_damage_is_found_and_nothing_overwritten(run, data):
    features(run, data)
    path = parts(run)[0]
    good, names = path.read_bytes(), ("videos", "reasons", "clips")
    expected, caught = cache._load(path, *names), 0
    places = range(0, len(good), len(good) // 150)
    for place in places:
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        try:
            # What the flipped bit does not concern, such as a date, is not damage.
            assert all(map(np.array_equal, cache._load(path, *names), expected))
        except CacheError:
            caught += 1
    assert caught > len(places) / 2
    for bad in (good[:-30], good[:1500] + b"x" + good[1501:], b""):
        path.write_bytes(bad)
        with pytest.raises(CacheError, match=f"{path}: damaged part .* encoded again"):
            features(run, data)
        assert path.read_bytes() == bad


def test_unreadable_videos_are_remembered(run, data, encoded, videos, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(videos, root)
    (root / "videos" / "000003.mp4").write_bytes(b"no video")
    data = replace(data, dataset="folder", root=str(root), label="motion", max_failed_share=0.2)
    for _ in range(2):
        found = features(run, data)
        assert sum(encoded) == 28 * CLIPS
        (failure,) = found.train.failures
        assert failure.path == str(root / "videos" / "000003.mp4") and failure.reason
        assert found.train.paths == tuple(str(root / "videos" / f"{n:06d}.mp4") for n in range(18) if n != 3)
    with pytest.raises(ValueError, match="1 of 18 videos could not be read, more than"):
        features(run, replace(data, max_failed_share=0.01))


def test_a_cache_that_cannot_be_written(run, data):
    with pytest.raises(ValueError, match=r"cache: got .*last.pt/x, but .*last.pt is no folder that can be written to"):
        features(run, data, cache=str(run / "checkpoints" / "last.pt" / "x"))
