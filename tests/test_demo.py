"""The demo at its smallest, end to end: videos, pretraining, evaluation, table; a second call trains nothing again."""

import pytest

from dclr.config import ConfigError
from dclr.data.synth import SynthConfig
from dclr.demo import DemoConfig, demo


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
    assert set(results[0]["losses"]) == {"vv"} and set(results[1]["losses"]) == {"vd"}
    assert (tmp_path / "table.md").read_text().strip() in printed and "L_SD" in printed
    before = (tmp_path / "dclr_0" / "checkpoints" / "last.pt").stat().st_mtime_ns
    again = demo(config)
    assert (tmp_path / "dclr_0" / "checkpoints" / "last.pt").stat().st_mtime_ns == before
    assert [result["motion R@1"] for result in again] == [result["motion R@1"] for result in results]


def test_unknown_row():
    with pytest.raises(ConfigError, match="rows: got simclear"):
        DemoConfig(rows=("simclear",))
