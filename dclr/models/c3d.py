"""C3D with batch norm and no fifth pool (Tran et al., ICCV 2015)."""

from torch import nn


class C3D(nn.Sequential):
    """Eight 3x3x3 convolutions and four pools: (B, 3, T, H, W) -> (B, 512, T // 8, H // 16, W // 16)."""

    feature_dim = 512

    def __init__(self):
        super().__init__(
            *_conv_norm_relu(3, 64),
            nn.MaxPool3d((1, 2, 2)),
            *_conv_norm_relu(64, 128),
            nn.MaxPool3d(2),
            *_conv_norm_relu(128, 256),
            *_conv_norm_relu(256, 256),
            nn.MaxPool3d(2),
            *_conv_norm_relu(256, 512),
            *_conv_norm_relu(512, 512),
            nn.MaxPool3d(2),
            *_conv_norm_relu(512, 512),
            *_conv_norm_relu(512, 512),
        )


def _conv_norm_relu(channels: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Conv3d(channels, width, 3, padding=1), nn.BatchNorm3d(width), nn.ReLU(inplace=True)


def c3d() -> C3D:
    """C3D with batch norm: 27,661,440 parameters."""
    return C3D()
