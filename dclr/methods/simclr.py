"""Vanilla SimCLR on clips: two clips of a video against the other videos of the batch (DCLR Eq. 1-2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dclr.augment import Augment, AugmentConfig, Draw
from dclr.data.clips import Batch
from dclr.methods.base import ContrastiveConfig, Method, Output
from dclr.methods.contrast import Term, chance, gather_views, reference_losses, similarities
from dclr.methods.packing import packed_losses
from dclr.models import ProjectionHead, average_pool


@dataclass
class SimCLRConfig(ContrastiveConfig):
    """The vanilla baseline, L_VV alone."""

    reference: bool = False
    """Compute the loss by the equation as printed, instead of by the kernel: equal but slower."""


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

    def chance(self, global_batch: int) -> dict[str, float]:
        return {"vv": chance(global_batch)}

    def forward(self, batch: Batch, draw: Draw) -> Output:
        pooled = average_pool(self.encode(self.augment.rgb(batch.clips, draw)))
        projected = self.head(pooled)
        term = Term(projected, gather_views(projected))
        positive, negative = similarities(term)
        statistics = {"similarity/vv_positive": positive, "similarity/vv_negative": negative}
        compute = reference_losses if self.config.reference else packed_losses
        loss = compute([term], self.config.temperature).squeeze(0)
        return Output({"vv": loss}, {**statistics, **self.augment.statistics}, pooled.detach())
