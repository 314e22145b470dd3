"""The demo at its smallest, end to end: videos, pretraining, evaluation, table; a second call trains nothing again."""

from dataclasses import replace

import pytest

from dclr.commands.demo import DemoConfig, demo
from dclr.config import ConfigError
from dclr.data.synth import SynthConfig


def test_demo_end_to_end(tmp_path, capsys):
    config = DemoConfig(
        output=str(tmp_path), rows=("vanilla", "dclr"), epochs=1, synth=SynthConfig(train=32, test=16, frames=10)
    )
    results = demo(config)
    printed = capsys.readouterr().out
    assert [result["row"] for result in results] == ["vanilla", "dclr"]
    for result in results:
        assert all(0 <= result[key] <= 100 for key in ("motion R@1", "motion linear", "scene R@1", "scene linear"))
        assert f"{result['motion R@1']:.1f}" in printed
    assert set(results[0]["losses"]) == {"vv"} and set(results[1]["losses"]) == {"vs", "vd"}
    assert (tmp_path / "table.md").read_text().strip() in printed and "L_SD" in printed
    before = (tmp_path / "dclr_0" / "checkpoints" / "last.pt").stat().st_mtime_ns
    again = demo(config)
    assert (tmp_path / "dclr_0" / "checkpoints" / "last.pt").stat().st_mtime_ns == before
    assert [result["motion R@1"] for result in again] == [result["motion R@1"] for result in results]
    with pytest.raises(ConfigError, match="dclr_0 holds a run with other settings"):
        demo(replace(config, rows=("dclr",), synth=replace(config.synth, objects=4)))


def test_output_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    demo(DemoConfig("~/x", rows=("vd",), epochs=1, synth=SynthConfig(train=32, test=8, frames=10)))
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x" / "vd_0" / "config.yaml").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rows": ("simclear",)}, "rows: got simclear"),
        ({"rows": ()}, "rows: got none"),
        ({"seeds": ()}, "seeds: got none"),
        ({"epochs": 0}, "epochs: got 0, expected at least 1"),
        ({"synth": SynthConfig(seed=7)}, "synth.seed: got 7, expected none"),
    ],
)
def test_bad_requests(options, message):
    with pytest.raises(ConfigError, match=message):
        DemoConfig(**options)
