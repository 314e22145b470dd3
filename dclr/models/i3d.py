"""I3D: Inception-v1 inflated to 3D, with TensorFlow's "SAME" padding (Carreira and Zisserman, CVPR 2017)."""

from torch import nn

from dclr.models.inception import InceptionEncoder
from dclr.models.resnet3d import Triple


def i3d() -> InceptionEncoder:
    """I3D on RGB: 12,287,264 parameters, 1024 channels."""
    return InceptionEncoder(_same_unit, _same_pool)


def _same_unit(channels: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv3d(channels, width, kernel, stride, bias=False)
    padding = _same_padding((kernel,) * 3, (stride,) * 3)
    return nn.Sequential(padding, conv, nn.BatchNorm3d(width), nn.ReLU(inplace=True))


def _same_pool(kernel: Triple, stride: Triple) -> nn.Sequential:
    return nn.Sequential(_same_padding(kernel, stride), nn.MaxPool3d(kernel, stride, ceil_mode=True))


def _same_padding(kernel: Triple, stride: Triple) -> nn.Module:
    """TensorFlow's "SAME": k - s zeros along each axis, the odd one at its end.

    Max-pools take zeros too: their inputs are ReLU's outputs, of which none is smaller.
    """
    total = [max(k - s, 0) for k, s in zip(kernel, stride)]
    if not any(total):
        return nn.Identity()
    # ConstantPad3d counts from the last axis.
    return nn.ConstantPad3d([side for n in reversed(total) for side in (n // 2, n - n // 2)], 0.0)
