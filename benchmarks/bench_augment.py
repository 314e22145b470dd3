"""`augment_clip`: uint8 clips to augmented, normalised rgb, static frame and difference.

Floor: each input byte read once, the results written once. Contrast needs a second pass over the input and a blur a
third, so that the floor is out of reach where they are drawn: about 1.3 x its bytes in bfloat16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dclr.kernels import augment_clip
from dclr.kernels.augment.reference import augment_reference

from .harness import COMPILED, OURS, REFERENCE, Problem, compiled, missing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Size:
    """`batch` clips of `frames` + 1 frames as decoded, (T, H, W, C); a blur of a tenth of the height."""

    batch: int
    frames: int = 16
    side: int = 112

    def __str__(self) -> str:
        return f"{self.batch}x3x{self.frames + 1}x{self.side}x{self.side}"


SIZES = {
    "tiny": [Size(3, 2, 24)],
    "cpu": [Size(4)],
    "cuda": [Size(40), Size(80), Size(512)],
}


def test_augment(size, device, measuring, bench):
    bench(problem(size, device, measuring))


def draw_colors(batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Rows (B, 6) in DCLR's ranges: gray in one of five, jittered in four of five, blurred in one of two."""
    low, high = torch.tensor([[0, 0.6, 0.6, 0.6, -0.1, 0.1], [1, 1.4, 1.4, 1.4, 0.1, 2.0]], device=device)
    share = torch.rand(3, batch, 1, generator=generator, device=device)
    color = low + (high - low) * torch.rand(batch, 6, generator=generator, device=device)
    neutral = torch.tensor([1.0, 1, 1, 0], device=device)
    jitter = torch.where(share[1] < 0.8, color[:, 1:5], neutral)
    return torch.cat([(share[0] < 0.2).float(), jitter, color[:, 5:] * (share[2] < 0.5)], 1)


def problem(size: Size, device: torch.device, measuring: bool) -> Problem:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    shape = (size.batch, size.frames + 1, size.side, size.side, 3)
    clip = torch.randint(256, shape, dtype=torch.uint8, device=device, generator=generator).permute(0, 4, 1, 2, 3)
    index = torch.randint(size.frames, (size.batch,), device=device, generator=generator)
    flip = torch.rand(size.batch, device=device, generator=generator) < 0.5
    color, static_color = (draw_colors(size.batch, generator, device) for _ in range(2))
    taps = int(0.1 * size.side) // 2 * 2 + 1

    def plain(clip: Tensor, into: torch.dtype) -> tuple[Tensor, ...]:
        results = augment_reference(clip, color, index, static_color, flip, MEAN, STD, taps)
        return tuple(part.to(into, memory_format=torch.channels_last_3d) for part in results)

    def ours() -> tuple[Tensor, ...]:
        options = {"mean": MEAN, "std": STD, "blur_size": taps, "dtype": dtype}
        return tuple(augment_clip(clip, color, static_index=index, static_color=static_color, flip=flip, **options))

    once = compiled(plain, measuring)
    results = (2 * size.frames + 1) * size.batch * 3 * size.side**2
    found = Problem(
        name=f"augment_clip {size} uint8 to {str(dtype).removeprefix('torch.')}",
        dtype=dtype,
        device=device,
        expected=lambda: plain(clip, torch.float32),
        variants={REFERENCE: lambda: plain(clip, dtype), COMPILED: lambda: once(clip, dtype), OURS: ours},
        bytes=clip.numel() + results * dtype.itemsize,
    )
    add_peers(found, clip, index, flip, (color, static_color), taps)
    return found


def add_peers(
    problem: Problem, clip: Tensor, index: Tensor, flip: Tensor, colors: tuple[Tensor, Tensor], taps: int
) -> None:
    """kornia's functions with the same parameters, and its modules, which draw their own."""
    if missing(problem, "kornia", "kornia", needs_cuda=False):
        return
    import kornia

    mean, std = (torch.tensor(values, device=clip.device).view(1, 3, 1, 1, 1) for values in (MEAN, STD))
    batch = torch.arange(len(clip), device=clip.device)

    def views(frames: Tensor, recolor) -> tuple[Tensor, ...]:
        still = frames[batch, :, index, None]
        parts = (recolor(part, color) for part, color in zip((frames[:, :, :-1], still), colors))
        parts = (*((part - mean) / std for part in parts), (frames[:, :, 1:] - frames[:, :, :-1]) / std)
        return tuple(part.to(problem.dtype, memory_format=torch.channels_last_3d) for part in parts)

    def recolor(clip_bcthw: Tensor, color: Tensor) -> Tensor:
        gray, brightness, contrast, saturation, hue, sigma = color.view(-1, 6, 1, 1, 1, 1).unbind(1)
        luma = kornia.color.rgb_to_grayscale(clip_bcthw.transpose(1, 2)).transpose(1, 2)
        x = (torch.where(gray > 0, luma, clip_bcthw) * brightness).clamp(0, 1)
        center = kornia.color.rgb_to_grayscale(x.transpose(1, 2)).mean((1, 2, 3, 4), keepdim=True)
        x = (center + (x - center) * contrast).clamp(0, 1)
        tall = kornia.enhance.adjust_saturation(x.flatten(2, 3), saturation.flatten())
        x = kornia.enhance.adjust_hue(tall, hue.flatten() * 2 * math.pi).view_as(x)
        frames = x.transpose(1, 2).flatten(0, 1)
        sigmas = sigma.flatten().clamp(min=0.1).repeat_interleave(x.shape[2])[:, None].expand(-1, 2)
        soft = kornia.filters.gaussian_blur2d(frames, (taps, taps), sigmas)
        return torch.where(sigma > 0, soft.unflatten(0, (len(x), -1)).transpose(1, 2), x)

    def functions() -> tuple[Tensor, ...]:
        frames = clip.float() / 255
        return views(torch.where(flip[:, None, None, None, None], frames.flip(4), frames), recolor)

    steps = kornia.augmentation.VideoSequential(
        kornia.augmentation.RandomGrayscale(p=0.2),
        kornia.augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        kornia.augmentation.RandomGaussianBlur((taps, taps), (0.1, 2.0), p=0.5),
        data_format="BCTHW",
        same_on_frame=True,
    )
    mirror = kornia.augmentation.VideoSequential(
        kornia.augmentation.RandomHorizontalFlip(p=0.5), data_format="BCTHW", same_on_frame=True
    )
    problem.variants["kornia"] = functions
    problem.variants["kornia modules"] = lambda: views(mirror(clip.float() / 255), lambda part, _: steps(part))
    problem.other_functions.add("kornia modules")
