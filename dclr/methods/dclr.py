"""DCLR: dual contrastive learning for spatio-temporal representation (Ding, Qian, Xiong, ACM MM 2022).

A clip v is contrasted with its static frame s and its frame difference d, which are pushed apart from each other;
activation maps align and separate the features of the three; a search across videos replaces in-batch positives.

Shapes: n videos on this rank, two views each; rows of 2n hold view i before view j.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import pad

from dclr.augment import Augment, AugmentConfig, Difference, DifferenceSource, Draw, Streams
from dclr.data.clips import Batch
from dclr.distributed import gather_rows, rank, world
from dclr.kernels import decoupled_pool
from dclr.methods.balance import by_progress
from dclr.methods.base import ContrastiveConfig, Method, Output
from dclr.methods.contrast import (
    Bound,
    CrossTerm,
    Denominator,
    Term,
    chance,
    gather_views,
    reference_losses,
    similarities,
)
from dclr.methods.packing import packed_losses
from dclr.methods.search import (
    CrossVideoSearch,
    Entries,
    Modality,
    Retrieved,
    SearchConfig,
    SearchQueue,
    non_negative_entries,
    non_negative_rows,
)
from dclr.models import ProjectionHead, average_pool
from dclr.models.separate_norm import separate_statistics
from dclr.models.static_once import StaticOnceResNet


@dataclass
class LossWeights:
    """Weights of the contrastive terms; 0 leaves a term out. L_SD is maximised: its weight is subtracted."""

    vv: float = 0.0
    """L_VV: a clip and another clip of its video."""
    vs: float = 1.0
    """L_VS: a clip and a static frame."""
    vd: float = 1.0
    """L_VD: a clip and a frame difference."""
    sd: float = 1.0
    """L_SD: a static frame and a frame difference, pushed apart."""


@dataclass
class AlignmentConfig:
    """Activation alignment L_ac (DCLR Eq. 12)."""

    lambda_: Annotated[float, tyro.conf.arg(name="lambda")] = 0.5
    """Weight; 0 leaves the term out."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over the positions of a map."""
    start: int = 0
    """First epoch of the term."""


@dataclass
class RefineConfig:
    """Refined pooling of the clip's features by the activation of s and of d (DCLR Eq. 13-15)."""

    s: bool = True
    """Pool the clip of L_VS by the activation of its static frame."""
    d: bool = True
    """Pool the clip of L_VD by the activation of its frame difference."""
    start: int = 10
    """First epoch of refined pooling; average pooling before."""


@dataclass
class DCLRConfig(ContrastiveConfig):
    """Dual contrastive learning; the defaults are the paper's on UCF-101, and ours where it is silent."""

    losses: LossWeights = field(default_factory=LossWeights)
    """Weights of the contrastive terms."""
    sd_bound: Bound = "anchor"
    """L_SD pushes a static frame and a difference apart only while they know more of each other than chance does: for
    each anchor, for the mean over the batch, or without end as Eq. 8 is printed. The last has a degenerate optimum, in
    which s and d are opposite constants, that costs L_VS and L_VD everything."""
    same_view: bool = False
    """Positives of L_VS and L_VD from the same view instead of the other."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Positives from other videos."""
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    """Activation alignment L_ac."""
    refine: RefineConfig = field(default_factory=RefineConfig)
    """Refined pooling."""
    denominator: Denominator = "others"
    """Keys in the denominator of a term: the positive and those of other videos; every key but the anchor's own row
    (Eq. 2 as printed); all; or others and those of other videos in the anchor's modality."""
    symmetric: bool = False
    """Add the reverse directions s -> v and d -> v to L_VS and L_VD."""
    balance: Literal["progress", "none"] = "progress"
    """Weigh the gradients of L_VV, L_VS and L_VD by how little below chance each is, so that a term that is ahead
    waits for the others (`dclr.methods.balance`), or add the terms as the paper does: then the first to leave chance
    often keeps the others there."""
    heads: Literal["separate", "shared"] = "separate"
    """A projection head for each operand of the terms, or one for all."""
    bn: Literal["per_modality", "mixed"] = "per_modality"
    """Batch statistics of v, of s and of d, each alone, with v's for evaluation; or of all three together, as in the
    released code. The paper is silent. In the first form a search describes clips by their own statistics too."""
    static_crop: Literal["shared", "independent"] = "shared"
    """Whether the static frame has the crop and flip of its clip, or its own."""
    difference: Difference = "forward"
    """forward: each frame's difference to the next one (Eq. 4), which takes one frame more than a clip has;
    backward_cyclic: each frame less the one before, the first less the last (the released code)."""
    difference_source: DifferenceSource = "raw"
    """Whether differences are of the frames before or after colour augmentation."""
    reference: bool = False
    """Compute the contrastive terms one by one, by the equations as printed, instead of in one kernel launch: equal
    but slower, and for reading and checking."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(asdict(self.losses).values()):
            raise ValueError("method.losses: every weight is 0, expected at least one term")

    @property
    def crops(self) -> int:
        """A second crop of each view where the static frame has its own."""
        return 2 if self.static_crop == "independent" else 1


# Projection heads of each term: that of its anchor and that of its key (paper Sec. 3.1; the released code's names).
HEADS = {"vv": ("vv", "vv"), "vs": ("vs", "s"), "vd": ("vd", "d"), "sd": ("s", "d")}


class DCLR(Method):
    """The whole objective L_VS + L_VD - L_SD + lambda L_ac (DCLR Eq. 16).

    Args:
        config: which terms, and how.
        encoder: (b, 3, T, h, w) to (b, C, T', h', w'), with `feature_dim`.
        augment: flip and colour augmentation.
    """

    pushed_apart = frozenset({"sd"})

    def __init__(self, config: DCLRConfig, encoder: nn.Module, augment: AugmentConfig) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self.augment = Augment(augment, config.difference, config.difference_source)
        weights = asdict(config.losses)
        self.terms = [name for name in HEADS if weights[name]]
        names = sorted({head for term in self.terms for head in HEADS[term]})
        if config.heads == "shared":
            names = ["shared"]
        self.heads = nn.ModuleDict(
            {name: ProjectionHead(encoder.feature_dim, config.hidden, config.dim, config.center) for name in names}
        )
        searched: list[Modality] = [modality for modality in config.search.on if f"v{modality}" in self.terms]
        self.search = None
        if searched:
            head = {modality: self._head_name(modality) for modality in searched}
            self.search = CrossVideoSearch(
                config.search, encoder, self.heads, head, encoder.feature_dim, config.dim, config.bn == "per_modality"
            )
        self._pending: list[tuple[Modality, Entries]] = []
        self.start_epoch(0, resumed=True)

    @property
    def loss_weights(self) -> dict[str, float]:
        weights = asdict(self.config.losses)
        signed = {name: -weights[name] if name == "sd" else weights[name] for name in self.terms}
        return {**signed, "ac": self.config.alignment.lambda_} if self.aligning else signed

    def chance(self, global_batch: int) -> dict[str, float]:
        each = chance(global_batch, self.config.denominator)
        both = {"vs", "vd"} if self.config.symmetric else set()
        return {name: 2 * each if name in both else each for name in self.terms}

    def check(self, global_batch: int, steps_per_epoch: int) -> None:
        if self.search is not None:
            self.search.check(global_batch, steps_per_epoch)

    def start_epoch(self, epoch: int, resumed: bool = False) -> None:
        config = self.config
        self.aligning = bool(config.alignment.lambda_) and epoch >= config.alignment.start
        refining = epoch >= config.refine.start
        self.refine_static, self.refine_difference = refining and config.refine.s, refining and config.refine.d
        if config.bn == "per_modality":
            modalities = self._modalities()
            once = "s" in modalities and isinstance(self.encoder, StaticOnceResNet)
            separate_statistics(self.encoder, len(modalities) - once)
        if self.search is not None:
            self.search.start_epoch(epoch, self.encoder, self.heads, resumed)

    def forward(self, batch: Batch, draw: Draw) -> Output:
        """Losses of this rank's videos against the global batch.

        Args:
            batch: `clips` (2, n, T+1, h, w, 3) uint8, or (4, ...) with `static_crop = independent`.
        """
        clips, static_clips = batch.clips[:2], batch.clips[2:] if self.config.crops > 1 else None
        streams = self.augment.streams(clips, draw, static_clips)
        pooled, alignment = self._pool(self._encode(streams))
        projected = {name: self._head(name, pooled[name]) for name in self._names()}
        gathered = {name: gather_views(value) for name, value in projected.items()}
        crossing, statistics = {}, {}
        if self.search is not None and self.search.filling:
            crossing = self._cross_video(batch, streams, projected, gathered, statistics)
        losses = self._contrast(projected, gathered, crossing, statistics)
        attracting = {name: loss for name, loss in losses.items() if name != "sd"}
        if self.config.balance == "progress" and len(attracting) > 1:
            losses |= by_progress(attracting, self.chance(len(batch.video_id) * world()))
        if self.aligning:
            losses["ac"] = alignment
        return Output(losses, {**statistics, **self.augment.statistics}, pooled["vv"].detach())

    def after_step(self) -> None:
        for modality, entries in self._pending:
            self.search.enqueue(modality, entries)
        self._pending.clear()

    def _head_name(self, name: str) -> str:
        return "shared" if self.config.heads == "shared" else name

    def _head(self, name: str, pooled: Tensor) -> Tensor:
        return self.heads[self._head_name(name)](pooled)

    def _names(self) -> list[str]:
        """Projections that the terms need."""
        return sorted({head for term in self.terms for head in HEADS[term]})

    def _modalities(self) -> list[str]:
        """What the encoder sees: `v` always, `s` and `d` where a term or a map needs them."""
        maps_needed = self.aligning or self.refine_static or self.refine_difference
        return ["v", *(name for name in "sd" if maps_needed or name in self._names())]

    def _encode(self, streams: Streams) -> dict[str, Tensor]:
        """Feature maps of the modalities in use, from one pass of the encoder."""
        used = {name: clip for name, clip in zip("vsd", streams) if name in self._modalities()}
        if "s" in used and isinstance(self.encoder, StaticOnceResNet):
            frame = used.pop("s")[:, :, :1]
            features = self.encode(torch.cat(list(used.values())), frame)
            return dict(zip([*used, "s"], features.chunk(len(used) + 1)))
        features = self.encode(torch.cat(list(used.values())))
        return dict(zip(used, features.chunk(len(used))))

    def _pool(self, features: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Input of each head, (2n, C) float32, and L_ac.

        f_s(v) and f_d(v) (DCLR Eq. 13-15) feed the heads `vs` and `vd` once refinement has started.
        """
        if not (self.aligning or self.refine_static or self.refine_difference):
            average = {name: average_pool(feature) for name, feature in features.items()}
            return {**average, **dict.fromkeys(("vv", "vs", "vd"), average["v"])}, None
        pools = decoupled_pool(features["v"], features["s"], features["d"])
        alignment = pools.alignment.mean()
        if self.config.alignment.reduction == "sum":
            alignment = alignment * features["v"].shape[2:].numel()
        pooled = {
            "vv": pools.rgb,
            "vs": pools.rgb_static if self.refine_static else pools.rgb,
            "vd": pools.rgb_difference if self.refine_difference else pools.rgb,
            "s": pools.static,
            "d": pools.difference,
        }
        return pooled, alignment

    def _contrast(
        self,
        projected: Mapping[str, Tensor],
        gathered: Mapping[str, Tensor],
        crossing: Mapping[str, CrossTerm],
        statistics: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """L_VV, L_VS, L_VD, L_SD (DCLR Eq. 1, 6-8), of which `crossing` replaces some (Eq. 10)."""
        terms: list[tuple[str, Term]] = []
        for name in self.terms:
            anchor, key = HEADS[name]
            same_view = name == "sd" or (self.config.same_view and name != "vv")
            bound = self.config.sd_bound if name == "sd" else "none"
            term = Term(projected[anchor], gathered[key], same_view, bound)
            statistics[f"similarity/{name}_positive"], statistics[f"similarity/{name}_negative"] = similarities(term)
            if name in crossing and not self.config.search.keep_own:
                continue
            terms.append((name, term))
            if self.config.symmetric and name in ("vs", "vd"):
                terms.append((name, Term(projected[key], gathered[anchor], same_view)))
        compute = reference_losses if self.config.reference else packed_losses
        values = compute(
            [term for _, term in terms], self.config.temperature, self.config.denominator, list(crossing.values())
        ).unbind()
        losses: dict[str, Tensor] = {}
        for (name, _), value in zip(terms, values):
            losses[name] = losses[name] + value if name in losses else value
        for name, value in zip(crossing, values[len(terms) :]):
            losses[name] = (losses[name] + value) / 2 if name in losses else value
        return losses

    def _negatives(
        self, found: Retrieved, queue: SearchQueue, video_id: Tensor, key: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`exclude`, `stored_key` and `stored_exclude` of a `CrossTerm`."""
        exclude = non_negative_rows(found.video_id, gather_rows(video_id, dim=0), rank() * len(video_id))
        if self.config.search.dist == "mean":
            exclude = exclude.flatten(1)[:, None]
        if self.config.search.negatives == "batch":
            return exclude, key, exclude
        stored, entry_id = queue.spread(len(key))
        stored_exclude = non_negative_entries(found.video_id, video_id, entry_id)[:, : exclude.shape[1]]
        width = max(exclude.shape[2], stored_exclude.shape[2])
        exclude, stored_exclude = (
            pad(rows, (0, width - rows.shape[2]), value=-1) for rows in (exclude, stored_exclude)
        )
        return exclude, stored, stored_exclude

    def _cross_video(
        self,
        batch: Batch,
        streams: Streams,
        projected: Mapping[str, Tensor],
        gathered: Mapping[str, Tensor],
        statistics: dict[str, Tensor],
    ) -> dict[str, CrossTerm]:
        """Terms of Eq. 10 for view i where the queue is full; the entries of view j wait for the end of the step."""
        n = batch.video_id.shape[0]
        crossing: dict[str, CrossTerm] = {}
        for modality, clip in (("s", streams.static), ("d", streams.difference)):
            term = f"v{modality}"
            if modality not in self.search.queues or term not in self.terms:
                continue
            described = self.search.describe(modality, clip)
            queue = self.search.queues[modality]
            if self.search.ready(modality):
                found = queue.retrieve(described[:n], self.config.search, batch.video_id)
                negatives = self._negatives(found, queue, batch.video_id, gathered[modality])
                stored = found.rgb_projection, found.modality_projection, found.weight
                crossing[term] = CrossTerm(projected[term], gathered[modality], *stored, *negatives)
                known = (found.video_id >= 0) & (batch.label[:, None] >= 0)
                hits = (found.label == batch.label[:, None]) & known
                statistics[f"search/{term}_hit_rate"] = hits.sum() / known.sum().clamp(min=1)
            statistics[f"search/{term}_queue_fill"] = queue.fill.clone()
            view_j = (value[n:].detach() for value in (described, projected[term], projected[modality]))
            self._pending.append((modality, Entries(*view_j, batch.video_id, batch.label)))
        return crossing
