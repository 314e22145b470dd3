"""Cross-video search for truly aligned positives (DCLR Sec. 3.2, Eq. 9-10).

A slow encoder f~, a frozen copy of the encoder refreshed every few epochs, describes the difference (or static) clip
of every video; a queue keeps these descriptions with the projections of the video they came from; the K most similar
entries are further positives of the current clip.

Shapes: n videos on this rank, N in the global batch, d projected features, K retrieved entries, L queue length.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dclr.distributed import gather_rows
from dclr.kernels import topk_similarity
from dclr.kernels.topk import MAX_K

Mode = Literal["s", "d"]


@dataclass
class SearchConfig:
    """Cross-video search."""

    on: tuple[Mode, ...] = ("d",)
    """Search by the static clip (s, replaces L_VS), by the difference clip (d, replaces L_VD), both, or neither."""
    k: int = 5
    dist: Literal["prior", "uniform"] = "prior"
    """Weights of the K retrieved entries: their similarity (the paper's p_k), or 1 / K."""
    start: int = 10
    """First epoch that may use retrieved entries."""
    refresh: int = 10
    """Epochs between refreshes of the slow encoder."""
    queue: int = 2048
    """Entries in the queue, over all ranks."""
    on_refresh: Literal["flush", "keep"] = "flush"
    """What becomes of the entries that the slow encoder described before its refresh."""
    exclude_same_video: bool = True
    feat: Literal["proj", "backbone"] = "proj"
    """Search by the slow encoder's projection, or by its pooled features."""

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
    """Queue entries, or what is to become some: `key` (m, e), `rgb` and `mode` (m, d), `video_id`, `label` (m,)."""

    key: Tensor
    rgb: Tensor
    mode: Tensor
    video_id: Tensor
    label: Tensor


class Retrieved(NamedTuple):
    """`rgb`, `mode` (n, K, d) projections of the retrieved entries, `video_id`, `label` (n, K), `weight` p_k (n, K)."""

    rgb: Tensor
    mode: Tensor
    video_id: Tensor
    label: Tensor
    weight: Tensor


class SearchQueue(nn.Module):
    """First in, first out; filled from row 0, so that the valid entries are always the first `size`."""

    def __init__(self, length: int, key_dim: int, dim: int) -> None:
        super().__init__()
        self.length = length
        for name, width in (("key", key_dim), ("rgb", dim), ("mode", dim)):
            self.register_buffer(name, torch.zeros(length, width))
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
        # Numbers are constants to a compiled step: it reads these two, so that it need not be compiled anew each time.
        self.full = size == self.length
        self.fill.fill_(size / self.length)

    def get_extra_state(self) -> dict[str, int]:
        return {"pointer": self.pointer, "size": self.size}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self._set(state["pointer"], state["size"])

    @torch.no_grad()
    def enqueue(self, entries: Entries) -> None:
        """Overwrite the oldest entries, wrapping at the end. Of more than `length` entries the last remain."""
        entries = Entries(*(value[-self.length :] for value in entries))
        count = entries.key.shape[0]
        rows = (self.pointer + torch.arange(count, device=self.key.device)) % self.length
        for name, value in entries._asdict().items():
            buffer = getattr(self, name)
            buffer.index_copy_(0, rows, value.to(buffer.dtype))
        self._set((self.pointer + count) % self.length, min(self.length, self.size + count))

    @torch.no_grad()
    def retrieve(self, query: Tensor, config: SearchConfig, video_id: Tensor) -> Retrieved:
        """The K entries nearest to each query by cosine, with the prior p_k = max(S_k, 0) / sum max(S, 0)."""
        own = {"query_id": video_id, "queue_id": self.video_id} if config.exclude_same_video else {}
        similarity, index = topk_similarity(query, self.key, config.k, size=None if self.full else self.size, **own)
        found = index >= 0
        row = index.clamp(min=0)
        uniform = found / found.sum(1, keepdim=True).clamp(min=1)
        positive = similarity.clamp(min=0)
        total = positive.sum(1, keepdim=True)
        prior = torch.where(total > 1e-8, positive / total.clamp(min=1e-8), uniform)
        weight = prior if config.dist == "prior" else uniform
        video_id = self.video_id[row].where(found, -1)
        return Retrieved(self.rgb[row], self.mode[row], video_id, self.label[row], weight)


class SlowEncoder(nn.Module):
    """f~: a frozen copy of the encoder and its heads, in evaluation mode, replaced only by `refresh`."""

    def __init__(self, encoder: nn.Module, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.encoder, self.heads = copy.deepcopy(encoder), copy.deepcopy(heads)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SlowEncoder:
        return super().train(False)

    @torch.no_grad()
    def refresh(self, encoder: nn.Module, heads: nn.ModuleDict) -> None:
        """f~ <- f, parameters and buffers."""
        self.encoder.load_state_dict(encoder.state_dict())
        self.heads.load_state_dict(heads.state_dict())

    @torch.no_grad()
    def forward(self, clip_bcthw: Tensor, head: str | None) -> Tensor:
        """Pooled features (b, e), or their projection by `head`."""
        pooled = self.encoder(clip_bcthw).mean((2, 3, 4), dtype=torch.float32)
        return (pooled if head is None else self.heads[head](pooled)).float()


def left_out(found_id: Tensor, key_id: Tensor, first: int) -> Tensor:
    """The rows of the batch that are no negatives of an entry: both views of the own video and of the retrieved one.

    Args:
        found_id: (n, K) int64 videos of the retrieved entries, -1 for none.
        key_id: (N,) int64 videos of the global batch.
        first: place of this rank's first video in the global batch.

    Returns:
        (n, K, 4) int64 rows of the 2N keys, -1 for none; the same for both terms of Eq. 10.
    """
    n, total = len(found_id), len(key_id)
    view = torch.arange(2 * total, device=key_id.device).view(2, total)
    own = view[:, first : first + n].T[:, None]
    same = torch.where((found_id[..., None] == key_id)[:, :, None], view, -1).amax(-1)
    return torch.cat([own.expand(same.shape), same], dim=-1)


class CrossVideoSearch(nn.Module):
    """Slow encoder and one queue per searched mode.

    Args:
        encoder, heads: copied into the slow encoder.
        head: mode -> name of its projection head in `heads`.
        feature_dim, dim: widths of the encoder's and of the projected features.
    """

    def __init__(
        self,
        config: SearchConfig,
        encoder: nn.Module,
        heads: nn.ModuleDict,
        head: dict[Mode, str],
        feature_dim: int,
        dim: int,
    ) -> None:
        super().__init__()
        self.config, self.head = config, head
        self.slow = SlowEncoder(encoder, heads)
        key_dim = dim if config.feat == "proj" else feature_dim
        self.queues = nn.ModuleDict({mode: SearchQueue(config.queue, key_dim, dim) for mode in config.on})
        self.filling = self.allowed = False

    def check(self, global_batch: int, steps_per_epoch: int) -> None:
        """Raise ValueError if the queue is flushed before it can be full."""
        entries = self.config.refresh * steps_per_epoch * global_batch
        if self.config.on_refresh == "flush" and entries <= self.config.queue:
            raise ValueError(
                f"search.queue: {self.config.queue} entries can never fill between refreshes, which bring "
                f"{entries} ({self.config.refresh} epochs x {steps_per_epoch} steps x {global_batch} videos); "
                f"expected a smaller search.queue or a larger search.refresh"
            )

    def start_epoch(self, epoch: int, encoder: nn.Module, heads: nn.ModuleDict, resumed: bool = False) -> None:
        """Refresh f~ every `refresh` epochs, from the last one before `start` on."""
        first = self.config.start // self.config.refresh * self.config.refresh
        self.filling = epoch >= first
        self.allowed = epoch >= self.config.start
        if self.filling and epoch % self.config.refresh == 0 and not resumed:
            self.slow.refresh(encoder, heads)
            if self.config.on_refresh == "flush":
                for queue in self.queues.values():
                    queue.flush()

    def ready(self, mode: Mode) -> bool:
        """Whether Eq. 10 replaces the in-batch term: the start epoch is reached and the queue is full."""
        return self.allowed and mode in self.queues and self.queues[mode].full

    def describe(self, mode: Mode, clip_bcthw: Tensor) -> Tensor:
        """f~ of static or difference clips: (b, e)."""
        return self.slow(clip_bcthw, self.head[mode] if self.config.feat == "proj" else None)

    def enqueue(self, mode: Mode, entries: Entries) -> None:
        """Append the entries of every rank, in rank order, so that all ranks hold the same queue."""
        self.queues[mode].enqueue(Entries(*(gather_rows(value.detach(), dim=0) for value in entries)))
