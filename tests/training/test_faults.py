"""What the machine does to a run, in words: who did it, and what to do."""

import errno
import os
import socket

import pytest
import torch
from torch.utils.data import DataLoader

from dclr.data.loader import worker_options
from dclr.training.faults import MachineFault, explained


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "a smaller train.batch, a larger"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: a smaller"),
        (MemoryError(), "out of memory: a smaller train.batch"),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)"),
         "/dev/shm, through which loader processes hand over clips, is full"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is"), "--shm-size 4g"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "fewer data.workers take less"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "a loader process has ended"),
    ],
)  # fmt: skip
def test_words(error, words):
    with pytest.raises(MachineFault) as fault, explained():
        raise error
    assert words in str(fault.value) and "\n" not in str(fault.value)


def test_a_temporary_folder_with_a_long_name(tmp_path):
    with pytest.raises(MachineFault, match="expected TMPDIR to be a shorter one"), explained():
        socket.socket(socket.AF_UNIX).bind(str(tmp_path / ("x" * 110)))


def test_other_errors_stay_what_they_are():
    for error in (
        RuntimeError("Caught RuntimeError in DataLoader worker process 0."),
        OSError(errno.ENOENT, "No such file"),
        ValueError("x"),
        BrokenPipeError(),
    ):
        with pytest.raises(type(error)) as raised, explained():
            raise error
        assert raised.value is error


def test_a_loader_process_that_is_killed(monkeypatch):
    import __main__

    batches = iter(DataLoader(range(1000), batch_size=1, **worker_options(1)))
    next(batches)
    # Only now: a process that starts imports the program by this name.
    monkeypatch.setattr(__main__, "__file__", "mine.py", raising=False)
    os.kill(batches._workers[0].pid, 9)
    with (
        pytest.raises(MachineFault, match=r"a loader process has ended.*calls in mine\.py must"),
        explained(),
    ):
        list(batches)
