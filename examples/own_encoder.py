"""An encoder of your own: any module that gives a feature map, and says how many channels it has.

python examples/own_encoder.py videos runs/own
"""

import sys

from torch import nn

import dclr
from dclr.presets import PRESETS


class TwoLayers(nn.Sequential):
    """(B, 3, T, H, W) -> (B, 32, T', H', W')."""

    feature_dim = 32

    def __init__(self):
        first, second = nn.Conv3d(3, 16, 5, 2, 2), nn.Conv3d(16, 32, 3, 2, 1)
        super().__init__(first, nn.BatchNorm3d(16), nn.ReLU(), second, nn.BatchNorm3d(32), nn.ReLU())


if __name__ == "__main__":  # the processes that decode import this file again
    config = PRESETS["small"]()
    config.data.root, config.output = sys.argv[1:3]
    print(dclr.pretrain(config, encoder=TwoLayers()))
