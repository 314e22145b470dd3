"""`decouple`: uint8 clips to normalised rgb, static and difference clips in one pass.

Floor: each input byte read once, three outputs written once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dclr.kernels import decouple

from .harness import COMPILED, OURS, REFERENCE, Problem, compiled, missing

MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


@dataclass(frozen=True)
class Size:
    """`batch` clips of `frames` + 1 frames; `decoded` where they come as a decoder's (T, H, W, C)."""

    batch: int
    frames: int = 16
    height: int = 112
    width: int = 112
    decoded: bool = True

    def __str__(self) -> str:
        shape = f"{self.batch}x3x{self.frames + 1}x{self.height}x{self.width}"
        return shape + ("-decoded" if self.decoded else "-planar")


SIZES = {
    "tiny": [Size(2, 4, 6, 10), Size(3, 2, 5, 7, decoded=False)],
    "cpu": [Size(4), Size(4, decoded=False)],
    "cuda": [Size(batch, decoded=decoded) for decoded in (True, False) for batch in (40, 512)],
}


def test_decouple(size, device, measuring, bench):
    bench(problem(size, device, measuring))


def plain(
    clip: Tensor, index: Tensor, flip: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """DCLR Eq. 3 and 4 in plain PyTorch, in `mean`'s dtype inside."""
    frames = clip.to(mean.dtype) / 255
    frames = torch.where(flip[:, None, None, None, None], frames.flip(4), frames)
    return views(frames, (frames[:, :, :-1] - mean) / std, index, std, dtype)


def views(frames: Tensor, rgb: Tensor, index: Tensor, std: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The three clips from the flipped frames and their normalised form."""
    static = rgb[torch.arange(len(rgb), device=rgb.device), :, index].unsqueeze(2).expand(rgb.shape)
    difference = (frames[:, :, 1:] - frames[:, :, :-1]) / std
    return tuple(clip.to(dtype).contiguous() for clip in (rgb, static, difference))


def problem(size: Size, device: torch.device, measuring: bool) -> Problem:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    shape = (size.batch, size.frames + 1, size.height, size.width, 3)
    if not size.decoded:
        shape = (size.batch, 3, size.frames + 1, size.height, size.width)
    clip = torch.randint(256, shape, dtype=torch.uint8, device=device, generator=generator)
    if size.decoded:
        clip = clip.permute(0, 4, 1, 2, 3)
    index = torch.randint(size.frames, (size.batch,), device=device, generator=generator)
    flip = torch.rand(size.batch, device=device, generator=generator) < 0.5
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1, 1) for values in (MEAN, STD))

    def run(function):
        return lambda: function(clip, index, flip, mean, std, dtype)

    outputs = 3 * size.batch * 3 * size.frames * size.height * size.width
    result = Problem(
        name=f"decouple {size} uint8 to {str(dtype).removeprefix('torch.')}",
        dtype=dtype,
        device=device,
        expected=lambda: plain(clip, index, flip, mean, std, torch.float32),
        variants={
            REFERENCE: run(plain),
            COMPILED: run(compiled(plain, measuring)),
            OURS: lambda: tuple(decouple(clip, index, flip=flip, mean=MEAN, std=STD, dtype=dtype)),
        },
        bytes=clip.numel() + outputs * dtype.itemsize,
    )
    add_peers(result, run)
    return result


def add_peers(problem: Problem, run) -> None:
    """Libraries that flip and normalise; none of them makes the static and difference clips, so plain PyTorch does."""
    if not missing(problem, "kornia", "kornia", needs_cuda=False):
        from kornia.enhance import normalize
        from kornia.geometry.transform import hflip

        def kornia(clip, index, flip, mean, std, dtype):
            frames = clip.float() / 255
            frames = torch.where(flip[:, None, None, None, None], hflip(frames), frames)
            return views(frames, normalize(frames[:, :, :-1], mean.flatten(), std.flatten()), index, std, dtype)

        problem.variants["kornia"] = run(kornia)
    if not missing(problem, "triton-augment", "triton_augment.functional"):
        from triton_augment.functional import fused_augment

        def triton_augment(clip, index, flip, mean, std, dtype):
            batch, channels, frames, height, width = clip.shape
            images = clip.transpose(1, 2).reshape(-1, channels, height, width).contiguous().float() / 255
            flips = flip.repeat_interleave(frames).to(torch.uint8)
            flipped = fused_augment(images, 0, 0, height, width, flips)
            flipped = flipped.view(batch, frames, channels, height, width).transpose(1, 2)
            rgb = fused_augment(images, 0, 0, height, width, flips, mean=MEAN, std=STD)
            rgb = rgb.view(batch, frames, channels, height, width).transpose(1, 2)
            return views(flipped, rgb[:, :, :-1], index, std, dtype)

        problem.variants["triton-augment"] = run(triton_augment)
