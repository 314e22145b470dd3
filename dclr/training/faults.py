"""What the machine did to a run, in words that say what to do."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dclr.distributed import ranks_behind
from dclr.errors import RunError

SHARED_MEMORY = "/dev/shm"


class MachineFault(RunError):
    """A run that the machine stopped: out of memory, a loader process killed, a process that no longer answers."""


@contextmanager
def explained() -> Iterator[None]:
    """Inside, errors of the machine become `MachineFault`; others are as they were."""
    try:
        yield
    except (RuntimeError, OSError, EOFError, MemoryError) as error:
        advice = _advice(error)
        if not advice:
            raise
        raise MachineFault(advice) from error


def _advice(error: BaseException) -> str:
    """What to do about an error; empty for one that is not known here."""
    text = str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
        return (
            "out of memory: a smaller train.batch, a larger train.accumulate (which keeps the batch but makes it of "
            f"parts), a smaller data.size, or train.precision bf16 takes less ({_first_line(text)})"
        )
    if "AF_UNIX path too long" in text:
        return f"{tempfile.gettempdir()}: too long a name for a folder of sockets; expected TMPDIR to be a shorter one"
    if "shared memory" in text or "unable to write to file </torch_" in text or "Bus error" in text:
        return (
            f"{SHARED_MEMORY}, through which loader processes hand over clips, is full (of {_size_of(SHARED_MEMORY)}); "
            f"make it larger (docker run --shm-size 4g), or load in this process by data.workers 0"
        )
    if "DataLoader worker (pid" in text or isinstance(error, (ConnectionResetError, ConnectionRefusedError, EOFError)):
        return (
            f"a loader process has ended ({_first_line(text)}); the system kills where memory runs out, and fewer "
            f"data.workers take less; with data.workers 0 an error of its own is shown; {SHARED_MEMORY} has "
            f"{_size_of(SHARED_MEMORY)}{_guard()}"
        )
    if "Timed out waiting" in text or ("timed out" in text.lower() and "gloo" in text.lower()):
        return f"a process no longer answers: {ranks_behind()} ({_first_line(text)})"
    return ""


def _first_line(text: str) -> str:
    lines = text.strip().splitlines() or ["no message"]
    return lines[-1 if "Traceback" in text else 0].strip()


def _size_of(folder: str) -> str:
    if not os.path.isdir(folder):
        return "0 MiB"
    return f"{shutil.disk_usage(folder).total / 2**20:.0f} MiB"


def _guard() -> str:
    """What a script that is run as such must look like, as loader processes import it."""
    script = getattr(sys.modules["__main__"], "__file__", None) or ""
    if not script or os.path.basename(script) in ("dclr", "__main__.py"):
        return ""
    return f'; calls in {os.path.basename(script)} must stand below `if __name__ == "__main__":`'
