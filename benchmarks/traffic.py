"""Count what a function asks of the device, without one: run it under the Triton interpreter and watch.

    with count_traffic() as traffic:                # TRITON_INTERPRET=1
        loss = info_nce(z, z, positive=partner, exclude=own)
    traffic.launches, traffic.bytes_loaded, traffic.bytes_stored, traffic.dot_flops
    traffic.per_kernel["_forward"].bytes_loaded     # the same of one kernel
    traffic.torch_ops                               # Counter of the PyTorch operations around the kernels

Bytes are those of the lanes that a mask lets through, so a tile read by ten programs counts ten times: the traffic that
a kernel asks for, before any cache. `unique_bytes_*` count each address once.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode

# Allocations and changes of metadata: no work on the device. Views are recognised by their schema.
FREE_OPS = {
    "aten::_unsafe_view",
    "aten::_reshape_alias",
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::lift_fresh",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::resize_",
    "aten::set_",
}
SYNC_OP = "aten::_local_scalar_dense"


@dataclass
class Kernel:
    """Sums over all launches of one kernel: bytes, FLOPs of `tl.dot` (2 x M x N x K each), its (M, N, K) by count."""

    launches: int = 0
    programs: int = 0
    bytes_loaded: int = 0
    bytes_stored: int = 0
    dot_flops: int = 0
    dot_shapes: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    _loaded: dict[int, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list), repr=False)
    _stored: dict[int, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list), repr=False)

    @property
    def unique_bytes_loaded(self) -> int:
        """Bytes of the distinct addresses read."""
        return _unique_bytes(self._loaded)

    @property
    def unique_bytes_stored(self) -> int:
        """Bytes of the distinct addresses written."""
        return _unique_bytes(self._stored)


@dataclass
class Traffic:
    """Totals over `per_kernel`, and the PyTorch operations that would each be a launch of their own."""

    per_kernel: dict[str, Kernel] = field(default_factory=lambda: defaultdict(Kernel))
    torch_ops: Counter[str] = field(default_factory=Counter)
    syncs: int = 0

    launches = property(lambda self: self._sum("launches"), doc="Kernel launches.")
    bytes_loaded = property(lambda self: self._sum("bytes_loaded"), doc="Bytes that enabled lanes loaded.")
    bytes_stored = property(lambda self: self._sum("bytes_stored"), doc="Bytes that enabled lanes stored.")
    dot_flops = property(lambda self: self._sum("dot_flops"), doc="FLOPs of all `tl.dot`.")
    unique_bytes_loaded = property(lambda self: self._sum("unique_bytes_loaded"), doc="Per kernel, summed.")
    unique_bytes_stored = property(lambda self: self._sum("unique_bytes_stored"), doc="Per kernel, summed.")
    device_ops = property(lambda self: self.launches + self.torch_ops.total(), doc="Kernel launches and PyTorch's.")

    @property
    def bytes(self) -> int:
        """Bytes loaded and stored."""
        return self.bytes_loaded + self.bytes_stored

    def _sum(self, name: str) -> int:
        return sum(getattr(kernel, name) for kernel in self.per_kernel.values())


@contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Count what runs inside the block on this thread, backward passes included.

    Raises `RuntimeError` where `TRITON_INTERPRET=1` was not set before the kernels were imported.
    """
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("traffic is counted under the Triton interpreter: set TRITON_INTERPRET=1 before importing")
    traffic = Traffic()
    with _watch_interpreter(traffic) as running, TorchOps(traffic, running):
        yield traffic


@contextmanager
def _watch_interpreter(traffic: Traffic) -> Iterator[list[Kernel]]:
    """Wrap the interpreter's launch and memory functions; yields the stack of running kernels (one at most)."""
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    running: list[Kernel] = []

    def wrap(owner: type, name: str, before: Callable) -> None:
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            before(*args, **kwargs)
            return original(*args, **kwargs)

        patches.enter_context(patch.object(owner, name, counted))

    def set_grid_dim(builder, *grid):
        running[-1].programs += math.prod(grid)

    def load(builder, pointers, mask, *args, **kwargs):
        running[-1].bytes_loaded += _touch(running[-1]._loaded, pointers, mask)

    def store(builder, pointers, value, mask, *args, **kwargs):
        running[-1].bytes_stored += _touch(running[-1]._stored, pointers, mask)

    def update(builder, operation, pointers, value, mask, *args, **kwargs):
        load(builder, pointers, mask)
        store(builder, pointers, value, mask)

    def exchange(builder, pointers, compared, value, *args, **kwargs):
        update(builder, None, pointers, value, None)

    def dot(builder, a, b, *args, **kwargs):
        running[-1].dot_flops += 2 * a.data.size * b.data.shape[-1]
        running[-1].dot_shapes[a.data.shape[-2], b.data.shape[-1], a.data.shape[-1]] += math.prod(a.data.shape[:-2])

    launch = GridExecutor.__call__

    def counted_launch(executor, *args, **kwargs):
        kernel = traffic.per_kernel[executor.fn.__name__]
        kernel.launches += 1
        running.append(kernel)
        try:
            return launch(executor, *args, **kwargs)
        finally:
            running.pop()

    with ExitStack() as patches:
        patches.enter_context(patch.object(GridExecutor, "__call__", counted_launch))
        wrap(InterpreterBuilder, "set_grid_dim", set_grid_dim)
        # Plain, masked and descriptor accesses all end in these two.
        wrap(InterpreterBuilder, "create_masked_load", load)
        wrap(InterpreterBuilder, "create_masked_store", store)
        wrap(InterpreterBuilder, "create_atomic_rmw", update)
        wrap(InterpreterBuilder, "create_atomic_cas", exchange)
        wrap(InterpreterBuilder, "create_dot", dot)
        yield running


class TorchOps(TorchDispatchMode):
    """Count PyTorch operations, those inside custom operators too, but not those of a kernel that is `running`."""

    def __init__(self, traffic: Traffic, running: Sequence[Kernel] = ()) -> None:
        super().__init__()
        self.traffic, self.running = traffic, running

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace not in ("aten", "prim", "prims"):
            # A mode is off inside its own handler: enter again and go straight to the operator's CPU function.
            with self:
                return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)
        name = func._schema.name
        if name == SYNC_OP:
            self.traffic.syncs += 1
        elif not self.running and not func.is_view and name not in FREE_OPS:
            self.traffic.torch_ops[name] += 1
        return func(*args, **kwargs)


def _touch(touched: dict[int, list[np.ndarray]], pointers, mask) -> int:
    """Remember the addresses of the enabled lanes by access size; returns their bytes."""
    addresses = pointers.data if mask is None else pointers.data[np.broadcast_to(mask.data, pointers.data.shape) != 0]
    itemsize = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
    touched[itemsize].append(np.unique(addresses))
    return addresses.size * itemsize


def _unique_bytes(touched: dict[int, list[np.ndarray]]) -> int:
    return sum(itemsize * np.unique(np.concatenate(parts)).size for itemsize, parts in touched.items())
