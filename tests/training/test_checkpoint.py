"""Checkpoints that cannot be written, read or used."""

import errno
import os
import pickle
import resource
import zipfile
from contextlib import nullcontext

import pytest
import torch

from dclr.config import PretrainConfig, to_dict
from dclr.methods import DCLRConfig, SimCLRConfig, build_method
from dclr.methods.momentum import KeyQueue
from dclr.methods.search import SearchQueue
from dclr.models import build_encoder
from dclr.training import CheckpointError, load_checkpoint, load_method, save_checkpoint
from dclr.training.checkpoint import load_state, own_name
from tests.training.fakes import FakeConfig, FakeMethod, fake_config, fake_trainer


def state_of(value=0.0, size=4):
    return {"config": {}, "method": {"weight": torch.full((size,), value)}, "position": {"epoch": 0, "step": 0}}


def test_round_trip_by_file_and_by_run_folder(tmp_path):
    path = tmp_path / "checkpoints" / "last.pt"
    save_checkpoint(path, state_of(3.0))
    for where in (path, tmp_path):
        assert torch.equal(load_checkpoint(where)["method"]["weight"], torch.full((4,), 3.0))


def test_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, state_of(1.0))

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"last\.pt: cannot be written \(No space left.*previous one is kept"):
        save_checkpoint(path, state_of(2.0))
    assert load_checkpoint(path)["method"]["weight"][0] == 1
    assert os.listdir(tmp_path) == ["last.pt"]


def test_write_that_the_system_cuts_short(tmp_path):
    """The kernel refuses the second half of the file."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, state_of(1.0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            save_checkpoint(path, state_of(2.0, size=1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(path)["method"]["weight"][0] == 1
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated(tmp_path, share):
    path = tmp_path / "last.pt"
    save_checkpoint(path, state_of(size=1000))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"last\.pt: truncated"):
        load_checkpoint(path)


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [None, 2, 4], ids=["torch", "pickle2", "pickle4"])
def test_code_in_the_pickle_is_not_run(tmp_path, protocol):
    path, ran = tmp_path / "last.pt", tmp_path / "ran"
    if protocol is None:
        torch.save({**state_of(), "extra": Evil(ran)}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(ran), protocol))
    reason = "not a checkpoint" if protocol == 4 else r"holds code \(\w+\.mkdir\) besides weights"
    with pytest.warns() if protocol == 4 else nullcontext(), pytest.raises(CheckpointError, match=reason):
        load_checkpoint(path)
    assert not ran.exists()


def test_missing_and_strange_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: cannot be read \(No such file"):
        load_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(CheckpointError, match=r"checkpoints/last\.pt: cannot be read \(No such file"):
        load_checkpoint(tmp_path)
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"text\.pt: truncated, damaged, or not a checkpoint"):
        load_checkpoint(tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of dclr"):
        load_checkpoint(tmp_path / "list.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("data", "x")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "zip.pt")


def test_another_architecture_is_named():
    method = FakeMethod(FakeConfig())
    state = method.state_dict()
    with pytest.raises(CheckpointError, match=r"5 keys are not known, first encoder\.norm\.weight"):
        load_state("x.pt", FakeMethod(FakeConfig(batch_norm=False)), state)
    with pytest.raises(CheckpointError, match=r"5 keys are missing, first encoder\.norm\.weight"):
        load_state("x.pt", method, FakeMethod(FakeConfig(batch_norm=False)).state_dict())
    state["head.weight"] = torch.zeros(4, 7)
    with pytest.raises(CheckpointError, match=r"head\.weight is \(4, 7\), expected \(4, 6\)"):
        load_state("x.pt", method, state)


def test_checkpoint_holds_the_whole_run(tmp_path):
    trainer = fake_trainer(fake_config(tmp_path, epochs=1))
    trainer.run()
    state = load_checkpoint(tmp_path)
    assert {"config", "method", "optimizer", "position", "failures", "meter", "environment"} == state.keys()
    assert {"queue", "pointer", "encoder.norm.running_mean"} <= state["method"].keys()
    assert state["config"]["method"]["name"] == "fake"
    assert {"torch", "dclr", "commit", "python"} <= state["environment"].keys()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["epoch_0001.pt", "last.pt"]


def test_load_method_rejects_a_configuration_it_does_not_know(tmp_path):
    save_checkpoint(tmp_path / "last.pt", {**state_of(), "config": {"encodr": "c3d"}})
    with pytest.raises(CheckpointError, match=r"last\.pt: unknown configuration key encodr; did you mean encoder"):
        load_method(tmp_path / "last.pt")


def test_load_method_reads_runs_that_name_the_shared_colours_twice(tmp_path):
    config = PretrainConfig(encoder="r2plus1d_tiny", method=DCLRConfig(hidden=8, dim=4))
    method = build_method(config.method, build_encoder(config.encoder), config.augment)
    values = to_dict(config)
    values["method"]["color_shared"] = values["augment"]["color_shared"] = True
    save_checkpoint(tmp_path / "last.pt", {**state_of(), "config": values, "method": method.state_dict()})
    assert load_method(tmp_path / "last.pt").config.augment.color_shared


def test_single_bits_and_pages_that_changed(tmp_path):
    """torch loads nearly all of these in silence; the newest intact checkpoint is named."""
    folder = tmp_path / "checkpoints"
    last = folder / "last.pt"
    for name in ("last.pt", "epoch_0008.pt", "epoch_0009.pt"):
        save_checkpoint(folder / name, state_of(1.0, size=20000))
    whole = last.read_bytes()
    (folder / "epoch_0010.pt").write_bytes(whole[:40000] + b"?" + whole[40001:])
    (folder / "epoch_0011.pt").write_bytes(bytes(4096) + whole[4096:])
    for place in torch.randint(3000, 79000, (20,), generator=torch.Generator().manual_seed(0)).tolist():
        last.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=r"last\.pt: truncated, damaged.*epoch_0009\.pt is intact"):
            load_checkpoint(tmp_path)
    for page in range(0, len(whole), 4096):
        last.write_bytes(whole[:page] + bytes(4096) + whole[page + 4096 :])
        with pytest.raises(CheckpointError, match=r"last\.pt: truncated, damaged"):
            load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": None}, "not a checkpoint of dclr"),
        ({"position": [1]}, "not a checkpoint of dclr"),
        ({"method": {"head.weight": "x"}}, r"head\.weight is str, expected \(4, 6\)"),
        ({"method": {"head.weight": torch.zeros(4, 6, dtype=torch.int8)}}, r"head\.weight is \(4, 6\) of integers"),
        ({"method": {"head.weight": torch.full((4, 6), torch.nan)}}, r"head\.weight holds NaN or infinity"),
        ({"optimizer": {"state": 5}}, "altered, or of another version"),
        ({"meter": {}}, "altered, or of another version"),
    ],
)
def test_altered_ones(tmp_path, change, message):
    config = fake_config(tmp_path, epochs=1)
    fake_trainer(config).run()
    state = load_checkpoint(tmp_path)
    for part, value in change.items():
        state[part] = {**state[part], **value} if part == "method" else value
    save_checkpoint(tmp_path / "checkpoints/last.pt", state)
    with pytest.raises(CheckpointError, match=message):
        fake_trainer(config).load(load_checkpoint(tmp_path))


def test_a_queue_that_says_it_is_longer_than_it_is(tmp_path):
    for queue in (KeyQueue(4, 2), SearchQueue(4, 2, 2)):
        state = queue.state_dict()
        state["_extra_state"] = {"pointer": 10**12, "size": 10**12}
        with pytest.raises(CheckpointError, match=r"x\.pt: cannot be used \(a queue of 4 "):
            load_state("x.pt", queue, state)


def test_an_encoder_of_ones_own(tmp_path):
    """Its run says so, and is read with one like it."""
    method = FakeMethod(FakeConfig())
    config = PretrainConfig(encoder=own_name(method.encoder), method=SimCLRConfig(hidden=8, dim=4))
    assert config.encoder == "own:FakeEncoder"
    built = build_method(config.method, method.encoder, config.augment)
    save_checkpoint(tmp_path / "last.pt", {**state_of(), "config": to_dict(config), "method": built.state_dict()})
    with pytest.raises(CheckpointError, match=r"its encoder was handed to pretrain\(\) as a module, FakeEncoder"):
        load_method(tmp_path / "last.pt")
    loaded = load_method(tmp_path / "last.pt", FakeMethod(FakeConfig()).encoder)
    assert torch.equal(loaded.encoder.conv.weight, method.encoder.conv.weight)
    with pytest.raises(ValueError, match="encoder: got Identity with feature_dim None, expected its channels"):
        own_name(torch.nn.Identity())
