"""Joining the processes that torchrun starts, and the device each works on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist


def choose_device(name: str) -> torch.device:
    """The device of this process: under torchrun, the GPU of its local rank.

    Raises:
        ValueError: a GPU is asked for where there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    local, present = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= present:
        raise ValueError(f"device: got {name}, but process {local} of this machine finds {present} GPUs")
    return torch.device("cuda", local)


# Groups that are done with. DDP may hold the last reference to one, and would free it with Python's lock held, waiting
# for a thread of the group that may itself wait for that lock.
_done: list[dist.ProcessGroup] = []


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Inside, the processes of torchrun are one group (NCCL for tensors on GPUs, gloo on CPUs); alone, nothing.

    A group that exists already is used and left as it is.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        _done.append(dist.group.WORLD)
        dist.destroy_process_group()
        # A thread of the group may still wait for Python's lock. It gets it now: once Python ends it would abort.
        time.sleep(0.5)
