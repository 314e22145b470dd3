"""What the kernel files share: is Triton here, which path runs, how ops are registered, argument checks, launches.

`kernels/` knows torch and triton and nothing else, so that a file can be borrowed on its own with this one.
"""

from __future__ import annotations

import functools
import numbers
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS, Windows: the references still work
    triton = tl = None

# Triton reads the variable when a kernel is decorated, so it counts at import time, not per call.
INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_library = torch.library.Library("dclr", "FRAGMENT")


def runs_triton(tensor: torch.Tensor) -> bool:
    """Whether `tensor` goes to the Triton kernel; the plain PyTorch reference takes everything else.

    float64 always runs the reference; a CPU tensor runs Triton only under `TRITON_INTERPRET=1`.
    """
    if triton is None or tensor.dtype == torch.float64:
        return False
    return tensor.is_cuda or INTERPRET


def register_op(
    schema: str,
    empty: Callable,
    reference: Callable,
    launch: Callable,
    setup_context: Callable | None = None,
    backward: Callable | None = None,
) -> None:
    """Register `dclr::name` of a schema, `name(...) -> ...`, for CPUs, GPUs, compilers and autograd.

    Args:
        empty: arguments -> uninitialised results, laid out as the kernels write them.
        reference: arguments -> results in any layout.
        launch: arguments, then results, which it fills or gives NotImplemented. Results without elements need no
            launch, and where the first argument or result is float64, the reference runs.
        setup_context, backward: as `torch.library.register_autograd` takes them; gradients of results that nobody uses
            are None, and `backward` may leave out the None of the last arguments. Without them there is no gradient.
    """
    name = schema[: schema.index("(")]

    def run(*arguments):
        results = empty(*arguments)
        outs = (results,) if isinstance(results, torch.Tensor) else results
        first = next(value for value in arguments if value is not None)
        if runs_triton(first) and runs_triton(outs[0]):
            with torch.cuda.device_of(outs[0]):
                if not any(map(torch.Tensor.numel, outs)) or launch(*arguments, *outs) is not NotImplemented:
                    return results
        with torch.no_grad():
            values = reference(*arguments)
        return _laid_out(values, results) if outs is not results else list(map(_laid_out, values, outs))

    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _library.impl(name, run, key)
    torch.library.register_fake(f"dclr::{name}", empty, lib=_library)
    autograd = _function(name, setup_context, backward).apply if backward else torch.library.fallthrough_kernel
    _library.impl(name, autograd, "Autograd")


def _laid_out(value: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`value` with the dtype and the strides of `out`."""
    return value if (value.dtype, value.stride()) == (out.dtype, out.stride()) else out.copy_(value)


def _function(name: str, setup_context: Callable, backward: Callable) -> type[torch.autograd.Function]:
    """The op with its first derivative; a second, under `create_graph=True`, is an error, not a wrong result."""
    op = getattr(torch.ops.dclr, name)

    def forward(ctx, *arguments):
        with torch._C._AutoDispatchBelowAutograd():
            results = op(*arguments)
        ctx.set_materialize_grads(False)
        setup_context(ctx, arguments, results)
        return results

    def gradients(ctx, *grads):
        if torch.is_grad_enabled():
            raise RuntimeError(f"{name} of dclr.kernels: got create_graph=True, expected no second derivative")
        unused = grads[0] is None and all(grad is None for grad in grads)
        found = () if unused else backward(ctx, *grads)
        return *found, *[None] * (len(ctx.needs_input_grad) - len(found))

    parts = {"forward": staticmethod(forward), "backward": staticmethod(gradients)}
    return type(name.title().replace("_", ""), (torch.autograd.Function,), parts)


def expect(condition: bool, argument: str, got: object, expected: object, error: type = ValueError) -> None:
    """Raise `error` naming the argument, what it was and what it must be.

    Sizes are handed over as they are and put into words here: a symbolic size in a string would be fixed, and a graph
    compiled for each batch size.
    """
    if not condition:
        expected = expected() if callable(expected) else expected
        raise error(f"{argument}: got {got}, expected {expected}")


def check_tensors(*, optional: dict[str, torch.Tensor | None] | None = None, **tensors: torch.Tensor) -> None:
    """All are tensors on one device, or a TypeError or ValueError that names them; those in `optional` can be None."""
    tensors |= {name: tensor for name, tensor in (optional or {}).items() if tensor is not None}
    for name, tensor in tensors.items():
        expect(isinstance(tensor, torch.Tensor), name, type(tensor).__name__, "a torch.Tensor", TypeError)
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        listing = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"tensors on different devices: {listing}; expected one device")


def check_float(argument: str, tensor: torch.Tensor, rank: int | tuple[int, ...]) -> None:
    """A floating tensor of one of the ranks, or a TypeError/ValueError that names it."""
    known = "float32, bfloat16, float16 or float64"
    expect(tensor.dtype in FLOAT_DTYPES, argument, tensor.dtype, known, TypeError)
    ranks = (rank,) if isinstance(rank, int) else rank
    expect(tensor.dim() in ranks, argument, tuple(tensor.shape), lambda: f"{' or '.join(map(str, ranks))} dimensions")


def check_kind(
    argument: str, tensor: torch.Tensor | None, dtype: torch.dtype, shape: tuple[int, ...] | None = None
) -> None:
    """A tensor of that dtype and shape, or of any shape; an optional one can be None."""
    if tensor is not None:
        expect(tensor.dtype == dtype, argument, tensor.dtype, lambda: str(dtype).removeprefix("torch."), TypeError)
        if shape is not None:
            expect(tensor.shape == shape, argument, tuple(tensor.shape), shape)


def check_number(argument: str, value: float) -> None:
    """An int or a float."""
    expect(isinstance(value, numbers.Real), argument, value, "a number", TypeError)


def check_count(argument: str, value: int, low: int, high: int | None = None) -> None:
    """An int, symbolic or not, in [low, high]."""
    expect(isinstance(value, (int, torch.SymInt)), argument, value, "an int", TypeError)
    inside = value >= low and (high is None or value <= high)
    expect(inside, argument, value, lambda: f"at least {low}" if high is None else f"{low} to {high}")


def check_channels(argument: str, values: Sequence[float], channels: int) -> None:
    """A sequence of as many numbers as there are channels."""
    right = isinstance(values, Sequence) and len(values) == channels
    expect(right, argument, values, lambda: f"a value of each of {channels} channels")


def check_rows(argument: str, rows: torch.Tensor, count: int, least: int = 0) -> None:
    """Indices in [least, count), int64 or int32; their values are looked at where that waits for no device."""
    expect(rows.dtype in (torch.int64, torch.int32), argument, rows.dtype, "int64 or int32", TypeError)
    if has_values(rows) and rows.numel():
        low, high = int(rows.min()), int(rows.max())
        expect(low >= least and high < count, argument, f"values in [{low}, {high}]", f"values in [{least}, {count})")


def has_values(tensor: torch.Tensor) -> bool:
    """Whether the values of a tensor are there to be looked at: on the CPU, and not traced, fake or one of a vmap."""
    if torch.compiler.is_compiling() or type(tensor) is not torch.Tensor or tensor.device.type != "cpu":
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def wide_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """The dtype of arithmetic on tensors: float32, or float64 where one of them has it."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


# As triton's of these names, which are wrapped for use in kernels and take a hundred times as long.


def cdiv(count: int, size: int) -> int:
    """How many parts of a size there are in `count`, the last of them perhaps not full."""
    return -(-count // size)


def next_power_of_2(count: int) -> int:
    """The least power of two that is no less than `count`."""
    return 1 << max(0, count - 1).bit_length()


def strided(*tensors: torch.Tensor | None, rank: int = 0) -> list[torch.Tensor | int | None]:
    """Arguments of a launch: each tensor and its strides; for one that is absent, None and `rank` zeros."""
    absent = (None, *[0] * rank)
    return [value for x in tensors for value in (absent if x is None else (x, *x.stride()))]


@dataclass(frozen=True)
class Config:
    """An entry of a kernel's table: constants of the kernel in capitals, options of Triton, and what the launch needs.

    `num_warps` and `maxnreg` are Triton's; None leaves a choice to it.
    """

    num_warps: int
    maxnreg: int | None = field(default=None, kw_only=True)

    def options(self, *names: str) -> dict[str, int]:
        """Keyword arguments of a launch: those constants, and Triton's options."""
        given = {name: getattr(self, name, None) for name in (*names, "num_warps", "num_stages", "maxnreg")}
        return {name: value for name, value in given.items() if value is not None}


@functools.lru_cache
def device_class(device: torch.device) -> str:
    """Key into a kernel's config table: `sm_90`, `gfx942`, or `default` for what has no row of its own."""
    if device.type != "cuda":
        return "default"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def device_row(table: dict[str, dict], device: torch.device) -> dict:
    """The row of a kernel's config table for a device."""
    return table.get(device_class(device), table["default"])


@functools.lru_cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; what the interpreter pretends to have."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
