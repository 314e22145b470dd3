"""DCLR as its released code meant to run, with the least repair.

Unlike the paper: momentum keys and a queue of negatives per head instead of in-batch negatives; L_VV and the reverse
directions, no L_SD; the masks come from the momentum encoder and refine from the first step; the five queue entries
nearest to view i, as the momentum encoder sees it, are further positives, with equal weight, of a multi-positive loss;
the difference rolls over augmented frames; the static frame has a crop of its own; L_ac, of the momentum encoder's
maps, is reported but has no gradient; heads start from N(0, 0.01).

Shapes: n videos on this rank. View i gives queries, view j keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dclr.augment import Augment, AugmentConfig, Draw, Streams
from dclr.data.clips import Batch
from dclr.distributed import gather_rows
from dclr.kernels import activation_map, topk_similarity, weighted_pool
from dclr.kernels.topk import MAX_K
from dclr.methods.base import ContrastiveConfig, Method, Output
from dclr.methods.momentum import KeyQueue, MomentumCopy, multi_positive_loss
from dclr.models import ProjectionHead, average_pool

MOMENTUM = 0.999
# Query head -> head of its key: v against v, s, d and back.
PAIRS = {"vv": "vv", "vs": "sv", "sv": "vs", "vd": "dv", "dv": "vd"}


@dataclass
class DCLRReleaseConfig(ContrastiveConfig):
    """The released recipe of DCLR."""

    k: int = 5
    """Entries of the queue that are further positives of a query."""
    queue: int = 2048
    """Keys of earlier steps, of each head, that serve as negatives and are searched."""

    #: The static frame has a crop of its own.
    crops = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("k", 1 <= self.k <= MAX_K, f"1 to {MAX_K}")
        self.require("queue", self.queue >= self.k, f"at least the {self.k} entries that are retrieved")


class Branch(nn.Module):
    """Encoder and its five projection heads, of the queries or of the keys."""

    def __init__(self, encoder: nn.Module, config: DCLRReleaseConfig) -> None:
        super().__init__()
        self.encoder = encoder
        widths = encoder.feature_dim, config.hidden, config.dim
        self.heads = nn.ModuleDict({name: ProjectionHead(*widths, config.center) for name in PAIRS})
        for module in self.heads.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """l2-normalised projections (n, d) of feature maps v, s, d, with v refined by the masks of s and d."""
        average = {name: average_pool(feature) for name, feature in features.items()}
        pooled = {
            "vv": average["v"],
            "vs": weighted_pool(features["v"], masks["s"]),
            "vd": weighted_pool(features["v"], masks["d"]),
            "sv": average["s"],
            "dv": average["d"],
        }
        return {name: normalize(head(pooled[name]).float(), dim=1) for name, head in self.heads.items()}


class DCLRRelease(Method):
    """The released recipe.

    Args:
        config: temperature, heads and queue.
        encoder: (b, 3, T, h, w) to (b, C, T', h', w'), with `feature_dim`.
        augment: flip and colour augmentation.
    """

    def __init__(self, config: DCLRReleaseConfig, encoder: nn.Module, augment: AugmentConfig) -> None:
        super().__init__()
        self.config = config
        self.augment = Augment(augment, "backward_cyclic", "augmented")
        self.query = Branch(encoder, config)
        self.key = MomentumCopy(self.query, MOMENTUM)
        self.queues = nn.ModuleDict({name: KeyQueue(config.queue, config.dim) for name in PAIRS})
        self._pending: list[dict[str, Tensor]] = []

    @property
    def encoder(self) -> nn.Module:
        return self.query.encoder

    @property
    def loss_weights(self) -> dict[str, float]:
        return {**dict.fromkeys(PAIRS, 1.0), "ac": 0.1}

    def chance(self, global_batch: int) -> dict[str, float]:
        """Of 1 + queue candidates, 1 + k are positives."""
        return dict.fromkeys(PAIRS, math.log((1 + self.config.queue) / (1 + self.config.k)))

    def forward(self, batch: Batch, draw: Draw) -> Output:
        """Losses of this rank's videos. `batch.clips` is (4, n, T+1, h, w, 3): two views, then their static crops."""
        n = batch.video_id.shape[0]
        streams = self.augment.streams(batch.clips[:2], draw, batch.clips[2:])
        with torch.no_grad():
            view_i, view_j = (self._maps(self.key.module, streams, rows) for rows in (slice(n), slice(n, None)))
            mask_i, mask_j = (
                {name: activation_map(view[name]) for name in ("v", "s", "d")} for view in (view_i, view_j)
            )
            keys = self.key.module(view_j, mask_j)
            positive = self._positives(self.key.module(view_i, mask_i))
        features = self._maps(self.query, streams, slice(n))
        queries = self.query(features, mask_i)
        losses = {name: self._term(name, queries[name], keys[key], positive[name]) for name, key in PAIRS.items()}
        with torch.no_grad():
            raw = mask_i["v"] - mask_j["s"] - mask_j["d"]
            losses["ac"] = raw.square().mean()
            similarity = {
                f"similarity/{name}_positive": (queries[name] * keys[key]).sum(1).mean() for name, key in PAIRS.items()
            }
        self._pending.append(keys)
        return Output(losses, similarity, average_pool(features["v"].detach()))

    def after_step(self) -> None:
        self.key.update(self.query)
        for keys in self._pending:
            for name, value in keys.items():
                self.queues[name].enqueue(gather_rows(value, dim=0))
        self._pending.clear()

    def _maps(self, branch: Branch, streams: Streams, rows: slice) -> dict[str, Tensor]:
        """Feature maps of v, s and d of one view, from one encoder forward."""
        clip = torch.cat([stream[rows] for stream in streams])
        features = branch.encoder(clip.contiguous(memory_format=torch.channels_last_3d))
        return dict(zip("vsd", features.chunk(3)))

    def _positives(self, described: dict[str, Tensor]) -> dict[str, Tensor]:
        """Queue rows (n, K) that count as positives of each term: nearest by s, by d, and by both for L_VV.

        Args:
            described: projections of view i by the momentum encoder.
        """
        k = self.config.k
        nearest = {name: topk_similarity(described[name], self.queues[name].keys, k).indices for name in ("sv", "dv")}
        joint = sum((described[name] @ self.queues[name].keys.T).softmax(1) for name in ("sv", "dv"))
        by_both = joint.topk(k, dim=1).indices
        by_s, by_d = nearest["sv"], nearest["dv"]
        return {"vv": by_both, "vs": by_s, "sv": by_s, "vd": by_d, "dv": by_d}

    def _term(self, name: str, query: Tensor, key: Tensor, positive: Tensor) -> Tensor:
        """Multi-positive contrast of a query with its key and the queue of the key's head."""
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ self.queues[PAIRS[name]].keys.T], dim=1)
        chosen = torch.zeros_like(logits, dtype=torch.bool)
        chosen[:, 0] = True
        chosen.scatter_(1, positive + 1, True)
        return multi_positive_loss(logits / self.config.temperature, chosen)
