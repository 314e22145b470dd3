"""The guide's method, put where the guide says, trains from the guide's command line."""

import json
import math
import shlex

import pytest
import torch

from dclr.cli import main
from dclr.data.synth import SynthConfig, synthesize
from dclr.methods import METHODS

from .guides import blocks_of, module_of

SMALL = (
    "--encoder r2plus1d_tiny --data.frames 4 --data.stride 1 --data.size 16 --data.workers 0 --train.epochs 2 "
    "--train.batch 4 --train.no-tensorboard --train.device cpu"
)


@pytest.fixture
def method(tmp_path, monkeypatch):
    """The guide's file, registered."""
    file, registry = blocks_of("add_method")
    module = module_of(file, tmp_path / "uniformity.py")
    monkeypatch.setitem(METHODS, "uniformity", None)
    exec(registry, {"METHODS": METHODS, **vars(module)})
    return module


def test_its_losses(method):
    """Two orthogonal unit vectors: a squared distance of 2, and pairs of distance 0 and 2."""
    first, second = torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 1]])
    assert method.alignment(first, second).item() == 2
    both = torch.cat([first, second])
    assert method.uniformity(both, both, 2).item() == pytest.approx(math.log((1 + math.exp(-4)) / 2))


def test_the_command_line_pretrains_with_it(method, tmp_path, capsys):
    videos, run = tmp_path / "videos", tmp_path / "run"
    synthesize(videos, SynthConfig(train=8, test=1, size=16, frames=8), progress=False)
    (command,) = blocks_of("add_method", "")
    words = shlex.split(command.replace("VIDEOS", str(videos)))
    assert words.pop(0) == "dclr"
    main([*words, "--output", str(run), *SMALL.split()])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    for line in logged:
        assert math.isclose(line["loss"], line["loss/alignment"] + 0.5 * line["loss/uniformity"], rel_tol=1e-5)
        assert 0 <= line["length"] <= 1
    assert logged[-1]["step"] == 4
    assert "name: uniformity" in (run / "config.yaml").read_text()


def test_its_flags_are_checked(method, capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--method", "uniformity", "--method.dim", "1"])
    assert "method.dim: got 1, expected at least 2" in capsys.readouterr().err
