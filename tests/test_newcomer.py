"""A newcomer's way: by the README's own commands from class folders to features, neighbours and the page."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from dclr.cli import main
from dclr.data.synth import SynthConfig, synthesize
from dclr.training import read_metrics

ROOT = Path(__file__).parents[1]
# What makes the README's run one of seconds, and spares each command the start of loader processes.
SHORT = ["--train.epochs", "1", "--train.device", "cpu", "--data.size", "24"]
HERE = ["--data.workers", "0"]


def first(section, language, page="README.md"):
    """Lines of the blocks of a language in a section."""
    text = (ROOT / page).read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return "".join(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)).splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`videos/<class>/*.mp4`, and nothing else."""
    home = tmp_path_factory.mktemp("a newcomer's home")
    labels = synthesize(home / "made", SynthConfig(train=12, test=9, size=32, frames=36), progress=False)
    for number, line in enumerate(labels.read_text().splitlines()[1:]):
        target = home / "videos" / ("walking" if number % 2 else "running") / f"{'abcdefghijklmnopqrstu'[number]}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(home / "made" / line.split(",")[0], target)
    shutil.rmtree(home / "made")
    (home / "videos" / "walking" / "b.mp4").rename(home / "videos" / "walking" / "a.mp4")
    return home


@pytest.fixture(scope="module")
def run(folder):
    """The README's commands, all but the installation, one after the other."""
    lines = [line for line in first("Own videos first", "bash") if line.startswith("dclr ")]
    assert len(lines) == 5
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in lines:
            words = shlex.split(line)[1:]
            main([*words, *(SHORT if words[0] == "pretrain" else ()), *HERE])
    return folder / "runs" / "mine"


def test_features_neighbours_and_the_page(run):
    features = [np.load(path) for path in run.rglob("*.npz")]
    assert features and all(len(arrays.files) for arrays in features)
    (record,) = [
        record for path in run.rglob("metrics.jsonl") for record in read_metrics(path.parent) if "R@1" in record
    ]
    assert 0 <= record["R@1"] <= 100 and "protocol" in record
    page = (run / "report.html").read_text(encoding="utf-8")
    for heading in ("Training", "Evaluations", "Where the encoder looks", "Nearest neighbours", "Foreground masks"):
        assert f"<h2>{heading}</h2>" in page


def test_python_of_the_readme(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    found = {}
    exec("\n".join(first("Own videos first", "python")), found)
    assert found["features"].ndim == 2 and found["features"].isfinite().all()
    assert not found["encoder"].training


@pytest.mark.parametrize("verb", ["doctor", "prepare", "knn", "linear", "export"])
def test_further_commands_of_the_tutorial(run, folder, monkeypatch, verb):
    if verb == "doctor":
        monkeypatch.setattr("dclr.commands.doctor._kernels", lambda: ("not looked at", True))
        monkeypatch.setattr("dclr.commands.doctor.DISK_MIB", 1)
    monkeypatch.chdir(folder)
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^dclr {verb} .*$", text, re.MULTILINE)
    main([*shlex.split(line)[1:], *(HERE if verb in ("knn", "linear") else ())])


def test_examples(run, folder, monkeypatch, capsys):
    import runpy

    from dclr.presets import PRESETS

    small = PRESETS["small"]

    def short():
        config = small()
        config.train.epochs, config.train.device, config.data.size, config.data.workers = 1, "cpu", 24, 0
        return config

    monkeypatch.setitem(PRESETS, "small", short)
    monkeypatch.chdir(folder)
    calls = {
        "pretrain_folder": ["videos", "runs/example"],
        "embed_and_search": ["runs/mine", *map(str, sorted(Path("videos/walking").iterdir())[:3])],
        "losses_in_your_loop": [],
        "own_encoder": ["videos", "runs/own"],
    }
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(calls)
    for name, arguments in calls.items():
        monkeypatch.setattr("sys.argv", [f"{name}.py", *arguments])
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "% of the test videos" in printed and "step 2: loss" in printed and printed.count("videos/walking") >= 2
