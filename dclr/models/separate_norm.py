"""BatchNorm with statistics of their own for the clips, static clips and differences of one batch.

One pass of the encoder takes all three (DCLR Sec. 3.4), so that its convolutions see one large batch. The three are
distributed very unlike each other, and evaluation sees clips alone. In training, each part of the batch is therefore
normalised by its own statistics, and the running ones are those of the first part, the clips.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm


class SeparateBatchNorm3d(nn.BatchNorm3d):
    """BatchNorm of `parts` equal parts of a batch, each by its own statistics in training."""

    parts = 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.parts == 1:
            return super().forward(x)
        self.num_batches_tracked.add_(1)
        first, *others = x.chunk(self.parts)
        affine = self.weight, self.bias, True, self.momentum, self.eps
        clips = batch_norm(first, self.running_mean, self.running_var, *affine)
        return torch.cat([clips, *(batch_norm(part, None, None, *affine) for part in others)])


class SeparateSyncBatchNorm(nn.SyncBatchNorm):
    """The same over all ranks."""

    parts = 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.parts == 1:
            return super().forward(x)
        first, *others = x.chunk(self.parts)
        outputs = [super().forward(first)]
        self.track_running_stats = False  # the others leave the running statistics as they are
        try:
            outputs += [super(SeparateSyncBatchNorm, self).forward(part) for part in others]
        finally:
            self.track_running_stats = True
        return torch.cat(outputs)


SEPARATE = {nn.BatchNorm3d: SeparateBatchNorm3d, nn.SyncBatchNorm: SeparateSyncBatchNorm}


def separate_statistics(encoder: nn.Module, parts: int) -> None:
    """From now on, batches of the encoder in training are `parts` parts of equal size, each with its own statistics.

    Its norms are switched by their class alone, so that parameters and their names stay as they are. A static clip
    that the encoder takes as its one frame is a part by itself, and is not counted (`StaticOnceResNet`).
    """
    for module in encoder.modules():
        if type(module) in SEPARATE:
            module.__class__ = SEPARATE[type(module)]
        if isinstance(module, tuple(SEPARATE.values())):
            module.parts = parts
