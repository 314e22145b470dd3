"""What the kernel files share: is Triton here, which path runs, argument checks.

`kernels/` knows torch and triton and nothing else, so that a file can be borrowed on its own with this one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS, Windows: the references still work
    triton = tl = None

# Triton reads the variable when a kernel is decorated, so it counts at import time, not per call.
INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def runs_triton(tensor: torch.Tensor) -> bool:
    """Whether `tensor` goes to the Triton kernel; the plain PyTorch reference takes everything else.

    float64 always runs the reference; a CPU tensor runs Triton only under `TRITON_INTERPRET=1`.
    """
    if triton is None or tensor.dtype == torch.float64:
        return False
    return tensor.is_cuda or INTERPRET


def define_op(library: torch.library.Library, schema: str, run: Callable) -> None:
    """Define the op of a schema, `name(...) -> ...`; `run`, for CPUs and GPUs, picks reference or kernel itself."""
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        library.impl(schema[: schema.index("(")], run, key)


def first_derivative(backward: Callable) -> Callable:
    """A backward pass that no second one follows: under `create_graph=True` it is an error, not a wrong result."""

    @functools.wraps(backward)
    def only(ctx, *grads):
        if torch.is_grad_enabled():
            name = type(ctx).__name__.removesuffix("Backward").lstrip("_")
            raise RuntimeError(f"{name} of dclr.kernels: got create_graph=True, expected no second derivative")
        return backward(ctx, *grads)

    return only


def check(condition: bool, argument: str, got: object, expected: object, error: type = ValueError) -> None:
    """Raise `error` naming the argument, what it was and what it must be.

    Sizes are handed over as they are and put into words here: a symbolic size in a string would be fixed, and a graph
    compiled for each batch size.
    """
    if not condition:
        expected = expected() if callable(expected) else expected
        raise error(f"{argument}: got {got}, expected {expected}")


def check_float(argument: str, tensor: torch.Tensor, rank: int | tuple[int, ...]) -> None:
    """A floating tensor of one of the ranks, or a TypeError/ValueError that names it."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{argument}: got {type(tensor).__name__}, expected a torch.Tensor")
    check(
        tensor.dtype in FLOAT_DTYPES,
        argument,
        tensor.dtype,
        "float32, bfloat16, float16 or float64",
        TypeError,
    )
    ranks = (rank,) if isinstance(rank, int) else rank
    check(
        tensor.dim() in ranks,
        argument,
        tuple(tensor.shape),
        f"{' or '.join(map(str, ranks))} dimensions",
    )


def check_same_device(**tensors: torch.Tensor | None) -> None:
    """All given tensors on one device, or a ValueError that lists where each is."""
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    if len(set(devices.values())) > 1:
        listing = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"tensors on different devices: {listing}; expected one device")


def check_rows(name: str, rows: torch.Tensor, count: int, least: int) -> None:
    """Indices in [least, count), or an error; their values are looked at on the CPU only."""
    check(rows.dtype in (torch.int64, torch.int32), name, rows.dtype, "int64 or int32", TypeError)
    if rows.device.type == "cpu" and rows.numel() and not torch.compiler.is_compiling():
        low, high = int(rows.min()), int(rows.max())
        check(low >= least and high < count, name, f"values in [{low}, {high}]", f"values in [{least}, {count})")


def unit(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows (..., D) in `dtype`, divided by their norm; a zero row stays zero and has zero gradient."""
    rows = rows.to(dtype)
    # Brought to about 1 first: the squares of very small and very large elements leave the range of a float.
    largest = rows.detach().abs().amax(-1, keepdim=True) if rows.shape[-1] else rows.new_ones(())
    zero = largest == 0
    rows = rows / torch.where(zero, 1, largest)
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.where(zero, 0, rows / torch.where(zero, 1, norm))


def device_class(device: torch.device) -> str:
    """Key into a kernel's config table: `sm_90`, `gfx942`, or `default` for what has no row of its own."""
    if device.type != "cuda":
        return "default"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"
