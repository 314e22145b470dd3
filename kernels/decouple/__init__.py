"""Clip, static clip and frame difference: `reference.py` has the formula, `kernel.py` the Triton kernels.

Shape suffixes: b batch, c channels, t frames, h rows, w columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .._common import (
    FLOAT_DTYPES,
    check_channels,
    check_rows,
    check_tensors,
    define_op,
    expect,
    first_derivative,
    runs_triton,
    wide_dtype,
)
from .kernel import launch_backward, launch_forward
from .reference import Decoupled, decouple_backward_reference, decouple_reference

MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last_3d)

_library = torch.library.Library("dclr", "FRAGMENT")


# Ops


def _empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)


def _empty_results(clip: Tensor, dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, ...]:
    batch, channels, frames, height, width = clip.shape
    shape = batch, channels, frames - 1, height, width
    return tuple(_empty(clip, shape, dtype, channels_last) for _ in range(3))


def _decouple_forward(
    clip: Tensor,
    static_index: Tensor,
    flip: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> tuple[Tensor, ...]:
    results = _empty_results(clip, dtype, channels_last)
    if not runs_triton(clip) or dtype == torch.float64:
        values = torch.zeros((), device=clip.device).expand(clip.shape[1])
        mean, std = values if mean is None else mean, values + 1 if std is None else std
        for result, value in zip(results, decouple_reference(clip, static_index, flip, mean, std, dtype)):
            result.copy_(value)
    elif clip.numel():
        launch_forward(clip, *_dense(static_index, flip, mean, std), results, channels_last)
    return results


def _decouple_backward(
    rgb: Tensor | None,
    static: Tensor | None,
    difference: Tensor | None,
    static_index: Tensor,
    flip: Tensor | None,
    std: Tensor | None,
    size: Sequence[int],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """`size`, `dtype` and `channels_last` are those of the clip and of its gradient."""
    grads = rgb, static, difference
    to_clip = _empty(static_index, size, dtype, channels_last)
    wide = any(grad is not None and grad.dtype == torch.float64 for grad in (to_clip, *grads))
    if not runs_triton(to_clip) or wide:
        zeros = torch.zeros(size, dtype=wide_dtype(to_clip), device=to_clip.device)
        std = zeros.new_ones(size[1]) if std is None else std
        to_clip.copy_(decouple_backward_reference(grads, static_index, flip, std, zeros))
    elif to_clip.numel():
        launch_backward(grads, *_dense(static_index, flip, std), to_clip, channels_last)
    return to_clip


def _dense(*tensors: Tensor | None) -> list[Tensor | None]:
    """The small arguments; all but strided ones are so already."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


define_op(
    _library,
    "decouple(Tensor clip, Tensor static_index, Tensor? flip, Tensor? mean, Tensor? std, ScalarType dtype, "
    "bool channels_last) -> (Tensor, Tensor, Tensor)",
    _decouple_forward,
)
define_op(
    _library,
    "decouple_backward(Tensor? rgb, Tensor? static, Tensor? difference, Tensor static_index, Tensor? flip, "
    "Tensor? std, SymInt[] size, ScalarType dtype, bool channels_last) -> Tensor",
    _decouple_backward,
)


@torch.library.register_fake("dclr::decouple", lib=_library)
def _(clip, static_index, flip, mean, std, dtype, channels_last):
    return _empty_results(clip, dtype, channels_last)


@torch.library.register_fake("dclr::decouple_backward", lib=_library)
def _(rgb, static, difference, static_index, flip, std, size, dtype, channels_last):
    return _empty(static_index, size, dtype, channels_last)


class _Decouple(torch.autograd.Function):
    @staticmethod
    def forward(ctx, clip, static_index, flip, mean, std, dtype, channels_last):
        with torch._C._AutoDispatchBelowAutograd():
            results = torch.ops.dclr.decouple(clip, static_index, flip, mean, std, dtype, channels_last)
        ctx.save_for_backward(static_index, flip, std)
        clip_last = not clip.is_contiguous() and clip.is_contiguous(memory_format=torch.channels_last_3d)
        ctx.clip = clip.shape, clip.dtype, clip_last
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    @first_derivative
    def backward(ctx, *grads):
        to_clip = torch.ops.dclr.decouple_backward(*grads, *ctx.saved_tensors, *ctx.clip)
        return to_clip, *(None,) * 6


_library.impl("decouple", _Decouple.apply, "Autograd")


# Public function


def decouple(
    clip: Tensor,
    static_index: Tensor,
    *,
    flip: Tensor | None = None,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Decoupled:
    """Split a clip into itself, a static clip and its frame difference (DCLR Eq. 3-4).

    Args:
        clip: (B, C, T+1, H, W) uint8 (scaled to [0, 1]) or floating, any strides.
        static_index: (B,) int64 or int32 in [0, T): the frame that stands still. Others are an error where the tensor
            is on the CPU; on a GPU they give a static clip of zeros.
        flip: (B,) bool, the clips to mirror.
        mean, std: (C,) of each channel, for values in [0, 1]; 0 and 1 where not given.
        dtype: of the results; the clip's, or float32 for uint8.
        memory_format: of the results, `torch.contiguous_format` or `torch.channels_last_3d`.

    Returns:
        Decoupled of (B, C, T, H, W); gradients reach a floating clip.

    Raises:
        TypeError, ValueError: a wrong rank, size, dtype or device, named.
    """
    dtype = _check_decouple(clip, static_index, flip, dtype, memory_format)
    channel = _per_channel("mean", mean, clip), _per_channel("std", std, clip)
    last = memory_format == torch.channels_last_3d
    return Decoupled(*torch.ops.dclr.decouple(clip, static_index, flip, *channel, dtype, last))


def _check_decouple(
    clip: Tensor, static_index: Tensor, flip: Tensor | None, dtype: torch.dtype | None, memory_format: object
) -> torch.dtype:
    check_tensors(clip=clip, static_index=static_index, optional={"flip": flip})
    floating = clip.dtype in FLOAT_DTYPES
    expect(floating or clip.dtype == torch.uint8, "clip", clip.dtype, "uint8 or a floating dtype", TypeError)
    enough = clip.dim() == 5 and clip.shape[2] >= 2
    expect(enough, "clip", tuple(clip.shape), "(B, C, T+1, H, W) with at least 2 frames")
    small = clip.shape[1] * clip.shape[3] * clip.shape[4] < 2**31
    expect(small, "clip", tuple(clip.shape), "frames of fewer than 2^31 elements")
    batch, frames = clip.shape[0], clip.shape[2] - 1
    expect(tuple(static_index.shape) == (batch,), "static_index", tuple(static_index.shape), (batch,))
    if flip is not None:
        expect(flip.dtype == torch.bool, "flip", flip.dtype, "bool", TypeError)
        expect(tuple(flip.shape) == (batch,), "flip", tuple(flip.shape), (batch,))
    expect(memory_format in MEMORY_FORMATS, "memory_format", memory_format, "contiguous_format or channels_last_3d")
    check_rows("static_index", static_index, frames)
    if dtype is None:
        return clip.dtype if floating else torch.float32
    expect(dtype in FLOAT_DTYPES, "dtype", dtype, "float32, bfloat16, float16 or float64", TypeError)
    return dtype


def _per_channel(name: str, value: Sequence[float] | Tensor | None, clip: Tensor) -> Tensor | None:
    if value is None:
        return None
    dtype, expected = wide_dtype(clip), (clip.shape[1],)
    if isinstance(value, Tensor):
        check_tensors(clip=clip, **{name: value})
        expect(tuple(value.shape) == expected, name, tuple(value.shape), expected)
        return value.detach().to(dtype)
    check_channels(name, value, clip.shape[1])
    # A traced or fake clip wants a constant of its own kind.
    plain = type(clip) is Tensor and not torch.compiler.is_compiling()
    constant = _cached_constant if plain else torch.tensor
    return constant(tuple(value), dtype=dtype, device=clip.device)


@lru_cache(maxsize=64)
def _cached_constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copied to the device once, not once a step."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
