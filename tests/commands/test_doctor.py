"""`dclr doctor`: what it prints, and that a wrong kernel, frame or folder is found."""

import subprocess

import pytest
import torch

from dclr.cli import main
from dclr.commands import doctor
from dclr.commands.doctor import DoctorConfig
from dclr.errors import RunError


@pytest.fixture
def quick(monkeypatch):
    """Without the interpreter's process and the 64 MiB."""
    monkeypatch.setattr(doctor, "DISK_MIB", 1)
    monkeypatch.setattr(doctor, "_kernels", lambda: ("as the references", True))


def test_everything_is_said(quick, tmp_path, capsys):
    main(["doctor", "--root", str(tmp_path)])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if " " in line)
    assert lines["torch"] == torch.__version__ and lines["kernels"] == "as the references"
    assert {"dclr", "python", "triton", "av", "libavcodec", "os", "cpu", "disk"} <= lines.keys()
    assert lines["decoding"].startswith("H.264, frames right")
    assert lines["disk"].startswith(str(tmp_path)) and not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels are compiled")
def test_kernels_by_the_interpreter(monkeypatch):
    pytest.importorskip("triton")
    said, good = doctor._kernels()
    assert good and "interpreter" in said
    monkeypatch.setattr(doctor, "TOLERANCE", -1)
    assert not doctor._kernels()[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels are compiled")
def test_a_failure_of_the_interpreter_is_told_from_one_of_training(monkeypatch):
    pytest.importorskip("triton")
    ended = subprocess.CompletedProcess((), 1, "", "Traceback\nInterpreterError: unsupported\n")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *args, **options: ended)
    said, good = doctor._kernels()
    assert not good
    assert said == "in Triton's interpreter, which training on a CPU does without: InterpreterError: unsupported"


def test_a_kernel_that_differs_is_measured(monkeypatch):
    assert doctor.compare_with_references(torch.device("cpu"))[0] < 1e-5
    topk = doctor.topk_similarity

    def wrong(query, queue, k):
        found = topk(query, queue, k)
        return found._replace(values=found.values + (0.5 if query.dtype == torch.float32 else 0))

    monkeypatch.setattr(doctor, "topk_similarity", wrong)
    assert doctor.compare_with_references(torch.device("cpu"))[0] == pytest.approx(0.5, rel=1e-4)


def test_a_wrong_frame_and_an_error_fail_and_the_rest_goes_on(quick, monkeypatch, tmp_path, capsys):
    read = doctor.read_clips
    monkeypatch.setattr(doctor, "read_clips", lambda path, starts, *more: read(path, [s + 1 for s in starts], *more))
    monkeypatch.setattr(doctor, "_kernels", lambda: 1 / 0)
    with pytest.raises(RunError, match="kernels, decoding failed"):
        doctor.doctor(DoctorConfig(str(tmp_path)))
    printed = capsys.readouterr().out
    assert "FAILED: ZeroDivisionError" in printed and "frames wrong by" in printed and "MiB/s read" in printed
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--root", str(tmp_path / "gone")])
    assert stop.value.code == 1 and "root: got" in capsys.readouterr().err
