"""Encoders as other codebases build them, from their published architectures: the names of their tensors, and forward.

The reference for reading their weights. Only what has parameters is named as theirs.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn.functional import max_pool3d, pad, relu

WIDTHS = (64, 128, 256, 512)


def conv(channels, width, kernel, stride=1, padding=0, bias=False):
    return nn.Conv3d(channels, width, kernel, stride, padding, bias=bias)


def factorised(channels, width, mid, stride):
    return nn.Sequential(
        conv(channels, mid, (1, 3, 3), (1, stride, stride), (0, 1, 1)),
        nn.BatchNorm3d(mid),
        nn.ReLU(),
        conv(mid, width, (3, 1, 1), (stride, 1, 1), (1, 0, 0)),
    )


class TorchvisionBlock(nn.Module):
    def __init__(self, kind, channels, width, stride):
        super().__init__()
        mid = channels * width * 27 // (channels * 9 + 3 * width)

        def unit(inputs, stride):
            if kind == "2plus1d":
                return factorised(inputs, width, mid, stride)
            if kind == "3d":
                return conv(inputs, width, 3, stride, 1)
            return conv(inputs, width, (1, 3, 3), (1, stride, stride), (0, 1, 1))

        self.conv1 = nn.Sequential(unit(channels, stride), nn.BatchNorm3d(width), nn.ReLU())
        self.conv2 = nn.Sequential(unit(width, 1), nn.BatchNorm3d(width))
        self.downsample = None
        if stride != 1 or channels != width:
            strides = (1, stride, stride) if kind == "2d" else stride
            self.downsample = nn.Sequential(conv(channels, width, 1, strides), nn.BatchNorm3d(width))

    def forward(self, x):
        skip = x if self.downsample is None else self.downsample(x)
        return relu(self.conv2(self.conv1(x)) + skip)


class TorchvisionVideoResNet(nn.Module):
    """r3d_18, mc3_18 and r2plus1d_18 with their classifier `fc`; `features` is without it."""

    def __init__(self, name, blocks=2):
        super().__init__()
        kinds = {"r3d_18": ["3d"] * 4, "mc3_18": ["3d", "2d", "2d", "2d"], "r2plus1d_18": ["2plus1d"] * 4}[name]
        if name == "r2plus1d_18":
            first = conv(3, 45, (1, 7, 7), (1, 2, 2), (0, 3, 3)), nn.BatchNorm3d(45), nn.ReLU()
            stem = [*first, conv(45, 64, (3, 1, 1), 1, (1, 0, 0))]
        else:
            stem = [conv(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3))]
        self.stem = nn.Sequential(*stem, nn.BatchNorm3d(64), nn.ReLU())
        channels = 64
        for number, (kind, width) in enumerate(zip(kinds, WIDTHS), start=1):
            stride = 1 if number == 1 else 2
            layers = [TorchvisionBlock(kind, channels, width, stride)]
            layers += [TorchvisionBlock(kind, width, width, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*layers))
            channels = width
        self.fc = nn.Linear(512, 400)

    @property
    def features(self):
        return nn.Sequential(OrderedDict((name, child) for name, child in self.named_children() if name != "fc"))


class VCOPUnit(nn.Module):
    def __init__(self, kind, channels, width, kernel, stride, padding):
        super().__init__()
        self.kind = kind
        if kind == "r3d":
            self.temporal_spatial_conv = conv(channels, width, kernel, stride, padding)
            return
        t, s, _ = kernel
        mid = t * s * s * channels * width // (s * s * channels + t * width)
        self.spatial_conv = conv(channels, mid, (1, s, s), (1, *stride[1:]), (0, *padding[1:]))
        self.bn = nn.BatchNorm3d(mid)
        self.temporal_conv = conv(mid, width, (t, 1, 1), (stride[0], 1, 1), (padding[0], 0, 0))

    def forward(self, x):
        if self.kind == "r3d":
            return self.temporal_spatial_conv(x)
        return self.temporal_conv(relu(self.bn(self.spatial_conv(x))))


class VCOPBlock(nn.Module):
    def __init__(self, kind, channels, width, stride):
        super().__init__()
        self.downsample = stride != 1
        if self.downsample:
            self.downsampleconv = VCOPUnit(kind, channels, width, (1, 1, 1), (stride,) * 3, (0, 0, 0))
            self.downsamplebn = nn.BatchNorm3d(width)
        self.conv1 = VCOPUnit(kind, channels, width, (3, 3, 3), (stride,) * 3, (1, 1, 1))
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = VCOPUnit(kind, width, width, (3, 3, 3), (1, 1, 1), (1, 1, 1))
        self.bn2 = nn.BatchNorm3d(width)

    def forward(self, x):
        skip = self.downsamplebn(self.downsampleconv(x)) if self.downsample else x
        return relu(skip + self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))


class VCOP(nn.Module):
    """R(2+1)D and R3D with one block a stage."""

    def __init__(self, kind):
        super().__init__()
        self.conv1 = VCOPUnit(kind, 3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3))
        self.bn1 = nn.BatchNorm3d(64)
        channels = 64
        for number, width in enumerate(WIDTHS, start=2):
            stage = nn.Module()
            stage.block1 = VCOPBlock(kind, channels, width, 1 if number == 2 else 2)
            setattr(self, f"conv{number}", stage)
            channels = width

    def forward(self, x):
        x = relu(self.bn1(self.conv1(x)))
        for number in (2, 3, 4, 5):
            x = getattr(self, f"conv{number}").block1(x)
        return x


class C3D(nn.Module):
    LAYERS = ("1", 3, 64), ("2", 64, 128), ("3a", 128, 256), ("3b", 256, 256), ("4a", 256, 512), ("4b", 512, 512)
    LAYERS += ("5a", 512, 512), ("5b", 512, 512)
    POOLS = {"1": (1, 2, 2), "2": 2, "3b": 2, "4b": 2}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        for name, channels, width in self.LAYERS:
            setattr(self, f"conv{name}", conv(channels, width, 3, 1, 1, bias=True))
            setattr(self, f"bn{name}", nn.BatchNorm3d(width))

    def forward(self, x):
        for name, _, _ in self.LAYERS:
            x = relu(getattr(self, f"bn{name}")(getattr(self, f"conv{name}")(x)))
            x = max_pool3d(x, self.POOLS[name]) if name in self.POOLS else x
        return x


MIXED = {
    "3b": (192, 64, 96, 128, 16, 32, 32),
    "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64),
    "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128),
    "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}


def same(x, kernel, stride):
    """TensorFlow's padding."""
    sides = []
    for k, s in reversed(list(zip(kernel, stride))):
        total = max(k - s, 0)
        sides += [total // 2, total - total // 2]
    return pad(x, sides)


class I3DUnit(nn.Module):
    def __init__(self, channels, width, kernel=1, stride=1):
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = conv(channels, width, kernel, stride)
        self.batch3d = nn.BatchNorm3d(width)

    def forward(self, x):
        return relu(self.batch3d(self.conv3d(same(x, self.kernel, self.stride))))


class I3DPool(nn.Module):
    def __init__(self, kernel, stride):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x):
        return max_pool3d(same(x, self.kernel, self.stride), self.kernel, self.stride, ceil_mode=True)


class I3DMixed(nn.Module):
    def __init__(self, channels, *widths):
        super().__init__()
        self.branch_0 = I3DUnit(channels, widths[0])
        self.branch_1 = nn.Sequential(I3DUnit(channels, widths[1]), I3DUnit(widths[1], widths[2], 3))
        self.branch_2 = nn.Sequential(I3DUnit(channels, widths[3]), I3DUnit(widths[3], widths[4], 3))
        self.branch_3 = nn.Sequential(I3DPool((3, 3, 3), (1, 1, 1)), I3DUnit(channels, widths[5]))

    def forward(self, x):
        return torch.cat([self.branch_0(x), self.branch_1(x), self.branch_2(x), self.branch_3(x)], 1)


class I3D(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv3d_1a_7x7 = I3DUnit(3, 64, 7, 2)
        self.conv3d_2b_1x1 = I3DUnit(64, 64)
        self.conv3d_2c_3x3 = I3DUnit(64, 192, 3)
        for name, widths in MIXED.items():
            setattr(self, f"mixed_{name}", I3DMixed(*widths))

    def forward(self, x):
        x = I3DPool((1, 3, 3), (1, 2, 2))(self.conv3d_1a_7x7(x))
        x = I3DPool((1, 3, 3), (1, 2, 2))(self.conv3d_2c_3x3(self.conv3d_2b_1x1(x)))
        for name in MIXED:
            if name in ("4b", "5b"):
                x = I3DPool((3, 3, 3) if name == "4b" else (2, 2, 2), (2, 2, 2))(x)
            x = getattr(self, f"mixed_{name}")(x)
        return x


class S3DUnit(nn.Module):
    """A plain or a separable convolution."""

    def __init__(self, channels, width, kernel=1, stride=1):
        super().__init__()
        self.separable = kernel > 1
        if not self.separable:
            self.conv, self.bn = conv(channels, width, 1), nn.BatchNorm3d(width)
            return
        half = kernel // 2
        self.conv1 = conv(channels, width, (1, kernel, kernel), (1, stride, stride), (0, half, half))
        self.conv2 = conv(width, width, (kernel, 1, 1), (stride, 1, 1), (half, 0, 0))
        self.bn1, self.bn2 = nn.BatchNorm3d(width), nn.BatchNorm3d(width)

    def forward(self, x):
        if not self.separable:
            return relu(self.bn(self.conv(x)))
        return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))


class Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        return torch.sigmoid(self.fc(x.mean((2, 3, 4))))[:, :, None, None, None] * x


class S3DMixed(nn.Module):
    def __init__(self, gated, channels, *widths):
        super().__init__()
        self.branch0 = nn.Sequential(S3DUnit(channels, widths[0]))
        self.branch1 = nn.Sequential(S3DUnit(channels, widths[1]), S3DUnit(widths[1], widths[2], 3))
        self.branch2 = nn.Sequential(S3DUnit(channels, widths[3]), S3DUnit(widths[3], widths[4], 3))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), S3DUnit(channels, widths[5]))
        for number, width in enumerate((widths[0], widths[2], widths[4], widths[5])):
            setattr(self, f"gating_b{number}", Gate(width) if gated else nn.Identity())

    def forward(self, x):
        ways = [(getattr(self, f"branch{n}"), getattr(self, f"gating_b{n}")) for n in range(4)]
        return torch.cat([gate(branch(x)) for branch, gate in ways], 1)


class S3D(nn.Module):
    """Every tensor a second time below `block1` to `block5`, as in the original."""

    def __init__(self, gated):
        super().__init__()
        self.Conv_1a = S3DUnit(3, 64, 7, 2)
        self.block1 = nn.Sequential(self.Conv_1a)
        self.Conv_2b, self.Conv_2c = S3DUnit(64, 64), S3DUnit(64, 192, 3)
        self.block2 = nn.Sequential(nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)), self.Conv_2b, self.Conv_2c)
        pools = {3: ((1, 3, 3), (1, 2, 2), (0, 1, 1)), 4: (3, 2, 1), 5: (2, 2, 0)}
        for number, pool in pools.items():
            mixed = {name: S3DMixed(gated, *widths) for name, widths in MIXED.items() if name[0] == str(number)}
            for name, module in mixed.items():
                setattr(self, f"Mixed_{name}", module)
            setattr(self, f"block{number}", nn.Sequential(nn.MaxPool3d(*pool), *mixed.values()))

    def forward(self, x):
        for number in range(1, 6):
            x = getattr(self, f"block{number}")(x)
        return x
