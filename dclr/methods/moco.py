"""MoCo on clips: a clip against another of its video, from a momentum encoder, and a queue of other videos' keys.

He, Fan, Wu, Xie, Girshick, CVPR 2020. Shapes: n videos on this rank, d features; view i gives queries, view j keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dclr.augment import Augment, AugmentConfig, Draw
from dclr.data.clips import Batch
from dclr.distributed import gather_rows, world
from dclr.methods.base import ContrastiveConfig, Method, Output
from dclr.methods.momentum import (
    KeyQueue,
    MomentumCopy,
    check_queue,
    encode_shuffled,
    queue_chance,
    queue_contrast,
    queue_similarities,
)
from dclr.models import ProjectionHead, average_pool


@dataclass
class MoCoConfig(ContrastiveConfig):
    """Momentum contrast; the queue's length is that of DCLR's and FAME's releases on UCF-101."""

    momentum: float = 0.999
    """Share of itself that the key encoder keeps at each step; the rest comes from the encoder."""
    queue: int = 2048
    """Keys of earlier steps that serve as negatives."""
    symmetric: bool = False
    """Also contrast queries of view j with keys of view i; the loss is the mean of both."""
    key_bn: Literal["shuffle", "sync", "plain"] = "shuffle"
    """Videos over which the key encoder's BatchNorm takes its statistics. shuffle: a random part of the global batch;
    sync: all of it, on GPUs only; plain: those of the process. With `train.sync_bn` it is all of it in any case."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("momentum", 0 <= self.momentum <= 1, "a share in [0, 1]")
        self.require("queue", self.queue >= 1, "at least 1")


class MoCo(Method):
    """Contrast of clips with a queue.

    Args:
        config: temperature, head, momentum and queue.
        encoder: (b, 3, T, h, w) to (b, C, T', h', w'), with `feature_dim`.
        augment: flip and colour augmentation.
    """

    def __init__(self, config: MoCoConfig, encoder: nn.Module, augment: AugmentConfig) -> None:
        super().__init__()
        self.config, self.encoder, self.augment = config, encoder, Augment(augment)
        self.head = ProjectionHead(encoder.feature_dim, config.hidden, config.dim, config.center)
        self.key_encoder = MomentumCopy(encoder, config.momentum)
        self.key_head = MomentumCopy(self.head, config.momentum)
        if config.key_bn == "sync":
            for copy in (self.key_encoder, self.key_head):
                nn.SyncBatchNorm.convert_sync_batchnorm(copy)
        self.queue = KeyQueue(config.queue, config.dim)
        self._pending: list[Tensor] = []

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"vv": 1.0}

    def chance(self, global_batch: int) -> dict[str, float]:
        return {"vv": queue_chance(self.config.queue)}

    def check(self, global_batch: int, steps_per_epoch: int) -> None:
        check_queue(self.config.queue, global_batch * (2 if self.config.symmetric else 1))

    def forward(self, batch: Batch, draw: Draw) -> Output:
        view_i, view_j = self.augment.rgb(batch.clips, draw).chunk(2)
        directions = [(view_i, view_j), (view_j, view_i)] if self.config.symmetric else [(view_i, view_j)]
        losses, similarities, pooled = zip(*(self._contrast(*direction, draw) for direction in directions))
        positive, negative = (torch.stack(values).mean() for values in zip(*similarities))
        statistics = {"similarity/vv_positive": positive, "similarity/vv_negative": negative}
        return Output({"vv": torch.stack(losses).mean()}, {**statistics, **self.augment.statistics}, torch.cat(pooled))

    def after_step(self) -> None:
        self.key_encoder.update(self.encoder)
        self.key_head.update(self.head)
        # Keys join the queue only now, because those of one direction must not be negatives of the other.
        for keys in self._pending:
            self.queue.enqueue(gather_rows(keys))
        self._pending.clear()

    def _contrast(
        self, query_clip: Tensor, key_clip: Tensor, draw: Draw
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """Loss of one direction, its mean positive and negative similarity, and the queries' pooled features."""
        pooled = average_pool(self.encode(query_clip))
        query = self.head(pooled).float()
        shuffled = self.config.key_bn == "shuffle" and world() > 1 and not self._synchronised()
        key = encode_shuffled(self._encode_keys, key_clip, draw) if shuffled else self._encode_keys(key_clip)
        self._pending.append(key)
        loss = queue_contrast(query, key, self.queue.keys, self.config.temperature)
        return loss, queue_similarities(query, key, self.queue.keys), pooled.detach()

    @torch.no_grad()
    def _encode_keys(self, clip_bcthw: Tensor) -> Tensor:
        """Unit keys (n, d) float32 of the momentum encoder."""
        clip = clip_bcthw.contiguous(memory_format=torch.channels_last_3d)
        pooled = average_pool(self.key_encoder.module(clip))
        return normalize(self.key_head.module(pooled).float(), dim=1)

    def _synchronised(self) -> bool:
        """Whether BatchNorm already takes its statistics over the global batch, where shuffling changes nothing."""
        return any(isinstance(module, nn.SyncBatchNorm) for module in self.key_encoder.modules())
