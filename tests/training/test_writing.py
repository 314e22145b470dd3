"""A disk that is full, or a folder that has become read-only, while a run writes: through the command line."""

import builtins
import errno
import io
import os
import shutil

import pytest
import torch

from dclr.cli import main
from dclr.data.synth import SynthConfig, synthesize
from dclr.training import load_checkpoint

SETTINGS = ["--encoder", "r2plus1d_micro", "--data.dataset", "folder", "--data.label", "scene", "--data.workers", "0"]
SETTINGS += ["--data.frames", "4", "--data.stride", "1", "--data.size", "16", "--train.batch", "4", "--train.device", "cpu"]
SETTINGS += ["--train.log-every", "1", "--train.save-every", "1", "--train.threads", "1"]


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """A run that was stopped after its first epoch of two steps, and its videos."""
    root = tmp_path_factory.mktemp("videos")
    synthesize(root, SynthConfig(train=8, test=4, size=24, frames=8, objects=2), progress=False)
    folder = tmp_path_factory.mktemp("saved") / "run"
    main(["pretrain", "--method", "simclr", "--output", str(folder), "--data.root", str(root), *SETTINGS, "--train.epochs", "1"])
    return folder


def refuse(monkeypatch, part, number):
    """Files whose path has this part can be opened for reading alone."""
    plain, plain_descriptor = builtins.open, os.open

    def refused(path):
        if isinstance(path, (str, os.PathLike)) and part in os.fspath(path):
            raise OSError(number, os.strerror(number), os.fspath(path))

    def opened(file, mode="r", *args, **kwargs):
        if set(mode) & set("wax+"):
            refused(file)
        return plain(file, mode, *args, **kwargs)

    def descriptor(path, flags, *args, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR):
            refused(path)
        return plain_descriptor(path, flags, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr(os, "open", descriptor)


PLACES = [".lock", "starts/", "config.yaml", "metrics.jsonl", "events.out", "last.pt", "epoch_0002.pt", "report.html"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
@pytest.mark.parametrize("part", PLACES)
def test_one_line_names_the_file_and_the_last_checkpoint_is_kept(saved_run, tmp_path, monkeypatch, capsys, part, number):
    folder = tmp_path / "run"
    shutil.copytree(saved_run, folder)
    go_on = ["pretrain", "--resume", "--output", str(folder), "--train.epochs", "2"]
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
        refuse(patched, part, number)
        main(go_on)
    lines = capsys.readouterr().err.splitlines()
    print(lines)
    assert ended.value.code == 1
    assert lines[-1].startswith(f"dclr: {folder}") and part.strip("/") in lines[-1] and os.strerror(number) in lines[-1]
    kept = load_checkpoint(folder)["position"]
    print(kept)
