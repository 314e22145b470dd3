"""`decoupled_pool`: maps, alignment and five pools of the three feature maps in one pass.

Floor: forward reads three maps; backward reads rgb and writes three gradients. The results are negligible beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dclr.kernels import decoupled_pool

from .harness import COMPILED, OURS, REFERENCE, Problem, compiled, with_gradients


@dataclass(frozen=True)
class Size:
    """Three maps (batch, channels, time, height, width)."""

    batch: int
    channels: int = 512
    time: int = 2
    height: int = 7
    width: int = 7
    channels_last: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, self.channels, self.time, self.height, self.width

    def __str__(self) -> str:
        return "x".join(map(str, self.shape)) + ("-channels-last" if self.channels_last else "")


SIZES = {
    "tiny": [Size(3, 5, 2, 3, 4), Size(2, 6, 1, 2, 3, channels_last=True)],
    "cpu": [Size(40), Size(40, channels_last=True)],
    "cuda": [Size(batch, channels_last=last) for last in (False, True) for batch in (40, 256, 1024)],
}


def test_head(size, device, measuring, bench):
    bench(problem(size, device, measuring))


def test_head_forward(size, device, measuring, bench):
    bench(problem(size, device, measuring, backward=False))


def plain(rgb: Tensor, static: Tensor, difference: Tensor) -> tuple[Tensor, ...]:
    """The five pools, then the alignment per sample: DCLR Eq. 11, 12 and 13 in plain PyTorch."""
    wide = torch.promote_types(rgb.dtype, torch.float32)
    rgb, static, difference = (features.to(wide) for features in (rgb, static, difference))
    maps = [features.abs().sum(1) for features in (rgb, static, difference)]
    pools = [rgb.mean((2, 3, 4))]
    for weight in maps[1:]:
        weight = weight.detach()
        pools.append((rgb * weight[:, None]).sum((2, 3, 4)) / weight.sum((1, 2, 3))[:, None])
    pools += [features.mean((2, 3, 4)) for features in (static, difference)]
    target = unit_range((maps[1] + maps[2]).detach())
    return (*pools, (unit_range(maps[0]) - target).abs().mean((1, 2, 3)))


def unit_range(activation: Tensor) -> Tensor:
    low, high = activation.amin((1, 2, 3), keepdim=True), activation.amax((1, 2, 3), keepdim=True)
    return (activation - low) / (high - low)


def problem(size: Size, device: torch.device, measuring: bool, backward: bool = True) -> Problem:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    layout = torch.channels_last_3d if size.channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(size.shape, generator=generator).relu_() for _ in range(3)]
    leaves = [x.to(device, dtype).contiguous(memory_format=layout).requires_grad_(backward) for x in maps]
    # A different weight on each result, so that no gradient is the same for all channels.
    weights = [torch.randn(size.batch, size.channels, generator=generator).to(device) for _ in range(5)]
    weights.append(torch.randn(size.batch, generator=generator).to(device))

    def run(head, leaves=leaves, weights=weights):
        if backward:
            return with_gradients(lambda *maps: sum((r * w).sum() for r, w in zip(head(*maps), weights)), *leaves)
        return lambda: tuple(head(*leaves))

    def expected() -> tuple[Tensor, ...]:
        wide = [leaf.detach().double().requires_grad_(backward) for leaf in leaves]
        return run(plain, wide, [weight.double() for weight in weights])()

    return Problem(
        name=f"decoupled_pool {'forward and backward' if backward else 'forward'} {size} "
        + str(dtype).removeprefix("torch."),
        dtype=dtype,
        device=device,
        expected=expected,
        variants={REFERENCE: run(plain), COMPILED: run(compiled(plain, measuring)), OURS: run(decoupled_pool)},
        bytes=(7 if backward else 3) * leaves[0].numel() * dtype.itemsize,
    )
