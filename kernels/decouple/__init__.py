"""Clip, static clip and frame difference: `reference.py` has the formula, `kernel.py` the Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .._common import FLOAT_DTYPES, check_channels, check_tensors, expect, register_op, wide_dtype
from ..clips import check_clip
from .kernel import launch_backward, launch_forward
from .reference import Decoupled, decouple_backward_reference, decouple_reference

# Ops


def _empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)


def _empty_parts(clip: Tensor, *arguments) -> tuple[Tensor, ...]:
    batch, channels, frames, height, width = clip.shape
    return tuple(_empty(clip, (batch, channels, frames - 1, height, width), *arguments[-2:]) for _ in range(3))


def _keep(ctx, arguments, _):
    clip, static_index, flip, _, std, *_ = arguments
    ctx.save_for_backward(static_index, flip, std)
    clip_last = not clip.is_contiguous() and clip.is_contiguous(memory_format=torch.channels_last_3d)
    ctx.clip = clip.shape, clip.dtype, clip_last


register_op(
    "decouple(Tensor clip, Tensor static_index, Tensor? flip, Tensor? mean, Tensor? std, ScalarType dtype, "
    "bool channels_last) -> (Tensor, Tensor, Tensor)",
    _empty_parts,
    lambda *arguments: decouple_reference(*arguments[:-1]),
    launch_forward,
    setup_context=_keep,
    backward=lambda ctx, *grads: (torch.ops.dclr.decouple_backward(*grads, *ctx.saved_tensors, *ctx.clip),),
)
# `size`, `dtype` and `channels_last` are those of the clip and of its gradient.
register_op(
    "decouple_backward(Tensor? rgb, Tensor? static, Tensor? difference, Tensor static_index, Tensor? flip, "
    "Tensor? std, SymInt[] size, ScalarType dtype, bool channels_last) -> Tensor",
    lambda *arguments: _empty(arguments[3], *arguments[-3:]),
    decouple_backward_reference,
    launch_backward,
)


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
        clip: (B, C, T+1, H, W) uint8 (scaled to [0, 1]) or floating, any strides: of a decoder's frames
            (B, T+1, H, W, C) the view `frames.permute(0, 4, 1, 2, 3)`.
        static_index: (B,) int64 or int32 in [0, T): the frame that stands still. Others are an error where the tensor
            is on the CPU; on a GPU they give a static clip of zeros.
        flip: (B,) bool, the clips to mirror.
        mean, std: (C,) of each channel, for values in [0, 1]; 0 and 1 where not given.
        dtype: of the results; the clip's, or float32 for uint8.
        memory_format: of the results, `torch.contiguous_format` or `torch.channels_last_3d`.

    Returns:
        Decoupled(rgb, static, difference), (B, C, T, H, W) each; gradients reach a floating clip.

    Raises:
        TypeError, ValueError: a wrong rank, size, dtype or device, named.
    """
    check_tensors(clip=clip, static_index=static_index, optional={"flip": flip})
    check_clip(clip, flip, static_index, "(B, C, T+1, H, W) with at least 2 frames", 2, channels=None)
    last = memory_format == torch.channels_last_3d
    known = last or memory_format == torch.contiguous_format
    expect(known, "memory_format", memory_format, "contiguous_format or channels_last_3d")
    if dtype is None:
        dtype = clip.dtype if clip.is_floating_point() else torch.float32
    expect(dtype in FLOAT_DTYPES, "dtype", dtype, "float32, bfloat16, float16 or float64", TypeError)
    channel = _per_channel("mean", mean, clip), _per_channel("std", std, clip)
    return Decoupled(*torch.ops.dclr.decouple(clip, static_index, flip, *channel, dtype, last))


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
