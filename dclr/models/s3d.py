"""S3D and S3D-G: Inception with separable convolutions, G with gated branches (Xie et al., ECCV 2018)."""

import torch
from torch import Tensor, nn

from dclr.models.inception import InceptionEncoder
from dclr.models.resnet3d import Triple


class SelfGating(nn.Module):
    """x * sigmoid(linear(mean of x over T, H, W)): each channel weighted by the whole clip."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x_bcthw: Tensor) -> Tensor:
        gate_bc = torch.sigmoid(self.linear(x_bcthw.mean((2, 3, 4))))
        return x_bcthw * gate_bc[:, :, None, None, None]


def s3d() -> InceptionEncoder:
    """S3D: 7,910,048 parameters, 1024 channels."""
    return _init_normal(InceptionEncoder(_separable_unit, _centred_pool))


def s3dg() -> InceptionEncoder:
    """S3D-G, with self-gating after every branch: 9,098,000 parameters, 1024 channels."""
    return _init_normal(InceptionEncoder(_separable_unit, _centred_pool, SelfGating))


def _separable_unit(channels: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    if kernel == 1:
        return _conv_unit(channels, width, (1, 1, 1), (1, 1, 1))
    spatial = _conv_unit(channels, width, (1, kernel, kernel), (1, stride, stride))
    return nn.Sequential(*spatial, *_conv_unit(width, width, (kernel, 1, 1), (stride, 1, 1)))


def _conv_unit(channels: int, width: int, kernel: Triple, stride: Triple) -> nn.Sequential:
    padding = tuple(k // 2 for k in kernel)
    conv = nn.Conv3d(channels, width, kernel, stride, padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(width), nn.ReLU(inplace=True))


def _centred_pool(kernel: Triple, stride: Triple) -> nn.MaxPool3d:
    return nn.MaxPool3d(kernel, stride, padding=tuple((k - 1) // 2 for k in kernel))


def _init_normal(encoder: InceptionEncoder) -> InceptionEncoder:
    for module in encoder.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.normal_(module.weight, std=0.01)
    return encoder
