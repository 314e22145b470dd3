"""Cross-video search for truly aligned positives (DCLR Sec. 3.2, Eq. 9-10).

A slow encoder f~, a frozen copy of the encoder that is refreshed every few epochs, describes the difference (or static)
clip of each video by a vector. A queue keeps these descriptors, and with each the projections of its video. The K
entries whose descriptors are most similar to that of the current clip become its positives.

Shapes: n videos on this rank, N in the global batch, d projected features, e features of a descriptor, K retrieved
entries, L queue length.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dclr.distributed import gather_rows
from dclr.kernels import topk_similarity
from dclr.kernels.topk import MAX_K
from dclr.models import average_pool

Modality = Literal["s", "d"]


@dataclass
class SearchConfig:
    """Cross-video search."""

    on: tuple[Modality, ...] = ("d",)
    """What to search by: static clips (s, for L_VS), frame differences (d, for L_VD), both, or nothing."""
    k: int = 5
    """Entries that are retrieved for each clip."""
    dist: Literal["prior", "uniform", "mean"] = "prior"
    """Weights of the retrieved entries. prior: in proportion to their similarity (the paper's p_k); uniform: 1 / K;
    mean: one positive, which is the mean of their projections, as Table 6's caption describes the uniform form."""
    keep_own: bool = True
    """Keep the in-video positive beside the retrieved ones, as Eq. 9 is printed: half of the term is Eq. 7, half is
    Eq. 10. Else Eq. 10 replaces it, as the paper's text has it; a short run then learns less of the motion."""
    negatives: Literal["queue", "batch"] = "queue"
    """What I(v; d~) of Eq. 10 tells a retrieved entry from. queue: other entries, as old as itself; batch: the batch's,
    as Eq. 2 has it. An encoder then tells old from new: v turns against all differences of the batch, and forgets."""
    start: int = 10
    """First epoch that may use retrieved entries; before, and until the queue is full, positives are of the batch."""
    refresh: int = 10
    """Epochs between refreshes of the slow encoder."""
    queue: int = 2048
    """Entries in the queue, over all ranks."""
    on_refresh: Literal["flush", "keep"] = "flush"
    """Whether a refresh forgets the entries of the slow encoder before it, which describes videos otherwise, or keeps
    them."""
    exclude_same_video: bool = True
    """Never retrieve an entry of the clip's own video."""
    feat: Literal["proj", "backbone"] = "proj"
    """Whether a descriptor is the slow encoder's projection or its pooled features."""

    def __post_init__(self) -> None:
        self.on = tuple(self.on)
        for name, least in (("k", 1), ("start", 0), ("refresh", 1), ("queue", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"search.{name}: got {getattr(self, name)}, expected at least {least}")
        if self.k > self.queue:
            raise ValueError(f"search.k: got {self.k}, expected at most search.queue = {self.queue}")
        if self.k > MAX_K:
            raise ValueError(f"search.k: got {self.k}, expected at most {MAX_K}")


class Entries(NamedTuple):
    """Entries of a queue, one for each clip.

    Attributes:
        descriptor: (m, e) f~ of the static or difference clip, which a search compares.
        rgb_projection, modality_projection: (m, d) projections of the clip and of its static frame or difference.
        video_id, label: (m,) int64.
    """

    descriptor: Tensor
    rgb_projection: Tensor
    modality_projection: Tensor
    video_id: Tensor
    label: Tensor


class Retrieved(NamedTuple):
    """The K entries nearest to each of n clips.

    Attributes:
        rgb_projection, modality_projection: (n, K, d), as in `Entries`; (n, 1, d) where they are a mean.
        video_id, label: (n, K) int64; video -1 where the queue has fewer than K entries.
        weight: (n, K) p_k, or (n, 1).
    """

    rgb_projection: Tensor
    modality_projection: Tensor
    video_id: Tensor
    label: Tensor
    weight: Tensor


class SearchQueue(nn.Module):
    """Entries, first in, first out. It is filled from row 0 on, so that the first `size` rows are the valid ones."""

    def __init__(self, length: int, descriptor_dim: int, dim: int) -> None:
        super().__init__()
        self.length = length
        self.register_buffer("descriptor", torch.zeros(length, descriptor_dim))
        self.register_buffer("rgb_projection", torch.zeros(length, dim))
        self.register_buffer("modality_projection", torch.zeros(length, dim))
        self.register_buffer("video_id", torch.full((length,), -1))
        self.register_buffer("label", torch.full((length,), -1))
        #: Share of the rows that are valid, for the log.
        self.register_buffer("fill", torch.zeros(()), persistent=False)
        self.flush()

    def flush(self) -> None:
        """Forget every entry."""
        self._set(0, 0)

    def _set(self, pointer: int, size: int) -> None:
        self.pointer, self.size = pointer, size
        # A compiled step is compiled anew whenever a number that it reads changes. It reads these two instead of
        # `size`: `full` changes twice between flushes, and `fill` is a tensor.
        self.full = size == self.length
        self.fill.fill_(size / self.length)

    def get_extra_state(self) -> dict[str, int]:
        return {"pointer": self.pointer, "size": self.size}

    def set_extra_state(self, state: dict[str, int]) -> None:
        if not (0 <= state["pointer"] < self.length and 0 <= state["size"] <= self.length):
            raise ValueError(f"a queue of {self.length} entries with {state}")
        self._set(state["pointer"], state["size"])

    @torch.no_grad()
    def enqueue(self, entries: Entries) -> None:
        """Overwrite the oldest entries, wrapping at the end. Of more than `length` new ones only the last are kept."""
        entries = Entries(*(value[-self.length :] for value in entries))
        count = len(entries.video_id)
        rows = (self.pointer + torch.arange(count, device=self.video_id.device)) % self.length
        for name, value in entries._asdict().items():
            buffer = getattr(self, name)
            buffer.index_copy_(0, rows, value.to(buffer.dtype))
        self._set((self.pointer + count) % self.length, min(self.length, self.size + count))

    def spread(self, count: int) -> tuple[Tensor, Tensor]:
        """Projections of the modality (count, d) and videos (count,) of entries at equal distances, of every age."""
        step = self.length // count
        return self.modality_projection[: step * count : step], self.video_id[: step * count : step]

    @torch.no_grad()
    def retrieve(self, query: Tensor, config: SearchConfig, video_id: Tensor) -> Retrieved:
        """The K entries whose descriptors have the largest cosines S_k with each query.

        Their weights are the prior p_k = max(S_k, 0) / sum over k of max(S_k, 0), or uniform. Where no entry has a
        positive cosine, the prior is uniform too. Entries that are not there have weight 0. With `dist = mean`,
        projections and weight are of one entry, the mean; videos and labels remain those of the K.

        Args:
            query: (n, e) descriptors.
            video_id: (n,) int64 videos of the queries.
        """
        own = {"query_id": video_id, "queue_id": self.video_id} if config.exclude_same_video else {}
        similarity, index = topk_similarity(
            query, self.descriptor, config.k, size=None if self.full else self.size, **own
        )
        found = index >= 0
        row = index.clamp(min=0)
        uniform = found / found.sum(1, keepdim=True).clamp(min=1)
        positive = similarity.clamp(min=0)
        total = positive.sum(1, keepdim=True)
        prior = torch.where(total > 1e-8, positive / total.clamp(min=1e-8), uniform)
        weight = prior if config.dist == "prior" else uniform
        video_id = self.video_id[row].where(found, -1)
        projections = [self.rgb_projection[row], self.modality_projection[row]]
        if config.dist == "mean":
            projections = [
                (uniform[..., None] * normalize(value, dim=-1)).sum(1, keepdim=True) for value in projections
            ]
            weight = found.any(1, keepdim=True).to(weight.dtype)
        return Retrieved(*projections, video_id, self.label[row], weight)


class SlowEncoder(nn.Module):
    """f~: a copy of the encoder and its heads, in evaluation mode, that changes only with `refresh`.

    Args:
        separate: whether the encoder is trained with statistics of their own for static clips and differences. Then the
            norms of f~ are in training when the method is, and go by what f~ sees: the encoder's running statistics
            are those of clips.
    """

    def __init__(self, encoder: nn.Module, heads: nn.ModuleDict, separate: bool = False) -> None:
        super().__init__()
        self.encoder, self.heads = copy.deepcopy(encoder), copy.deepcopy(heads)
        self.separate = separate
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SlowEncoder:
        super().train(False)
        if self.separate:
            for module in self.encoder.modules():
                if isinstance(module, (nn.BatchNorm3d, nn.SyncBatchNorm)):
                    module.train(mode)
        return self

    @torch.no_grad()
    def refresh(self, encoder: nn.Module, heads: nn.ModuleDict) -> None:
        """f~ <- f, parameters and buffers."""
        self.encoder.load_state_dict(encoder.state_dict())
        self.heads.load_state_dict(heads.state_dict())

    @torch.no_grad()
    def forward(self, clip_bcthw: Tensor, head: str | None) -> Tensor:
        """Pooled features (b, e), or their projection by `head`."""
        pooled = average_pool(self.encoder(clip_bcthw))
        described = pooled if head is None else self.heads[head](pooled)
        return described.to(torch.promote_types(described.dtype, torch.float32))


def non_negative_rows(found_id: Tensor, key_id: Tensor, first: int) -> Tensor:
    """Rows of the batch that are no negatives in Eq. 10: both views of the own video, and of the retrieved one.

    Args:
        found_id: (n, K) int64 videos of the retrieved entries, -1 for none.
        key_id: (N,) int64 videos of the global batch.
        first: place of this rank's first video in the global batch.

    Returns:
        (n, K, 4) int64 rows of the 2N keys, -1 where the retrieved video is not in the batch.
    """
    n, total = len(found_id), len(key_id)
    view = torch.arange(2 * total, device=key_id.device).view(2, total)
    own = view[:, first : first + n].T[:, None]
    same = torch.where((found_id[..., None] == key_id)[:, :, None], view, -1).amax(-1)
    return torch.cat([own.expand(same.shape), same], dim=-1)


def non_negative_entries(found_id: Tensor, own_id: Tensor, entry_id: Tensor) -> Tensor:
    """Entries that are no negatives of what was retrieved: the first and the last of each video of a search.

    Args:
        found_id: (n, K) int64 videos of the retrieved entries, -1 for none.
        own_id: (n,) int64 videos that searched.
        entry_id: (m,) int64 videos of the entries.

    Returns:
        (n, K, 2K + 2) int64, -1 for none; for each of the K the same, for those of the others are like it.
    """
    same = torch.cat([own_id[:, None], found_id], dim=1)[..., None] == entry_id
    last = len(entry_id) - 1 - same.flip(2).int().argmax(2)
    rows = torch.where(same.any(2), torch.stack([same.int().argmax(2), last]), -1).permute(1, 2, 0).flatten(1)
    return rows[:, None].expand(-1, found_id.shape[1], -1)


class CrossVideoSearch(nn.Module):
    """Slow encoder, and a queue for each searched modality.

    Args:
        encoder, heads: copied into the slow encoder.
        head: modality -> name of its projection head in `heads`.
        feature_dim, dim: widths of the encoder's and of the projected features.
        separate: as of `SlowEncoder`.
    """

    def __init__(
        self,
        config: SearchConfig,
        encoder: nn.Module,
        heads: nn.ModuleDict,
        head: dict[Modality, str],
        feature_dim: int,
        dim: int,
        separate: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.head = config, head
        self.slow = SlowEncoder(encoder, heads, separate)
        descriptor_dim = dim if config.feat == "proj" else feature_dim
        queues = {modality: SearchQueue(config.queue, descriptor_dim, dim) for modality in config.on}
        self.queues = nn.ModuleDict(queues)
        self.filling = self.allowed = False

    def check(self, global_batch: int, steps_per_epoch: int) -> None:
        """Raise ValueError if a queue is too short for the negatives, or every flush would come before it is full."""
        if self.config.negatives == "queue" and self.config.queue < 2 * global_batch:
            raise ValueError(
                f"search.queue: got {self.config.queue}, expected at least {2 * global_batch}, twice the batch, or "
                f"search.negatives batch"
            )
        entries = self.config.refresh * steps_per_epoch * global_batch
        if self.config.on_refresh == "flush" and entries <= self.config.queue:
            raise ValueError(
                f"search.queue: {self.config.queue} entries can never fill between refreshes, which bring "
                f"{entries} ({self.config.refresh} epochs x {steps_per_epoch} steps x {global_batch} videos); "
                f"expected a smaller search.queue or a larger search.refresh"
            )

    def start_epoch(self, epoch: int, encoder: nn.Module, heads: nn.ModuleDict, resumed: bool = False) -> None:
        """Refresh f~ every `refresh` epochs. The queue fills from the last refresh before `start` on."""
        first = self.config.start // self.config.refresh * self.config.refresh
        self.filling = epoch >= first
        self.allowed = epoch >= self.config.start
        if self.filling and epoch % self.config.refresh == 0 and not resumed:
            self.slow.refresh(encoder, heads)
            if self.config.on_refresh == "flush":
                for queue in self.queues.values():
                    queue.flush()

    def ready(self, modality: Modality) -> bool:
        """Whether Eq. 10 replaces the in-batch term: the start epoch is reached and the queue is full."""
        return self.allowed and modality in self.queues and self.queues[modality].full

    def describe(self, modality: Modality, clip_bcthw: Tensor) -> Tensor:
        """f~ of static or difference clips: (b, e)."""
        return self.slow(clip_bcthw, self.head[modality] if self.config.feat == "proj" else None)

    def enqueue(self, modality: Modality, entries: Entries) -> None:
        """Append the entries of every rank, in rank order, so that all ranks hold the same queue."""
        self.queues[modality].enqueue(Entries(*(gather_rows(value.detach(), dim=0) for value in entries)))
