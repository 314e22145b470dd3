"""DualVar: clips of a video are alike, and so are its segments in their order; after its released code.

Three losses: clip contrast tells videos apart; temporal coherent contrast does so by segments, averaged over time;
shuffle-rank tells the segments of one clip apart, by what they show and by their place in the clip.

Shapes: n videos on this rank, N in all; S segments of a clip; d features. Clip 0 and clip 1 of a video are from
different times of it. Clip 2 has the frames of clip 0, under a crop and colours of its own.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, softplus

from dclr.augment import Augment, AugmentConfig, Draw
from dclr.data.clips import Batch
from dclr.distributed import gather_rows
from dclr.methods.base import ContrastiveConfig, Method, Output
from dclr.methods.contrast import Term, gather_views, local_rows, similarities
from dclr.methods.momentum import KeyQueue, MomentumCopy, check_queue, queue_chance, queue_contrast, queue_similarities
from dclr.methods.packing import packed_losses
from dclr.models import ProjectionHead, average_pool


@dataclass
class DualVarConfig(ContrastiveConfig):
    """Clip contrast, temporal coherent contrast and shuffle-rank; the defaults are the released code's."""

    form: Literal["simclr", "moco"] = "simclr"
    """Whether negatives are the batch's other videos, or a queue of a momentum encoder's keys."""
    mode: Literal["clip-sr-tc", "clip-sr", "clip"] = "clip-sr-tc"
    """The losses that are summed: clip contrast, shuffle-rank (sr), temporal coherent contrast (tc)."""
    segments: int = 2
    """Segments of a clip, of equal length."""
    segment_dim: int = 64
    """Features of a segment's projection."""
    tc_temperature: float = 0.07
    """Temperature of the temporal coherent contrast."""
    sr_temperature: float = 0.05
    """Temperature of the shuffle-rank loss, theta."""
    sr_clip: float | None = 5.0
    """Upper bound of a gap in the shuffle-rank loss, in units of its temperature; beyond it there is no gradient."""
    perm: Literal["uniform", "non_identity"] = "uniform"
    """Orders that segments are shuffled to, each with the same probability: all, or all but the original one."""
    reverse: float = 0.5
    """Probability that all clips of a video run backwards."""
    crop_only: float = 0.2
    """Probability that clip 0 has no grayscale, jitter or blur."""
    momentum: float = 0.999
    """Form moco: share of itself that the key encoder keeps at each step."""
    queue: int = 16384
    """Form moco: keys of earlier steps that serve as negatives."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tc_temperature", "sr_temperature"):
            self.require(name, getattr(self, name) > 0, "a temperature above 0")
        for name in ("momentum", "reverse", "crop_only"):
            self.require(name, 0 <= getattr(self, name) <= 1, "a share in [0, 1]")
        self.require("segments", 2 <= self.segments <= 8, "2 to 8")
        self.require("segment_dim", self.segment_dim >= 1, "at least 1")
        self.require("sr_clip", self.sr_clip is None or self.sr_clip > 0, "a bound above 0, or none")
        self.require("queue", self.queue >= 1, "at least 1")

    @property
    def crops(self) -> int:
        """A second crop of each view where segments are ranked: clip 2 is that of view 0."""
        return 1 if self.mode == "clip" else 2


# Losses


def clip_contrast(projected: Tensor, temperature: float) -> Tensor:
    """NT-Xent of clips (2n, d), clip 0 of each video before clip 1: the mean over both (half of DCLR Eq. 1)."""
    return packed_losses([Term(projected, gather_views(projected))], temperature)[0] / 2


def temporal_coherent_contrast(segments_bsd: Tensor, temperature: float) -> Tensor:
    """NT-Xent of clips whose similarity is the mean inner product of all pairs of their segments.

    That mean is the inner product of the clips' mean segments. Mean segments are not unit vectors: the more the
    segments of a clip differ, the shorter their mean. The InfoNCE kernel would normalise that away, so the logits are
    computed here.

    Args:
        segments_bsd: (2n, S, d) unit vectors, clip 0 of each video before clip 1.
    """
    with torch.autocast(segments_bsd.device.type, enabled=False):
        mean = segments_bsd.mean(1)
        logits = mean @ gather_views(mean).T / temperature
        rows = local_rows(len(mean) // 2, mean.device)
        return cross_entropy(logits.scatter(1, rows.same_view[:, None], -torch.inf), rows.other_view)


def temporal_coherent_queue_contrast(segments_bsd: Tensor, key_bd: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """`temporal_coherent_contrast` of clips (n, S, d) with the mean segments of keys (n, d) and a queue (length, d)."""
    with torch.autocast(segments_bsd.device.type, enabled=False):
        mean = segments_bsd.mean(1)
        logits = torch.cat([(mean * key_bd).sum(1, keepdim=True), mean @ queue.T], dim=1) / temperature
        return cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


def shuffle_rank(reference_bsd: Tensor, realigned_bsd: Tensor, theta: float, bound: float | None = None) -> Tensor:
    """Each segment closer to its counterpart in the other set than to any other segment of both sets.

    The mean of log(1 + exp(gap / theta)), where a gap is the similarity with another segment less that with the
    counterpart.

    Args:
        reference_bsd: (b, S, d) unit vectors of segments in their order, S at least 2.
        realigned_bsd: (b, S, d) unit vectors of the same segments, encoded in another order and then put back into
            their own.
        bound: largest gap / theta, beyond which there is no gradient.
    """
    with torch.autocast(reference_bsd.device.type, enabled=False):
        both = torch.cat([reference_bsd, realigned_bsd], dim=1)
        similarity = both @ both.mT
        count = reference_bsd.shape[1]
        row = torch.arange(2 * count, device=both.device)
        other = torch.arange(1, 2 * count - 1, device=both.device)
        other = (row[:, None] + other + (other >= count)) % (2 * count)
        counterpart = similarity[:, row, (row + count) % (2 * count)]
        gap = (similarity[:, row[:, None], other] - counterpart[..., None]) / theta
        return softplus(gap if bound is None else gap.clamp(max=bound)).mean()


# Segments


@cache
def _orders(segments: int) -> Tensor:
    return torch.tensor(list(itertools.permutations(range(segments))))


def draw_order(draw: Draw, n: int, segments: int, perm: str = "uniform") -> Tensor:
    """(n, S) int64: slot m of a shuffled clip shows segment order[m]."""
    orders = _orders(segments)
    first = 1 if perm == "non_identity" else 0  # the first permutation is the identity
    return orders[first + draw.integers(1, n, len(orders) - first)]


def shuffle_segments(clip_bcthw: Tensor, order_bs: Tensor) -> Tensor:
    """Clips whose segments stand in the drawn order."""
    parts = clip_bcthw.unflatten(2, (order_bs.shape[1], -1)).transpose(1, 2)
    return _reordered(parts, order_bs).transpose(1, 2).flatten(2, 3)


def realign(shuffled_bsd: Tensor, order_bs: Tensor) -> Tensor:
    """Embeddings of the slots of shuffled clips, back in the order of the segments."""
    return _reordered(shuffled_bsd, order_bs.argsort(1))


def _reordered(parts_bs: Tensor, order_bs: Tensor) -> Tensor:
    return parts_bs[torch.arange(len(parts_bs), device=parts_bs.device)[:, None], order_bs]


class DualVar(Method):
    """The sum of the mode's losses.

    Args:
        config: form, mode, and their settings.
        encoder: (b, 3, T, h, w) to (b, C, T', h', w'), with `feature_dim`; T a multiple of `config.segments`.
        augment: flip and colour augmentation.
    """

    def __init__(self, config: DualVarConfig, encoder: nn.Module, augment: AugmentConfig) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self.augment = Augment(augment)
        self.crop_only = Augment(replace(augment, grayscale=0, jitter=0, blur=0))
        self.ranking, self.coherent = config.mode != "clip", config.mode == "clip-sr-tc"
        dims = {"clip": config.dim}
        if self.ranking:
            dims["segment"] = config.segments * config.segment_dim
        self.heads = nn.ModuleDict(
            {name: ProjectionHead(encoder.feature_dim, config.hidden, dim, config.center) for name, dim in dims.items()}
        )
        self._pending: list[dict[str, Tensor]] = []
        if config.form == "moco":
            self.key_encoder = MomentumCopy(encoder, config.momentum)
            self.key_heads = MomentumCopy(self.heads, config.momentum)
            self.queues = nn.ModuleDict({"clip": KeyQueue(config.queue, config.dim)})
            if self.coherent:
                self.queues["segment"] = KeyQueue(config.queue, config.segment_dim)

    @property
    def loss_weights(self) -> dict[str, float]:
        return dict.fromkeys(self.config.mode.split("-"), 1.0)

    def chance(self, global_batch: int) -> dict[str, float]:
        in_batch = self.config.form == "simclr"
        contrast = math.log(2 * global_batch - 1) if in_batch else queue_chance(self.config.queue)
        return {"clip": contrast, "tc": contrast, "sr": math.log(2)}

    def check(self, global_batch: int, steps_per_epoch: int) -> None:
        if self.config.form == "moco":
            check_queue(self.config.queue, global_batch)

    def forward(self, batch: Batch, draw: Draw) -> Output:
        """Losses of this rank's videos. `batch.clips` is (4, n, T+1, h, w, 3): two views, then a second crop of
        each; or (2, ...) with `mode = clip`."""
        n, config = batch.video_id.shape[0], self.config
        clips = self._clips(batch.clips, draw)
        extra: list[Tensor] = []
        order = None
        if self.ranking:
            order = draw_order(draw, n, config.segments, config.perm).to(clips[0].device, non_blocking=True)
            extra = [clips[2], shuffle_segments(clips[2], order)]
        if config.form == "simclr":
            # Shuffled clips are encoded apart, so that BatchNorm does not mix their statistics with the others'.
            pooled = self._pool(torch.cat(clips)).split(n)
            ranked = [pooled[0], pooled[2], self._pool(extra[1])] if self.ranking else []
            clips_pooled = torch.cat(pooled[:2])
            losses, statistics = self._in_batch(clips_pooled)
        else:
            clips_pooled = self._pool(clips[0])
            ranked = [clips_pooled, *self._pool(torch.cat(extra)).split(n)] if self.ranking else []
            losses, statistics = self._queued(clips_pooled, clips[1])
        if self.ranking:
            losses["sr"] = self._shuffle_rank(ranked, order)
        return Output(losses, {**statistics, **self.augment.statistics}, clips_pooled.detach())

    def after_step(self) -> None:
        if self.config.form == "moco":
            self.key_encoder.update(self.encoder)
            self.key_heads.update(self.heads)
        for keys in self._pending:
            for name, value in keys.items():
                self.queues[name].enqueue(gather_rows(value))
        self._pending.clear()

    def _clips(self, clips: Tensor, draw: Draw) -> list[Tensor]:
        """Clips 0 and 1, and clip 2 where it is needed: (n, 3, T, h, w) each."""
        n, frames = clips.shape[1], clips.shape[2] - 1
        if self.ranking and frames % self.config.segments:
            raise ValueError(
                f"method.segments: got {self.config.segments}, expected a divisor of the {frames} frames of a clip"
            )
        clips = clips[: 3 if self.ranking else 2]
        backwards = draw.chance(1, n, self.config.reverse).to(clips.device, non_blocking=True)
        clips = torch.where(backwards.view(1, n, 1, 1, 1, 1), clips.flip(2), clips)
        first, *others = self.augment.rgb(clips, draw).split(n)
        plain = draw.chance(1, n, self.config.crop_only).to(clips.device, non_blocking=True)
        first = torch.where(plain.view(n, 1, 1, 1, 1), self.crop_only.rgb(clips[:1], draw), first)
        return [first, *others]

    def _pool(self, clip_bcthw: Tensor) -> Tensor:
        return average_pool(self.encode(clip_bcthw))

    def _segments(self, pooled: Tensor, heads: nn.Module) -> Tensor:
        """Unit embeddings (b, S, d) float32: each segment has its own part of the head's output."""
        embedded = heads["segment"](pooled).float().unflatten(1, (self.config.segments, -1))
        return normalize(embedded, dim=2)

    def _in_batch(self, pooled: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses between clips 0 and 1, (2n, C), and those of other videos; statistics."""
        projected = self.heads["clip"](pooled).float()
        losses = {"clip": clip_contrast(projected, self.config.temperature)}
        if self.coherent:
            losses["tc"] = temporal_coherent_contrast(self._segments(pooled, self.heads), self.config.tc_temperature)
        return losses, _clip_statistics(similarities(Term(projected, gather_views(projected))))

    def _queued(self, pooled: Tensor, key_clip: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses between clip 0, (n, C), the momentum encoder's clip 1, and the queues; statistics."""
        query, keys = self.heads["clip"](pooled).float(), self._encode_keys(key_clip)
        queues = {name: queue.keys for name, queue in self.queues.items()}
        losses = {"clip": queue_contrast(query, keys["clip"], queues["clip"], self.config.temperature)}
        if self.coherent:
            segments = self._segments(pooled, self.heads)
            losses["tc"] = temporal_coherent_queue_contrast(
                segments, keys["segment"], queues["segment"], self.config.tc_temperature
            )
        self._pending.append(keys)
        return losses, _clip_statistics(queue_similarities(query, keys["clip"], queues["clip"]))

    @torch.no_grad()
    def _encode_keys(self, clip_bcthw: Tensor) -> dict[str, Tensor]:
        """Keys of each queue: unit projections of clips, and their mean segments, which are all that L_tc needs."""
        encoder, heads = self.key_encoder.module, self.key_heads.module
        clip = clip_bcthw.contiguous(memory_format=torch.channels_last_3d)
        pooled = average_pool(encoder(clip))
        keys = {"clip": normalize(heads["clip"](pooled).float(), dim=1)}
        if self.coherent:
            keys["segment"] = self._segments(pooled, heads).mean(1)
        return keys

    def _shuffle_rank(self, pooled: list[Tensor], order_bs: Tensor) -> Tensor:
        """The shuffled clip 2 against clip 0 and against clip 2, which differ in their augmentation."""
        clip_0, clip_2, shuffled = self._segments(torch.cat(pooled), self.heads).chunk(3)
        realigned = realign(shuffled, order_bs)
        theta, bound = self.config.sr_temperature, self.config.sr_clip
        return (shuffle_rank(clip_0, realigned, theta, bound) + shuffle_rank(clip_2, realigned, theta, bound)) / 2


def _clip_statistics(similarities: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {"similarity/clip_positive": similarities[0], "similarity/clip_negative": similarities[1]}
