"""The loop: resume on the same trajectory, what stops it, what it logs."""

import math
import platform
import subprocess
import sys

import pytest
import torch

from dclr.config import ConfigError, DataConfig, OptimConfig, load
from dclr.data.synth import SynthConfig, synthesize
from dclr.training import (
    NonFiniteLoss,
    Stopped,
    TooManyFailures,
    load_checkpoint,
    read_metrics,
    setup,
)
from dclr.training.failures import Failures
from tests.training.fakes import fake_config, fake_trainer

RATES = ("clips_per_second", "data_wait_share", "memory_mib", "wall_seconds", "mean_clips_per_second", "device_hours")


def trajectory(folder):
    """Every logged line but what depends on the clock."""
    return [{key: value for key, value in line.items() if key not in RATES} for line in read_metrics(folder)]


def resumed(config, **options):
    trainer = fake_trainer(config, **options)
    trainer.load(load_checkpoint(config.output))
    return trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch": 8, "accumulate": 2, "signal_at": 5},
        {"dropout": 0.5},
        {"optim": OptimConfig("adamw", lr=0.1, schedule="cosine", warmup=4)},
    ],
    ids=["sgd", "accumulate", "dropout", "adamw"],
)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, options):
    options = {"signal_at": 5, **options}
    whole = fake_trainer(fake_config(tmp_path / "whole", **{**options, "signal_at": -1}))
    whole.run()
    with pytest.raises(Stopped) as stop:
        fake_trainer(fake_config(tmp_path / "parts", **options)).run()
    assert stop.value.signal == 15
    torch.manual_seed(99)
    rest = resumed(fake_config(tmp_path / "parts", **{**options, "signal_at": -1}))
    assert rest.step_in_epoch > 0, "the interruption was to be within an epoch"
    rest.run()
    assert rest.method.epochs[0] == (rest.global_step // rest.steps_per_epoch - 2, True)
    assert trajectory(tmp_path / "whole") == trajectory(tmp_path / "parts")
    assert len({line["loss"] for line in read_metrics(tmp_path / "whole") if "loss" in line}) > 5
    for name, value in whole.method.state_dict().items():
        assert torch.equal(value, rest.method.state_dict()[name]), name
    moments = [trainer.optimizer.state_dict()["state"] for trainer in (whole, rest)]
    torch.testing.assert_close(*moments, rtol=0, atol=0)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    fake_trainer(fake_config(tmp_path / "whole")).run()
    config = fake_config(tmp_path / "killed", nan_at=10)
    config.train.save_every = 3
    with pytest.raises(NonFiniteLoss):
        fake_trainer(config).run()
    assert read_metrics(tmp_path / "killed")[-1]["step"] == 10
    config.method.nan_at = -1
    rest = resumed(config)
    assert rest.global_step == 9
    rest.run()
    assert trajectory(tmp_path / "whole") == trajectory(tmp_path / "killed")


def test_a_finished_run_stays_as_it_is(tmp_path):
    config = fake_config(tmp_path, epochs=1)
    fake_trainer(config).run()
    before = read_metrics(tmp_path)
    resumed(config).run()
    assert read_metrics(tmp_path) == before
    more = fake_config(tmp_path, epochs=2)
    resumed(more).run()
    assert read_metrics(tmp_path)[-1]["step"] == 8


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    config = fake_config(tmp_path, nan_at=5)
    with pytest.raises(NonFiniteLoss, match=r"NaN or infinite at step 6; the last good checkpoint is .*last\.pt"):
        fake_trainer(config).run()
    state = load_checkpoint(tmp_path)
    assert (state["position"]["epoch"], state["position"]["step"]) == (1, 0)
    assert all(value.isfinite().all() for value in state["method"].values())


def test_nan_before_any_checkpoint(tmp_path):
    with pytest.raises(NonFiniteLoss, match="step 1; there is no checkpoint yet"):
        fake_trainer(fake_config(tmp_path, nan_at=0)).run()
    assert not (tmp_path / "checkpoints").exists()


def test_too_many_unreadable_videos_stop_the_run_with_the_list(tmp_path):
    config = fake_config(tmp_path)
    with pytest.raises(TooManyFailures, match=r"6 of 16 videos .* more than the 5 .*video3\.avi: broken; video5\.avi"):
        fake_trainer(config, unreadable=(3, 5, 7, 8, 9, 11)).run()


@pytest.mark.parametrize(
    ("videos", "share", "allowed"),
    [(4, 0.01, 2), (16, 0.01, 5), (16, 0.5, 8), (10000, 0.01, 100), (4, 0, 0), (1, 0.01, 0)],
)
def test_how_many_videos_may_fail(videos, share, allowed):
    """One broken file in a folder of four is 25%, and no reason to stop; 0 allows none."""
    assert Failures(videos, share).allowed == allowed


def test_few_unreadable_videos_are_named_once_and_counted(tmp_path, capsys):
    config = fake_config(tmp_path)
    fake_trainer(config, unreadable=(3,)).run()
    last = read_metrics(tmp_path)[-1]
    assert last["unreadable_videos"] == {"video3.avi": "broken"}
    assert last["replaced_samples"] == 3
    out, err = capsys.readouterr()
    assert "3 samples replaced for unreadable videos: video3.avi: broken" in out
    assert err.count("replaced by another video: video3.avi: broken") == 1


def test_log_has_terms_statistics_and_cost(tmp_path):
    config = fake_config(tmp_path)
    config.train.log_every = 3
    fake_trainer(config).run()
    *lines, cost = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [3, 4, 6, 8, 9, 12]  # every third and the last of an epoch
    for line in lines:
        weighted = line["loss/contrast"] - 0.1 * line["loss/size"]
        assert line["loss"] == pytest.approx(weighted, rel=1e-6)
        assert {"positive", "learning_rate", *RATES[:3]} <= line.keys()
        assert line["chance/contrast"] == pytest.approx(math.log(14)) and "chance/size" not in line
        assert line["gradient_norm"] > 0 and 1 < line["features/rank"] < 6 and 0 < line["features/std"] < 1
        assert line["clips_per_second"] > 0 and 0 <= line["data_wait_share"] <= 1
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1, 2, 2]
    assert cost["device_hours"] == pytest.approx(cost["wall_seconds"] / 3600)


def test_every_start_keeps_its_configuration(tmp_path):
    config = fake_config(tmp_path, epochs=1)
    fake_trainer(config).run()
    resumed(fake_config(tmp_path, epochs=2)).run()
    first, second = tmp_path / "starts/001_step_0.yaml", tmp_path / "starts/002_step_4.yaml"
    assert load(first) == config
    assert load(second).train.epochs == 2 and second.read_text() == (tmp_path / "config.yaml").read_text()


def test_the_pace_is_said_once_after_ten_steps(tmp_path, capsys):
    fake_trainer(fake_config(tmp_path)).run()
    err = capsys.readouterr().err
    assert err.count("for the 2 steps left; ") == 1 and " MiB of memory on CPU" in err


def test_accumulated_gradients_are_the_mean_over_the_parts(tmp_path):
    """Two parts of four videos give the gradient of their mean loss."""
    config = fake_config(tmp_path, batch=8, accumulate=2, batch_norm=False, optim=OptimConfig(lr=1, momentum=0))
    trainer, reference = fake_trainer(config), fake_trainer(config)
    before = [parameter.detach().clone() for parameter in trainer.method.parameters()]
    trainer._train_step(iter(trainer.loader))
    batches = iter(reference.loader)
    losses = []
    for part in range(2):
        output = reference.method(reference._next(batches), reference._draw(part))
        losses.append(output.losses["contrast"] - 0.1 * output.losses["size"])
    gradients = torch.autograd.grad(sum(losses) / 2, list(reference.method.parameters()))
    for new, old, gradient in zip(trainer.method.parameters(), before, gradients):
        torch.testing.assert_close(new, old - (gradient + 1e-4 * old))


def test_more_parts_than_batches(tmp_path):
    with pytest.raises(ValueError, match=r"train\.accumulate: got 20"):
        fake_trainer(fake_config(tmp_path, batch=20, accumulate=20))


def test_batches_that_do_not_divide_among_processes(tmp_path, monkeypatch):
    synthesize(tmp_path, SynthConfig(train=8, test=1, size=16, frames=4), progress=False)
    config = fake_config(tmp_path / "run", batch=6, accumulate=2)
    config.data = DataConfig(dataset="folder", root=str(tmp_path), label="motion", frames=2, stride=1, workers=0)
    monkeypatch.setattr(setup, "world", lambda: 2)
    with pytest.raises(ConfigError, match=r"train.batch: got 6, expected a multiple of .* = 2 x 2"):
        setup.build_trainer(config, torch.device("cpu"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize("kept", [False, True])
def test_freed_memory_is_used_again(kept):
    """Page faults of allocating a block of 64 MiB anew, in a process of its own: none soon where they are kept."""
    script = f"""
import resource, torch
from dclr.training.setup import keep_freed_memory
if {kept}:
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
print(*(faults() for _ in range(6)))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    last = list(map(int, run.stdout.split()))[-3:]
    assert max(last) < 10 if kept else min(last) > 20
