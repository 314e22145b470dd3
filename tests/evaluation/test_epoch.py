"""Evaluation while pretraining: what it says, and that the run is the same without it."""

from dataclasses import replace

import pytest
import torch

from dclr.commands.evaluate import RetrieveConfig, retrieve
from dclr.commands.pretrain import pretrain
from dclr.config import ConfigError, DataConfig, PretrainConfig, TrainConfig
from dclr.evaluation.dataset import EvaluationDataConfig
from dclr.methods import DCLRConfig
from dclr.training import load_checkpoint, read_metrics
from dclr.visualize.run import read_run


def config(output, videos, **train):
    data = DataConfig("folder", str(videos), label="motion", frames=4, stride=1, size=16, workers=0)
    train = {"epochs": 3, "batch": 6, "device": "cpu", "tensorboard": False, "log_every": 1, **train}
    method = DCLRConfig()
    method.search.queue = 8
    return PretrainConfig(str(output), "r2plus1d_tiny", data=data, train=TrainConfig(**train), method=method)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, videos):
    root = tmp_path_factory.mktemp("runs")
    return [pretrain(config(root / str(every), videos, eval_every=every, checkpoint_every=1)) for every in (0, 1)]


def test_the_run_is_bit_for_bit_as_without(runs):
    plain, watched = (read_metrics(run) for run in runs)
    losses = [[(line["step"], line["loss"]) for line in lines if "loss" in line] for lines in (plain, watched)]
    assert losses[0] == losses[1] and len(losses[0]) == 9
    states = [load_checkpoint(run) for run in runs]
    for part in ("method", "optimizer"):
        torch.testing.assert_close(states[1][part], states[0][part], rtol=0, atol=0)


def test_figures_are_those_of_an_evaluation_of_the_checkpoint(runs):
    found = [line for line in read_metrics(runs[1]) if "eval/knn" in line]
    assert [(line["step"], line["epoch"]) for line in found] == [(3, 1), (6, 2), (9, 3)]
    for line in found:
        checkpoint = runs[1] / "checkpoints" / f"epoch_{line['epoch']:04d}.pt"
        record = retrieve(
            RetrieveConfig(str(checkpoint), device="cpu", data=EvaluationDataConfig(clips=2, workers=0), ks=(1,))
        )
        assert line["eval/R@1"] == record["R@1"] and line["chance/eval/R@1"] == record["chance"]["R@1"]
        assert line["chance/eval/knn"] == 12.5
    steps = {line["step"]: line for line in read_run(runs[1]).steps}
    assert "eval/knn" in steps[9] and "loss" in steps[9] and "eval/knn" not in steps[8]


def test_few_videos_and_every_other_epoch(videos, tmp_path):
    run = pretrain(config(tmp_path / "run", videos, eval_every=2, eval_videos=4, epochs=3))
    found = [line for line in read_metrics(run) if "eval/knn" in line]
    assert [line["epoch"] for line in found] == [2, 3]


def test_without_labels_it_says_so_before_the_first_step(videos, tmp_path):
    listing = tmp_path / "list.csv"
    listing.write_text(
        "path,split\n" + "".join(f"{videos}/videos/{n:06d}.mp4,{'train' if n < 8 else 'test'}\n" for n in range(12))
    )
    bare = config(tmp_path / "run", videos, eval_every=1)
    bare.data = replace(bare.data, label=None, annotations=str(listing))
    with pytest.raises(ConfigError, match=r"train.eval_every: 0 of the 8 videos of folder .* have a label"):
        pretrain(bare)
    assert not (tmp_path / "run").exists()
