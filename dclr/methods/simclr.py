"""Vanilla SimCLR on clips: two clips of a video against the other videos of the batch (DCLR Eq. 1-2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dclr.augment import Augment, AugmentConfig, Draw
from dclr.data.clips import Batch
from dclr.methods.base import Method, Output
from dclr.methods.contrast import Term, contrast, gather_views, similarities
from dclr.models import ProjectionHead


@dataclass
class SimCLRConfig:
    """The vanilla baseline, L_VV alone."""

    tau: float = 0.07
    dim: int = 128
    hidden: int = 512
    center: bool = False
    """Standardise the input of the head over the batch; not in the paper, for short runs."""

    views, crops = 2, 1

    def __post_init__(self) -> None:
        if self.tau <= 0:
            raise ValueError(f"method.tau: got {self.tau}, expected a temperature above 0")


class SimCLR(Method):
    """In-batch contrast of clips.

    Args:
        config: temperature and head.
        encoder: (b, 3, T, h, w) to (b, C, T', h', w'), with `feature_dim`.
        augment: flip and colour augmentation.
    """

    def __init__(self, config: SimCLRConfig, encoder: nn.Module, augment: AugmentConfig) -> None:
        super().__init__()
        self.config, self.encoder, self.augment = config, encoder, Augment(augment)
        self.head = ProjectionHead(encoder.feature_dim, config.hidden, config.dim, config.center)

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"vv": 1.0}

    def forward(self, batch: Batch, draw: Draw) -> Output:
        pooled = self.encode(self.augment.rgb(batch.clips, draw)).mean((2, 3, 4), dtype=torch.float32)
        projected = self.head(pooled)
        term = Term(projected, gather_views(projected))
        positive, negative = similarities(term)
        statistics = {"similarity/vv_positive": positive, "similarity/vv_negative": negative}
        return Output({"vv": contrast([term], self.config.tau).squeeze(0)}, {**statistics, **self.augment.statistics})
