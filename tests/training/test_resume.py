"""Which changed settings a run goes on with, and one run in a folder at a time."""

import dataclasses
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch

from dclr.config import ConfigError, DataConfig, PretrainConfig, TrainConfig, to_dict
from dclr.data.synth import SynthConfig, synthesize
from dclr.methods import ClassifierConfig, DCLRConfig, DCLRReleaseConfig, DualVarConfig, FAMEConfig, MoCoConfig
from dclr.methods.search import SearchConfig
from dclr.models import build_encoder
from dclr.training import CheckpointError, Stopped, load_checkpoint, read_metrics, ready_trainer
from dclr.training.lock import FolderTaken, RunLock
from dclr.training.resume import FIXED, FREE, RATE, changed_settings, check_resume
from tests.training.fakes import fake_config, fake_trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Configuration and checkpoint of a run of one epoch of two, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        from dclr.methods import METHODS
        from tests.training import fakes

        patch.setitem(METHODS, "fake", (fakes.FakeConfig, fakes.FakeMethod))
        config = fake_config(folder, epochs=1)
        fake_trainer(config).run()
    return config, load_checkpoint(folder)


def changed(config, **values):
    """A copy with dotted settings, dots written as two underscores, set otherwise."""
    for name, value in values.items():
        section, _, setting = name.partition("__")
        part = dataclasses.replace(getattr(config, section), **{setting: value}) if setting else value
        config = dataclasses.replace(config, **{section: part})
    return config


def check(run, allow_changes=False, processes=1, dataset="fakes", **values):
    config, state = run
    trainer = fake_trainer(changed(config, **values))
    trainer.dataset = dataset
    return check_resume(trainer, {**state, "environment": {"processes": processes}}, allow_changes)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"data__workers": 3, "data__root": "elsewhere"}, "data.root  -> elsewhere"),
        ({"train__epochs": 9}, "train.epochs 1 -> 9"),
        # The rates of the epoch that is done are the same.
        ({"optim__milestones": (0.9,), "train__epochs": 10}, "optim.milestones [0.5] -> [0.9]"),
    ],
)
def test_what_leaves_the_steps_alone_is_taken_and_said(run, values, line):
    lines = check(run, **values)
    assert line in lines and len(lines) == len(values)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"optim__lr": 0.1}, "optim.lr 0.1 (the run has 0.5)"),
        ({"optim__warmup": 3}, "optim.warmup 3 (the run has 0)"),
        ({"optim__weight_decay": 0.1}, "optim.weight_decay 0.1 (the run has 0.0001)"),
        ({"data__size": 32, "data__frames": 8}, "data.frames 8 (the run has 16), data.size 32 (the run has 112)"),
        ({"train__precision": "bf16"}, "train.precision bf16 (the run has auto)"),
        ({"method__dropout": 0.1}, "method.dropout 0.1 (the run has 0.0)"),
        ({"optim__schedule": "cosine", "optim__warmup": 2}, "optim.schedule cosine (the run has step), optim.warmup 2"),
    ],
)
def test_what_changes_the_trajectory_needs_to_be_allowed(run, values, name):
    with pytest.raises(ConfigError) as error:
        check(run, **values)
    assert name in str(error.value) and "--allow-changes" in str(error.value)
    assert len(check(run, allow_changes=True, **values)) == len(values)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"encoder": "r3d_18"}, "encoder r2plus1d_vcop, this command r3d_18"),
        ({"train__batch": 8}, "train.batch 4, this command 8"),
        ({"train__seed": 1}, "train.seed 0, this command 1"),
        ({"optim__optimizer": "adamw"}, "optim.optimizer sgd, this command adamw"),
        ({"dataset": "others"}, "other videos or labels"),
    ],
)
def test_what_cannot_change_within_a_run(run, values, name):
    with pytest.raises(
        ConfigError, match=r"cannot change within a run; expected the run's, or another --output"
    ) as error:
        check(run, allow_changes=True, **values)
    assert name in str(error.value)


def test_other_processes_are_said(run):
    assert check(run) == []
    (line,) = check(run, processes=2)
    assert line.startswith("processes 2 -> 1: batches, draws, negatives and queues stay the same")


def test_altered_settings_of_a_checkpoint(run):
    config, state = run
    with pytest.raises(CheckpointError, match="unknown configuration key trian"):
        check_resume(fake_trainer(config), {**state, "config": {"trian": {}}})


def test_the_settings_named_here_exist():
    names = set(changed_settings(PretrainConfig(), changed(PretrainConfig(), output="x")))
    assert not names
    known = {
        f"{section}.{name}" for section in ("data", "train", "optim") for name in to_dict(PretrainConfig())[section]
    }
    assert known | {"encoder", "encoder_weights", "method.name"} >= FREE | FIXED | RATE


def test_a_second_run_in_a_folder_is_refused(tmp_path):
    lock = RunLock(tmp_path / "run")
    with pytest.raises(FolderTaken, match=rf"another run is writing there \(process {os.getpid()} on "):
        RunLock(tmp_path / "run")
    lock.release()
    RunLock(tmp_path / "run").release()


def test_a_disk_without_room_for_the_lock(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(FolderTaken, match=r"run/\.lock: cannot be written \(File too large\)"):
            RunLock(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    RunLock(tmp_path / "run").release()


def test_a_killed_process_leaves_no_lock(tmp_path):
    """Not even where a process that it started lives on."""
    script = f"""
import subprocess, sys
from pathlib import Path
from dclr.training.lock import RunLock
lock = RunLock(Path({str(tmp_path)!r}))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
print(child.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        child = int(process.stdout.readline())
        with pytest.raises(FolderTaken, match=f"process {process.pid} on"):
            RunLock(tmp_path)
        process.kill()
        process.wait()
    RunLock(tmp_path).release()
    os.kill(child, 9)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    import errno
    import fcntl

    def refuse(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert "no locks on its file system (No locks available)" in RunLock(tmp_path).warning


SMALL = {"hidden": 8, "dim": 4}
METHODS = {
    "moco": MoCoConfig(**SMALL, queue=12),
    "fame": FAMEConfig(**SMALL, queue=12),
    "dualvar": DualVarConfig(**SMALL, segment_dim=4),
    "dclr": DCLRConfig(**SMALL, search=SearchConfig(k=2, queue=6, start=1, refresh=1)),
    "dclr_release": DCLRReleaseConfig(**SMALL, queue=12, k=2),
    "finetuning": ClassifierConfig(classes=8),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    synthesize(root, SynthConfig(train=9, test=1, size=16, frames=8, objects=2), progress=False)
    return str(root)


@pytest.mark.parametrize("name", METHODS)
def test_each_method_goes_on_in_the_midst_of_an_epoch(tmp_path, videos, name):
    def trainer_of(output, resume=False):
        config = PretrainConfig(
            output=str(tmp_path / output), encoder="r2plus1d_tiny",
            data=DataConfig("folder", videos, label="motion", frames=4, stride=1, size=16, workers=0),
            train=TrainConfig(epochs=2, batch=3, log_every=1, device="cpu", tensorboard=False), method=METHODS[name],
        )  # fmt: skip
        return ready_trainer(config, torch.device("cpu"), resume)

    whole = trainer_of("whole")
    whole.run()
    cut = trainer_of("parts")
    after_step, steps = cut.method.after_step, []

    def stopped_in_the_fourth():
        after_step()
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    cut.method.after_step = stopped_in_the_fourth
    with pytest.raises(Stopped):
        cut.run()
    rest = trainer_of("parts", resume=True)
    assert (rest.epoch, rest.step_in_epoch) == (1, 1)
    rest.run()
    for key, value in whole.method.state_dict().items():
        assert torch.equal(value, rest.method.state_dict()[key]) if isinstance(value, torch.Tensor) else True, key
    assert [line["loss"] for line in read_metrics(whole.folder)[:-1]] == [
        line["loss"] for line in read_metrics(rest.folder)[:-1]
    ]


def test_a_run_says_what_it_is_about_to_do(tmp_path, videos, capsys):
    config = PretrainConfig(
        output=str(tmp_path / "run"), encoder="r2plus1d_tiny", train=TrainConfig(epochs=2, device="cpu"),
        data=DataConfig("folder", videos, label="motion", frames=4, stride=1, size=16, workers=0),
    )  # fmt: skip
    trainer = ready_trainer(config, torch.device("cpu"))
    lines = capsys.readouterr().err.splitlines()
    trainer.lock.release()
    begins = [
        "videos      9 in ", "unreadable  none known yet; up to 4 are replaced by others, more stop the run",
        "steps       1 an epoch of 9 ",
        "device      1 x CPU", "parameters  ", f"output      {tmp_path}/run", "train.batch 64 -> 9, of 9 videos",
        "method.search.queue 2048 -> 18, as an epoch brings 9 entries",
    ]  # fmt: skip
    assert len(lines) == len(begins)
    assert all(line.startswith(begin) for line, begin in zip(lines, begins)), lines
    count = sum(parameter.numel() for parameter in build_encoder("r2plus1d_tiny").parameters())
    assert lines[4].endswith(f"of which {count / 1e6:.2f} M in r2plus1d_tiny")
