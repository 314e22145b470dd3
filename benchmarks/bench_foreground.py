"""FAME's two passes over whole clips: `motion_map`, and `merge_foreground` in one view with a mask of 0 and 1 (`merge`)
or with soft weights (`blend`).

Floor: each input byte read once, the results written once; of the two clips that a pixel of a mask can be from, one is
read, with soft weights both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dclr.kernels import merge_foreground, motion_map
from dclr.kernels.foreground import merge_foreground_reference, motion_map_reference

from .harness import COMPILED, OURS, REFERENCE, Problem, compiled


@dataclass(frozen=True)
class Size:
    """`batch` clips of `frames` + 1 frames as decoded, (T, H, W, C), of which the first half is masked."""

    op: str
    batch: int
    frames: int = 16
    side: int = 112

    def __str__(self) -> str:
        return f"{self.op}-{self.batch}x3x{self.frames + 1}x{self.side}x{self.side}"


OPS = ("motion", "merge", "blend")
SIZES = {
    "tiny": [Size(op, 4, 3, 10) for op in OPS],
    "cpu": [Size(op, 4) for op in OPS],
    "cuda": [Size(op, batch) for op in OPS for batch in (80, 512)],
}


def test_foreground(size, device, measuring, bench):
    bench(problem(size, device, measuring))


def problem(size: Size, device: torch.device, measuring: bool) -> Problem:
    generator = torch.Generator(device).manual_seed(0)
    shape = (size.batch, size.frames + 1, size.side, size.side, 3)
    clip = torch.randint(256, shape, dtype=torch.uint8, device=device, generator=generator).permute(0, 4, 1, 2, 3)
    flip = torch.rand(size.batch, device=device, generator=generator) < 0.5
    return motion(size, clip, flip, measuring) if size.op == "motion" else merge(size, clip, flip, measuring)


def motion(size: Size, clip: Tensor, flip: Tensor, measuring: bool) -> Problem:
    clip, flip = clip[: size.batch // 2], flip[: size.batch // 2]
    once = compiled(motion_map_reference, measuring)
    return Problem(
        name=f"motion_map {size}",
        dtype=torch.float32,
        device=clip.device,
        expected=lambda: tuple(motion_map_reference(clip.double() / 255, flip)),
        variants={
            REFERENCE: lambda: tuple(motion_map_reference(clip, flip)),
            COMPILED: lambda: tuple(once(clip, flip)),
            OURS: lambda: tuple(motion_map(clip, flip=flip)),
        },
        bytes=clip.numel() + 4 * 4 * len(clip) * size.side**2,
    )


def merge(size: Size, clip: Tensor, flip: Tensor, measuring: bool) -> Problem:
    half, pixels, device = size.batch // 2, size.side**2, clip.device
    soft = size.op == "blend"
    background = torch.arange(half, device=device).roll(1)
    weight = torch.rand(half, size.side, size.side, device=device)
    weight = weight if soft else (weight < 0.5).float()
    dtype = torch.float32 if soft else torch.uint8

    def plain(clip: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        merged = merge_foreground_reference(clip, background, weight, flip, dtype)
        return (merged.contiguous(memory_format=torch.channels_last_3d),)

    once = compiled(plain, measuring)
    read = clip.numel() + soft * clip[:half].numel() + 4 * half * pixels
    return Problem(
        name=f"merge_foreground {size} to {str(dtype).removeprefix('torch.')}",
        dtype=torch.float32,
        device=device,
        expected=lambda: plain(clip if dtype == torch.uint8 else clip.double() / 255, dtype),
        variants={
            REFERENCE: lambda: plain(clip, dtype),
            COMPILED: lambda: once(clip, dtype),
            OURS: lambda: (merge_foreground(clip, background, weight, flip=flip, dtype=dtype),),
        },
        bytes=read + clip.numel() * dtype.itemsize,
    )
