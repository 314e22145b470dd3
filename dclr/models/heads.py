"""Projection heads: what stands between a pooled feature and the contrastive loss."""

from torch import nn


class ProjectionHead(nn.Sequential):
    """Linear - ReLU - Linear: (B, in_dim) -> (B, out_dim), not normalised (the loss does that).

    Evaluation discards it. DCLR holds one per loss operand, FAME one in all; with the defaults it has
    328,320 parameters.

    Args:
        center: standardise the input over the batch first (BatchNorm without parameters of its own). Pooled features
            are all positive, so that without it every cosine starts near 1 and short runs stay on that plateau.
    """

    def __init__(self, in_dim: int = 512, hidden: int = 512, out_dim: int = 128, center: bool = False):
        layers = [nn.Linear(in_dim, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out_dim)]
        super().__init__(*([nn.BatchNorm1d(in_dim, affine=False)] if center else []), *layers)
