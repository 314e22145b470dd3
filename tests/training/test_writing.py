"""A disk that is full, or a folder that has become read-only, while a run writes: through the command line."""

import builtins
import errno
import io
import os
import shutil

import pytest

from dclr.cli import main
from dclr.data.synth import SynthConfig, synthesize
from dclr.training import load_checkpoint, read_metrics

SETTINGS = ["--encoder", "r2plus1d_micro", "--data.dataset", "folder", "--data.label", "scene", "--data.workers", "0"]
SETTINGS += [
    "--data.frames",
    "4",
    "--data.stride",
    "1",
    "--data.size",
    "16",
    "--train.batch",
    "4",
    "--train.device",
    "cpu",
]
SETTINGS += ["--train.log-every", "1", "--train.save-every", "1", "--train.threads", "1"]


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """A run that was stopped after its first epoch of two steps, and its videos."""
    root = tmp_path_factory.mktemp("videos")
    synthesize(root, SynthConfig(train=8, test=4, size=24, frames=8, objects=2), progress=False)
    folder = tmp_path_factory.mktemp("saved") / "run"
    main(
        [
            "pretrain",
            "--method",
            "simclr",
            "--output",
            str(folder),
            "--data.root",
            str(root),
            *SETTINGS,
            "--train.epochs",
            "1",
        ]
    )
    return folder


def refuse(monkeypatch, part, number):
    """Files whose path has this part can be opened for reading alone."""
    plain, plain_descriptor = builtins.open, os.open

    def refused(path):
        if not isinstance(path, int) and part in os.fsdecode(path):
            raise OSError(number, os.strerror(number), os.fsdecode(path))

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


@pytest.mark.parametrize(
    ("part", "named", "number"),
    [
        ("run/.lock", "run", errno.EROFS),
        ("run/starts", "run/starts/002_step_2.yaml", errno.EROFS),
        ("run/.config.yaml", "run/config.yaml", errno.ENOSPC),
        ("run/.metrics.jsonl", "run/metrics.jsonl", errno.ENOSPC),
        ("run/metrics.jsonl", "run/metrics.jsonl", errno.EROFS),
        ("run/events.out", "run/events.out", errno.ENOSPC),
        ("run/checkpoints/.last.pt", "run/checkpoints/last.pt", errno.EROFS),
        ("run/checkpoints/.epoch", "run/checkpoints/epoch_0002.pt", errno.ENOSPC),
        ("run/report/", "run/report/curve", errno.ENOSPC),
        ("run/.report.html", "run/report.html", errno.EROFS),
    ],
)
def test_one_line_names_the_file_and_what_was_saved_is_kept(
    saved_run, tmp_path, monkeypatch, capsys, part, named, number
):
    folder = tmp_path / "run"
    shutil.copytree(saved_run, folder)
    go_on = ["pretrain", "--resume", "--output", str(folder), "--train.epochs", "2"]
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
        refuse(patched, part, number)
        main(go_on)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    line = error.splitlines()[-1]
    assert line.startswith(f"dclr: {tmp_path / named}") and f"cannot be written ({os.strerror(number)})" in line
    done = load_checkpoint(folder)["position"]["epoch"]
    assert done == (2 if "epoch" in part or "report" in part else 1)
    assert not list(folder.rglob(".*.tmp"))
    main(go_on)
    assert load_checkpoint(folder)["position"]["epoch"] == 2
    assert [line["step"] for line in read_metrics(folder) if "loss" in line] == [1, 2, 3, 4]
