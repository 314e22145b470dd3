"""`dclr profile` on a CPU, and what scripts/profile.sh says where it cannot run."""

import json
import subprocess
from pathlib import Path

import pytest

from dclr.cli import main
from dclr.data.synth import SynthConfig, synthesize

SCRIPT = Path(__file__).parents[2] / "scripts" / "profile.sh"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    synthesize(root, SynthConfig(train=40, test=8))
    flags = {"--data.root": root, "--data.size": 16, "--data.frames": 4, "--train.batch": 4, "--train.threads": 1}
    return ["profile", "--preset", "demo", *(str(part) for flag in flags.items() for part in flag)]


def test_phases_operations_and_trace(arguments, tmp_path, capsys):
    trace = tmp_path / "new" / "trace.json"
    main([*arguments, "--steps", "2", "--trace", str(trace)])
    lines = capsys.readouterr().out.splitlines()
    shares = {}
    for line in lines[3:8]:
        name, milliseconds, share = line.split()
        shares[name] = float(share.rstrip("%"))
        assert float(milliseconds) >= 0
    assert list(shares) == ["load", "forward", "backward", "optimizer", "after_step"]
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert shares["backward"] > shares["optimizer"] > 0
    assert any("convolution" in line for line in lines)
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"load", "forward", "backward", "optimizer"} <= names


def test_more_steps_than_an_epoch_has(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--steps", "99"])
    assert stop.value.code == 1
    assert (
        "steps: got 99, which with 3 to warm up are more than the 10 of an epoch; expected fewer"
        in capsys.readouterr().err
    )


def test_a_trace_that_cannot_be_written(arguments, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--steps", "1", "--trace", str(tmp_path / "file" / "trace.json")])
    assert stop.value.code == 1 and str(tmp_path / "file") in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("steps", ["0", "few"])
def test_no_number_of_steps(steps, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["profile", "--steps", steps])
    assert stop.value.code == 2
    assert f"--steps: got '{steps}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tool", "status", "message"),
    [("gprof", 2, "got 'gprof', expected nsys, ncu or torch"), ("nsys", 1, "nsys is not installed")],
)
def test_the_script_says_what_it_lacks(tool, status, message, tmp_path):
    # Only what the script needs up to there, so that no installed Nsight is found.
    for program in ("bash", "dirname"):
        (tmp_path / program).symlink_to(Path("/usr/bin") / program)
    if tool == "nsys" and Path("/usr/local/cuda/bin/nsys").exists():
        pytest.skip("Nsight Systems is installed where the script looks for it")
    done = subprocess.run(
        [str(tmp_path / "bash"), str(SCRIPT), tool], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == status
    assert message in done.stderr
