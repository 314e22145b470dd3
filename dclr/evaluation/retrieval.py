"""Nearest-neighbour retrieval of videos by the features of their clips.

DCLR Tab. 3; the steps are those of FAME's and DualVar's released code. G gallery videos (the training split),
Q query videos (the test split), n clips a video, D features.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

Center = Literal["per_split", "train", "none"]
CENTERINGS = {
    "per_split": "minus each split's own mean (uses the whole query set: transductive)",
    "train": "minus the gallery's mean",
    "none": "not centred",
}
# Rows of the similarity matrix that are sorted at once.
QUERY_ROWS = 256


def retrieval(
    gallery: Tensor,
    gallery_labels: Tensor,
    query: Tensor,
    query_labels: Tensor,
    ks: Sequence[int] = (1, 5, 10, 20, 50),
    clip_l2: bool = True,
    center: Center = "per_split",
    own: Tensor | None = None,
) -> dict[str, Any]:
    """R@k: share of queries with at least one video of their class among the k most similar of the gallery.

    Args:
        gallery, query: (G, n, D) and (Q, n, D) floating point, or (G, D) and (Q, D): one clip a video.
        gallery_labels, query_labels: (G,) and (Q,) class indices, not negative.
        ks: numbers of neighbours; one beyond G takes the whole gallery.
        clip_l2: whether each clip's feature is l2-normalised before the mean over a video's clips.
        center: what is subtracted from a video's feature before the cosine.
        own: (Q,) the row of the gallery that is the query's own video, as in `nearest`.

    Returns:
        {"R@1": percent, ..., "chance": the same of a random order, "protocol": how it was computed}

    Raises:
        ValueError: shapes that don't fit, a negative label, no video, k < 1 or an unknown `center`.
    """
    _check_labels("gallery_labels", gallery_labels, gallery)
    _check_labels("query_labels", query_labels, query)
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be positive numbers, got {tuple(ks)}")
    neighbours_qk = nearest(gallery, query, max(ks), clip_l2=clip_l2, center=center, own=own)[1]
    same_class_qk = gallery_labels[neighbours_qk] == query_labels[:, None]
    recall = {f"R@{k}": 100 * same_class_qk[:, :k].any(1).double().mean().item() for k in ks}
    chance = recall_by_chance(gallery_labels, query_labels, ks, own)
    return {**recall, "chance": chance, "protocol": _retrieval_protocol(gallery, query, clip_l2, center, own)}


def recall_by_chance(
    gallery_labels: Tensor, query_labels: Tensor, ks: Sequence[int], own: Tensor | None = None
) -> dict[str, float]:
    """{"R@1": percent, ...} that a random order of the gallery gives on average; arguments as of `retrieval`.

    A query of which s of the G gallery videos are of its class misses them with its k by the probability
    (G - s)/G * (G - s - 1)/(G - 1) * ... , k factors.
    """
    same_q = (gallery_labels == query_labels[:, None]).sum(1).double()
    among_q = torch.full_like(same_q, len(gallery_labels))
    if own is not None:
        # Its own video is of its class, and no neighbour of it.
        same_q, among_q = same_q - (own >= 0).double(), among_q - (own >= 0).double()
    miss_q, chance = torch.ones_like(same_q), {}
    for drawn in range(max(ks)):
        left_q = (among_q - drawn).clamp(min=1)
        miss_q = miss_q * ((among_q - same_q - drawn) / left_q).clamp(min=0)
        if drawn + 1 in ks:
            chance[f"R@{drawn + 1}"] = 100 * (1 - miss_q).mean().item()
    return {f"R@{k}": chance[f"R@{k}"] for k in ks}


def nearest(
    gallery: Tensor,
    query: Tensor,
    k: int,
    *,
    clip_l2: bool = True,
    center: Center = "per_split",
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k (at most G) most similar gallery videos of each query, computed in float64.

    Args:
        own: (Q,) int64, the row of the gallery that is the query's own video, which is never returned; -1 none. With
            it, k is at most G - 1.

    Returns:
        similarities (Q, k) float64, descending, and indices (Q, k) int64; ties go to the lower index.
    """
    gallery_gd, query_qd = _video_features("gallery", gallery, clip_l2), _video_features("query", query, clip_l2)
    if gallery_gd.shape[1] != query_qd.shape[1]:
        dims = f"{query_qd.shape[1]} features a clip, gallery {gallery_gd.shape[1]}"
        raise ValueError(f"query has {dims}: they must be equal")
    gallery_gd, query_qd = map(normalize, _centered(gallery_gd, query_qd, center))
    own_q = torch.full((len(query_qd),), -1) if own is None else own
    if own_q.max() >= 0:
        k = min(k, len(gallery_gd) - 1)
        if k < 1:
            raise ValueError("gallery has the query's own video alone: there is no other to find")
    rows = zip(query_qd.split(QUERY_ROWS), own_q.split(QUERY_ROWS))
    similarities, indices = zip(*(_largest(_without_own(rows_qd @ gallery_gd.T, own_q), k) for rows_qd, own_q in rows))
    return torch.cat(similarities), torch.cat(indices)


def _without_own(similarity_qg: Tensor, own_q: Tensor) -> Tensor:
    """With each query's own video last."""
    with_own = (own_q >= 0).nonzero()[:, 0]
    similarity_qg[with_own, own_q[with_own]] = -torch.inf
    return similarity_qg


def _largest(similarity_qg: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # A stable sort, as topk leaves the order of ties open; cloned, so that the whole row is not kept.
    values, order = torch.sort(similarity_qg, dim=1, descending=True, stable=True)
    return values[:, :k].clone(), order[:, :k].clone()


def _video_features(name: str, features: Tensor, clip_l2: bool) -> Tensor:
    """(V, n, D) or (V, D) -> (V, D) float64: mean over the clips."""
    if features.ndim not in (2, 3) or 0 in features.shape:
        shape = tuple(features.shape)
        raise ValueError(f"{name} must be (videos, clips, features) and not empty, got {shape}")
    clips_vnd = features.double() if features.ndim == 3 else features.double()[:, None]
    return (normalize(clips_vnd, dim=2) if clip_l2 else clips_vnd).mean(1)


def _centered(gallery_gd: Tensor, query_qd: Tensor, center: Center) -> tuple[Tensor, Tensor]:
    if center not in CENTERINGS:
        raise ValueError(f"center must be one of {', '.join(CENTERINGS)}, got {center!r}")
    if center == "none":
        return gallery_gd, query_qd
    gallery_mean = gallery_gd.mean(0)
    query_mean = query_qd.mean(0) if center == "per_split" else gallery_mean
    return gallery_gd - gallery_mean, query_qd - query_mean


def _check_labels(name: str, labels: Tensor, features: Tensor) -> None:
    if labels.shape != features.shape[:1]:
        raise ValueError(f"{name} must be ({features.shape[0]},), one a video, got {tuple(labels.shape)}")
    if (labels < 0).any():
        raise ValueError(f"{name} must be class indices, got {int(labels.min())} (a video without a label)")


def overlap_in_words(own: Tensor | None) -> str:
    """What the protocol says of queries that are in the gallery."""
    inside = 0 if own is None else int((own >= 0).sum())
    if not inside:
        return ""
    if inside == len(own):
        return "; leave-one-out: no video counts as its own neighbour"
    return f"; {inside} of the {len(own)} test videos are training videos too, and none counts as its own neighbour"


def _retrieval_protocol(gallery: Tensor, query: Tensor, clip_l2: bool, center: Center, own: Tensor | None) -> str:
    clips = query.shape[1] if query.ndim == 3 else 1
    each = "each l2-normalised, " if clip_l2 else ""
    return (
        f"retrieval of {len(query)} test videos among {len(gallery)} training videos: {clips} clips a video, "
        f"{each}mean over clips, {CENTERINGS[center]}, cosine; R@k = a same-class video among the k nearest"
        f"{overlap_in_words(own)}"
    )
