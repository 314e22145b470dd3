"""Residual video encoders: the skeleton that all of them share, and those of plain convolutions.

Shapes: B clips, C channels, T frames, H x W pixels; `clip_bcthw` is (B, 3, T, H, W) floating point.
R3D, MC3 and R(2+1)D are of Tran et al., "A Closer Look at Spatiotemporal Convolutions" (CVPR 2018).
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)
Triple = tuple[int, int, int]


class ResidualBlock(nn.Module):
    """relu(norm(second(relu(norm(first(x))))) + norm(skip(x))); where `skip` is None the input itself is added."""

    def __init__(self, first: nn.Module, second: nn.Module, width: int, skip: nn.Module | None):
        super().__init__()
        self.conv1 = nn.Sequential(first, nn.BatchNorm3d(width), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(second, nn.BatchNorm3d(width))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None if skip is None else nn.Sequential(skip, nn.BatchNorm3d(width))

    def forward(self, x_bcthw: Tensor) -> Tensor:
        residual = x_bcthw if self.downsample is None else self.downsample(x_bcthw)
        return self.relu(self.conv2(self.conv1(x_bcthw)) + residual)


# (input channels, output channels, stride) -> block
BlockBuilder = Callable[[int, int, int], ResidualBlock]


class VideoResNet(nn.Module):
    """A stem and four stages of residual blocks: (B, 3, T, H, W) -> (B, feature_dim, T', H', W').

    Args:
        stem: module with `widths[0]` output channels.
        builders: the block builder of each stage. Every stage but the first halves its input.
        blocks: number of blocks in each stage.
        widths: channels of each stage.
        last_stride: of the last stage; 1 leaves small clips a map of more than a few positions.
    """

    def __init__(
        self,
        stem: nn.Module,
        builders: Sequence[BlockBuilder],
        blocks: Sequence[int],
        widths: Sequence[int] = WIDTHS,
        last_stride: int = 2,
    ):
        super().__init__()
        self.stem = stem
        self.layer1 = _residual_stage(builders[0], widths[0], widths[0], 1, blocks[0])
        self.layer2 = _residual_stage(builders[1], widths[0], widths[1], 2, blocks[1])
        self.layer3 = _residual_stage(builders[2], widths[1], widths[2], 2, blocks[2])
        self.layer4 = _residual_stage(builders[3], widths[2], widths[3], last_stride, blocks[3])
        self.feature_dim = widths[3]

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        x = self.layer1(self.stem(clip_bcthw))
        return self.layer4(self.layer3(self.layer2(x)))


def _residual_stage(build: BlockBuilder, channels: int, width: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(build(channels, width, stride), *(build(width, width, 1) for _ in range(blocks - 1)))


def conv(channels: int, width: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> nn.Conv3d:
    """Convolution without bias that keeps the size at stride 1 (odd kernels)."""
    padding = tuple(k // 2 for k in kernel)
    return nn.Conv3d(channels, width, kernel, stride, padding, bias=False)


def conv_block(channels: int, width: int, stride: int) -> ResidualBlock:
    """Two 3x3x3 convolutions; the stride acts on time and space."""
    return _plain_block(channels, width, (3, 3, 3), (stride,) * 3)


def frame_block(channels: int, width: int, stride: int) -> ResidualBlock:
    """Two 1x3x3 convolutions: every frame by itself, the stride acts on space alone."""
    return _plain_block(channels, width, (1, 3, 3), (1, stride, stride))


def _plain_block(channels: int, width: int, kernel: Triple, stride: Triple) -> ResidualBlock:
    keeps_shape = channels == width and stride == (1, 1, 1)
    skip = None if keeps_shape else conv(channels, width, (1, 1, 1), stride)
    return ResidualBlock(conv(channels, width, kernel, stride), conv(width, width, kernel), width, skip)


def init_kaiming(encoder: nn.Module) -> nn.Module:
    """Kaiming-normal (fan out) convolutions and unit norms, as torchvision's video models are initialised."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm3d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return encoder


def r3d_18() -> VideoResNet:
    """Torchvision's `r3d_18` without its classifier: 33,166,272 parameters, the same state-dict keys."""
    return init_kaiming(VideoResNet(_plain_stem((3, 7, 7)), [conv_block] * 4, (2, 2, 2, 2)))


def mc3_18() -> VideoResNet:
    """Torchvision's `mc3_18` without its classifier: 3D convolutions in the first stage, 2D in the others."""
    builders = [conv_block, frame_block, frame_block, frame_block]
    return init_kaiming(VideoResNet(_plain_stem((3, 7, 7)), builders, (2, 2, 2, 2)))


def r3d_vcop() -> VideoResNet:
    """R3D with one block a stage and PyTorch's default initialisation (Xu et al., VCOP, CVPR 2019)."""
    return VideoResNet(_plain_stem((3, 7, 7)), [conv_block] * 4, (1, 1, 1, 1))


def r3d18_hara() -> VideoResNet:
    """3D ResNet-18 with a 7x7x7 stem and a spatial max-pool (Hara et al., CVPR 2018)."""
    return init_kaiming(VideoResNet(_pooled_stem((7, 7, 7)), [conv_block] * 4, (2, 2, 2, 2)))


def r2d3d18() -> VideoResNet:
    """ResNet-18 on every frame by itself, with 256 channels in the last stage; the name is of DualVar's released code.

    That leaves out the last ReLU, so that features may be negative.
    """
    stem = _pooled_stem((1, 7, 7))
    encoder = init_kaiming(VideoResNet(stem, [frame_block] * 4, (2, 2, 2, 2), (64, 128, 256, 256)))
    encoder.layer4[-1].relu = nn.Identity()
    return encoder


def _plain_stem(kernel: Triple) -> nn.Sequential:
    width = WIDTHS[0]
    return nn.Sequential(conv(3, width, kernel, (1, 2, 2)), nn.BatchNorm3d(width), nn.ReLU(inplace=True))


def _pooled_stem(kernel: Triple) -> nn.Sequential:
    pool = nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
    return nn.Sequential(*_plain_stem(kernel), pool)
