"""The comparison on real clips, on generated ones: a run of each method, once; and the table."""

import pytest

from benchmarks import real_clips
from dclr.data.synth import SynthConfig, synthesize
from dclr.presets.small import small


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    labels = synthesize(root, SynthConfig(train=32, test=16, size=32, frames=36), progress=False)
    labels.write_text(labels.read_text().replace("motion", "label", 1))
    return root


@pytest.mark.parametrize("method", real_clips.METHODS)
def test_each_method_trains_and_is_evaluated_once(method, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(real_clips, "CLIPS", 1)
    result = real_clips.result_of(method, videos, epochs=1, seed=0, folder=tmp_path)
    assert all(0 <= result[figure] <= 100 for figure in real_clips.FIGURES) and result["chance"] == 100 / 8
    assert "32 training videos" in result["protocol"]
    monkeypatch.setattr(real_clips, "encoder_of", None)
    assert real_clips.result_of(method, videos, epochs=1, seed=0, folder=tmp_path) == result


def test_all_methods_share_what_is_not_theirs(videos, tmp_path):
    configs = [real_clips.METHODS[name]() for name in real_clips.METHODS if name != "untrained"]
    runs = [real_clips.run_of(method, videos, 2, 1, tmp_path) for method in configs]
    for run, method in zip(runs, configs):
        assert run.method is method
        assert (run.encoder, run.optim, run.augment) == (small().encoder, small().optim, small().augment)
        assert (method.temperature, method.dim, method.hidden, method.center) == (0.1, 64, 96, True)


def test_table_has_means_and_sample_deviations():
    line = {"chance": 25.0, "protocol": "P", "20 nearest": 1.0, "5 nearest": 1.0, "linear": 1.0}
    rows = [line | {"method": "simclr", "1 nearest": value} for value in (40.0, 44.0)]
    text = real_clips.table([*rows, line | {"method": "untrained", "1 nearest": 30.0}])
    assert "| simclr | 2 | 42.0 ± 2.8 |" in text and "| untrained | 1 | 30.0 | 1.0 |" in text and "25.0. P" in text
