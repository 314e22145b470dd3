"""Sweeps of tables: every candidate is an entry of its table, takes its place and leaves it as it was."""

import json

import pytest
import torch

from . import bench_topk, harness, tune


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(tune, "CUDA", torch.device("cpu"))
    monkeypatch.setattr(tune, "device_class", lambda device: "sm_90")
    monkeypatch.setattr(harness, "CudaTimer", harness.CpuTimer)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@pytest.mark.parametrize("name", tune.SWEEPS)
def test_candidates_take_the_place_of_the_entry(name):
    sweep = tune.SWEEPS[name]
    own, candidates = sweep.entry(), sweep.candidates()
    assert len(candidates) == 1 + len(sweep.changes) + len(sweep.constants) > 2
    for entry, constants in candidates.values():
        with sweep.using(entry, constants):
            assert sweep.entry() is entry
            assert all(getattr(sweep.module, constant) == value for constant, value in constants.items())
        assert sweep.entry() is own
    assert not any(getattr(sweep.module, constant) == value for constant, value in constants.items())


def test_a_candidate_that_fails_is_named(monkeypatch, tmp_path, capsys):
    size = bench_topk.Size(3, 40, 16)
    made = bench_topk.problem(size, torch.device("cpu"), False)
    ours, sweep = made.variants[harness.OURS], tune.SWEEPS["top-K, small"]
    own = sweep.entry()

    def run():
        if sweep.entry().BLOCK_L == 128:
            raise RuntimeError("no room")
        return ours()

    made.variants[harness.OURS] = run
    monkeypatch.setitem(tune.SWEEPS, "top-K, small", tune.replace(sweep, problem=lambda: made))
    monkeypatch.setattr(harness, "measured_environment", lambda device: {"device": device})
    assert tune.main(["--sweeps", "top-K, small", "--seconds", "0.01", "--output", str(tmp_path / "t.json")]) == 0
    rows = json.loads((tmp_path / "t.json").read_text())["sweeps"]["top-K, small"]
    assert {"as it is"} < {row["candidate"] for row in rows if "p50_us" in row}
    failed = [row for row in rows if "note" in row]
    assert failed and all("BLOCK_L=128" in row["candidate"] and "no room" in row["note"] for row in failed)
    assert "no room" in capsys.readouterr().out and sweep.entry() is own
