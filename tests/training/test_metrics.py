"""metrics.jsonl and TensorBoard events."""

import json
import resource

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dclr.training.metrics import METRICS, Meter, MetricsLog, append_metrics, environment, read_metrics


def test_numbers_that_json_lacks_become_null(tmp_path):
    append_metrics(tmp_path, {"a": float("nan"), "b": float("inf"), "c": 1.5, "d": "x"})
    assert json.loads((tmp_path / METRICS).read_text()) == {"a": None, "b": None, "c": 1.5, "d": "x"}


def test_a_line_that_has_no_room_is_not_there_in_part(tmp_path):
    append_metrics(tmp_path, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"metrics\.jsonl: cannot be written \(File too large\)"):
            append_metrics(tmp_path, {"step": 2, "loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    append_metrics(tmp_path, {"step": 3})
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 3}]


def test_resuming_drops_later_lines_and_a_cut_off_one(tmp_path):
    for step in (1, 2, 3):
        append_metrics(tmp_path, {"step": step})
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 4, "lo')
    MetricsLog(tmp_path, step=2, tensorboard=False).write({"step": 3, "loss": 0.5})
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5}]


def test_tensorboard_has_the_scalars(tmp_path):
    log = MetricsLog(tmp_path)
    log.write({"step": 7, "loss/vs": 0.25, "device": "CPU"})
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/vs")] == [(7, 0.25)]
    assert events.Tags()["scalars"] == ["loss/vs"]


def test_tensorboard_forgets_the_steps_that_a_resumed_run_takes_again(tmp_path):
    for start, steps, value in ((0, range(1, 6), 1.0), (3, range(4, 7), 2.0)):
        log = MetricsLog(tmp_path, start)
        for step in steps:
            log.write({"step": step, "eval/R@1": value})
        log.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("eval/R@1")
    assert [(event.step, event.value) for event in events] == [(n, 1.0 if n < 4 else 2.0) for n in range(1, 7)]


def test_meter_counts_what_came_before_a_resume():
    meter = Meter()
    meter.add(8, 0.0)
    meter.read()
    meter.add(4, 0.0)
    other = Meter()
    other.load_state_dict(meter.state_dict())
    other.add(1, 0.0)
    seconds, clips = other.totals()
    assert clips == 13 and seconds > meter.state_dict()["seconds"] * 0.5


def test_environment_names_versions_and_commit():
    found = environment(torch.device("cpu"))
    assert found["torch"] == torch.__version__ and found["processes"] == 1
    assert {"dclr", "python", "commit", "device", "numpy", "av"} <= found.keys()


def test_a_copy_names_the_commit_that_it_is_of(monkeypatch):
    monkeypatch.setenv("DCLR_COMMIT", "abc")
    assert environment(torch.device("cpu"))["commit"] == "abc"
