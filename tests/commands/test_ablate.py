"""The ablation at its smallest, end to end; what of a row stays its own; and one clear error for each bad request."""

import json
from dataclasses import replace

import pytest

import dclr.commands.ablate
from dclr.cli import main
from dclr.commands.ablate import (
    FIGURES,
    SIZES,
    AblateConfig,
    ablate,
    ablation_run,
    ablation_table,
    plot_ablation,
    summarize,
)
from dclr.config import ConfigError
from dclr.data.synth import SynthConfig
from dclr.methods import build_method
from dclr.models import build_encoder
from dclr.presets import PRESETS

TINY = SynthConfig(train=8, test=8, size=20, frames=6, objects=2)


@pytest.fixture
def small(monkeypatch):
    """The size cpu with batches of 4 videos, 4 frames of 16 x 16 each."""
    run = SIZES["cpu"].run
    run = replace(run, data=replace(run.data, frames=4, size=16), train=replace(run.train, batch=4))
    monkeypatch.setitem(SIZES, "cpu", replace(SIZES["cpu"], run=run))


def test_end_to_end(tmp_path, capsys, monkeypatch, small):
    config = AblateConfig(rows=("T4.1,T4.4",), seeds=(0, 1), epochs=1, output=str(tmp_path), synth=TINY)
    results = ablate(config)
    assert [(run["row"], run["seed"]) for run in results["runs"]] == [
        ("T4.1", 0), ("T4.4", 0), ("T4.1", 1), ("T4.4", 1),
    ]  # fmt: skip
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    for run in results["runs"]:
        assert all(0 <= run[figure] <= 100 for figure in FIGURES)
    table = (tmp_path / "table.md").read_text()
    first, second = (run["scene R@1"] for run in results["runs"] if run["row"] == "T4.4")
    line = next(line for line in table.splitlines() if line.startswith("| T4.4 |"))
    assert f"{(first + second) / 2:.1f} ± {abs(first - second) / 2**0.5:.1f}" in line
    assert "VS +VD" in line and "60.2 on UCF-101" in line
    assert (tmp_path / "plot.png").exists()
    printed = capsys.readouterr().out
    assert "[3/4] T4.1, seed 1" in printed and table.strip() in printed

    # One run is gone and one lacks only its evaluation; nothing that is finished is pretrained again.
    (tmp_path / "T4.4_1" / "result.json").unlink()
    checkpoints = [tmp_path / name / "checkpoints" / "last.pt" for name in ("T4.1_0", "T4.4_0", "T4.1_1", "T4.4_1")]
    before = [path.stat().st_mtime_ns for path in checkpoints]
    pretrained = []
    pretrain = dclr.commands.ablate.pretrain
    monkeypatch.setattr(
        dclr.commands.ablate, "pretrain", lambda run, resume: pretrained.append(run) or pretrain(run, resume)
    )
    assert ablate(config)["runs"] == results["runs"]
    assert [run.output for run in pretrained] == [str(tmp_path / "T4.4_1")]
    assert [path.stat().st_mtime_ns for path in checkpoints] == before

    with pytest.raises(ConfigError, match=r"T4\.1_0 holds a run with other settings"):
        ablate(replace(config, synth=replace(TINY, still=2)))


def test_turned_videos_are_evaluated_going_straight(tmp_path, small):
    synth = replace(TINY, turn=1.0, scenes=3, still=2)
    config = AblateConfig(rows=("T7.5", "T5.1"), seeds=(3,), epochs=1, output=str(tmp_path), synth=synth)
    results = ablate(config)
    assert json.loads((tmp_path / "straight_3" / "synth.json").read_text())["turn"] == 0
    assert json.loads((tmp_path / "videos_3" / "synth.json").read_text())["turn"] == 1
    # One configuration under two names is one run; a single seed has no spread.
    assert [path.name for path in tmp_path.glob("T*_3")] == ["T5.1_3"]
    assert results["rows"][0]["motion R@1"] == results["rows"][1]["motion R@1"]
    assert results["rows"][0]["motion R@1"]["spread"] is None
    assert "±" not in (tmp_path / "table.md").read_text().splitlines()[2]


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("row", list(PRESETS))
def test_every_preset_fits(row, size):
    """The method accepts the sizes; no mirror flips; encoder, videos, optimiser and schedule are those of all rows."""
    config = AblateConfig(rows=(row,), size=size)
    run, common = ablation_run(row, config), SIZES[size].run
    assert (run.encoder, run.data) == (common.encoder, common.data)
    assert run.optim == common.optim
    assert run.train == replace(common.train, sync_bn=run.train.sync_bn)
    assert run.augment.flip == 0
    method = build_method(run.method, build_encoder("r2plus1d_tiny"), run.augment)
    method.check(run.train.batch, config.synth.train // run.train.batch)


def test_a_row_keeps_what_makes_it():
    config = AblateConfig()
    row, preset = ablation_run("T6.5", config).method, PRESETS["T6.5"]().method
    assert row.losses == preset.losses and row.alignment == preset.alignment and row.same_view == preset.same_view
    assert (row.search.on, row.search.k, row.search.dist) == (("d",), 10, "uniform")
    assert (row.search.start, row.search.refresh, row.refine.start, row.search.queue) == (4, 4, 4, 256)
    assert (row.temperature, row.center, row.dim, row.hidden) == (0.1, True, 64, 96)
    released = ablation_run("official_release", config).method
    assert (released.temperature, released.center, released.k, released.queue) == (0.1, False, 5, 256)
    assert ablation_run("F1.7", config).method.foreground == PRESETS["F1.7"]().method.foreground
    assert ablation_run("moco_ucf101", config).method.momentum == 0.99


def test_the_demo_is_as_it_is_at_its_own_length():
    preset = PRESETS["demo"]()
    run = ablation_run("demo", AblateConfig(epochs=preset.train.epochs))
    unused = {"search": preset.method.search, "refine": preset.method.refine}
    assert replace(run, method=replace(run.method, **unused)) == preset


def made_up(values):
    """Results of one row whose figures are all `values`, one a seed."""
    runs = [
        {"row": "T4.3", "seed": i, "protocol": "made up", **dict.fromkeys(FIGURES, v)} for i, v in enumerate(values)
    ]
    return summarize(AblateConfig(rows=("T4.3", "T4.4")), runs)


def test_mean_and_spread():
    results = made_up([10.0, 20.0, 60.0])
    assert [row["row"] for row in results["rows"]] == ["T4.3"]  # T4.4 has no run yet
    assert results["rows"][0]["motion linear"] == {"mean": 30.0, "spread": pytest.approx(700**0.5)}
    assert "| 30.0 ± 26.5 |" in ablation_table(results)
    assert (results["rows"][0]["shows"], results["rows"][0]["published"]) == ("DCLR Table 4: VD", "~55.2 on UCF-101")


def test_plot(tmp_path):
    assert plot_ablation(made_up([10.0, 30.0]), tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["--rows", "T4.1,T4.99"], 2, "rows: got T4.99; did you mean T4.9?"),
        (["--rows", ","], 2, "rows: got none, expected at least one"),
        (["--seeds"], 2, "seeds: got none, expected at least one, not negative"),
        (["--seeds", "-1"], 2, "seeds: got (-1,), expected at least one, not negative"),
        (["--epochs", "0"], 2, "epochs: got 0, expected at least 1"),
        (["--synth.seed", "3"], 2, "synth.seed: got 3, expected none: each of the seeds draws its own videos"),
        (["--synth.turn", "2"], 2, "synth.turn: got 2.0, expected a share in [0, 1]"),
    ],
)
def test_bad_requests(argv, status, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["ablate", *argv])
    assert stop.value.code == status
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"dclr: {message}"


def test_help_shows_the_videos_of_the_size(capsys):
    for argv, videos in ((["--help"], 1024), (["--size", "gpu", "--help"], 20000)):
        with pytest.raises(SystemExit):
            main(["ablate", *argv])
        text = " ".join(capsys.readouterr().out.split())
        assert "--rows" in text and f"--synth.train INT (default: {videos})" in text
