"""Processes of a run: the device of each, how they join, and features gathered from all of them with gradient.

Everything here works without a process group, as the only process. Each process' loss is the mean over its own rows
against the keys of all; with the mean of the processes' gradients (what DDP takes), R processes then compute what one
does on the whole batch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
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


# Groups that are no longer used. DDP may hold the last reference to one and would free it while it holds Python's
# lock, waiting for a thread of the group that itself waits for that lock. A reference here prevents that.
_finished_groups: list[dist.ProcessGroup] = []


@contextmanager
def process_group(device: torch.device, timeout: float = 30.0) -> Iterator[None]:
    """Inside, the processes of torchrun are one group (NCCL for tensors on GPUs, gloo on CPUs); alone, nothing.

    A group that exists already is used and left as it is.

    Args:
        timeout: minutes that the processes wait for one that does not answer.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device, **_meeting_place(timedelta(minutes=timeout)))
    else:
        dist.init_process_group("gloo", **_meeting_place(timedelta(minutes=timeout)))
    try:
        yield
    finally:
        _finished_groups.append(dist.group.WORLD)
        dist.destroy_process_group()
        # A thread of the group may still wait for Python's lock. It gets it now: once Python ends it would abort.
        time.sleep(0.5)


def _meeting_place(timeout: timedelta) -> dict[str, Any]:
    """Where the processes find each other, as arguments of `init_process_group`.

    torchrun keeps one store for all lives of its processes. Those that it restarts would find the addresses of the
    dead there, and be refused: each life has keys of its own. On several machines the lives are not counted alike;
    there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun does the same.
    """
    store, number, size = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):
        store = dist.PrefixStore(f"life_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    return {"store": store, "rank": number, "world_size": size, "timeout": timeout}


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if _initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _initialized() else 0


def is_first() -> bool:
    """Whether this process writes logs and checkpoints."""
    return rank() == 0


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor, dim: int) -> Tensor:
        ctx.dim, ctx.rows = dim, tensor.shape[dim]
        parts = [torch.empty_like(tensor) for _ in range(world())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        # Every process' loss reaches these rows. A copy is summed: autograd may use the gradient elsewhere.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.narrow(ctx.dim, rank() * ctx.rows, ctx.rows), None


def gather_rows(tensor: Tensor, dim: int = 0) -> Tensor:
    """Rows of all processes along `dim`, in rank order, with gradient to the rows of each.

    Args:
        tensor: any dtype; of one shape on every process.

    Returns:
        `tensor` itself where there is one process.
    """
    return tensor if world() == 1 else _GatherRows.apply(tensor.contiguous(), dim)


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Mean of a floating-point tensor over the processes, without gradient."""
    if world() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / world()


def largest_over_ranks(value: int) -> int:
    """Largest of a number over the processes; exchanged through CPU memory, no device waits."""
    if world() == 1:
        return value
    largest = torch.tensor(value)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def note_step(step: int) -> None:
    """Let the other processes know that this one has its part of a step's videos."""
    if world() > 1:
        dist.distributed_c10d._get_default_store().set(f"dclr/step/{rank()}", str(step))


def ranks_behind() -> str:
    """Which processes have come less far than others, in words, by what they noted; asked when one does not answer."""
    if world() == 1:
        return "there is no other process"
    store = dist.distributed_c10d._get_default_store()
    keys = {number: f"dclr/step/{number}" for number in range(world())}
    steps = {number: int(store.get(key)) if store.check([key]) else 0 for number, key in keys.items()}
    furthest = max(steps.values())
    behind = [f"process {number} got its last videos at {step}" for number, step in steps.items() if step < furthest]
    return (
        f"the others are at step {furthest}, {', '.join(behind)}"
        if behind
        else f"all have the videos of step {furthest}"
    )


def gather_objects(value: object) -> list:
    """A picklable value of every process, in rank order, on all of them."""
    values = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of process 0."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
