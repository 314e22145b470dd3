"""The comparison on real clips, on generated ones: a run of each method, once; and the table."""

import pytest
import torch

from benchmarks import real_clips
from dclr.data.synth import SynthConfig, synthesize
from dclr.evaluation import Features
from dclr.evaluation.classification import Classified
from dclr.presets.small import small


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    labels = synthesize(root, SynthConfig(train=32, test=16, size=32, frames=36), progress=False)
    labels.write_text(labels.read_text().replace("motion", "label", 1))  # and folds by the scene
    return root


@pytest.mark.parametrize("method", real_clips.METHODS)
def test_each_method_trains_and_is_evaluated_once(method, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(real_clips, "CLIPS", 1)
    result = real_clips.result_of(method, videos, "scene", epochs=1, seed=0, folder=tmp_path)
    assert all(0 <= result[figure] <= 100 for figure in real_clips.FIGURES) and result["chance"] == 100 / 8
    assert (
        "32 training videos" in result["protocol"]
        and "48 videos, each by those with another scene, 8" in result["protocol"]
    )
    monkeypatch.setattr(real_clips, "encoder_of", None)
    assert real_clips.result_of(method, videos, "scene", epochs=1, seed=0, folder=tmp_path) == result


def test_all_methods_share_what_is_not_theirs(videos, tmp_path):
    configs = [real_clips.METHODS[name](2) for name in real_clips.METHODS if name != "untrained"]
    runs = [real_clips.run_of(method, videos, 2, 1, tmp_path) for method in configs]
    for run, method in zip(runs, configs):
        assert run.method is method
        assert (run.encoder, run.optim, run.augment) == (small().encoder, small().optim, small().augment)
        assert (method.temperature, method.dim, method.hidden, method.center) == (0.1, 64, 96, True)


def test_table_has_means_and_sample_deviations():
    line = {"chance": 25.0, "protocol": "P", **dict.fromkeys(real_clips.FIGURES, 1.0)}
    rows = [line | {"method": "simclr", "1 nearest": value} for value in (40.0, 44.0)]
    text = real_clips.table([*rows, line | {"method": "untrained", "1 nearest": 30.0}])
    assert "| simclr | 2 | 42.0 ± 2.8 |" in text and "| untrained | 1 | 30.0 | 1.0 |" in text and "25.0. P" in text


def test_cross_validation_takes_each_fold_out_once():
    videos = Features(torch.arange(7.0)[:, None, None], torch.tensor([0, 1, 0, 1, 0, 1, 0]))
    folds = ["a", "b", "a", "c", "c", "b", "a"]

    def number_of_first(train, test, classes):
        """The first training video's number, for every test video."""
        numbers = set(train.clips.flatten().tolist()) | set(test.clips.flatten().tolist())
        assert classes == 2 and numbers == set(range(7)) and len(train.clips) + len(test.clips) == 7
        return Classified(train.clips[0, 0].long().expand(len(test.clips)), {})

    guesses = real_clips.cross_validated(videos, folds, 2, number_of_first)
    assert guesses.tolist() == [1, 0, 1, 0, 0, 0, 1]
