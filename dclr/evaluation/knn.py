"""Classification of videos by a weighted vote of their nearest neighbours (Wu et al., Instance Discrimination, 2018).

G training videos, Q test videos, n clips a video, D features, k neighbours, C classes. Neighbours are
those of `nearest`.
"""

import torch
from torch import Tensor

from dclr.evaluation.classification import Classified, classified
from dclr.evaluation.features import Features, check_features
from dclr.evaluation.retrieval import CENTERINGS, Center, nearest, overlap_in_words

# Neighbours that vote, where it is not said.
VOTERS = 20


def knn_classification(
    train: Features,
    test: Features,
    *,
    classes: int,
    k: int = VOTERS,
    temperature: float = 0.07,
    clip_l2: bool = True,
    center: Center = "none",
    own: Tensor | None = None,
) -> Classified:
    """Each test video's class by the votes exp(cosine / temperature) of its k nearest training videos.

    Equal sums of votes go to the lower class index, and a class without a vote is not a guess.

    Args:
        train, test: features (G, n, D) and (Q, n, D), labels (G,) and (Q,).
        classes: C.
        k: neighbours that vote; beyond G all videos do.
        temperature: above 0; the smaller, the more the nearest ones decide.
        clip_l2: whether each clip's feature is l2-normalised before the mean over a video's clips.
        center: what is subtracted from a video's feature before the cosine, as in `retrieval`.
        own: (Q,) the training video that a test video itself is, as in `nearest`; it has no vote.

    Returns:
        The guesses, and their figures with "protocol".

    Raises:
        ValueError: features that don't fit together, a label outside of the classes, k < 1, temperature <= 0 or
            an unknown `center`.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    check_features(train, test, classes)
    similarities_qk, neighbours_qk = nearest(train.clips, test.clips, k, clip_l2=clip_l2, center=center, own=own)
    votes_qc = _votes(similarities_qk, temperature, train.labels[neighbours_qk], classes)
    voters = neighbours_qk.shape[1]
    protocol = _vote_protocol(train, test, classes, voters, temperature, clip_l2, center) + overlap_in_words(own)
    # A class without a vote is not a guess.
    return classified(votes_qc.where(votes_qc > 0, -torch.inf), test.labels, protocol)


def _votes(similarities_qk: Tensor, temperature: float, labels_qk: Tensor, classes: int) -> Tensor:
    """Sum of the votes for each class, (Q, C), up to a factor of each row."""
    # The nearest comes first: relative to it a small temperature does not overflow.
    weights_qk = ((similarities_qk - similarities_qk[:, :1]) / temperature).exp()
    return weights_qk.new_zeros(len(weights_qk), classes).scatter_add(1, labels_qk, weights_qk)


def _vote_protocol(
    train: Features, test: Features, classes: int, voters: int, temperature: float, clip_l2: bool, center: Center
) -> str:
    each = "each l2-normalised, " if clip_l2 else ""
    return (
        f"nearest-neighbour classification of {len(test.clips)} test videos among {len(train.clips)} training videos, "
        f"{classes} classes: {test.clips.shape[1]} clips a video, {each}mean over clips, {CENTERINGS[center]}, cosine; "
        f"votes exp(cosine / {temperature:g}) of the {voters} nearest"
    )
