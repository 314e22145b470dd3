"""Two gloo processes train like one."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dclr.distributed import choose_device, gather_rows, largest_over_ranks, mean_over_ranks, rank, world
from dclr.methods import METHODS
from dclr.training import load_checkpoint, read_metrics
from dclr.training.resume import check_resume
from tests.training.fakes import FakeConfig, FakeMethod, fake_config, fake_trainer

REPOSITORY = Path(__file__).parents[2]


def launch(processes, output, *settings):
    """Run tests.training.fakes in processes as torchrun would; their exit codes and error texts."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    command = [sys.executable, "-m", "tests.training.fakes", str(output), *settings]
    running = [
        subprocess.Popen(
            command, env={**common, "RANK": str(number), "OMP_NUM_THREADS": "1"}, cwd=REPOSITORY,
            stderr=subprocess.PIPE, text=True,
        )
        for number in range(processes)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], errors


def test_two_processes_equal_one(tmp_path):
    """Losses of every step, and the parameters and momentum (sums of gradients) after the last."""
    settings = ("epochs=2", "batch_norm=0", "batch=8", "accumulate=2")
    for processes in (1, 2):
        codes, errors = launch(processes, tmp_path / str(processes), *settings)
        assert codes == [0] * processes, errors
    one, two = (read_metrics(tmp_path / name) for name in "12")
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4, 4]
    for single, double in zip(one[:-1], two[:-1]):
        for name in ("loss", "loss/contrast", "loss/size", "positive"):
            assert double[name] == pytest.approx(single[name], rel=1e-5, abs=1e-5)
    assert two[-1]["device"].startswith("2 x")
    states = [load_checkpoint(tmp_path / name) for name in "12"]
    for part in ("method", "optimizer"):
        torch.testing.assert_close(states[1][part], states[0][part], rtol=1e-5, atol=1e-5)


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    codes, errors = launch(2, tmp_path, "signal_at=2", "signal_rank=1")
    assert codes == [1, 1]
    assert all("Stopped: stopped at step 3 of 12" in error for error in errors), errors
    assert load_checkpoint(tmp_path)["position"]["step"] == 3


def losses_of(folder):
    return [(line["step"], line["loss"]) for line in read_metrics(folder) if "loss" in line]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Steps and losses of two processes to which nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    codes, errors = launch(2, folder, "epochs=2")
    assert codes == [0, 0], errors
    assert len(losses_of(folder)) == 8
    return losses_of(folder)


def test_a_killed_process_comes_back_from_the_last_checkpoint(tmp_path, whole_run):
    """`--max-restarts 1` of torchrun: what is left equals a run that nobody killed."""
    flags = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", *flags, "-m", "tests.training.fakes"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, str(tmp_path), "epochs=2", "kill_at=5", "signal_rank=1"],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert len(list((tmp_path / "starts").iterdir())) == 2, "it was to be killed and to come back"
    assert losses_of(tmp_path) == whole_run


def slurm_command(folder, port, *arguments):
    """What each node of a job of two runs, by scripts/pretrain.slurm with programs of SLURM that only answer."""
    # Whoever reads the first name alone would be gone when the second is written.
    programs = {"scontrol": "echo 127.0.0.1; sleep 0.1; echo 127.0.0.2", "srun": "printf '%s\\n' \"$@\""}
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": str(port), "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_NODELIST": "node[1-2]"}
    run = subprocess.run(
        ["bash", str(REPOSITORY / "scripts/pretrain.slurm"), *arguments],
        env={**os.environ, **job, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(REPOSITORY),
             "PYTHON": sys.executable},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return run.stdout.splitlines()


def test_what_slurm_starts(tmp_path):
    command = slurm_command(tmp_path, 1234567, "--preset", "dclr_k400", "--data.root", "/my videos")
    start = command.index(sys.executable)
    assert command[:start] == ["--kill-on-bad-exit"]
    flags = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d"]
    assert command[start + 1 :] == [
        "-m", "torch.distributed.run", *flags, "--rdzv-id", "1234567", "--rdzv-endpoint", "127.0.0.1:24567",
        "-m", "dclr", "pretrain", "--resume-or-start", "--preset", "dclr_k400", "--data.root", "/my videos",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_a_machine_that_comes_back_goes_on_from_the_last_checkpoint(tmp_path, whole_run, number):
    """Two agents of torchrun as SLURM starts them, each with a process; what is left equals a run that none left."""
    command = slurm_command(tmp_path, 20000)
    command = command[command.index(sys.executable) : command.index("dclr")]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command[command.index("--rdzv-endpoint") + 1] = f"127.0.0.1:{port}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    output = tmp_path / "run"
    command += ["tests.training.fakes", str(output), "epochs=2", "kill_at=5", "signal_rank=1"]
    command.append(f"agent_signal={number}")
    agents = [subprocess.Popen(command, cwd=REPOSITORY, env=environment)]
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):  # the first one is where they meet
            assert agents[0].poll() is None
            time.sleep(0.1)
        agents.append(subprocess.Popen(command, cwd=REPOSITORY, env=environment))
        assert agents[1].wait(timeout=120) != 0
        agents[1] = subprocess.Popen(command, cwd=REPOSITORY, env={**environment, "MACHINE_IS_BACK": "yes"})
        assert [agent.wait(timeout=120) for agent in agents] == [0, 0]
    finally:
        for agent in agents:
            agent.kill()
    assert len(list((output / "starts").iterdir())) == 2
    assert losses_of(output) == whole_run


def test_two_processes_go_on_as_one(tmp_path, monkeypatch):
    """Batches, draws, negatives and queues are the same, so that the one takes the steps that the two would have."""
    monkeypatch.setitem(METHODS, "fake", (FakeConfig, FakeMethod))
    codes, errors = launch(2, tmp_path / "two", "epochs=1", "batch_norm=0")
    assert codes == [0, 0], errors
    trainers = []
    for name in ("one", "two"):
        trainer = fake_trainer(fake_config(tmp_path / name, epochs=2, batch_norm=False))
        if name == "two":
            state = load_checkpoint(tmp_path / name)
            state["config"]["method"]["batch_norm"] = False  # given as a number
            (line,) = (line for line in check_resume(trainer, state) if "processes" in line)
            assert "2 -> 1" in line
            trainer.load(state)
        trainer.run()
        trainers.append(trainer.method.state_dict())
    torch.testing.assert_close(*trainers, rtol=1e-5, atol=1e-5)


def test_a_process_that_hangs_is_named(tmp_path):
    """It hangs in decoding for the third step; the other waits for twelve seconds."""
    _, errors = launch(2, tmp_path, "hang_at=4", "signal_rank=1")
    assert "a process no longer answers: the others are at step 3, process 1 got its last videos at 2" in errors[0]


def test_alone_everything_is_the_identity():
    tensor = torch.ones(3, requires_grad=True)
    assert gather_rows(tensor) is tensor
    assert mean_over_ranks(tensor) is tensor
    assert largest_over_ranks(-3) == -3
    assert (rank(), world()) == (0, 1)


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"^device: got cuda, .* finds 0 GPUs"):
        choose_device("cuda")
