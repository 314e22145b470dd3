"""Rewrites of an encoder's forward pass that change how it is computed, and nothing else.

Output, gradients, BatchNorm's running statistics and state dict stay those of the plain encoder.
"""

from torch import nn

from dclr.models.resnet3d import VideoResNet
from dclr.models.rewrites import FoldedConv3d, PaddedUnit, folds, has_odd_width
from dclr.models.static_once import StaticOnceResNet


def accelerate(encoder: nn.Module, *, fold: bool = False, pad: bool = False, static_once: bool = False) -> nn.Module:
    """Switch on rewrites in `encoder`, or in a module that holds some; what they do not apply to stays as it is.

    A module is switched by its class alone, so that its parameters and their names, deep copies, conversion to
    SyncBatchNorm and `torch.compile` are as before.

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
