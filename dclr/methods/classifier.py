"""Supervised classification of clips: a linear layer on the pooled feature (DCLR Sec. 4.1, finetuning)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn
from torch.nn.functional import cross_entropy

from dclr.augment import Augment, AugmentConfig, Draw
from dclr.data.clips import Batch
from dclr.methods.base import Method, MethodConfig, Output
from dclr.models import average_pool


@dataclass
class ClassifierConfig(MethodConfig):
    """The classifier; `dclr finetune` trains it on a pretrained encoder."""

    classes: int = 0
    """Classes of the dataset."""
    dropout: float = 0.7
    """Share of the pooled feature that is set to 0 in training, at random."""

    views = 1

    def __post_init__(self) -> None:
        self.require("classes", self.classes >= 0, "the number of classes of the dataset")
        self.require("dropout", 0 <= self.dropout < 1, "a share in [0, 1)")


class Classifier(Method):
    """Cross-entropy of one clip a video.

    Args:
        config: number of classes and dropout.
        encoder: (b, 3, T, h, w) to (b, C, T', h', w'), with `feature_dim`.
        augment: flip and colour augmentation.

    Attributes:
        layer: pooled features (..., C) to logits (..., classes).
    """

    def __init__(self, config: ClassifierConfig, encoder: nn.Module, augment: AugmentConfig) -> None:
        super().__init__()
        if config.classes < 1:
            raise ValueError(f"method.classes: got {config.classes}, expected the number of classes of the dataset")
        self.encoder, self.augment = encoder, Augment(augment)
        self.dropout = nn.Dropout(config.dropout)
        self.layer = nn.Linear(encoder.feature_dim, config.classes)
        nn.init.normal_(self.layer.weight, std=0.01)
        nn.init.zeros_(self.layer.bias)

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"cross_entropy": 1.0}

    def chance(self, global_batch: int) -> dict[str, float]:
        return {"cross_entropy": math.log(self.layer.out_features)}

    def forward(self, batch: Batch, draw: Draw) -> Output:
        pooled = average_pool(self.encode(self.augment.rgb(batch.clips, draw)))
        logits = self.layer(self.dropout(pooled)).float()
        label = batch.label.repeat(len(batch.clips))
        top1 = 100 * (logits.detach().argmax(1) == label).float().mean()
        statistics = {"top1": top1, **self.augment.statistics}
        return Output({"cross_entropy": cross_entropy(logits, label)}, statistics, pooled.detach())
