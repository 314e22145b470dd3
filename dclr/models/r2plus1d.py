"""R(2+1)D encoders: every 3D convolution is a spatial one, a norm, a ReLU and a temporal one.

Tran et al., "A Closer Look at Spatiotemporal Convolutions" (CVPR 2018). Two styles are in use. In that of VCOP (Xu et
al., CVPR 2019), each convolution and each skip is factorised, with its own number of channels in the middle; with one
block in each stage it has the 14.4M parameters of DCLR Sec. 4.1. In torchvision's style, the second convolution of a
block has as many channels in the middle as the first, and skips are plain convolutions.
"""

from collections.abc import Sequence

from torch import nn

from dclr.models.resnet3d import WIDTHS, ResidualBlock, Triple, VideoResNet, conv, init_kaiming

# Torchvision fixes the mid-channels of its stem by hand; the formula would give 83.
TORCHVISION_STEM_MID = 45


def mid_channels(channels: int, width: int, kernel: Triple = (3, 3, 3)) -> int:
    """Mid-channels with which a (2+1)D unit has (at most) the parameters of the full convolution."""
    kernel_t, kernel_s, _ = kernel
    area = kernel_s * kernel_s
    return kernel_t * area * channels * width // (area * channels + kernel_t * width)


class Conv2Plus1d(nn.Sequential):
    """(2+1)D unit: conv (1, k, k) - BatchNorm - ReLU - conv (k, 1, 1), no biases; `mid` by `mid_channels`."""

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: Triple = (3, 3, 3),
        stride: Triple = (1, 1, 1),
        mid: int | None = None,
    ):
        mid = mid_channels(channels, width, kernel) if mid is None else mid
        super().__init__(
            conv(channels, mid, (1, *kernel[1:]), (1, *stride[1:])),
            nn.BatchNorm3d(mid),
            nn.ReLU(inplace=True),
            conv(mid, width, (kernel[0], 1, 1), (stride[0], 1, 1)),
        )


def vcop_block(channels: int, width: int, stride: int) -> ResidualBlock:
    """Each unit has the mid-channels of its own widths; the skip is a (2+1)D unit with kernel 1."""
    strides = (stride,) * 3
    keeps_shape = channels == width and stride == 1
    skip = None if keeps_shape else Conv2Plus1d(channels, width, (1, 1, 1), strides)
    return ResidualBlock(Conv2Plus1d(channels, width, stride=strides), Conv2Plus1d(width, width), width, skip)


def torchvision_block(channels: int, width: int, stride: int) -> ResidualBlock:
    """Both units have the mid-channels of the first; the skip is a plain 1x1x1 convolution."""
    strides = (stride,) * 3
    mid = mid_channels(channels, width)
    keeps_shape = channels == width and stride == 1
    skip = None if keeps_shape else conv(channels, width, (1, 1, 1), strides)
    first = Conv2Plus1d(channels, width, stride=strides, mid=mid)
    return ResidualBlock(first, Conv2Plus1d(width, width, mid=mid), width, skip)


def r2plus1d_vcop(widths: Sequence[int] = WIDTHS, last_stride: int = 2) -> VideoResNet:
    """One block a stage, VCOP's style: 14,365,303 parameters, the encoder of DCLR Sec. 4.1."""
    if len(widths) != 4 or min(widths) < 1:
        raise ValueError(f"widths must be 4 numbers of channels, one a stage, got {tuple(widths)}")
    stem = nn.Sequential(
        Conv2Plus1d(3, widths[0], (3, 7, 7), (1, 2, 2)), nn.BatchNorm3d(widths[0]), nn.ReLU(inplace=True)
    )
    return VideoResNet(stem, [vcop_block] * 4, (1, 1, 1, 1), widths, last_stride)


def r2plus1d_tiny(widths: Sequence[int] = (16, 32, 64, 96)) -> VideoResNet:
    """`r2plus1d_vcop` in narrow, for CPUs."""
    return r2plus1d_vcop(widths)


def r2plus1d_micro() -> VideoResNet:
    """For the demo: narrower still, and no stride in the last stage: clips of 8 x 24 x 24 have maps of 2 x 3 x 3."""
    return r2plus1d_vcop((8, 16, 32, 64), last_stride=1)


def r2plus1d_tv1111() -> VideoResNet:
    """One block a stage, torchvision's style: 12,487,005 parameters, the encoder of DCLR's released code."""
    return _torchvision_r2plus1d((1, 1, 1, 1))


def r2plus1d_18() -> VideoResNet:
    """Torchvision's `r2plus1d_18` without its classifier: 31,300,125 parameters, the same state-dict keys."""
    return _torchvision_r2plus1d((2, 2, 2, 2))


def _torchvision_r2plus1d(blocks: Sequence[int]) -> VideoResNet:
    unit = Conv2Plus1d(3, WIDTHS[0], (3, 7, 7), (1, 2, 2), mid=TORCHVISION_STEM_MID)
    stem = nn.Sequential(*unit, nn.BatchNorm3d(WIDTHS[0]), nn.ReLU(inplace=True))
    return init_kaiming(VideoResNet(stem, [torchvision_block] * 4, blocks))
