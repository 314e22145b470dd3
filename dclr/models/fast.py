"""Faster forms of an encoder: they change how the forward pass is computed, and nothing else.

Output, gradients, BatchNorm's running statistics and state dict stay those of the plain encoder.
"""

from torch import nn

from dclr.models.resnet3d import VideoResNet
from dclr.models.rewrites import FoldedConv3d, PaddedUnit, folds, has_odd_width
from dclr.models.static_once import StaticOnceResNet


def accelerate(encoder: nn.Module, *, fold: bool = False, pad: bool = False, static_once: bool = False) -> nn.Module:
    """Switch on faster forms in an encoder, or in a module that holds encoders; other modules stay as they are.

    Only the class of a module changes, to a subclass with another forward pass. Its parameters and their names stay,
    and it can still be copied, converted to SyncBatchNorm and compiled.

    Args:
        fold: compute (1, k, k) and (k, 1, 1) convolutions as 2D convolutions (`FoldedConv3d`).
        pad: compute mid-channels that are no multiple of 8 as if there were more, of zeros (`PaddedUnit`).
        static_once: let a `VideoResNet` take a clip of one repeated frame as that frame (`StaticOnceResNet`).

    Returns:
        `encoder`.
    """
    for module in encoder.modules():
        if fold and type(module) is nn.Conv3d and folds(module):
            module.__class__ = FoldedConv3d
        elif pad and isinstance(module, nn.Sequential) and has_odd_width(module):
            module.__class__ = PaddedUnit
        elif static_once and type(module) is VideoResNet:
            module.__class__ = StaticOnceResNet
    return encoder
