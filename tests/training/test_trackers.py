"""Trackers get what metrics.jsonl gets: checked with stand-ins for the services, which record their calls."""

import sys

import pytest

from dclr.config import ConfigError
from dclr.training import read_metrics
from tests.training.fakes import fake_config, fake_trainer, register


class Service:
    """Records every call; `init` gives itself."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append((name, arguments, options))
            return self

        return call


def run_with(tracker, tmp_path, monkeypatch):
    register()
    service = Service()
    monkeypatch.setitem(sys.modules, tracker, service)
    config = fake_config(tmp_path / "run", epochs=1)
    config.train.trackers = (tracker,)
    fake_trainer(config).run()
    records = read_metrics(tmp_path / "run")
    return service.calls, [
        (record.pop("step"), {name: value for name, value in record.items() if isinstance(value, (int, float))})
        for record in records
    ]


def test_wandb(tmp_path, monkeypatch):
    calls, expected = run_with("wandb", tmp_path, monkeypatch)
    name, _, options = calls[0]
    assert name == "init" and options["name"] == "run" and options["resume"] == "allow"
    assert options["config"]["train"]["epochs"] == 1
    assert [(options["step"], arguments[0]) for name, arguments, options in calls if name == "log"] == expected
    assert calls[-1][0] == "finish" and len(expected) == 5


def test_mlflow(tmp_path, monkeypatch):
    calls, expected = run_with("mlflow", tmp_path, monkeypatch)
    assert [name for name, *_ in calls[:2]] == ["start_run", "log_params"]
    assert calls[1][1][0]["train.epochs"] == "1"
    assert [(options["step"], arguments[0]) for name, arguments, options in calls if name == "log_metrics"] == expected
    assert calls[-1][0] == "end_run"


def test_names_that_mlflow_refuses(monkeypatch, tmp_path):
    from dclr.training.trackers import MlflowTracker

    service = Service()
    monkeypatch.setitem(sys.modules, "mlflow", service)
    MlflowTracker(tmp_path, {}).write(3, {"eval/R@1": 2.0})
    assert service.calls[-1] == ("log_metrics", ({"eval/R_at_1": 2.0},), {"step": 3})


def test_one_that_is_not_installed(tmp_path, monkeypatch):
    register()
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = fake_config(tmp_path / "run", epochs=1)
    config.train.trackers = ("wandb",)
    with pytest.raises(ConfigError, match=r"train.trackers: wandb is not installed: pip install dclr\[wandb\]"):
        fake_trainer(config).run()
