"""`crop_resize_yuv`: crop boxes of YUV 4:2:0 clips, of many sizes, to RGB clips of one.

Floor: the boxes read once, the clips written once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dclr.data.clips import random_resized_crop_box
from dclr.data.planes import BT601, rgb_matrix
from dclr.kernels import crop_resize_yuv
from dclr.kernels.crop_resize import crop_resize_yuv_reference, unpacked

from .harness import OURS, REFERENCE, Problem, missing


@dataclass(frozen=True)
class Size:
    """`batch` clips of `frames` frames, random boxes of frames of `height` x `width`, to `side` x `side`."""

    batch: int
    frames: int = 17
    height: int = 240
    width: int = 320
    side: int = 112

    def __str__(self) -> str:
        return f"{self.batch}x{self.frames}x{self.height}x{self.width}-to-{self.side}"


SIZES = {
    "tiny": [Size(3, 2, 14, 18, 8)],
    "cpu": [Size(4)],
    "cuda": [Size(80), Size(80, height=128, width=170), Size(512)],
}


def test_crop_resize(size, device, measuring, bench):
    bench(problem(size, device, measuring))


def draw_geometry(size: Size) -> tuple[list[list[int]], int]:
    """Boxes as in pretraining, and how many elements their planes have."""
    rng = np.random.default_rng(0)
    rows, start = [], 0
    for _ in range(size.batch):
        top, left, h, w = random_resized_crop_box(size.height, size.width, (0.2, 1.0), (3 / 4, 4 / 3), rng)
        rows.append([start, h, w, top % 2, left % 2])
        start += size.frames * (h * w + 2 * ((h + top % 2 + 1) // 2) * ((w + left % 2 + 1) // 2))
    return rows, start


def problem(size: Size, device: torch.device, measuring: bool) -> Problem:
    rows, count = draw_geometry(size)
    generator = torch.Generator(device).manual_seed(0)
    planes = torch.randint(60, 196, (count,), dtype=torch.uint8, device=device, generator=generator)
    geometry = torch.tensor(rows, device=device)
    matrix = torch.from_numpy(rgb_matrix(*BT601, full=False)).to(device).repeat(size.batch, 1, 1)
    crops = planes, geometry, matrix, size.frames, size.side
    found = Problem(
        name=f"crop_resize_yuv {size} uint8",
        # Peers round to bytes in their own ways: the results are the same if they are as close as bfloat16 values.
        dtype=torch.bfloat16,
        device=device,
        expected=lambda: (crop_resize_yuv_reference(*crops),),
        variants={
            REFERENCE: lambda: (crop_resize_yuv_reference(*crops),),
            OURS: lambda: (crop_resize_yuv(*crops),),
        },
        bytes=count + size.batch * size.frames * size.side**2 * 3,
    )
    add_peers(found, size, planes, rows, matrix)
    return found


def add_peers(problem: Problem, size: Size, planes: Tensor, rows: list[list[int]], matrix: Tensor) -> None:
    """Clip by clip, as a batch of boxes of many sizes leaves no other way: torch to RGB first, and kornia."""

    def clipwise(resized) -> tuple[Tensor]:
        clips = [resized(unpacked(planes, row, size.frames), affine) for row, affine in zip(rows, matrix)]
        return (torch.stack(clips),)

    def rounded(rgb_tchw: Tensor) -> Tensor:
        return (rgb_tchw.permute(0, 2, 3, 1).clamp(0, 255) + 0.5).to(torch.uint8)

    def by_torch(yuv_tchw: Tensor, affine: Tensor) -> Tensor:
        rgb = torch.einsum("rc,tchw->trhw", affine[:, :3], yuv_tchw.float()) + affine[:, 3].view(3, 1, 1)
        # The RGB picture in bytes, as a decoder gives it.
        rgb = (rgb.clamp(0, 255) + 0.5).to(torch.uint8).float()
        return rounded(F.interpolate(rgb, (size.side, size.side), mode="bilinear", antialias=True))

    problem.variants["torch, RGB first"] = lambda: clipwise(by_torch)
    if missing(problem, "kornia", "kornia", needs_cuda=False):
        return
    import kornia

    def by_kornia(yuv_tchw: Tensor, affine: Tensor) -> Tensor:
        # Its matrix is another one, and its antialiasing a Gaussian.
        rgb = kornia.color.yuv_to_rgb(
            yuv_tchw.float() / 255 - torch.tensor([0, 0.5, 0.5], device=affine.device).view(3, 1, 1)
        )
        return rounded(kornia.geometry.resize(rgb, (size.side, size.side), antialias=True) * 255)

    problem.variants["kornia"] = lambda: clipwise(by_kornia)
    problem.other_functions.add("kornia")
