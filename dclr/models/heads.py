"""What stands between an encoder's feature map and the loss: pooling and projection heads."""

import torch
from torch import Tensor, nn


def average_pool(features_bcthw: Tensor) -> Tensor:
    """Mean over time and space: (B, C, T, H, W) to (B, C), float32, or float64 for a float64 map."""
    return features_bcthw.mean((2, 3, 4), dtype=torch.promote_types(features_bcthw.dtype, torch.float32))


class ProjectionHead(nn.Sequential):
    """Linear - ReLU - Linear: (B, in_dim) -> (B, out_dim), not normalised, because the loss normalises.

    Evaluation discards it. DCLR has one for each operand of a loss, FAME one in all; with the defaults it has
    328,320 parameters.

    Args:
        center: first standardise the input over the batch (BatchNorm without parameters of its own). Pooled features
            are all positive. Without this, every cosine starts near 1, and a short run never leaves that plateau.
    """

    def __init__(self, in_dim: int = 512, hidden: int = 512, out_dim: int = 128, center: bool = False):
        layers = [nn.Linear(in_dim, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out_dim)]
        super().__init__(*([nn.BatchNorm1d(in_dim, affine=False)] if center else []), *layers)
