"""One process or many under `torchrun`: the same calls, and the identity where there is no process group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _initialized() else 1


def rank() -> int:
    """This process among them."""
    return dist.get_rank() if _initialized() else 0


def is_first() -> bool:
    """Whether this process writes logs and checkpoints."""
    return rank() == 0


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, dim: int) -> Tensor:
        ctx.dim, ctx.rows = dim, tensor.shape[dim]
        parts = [torch.empty_like(tensor) for _ in range(world())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.narrow(ctx.dim, rank() * ctx.rows, ctx.rows), None


def gather_rows(tensor: Tensor, dim: int = 0) -> Tensor:
    """Rows of every rank, concatenated along `dim` in rank order; every rank must bring equally many.

    The gradient is summed over ranks. With each rank's loss the mean over its own rows, and gradients averaged over
    ranks, as DistributedDataParallel does, R ranks train like one process with the same global batch.
    """
    if world() == 1:
        return tensor
    return _GatherRows.apply(tensor.contiguous(), dim)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group that `torchrun` describes in the environment; nothing to do without one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
