"""The Inception-v1 layout that S3D and I3D share; they differ in their convolution units and their pools."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dclr.models.resnet3d import Triple

# (input channels, output channels, kernel size, stride) -> unit with norm and ReLU
UnitBuilder = Callable[[int, int, int, int], nn.Module]
# (kernel, stride) -> max-pool
PoolBuilder = Callable[[Triple, Triple], nn.Module]

# Branch widths: 1x1 | reduce, 3x3 | reduce, 3x3 | after the pool.
MIXED_3 = {"3b": (64, 96, 128, 16, 32, 32), "3c": (128, 128, 192, 32, 96, 64)}
MIXED_4 = {
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
}
MIXED_5 = {"5b": (256, 160, 320, 32, 128, 128), "5c": (384, 192, 384, 48, 128, 128)}


class Mixed(nn.Module):
    """Four branches on the same input, joined along the channels; `gate(width)` builds the end of each branch."""

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        unit: UnitBuilder,
        pool: PoolBuilder,
        gate: Callable[[int], nn.Module] | None,
    ):
        super().__init__()
        point, reduce1, conv1, reduce2, conv2, pooled = widths
        branches = [
            ([unit(channels, point, 1, 1)], point),
            ([unit(channels, reduce1, 1, 1), unit(reduce1, conv1, 3, 1)], conv1),
            ([unit(channels, reduce2, 1, 1), unit(reduce2, conv2, 3, 1)], conv2),
            ([pool((3, 3, 3), (1, 1, 1)), unit(channels, pooled, 1, 1)], pooled),
        ]
        gates = [[] if gate is None else [gate(width)] for _, width in branches]
        self.branches = nn.ModuleList(nn.Sequential(*b, *g) for (b, _), g in zip(branches, gates))
        self.width = point + conv1 + conv2 + pooled

    def forward(self, x_bcthw: Tensor) -> Tensor:
        return torch.cat([branch(x_bcthw) for branch in self.branches], dim=1)


class InceptionEncoder(nn.Sequential):
    """Stem, two convolutions and nine Mixed modules: (B, 3, T, H, W) -> (B, 1024, T', H', W')."""

    def __init__(self, unit: UnitBuilder, pool: PoolBuilder, gate: Callable[[int], nn.Module] | None = None):
        layers = OrderedDict(
            conv_1a=unit(3, 64, 7, 2),
            pool_2a=pool((1, 3, 3), (1, 2, 2)),
            conv_2b=unit(64, 64, 1, 1),
            conv_2c=unit(64, 192, 3, 1),
        )
        channels = 192
        stages = [
            ("pool_3a", pool((1, 3, 3), (1, 2, 2)), MIXED_3),
            ("pool_4a", pool((3, 3, 3), (2, 2, 2)), MIXED_4),
            ("pool_5a", pool((2, 2, 2), (2, 2, 2)), MIXED_5),
        ]
        for pool_name, stage_pool, table in stages:
            layers[pool_name] = stage_pool
            for name, widths in table.items():
                mixed = Mixed(channels, widths, unit, pool, gate)
                layers[f"mixed_{name}"] = mixed
                channels = mixed.width
        super().__init__(layers)
        self.feature_dim = channels
