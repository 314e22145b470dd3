"""The pictures of a run: what the page shows of an encoder on videos, made from features and clips."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from dclr.config import PretrainConfig
from dclr.evaluation import Features, nearest
from dclr.evaluation.checkpoint import Evaluated
from dclr.evaluation.dataset import EvaluationDataConfig
from dclr.methods import Method
from dclr.models import build_encoder
from dclr.visualize.activation import activation_maps, draw_activation, evaluation_clip
from dclr.visualize.curves import curves_of, draw_curve
from dclr.visualize.drawing import class_name, svg
from dclr.visualize.kernels import draw_kernels, temporal_weights
from dclr.visualize.masks import draw_masks, foreground_masks
from dclr.visualize.report import Picture
from dclr.visualize.retrieval import Shown, draw_retrieval
from dclr.visualize.search import Descriptor, Found, draw_search

# Gallery videos, evenly chosen, that the search goes through, and how many clips are described at once.
SEARCHED, BATCH = 200, 16


@dataclass(frozen=True)
class Look:
    """What the pictures of an encoder are made from.

    Attributes:
        encoder: on its device, in evaluation mode.
        method: of the run that the encoder is of, with its last epoch started; None of weights alone.
        evaluated: features of the gallery, its training videos, and of the queries, its test videos.
        chosen: rows of the queries that are shown.
    """

    encoder: nn.Module
    method: Method | None
    evaluated: Evaluated
    chosen: Sequence[int]

    @property
    def gallery(self) -> Features:
        return self.evaluated.train

    @property
    def queries(self) -> Features:
        return self.evaluated.test

    @property
    def data(self) -> EvaluationDataConfig:
        return self.evaluated.data

    @property
    def pretraining(self) -> PretrainConfig:
        return self.evaluated.subject.pretraining

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def class_name(self, features: Features, row: int) -> str:
        return class_name(self.evaluated.classes, int(features.labels[row]))

    def caption(self, row: int) -> str:
        return f"{self.class_name(self.queries, row)}: {self.queries.paths[row]}"


def picture(name: str, figure: Figure, caption: str) -> Picture:
    """The figure under a file name, which ends in .svg."""
    return Picture(f"{name}.svg", svg(figure, name), caption)


def curves(records: Sequence[dict[str, Any]]) -> list[Picture]:
    """A picture for each curve of the records of training steps."""
    drawn = [(curve, draw_curve(curve, records)) for curve in curves_of(records)]
    return [picture("curve_" + re.sub(r"\W+", "_", curve.title), figure, curve.reading) for curve, figure in drawn]


def activations(look: Look) -> Iterator[Picture]:
    """Activation maps of each chosen video."""
    augment = look.pretraining.augment
    for number, row in enumerate(look.chosen):
        path = look.queries.paths[row]
        clip = evaluation_clip(path, look.data, look.data.frames + 1)
        maps = activation_maps(look.encoder, clip.to(look.device), augment.mean, augment.std)
        title = f"{look.class_name(look.queries, row)}, {Path(path).name}"
        yield picture(f"activation_{number}", draw_activation(clip, maps, title), look.caption(row))


def neighbours(look: Look, k: int) -> Iterator[Picture]:
    """Each chosen video beside the k nearest of the gallery."""
    # Of all queries, as their mean is part of the protocol.
    cosines_qk, rows_qk = nearest(look.gallery.clips, look.queries.clips, k, own=look.evaluated.own)

    def shown(features: Features, row: int, cosine: float = 1.0) -> Shown:
        frame = evaluation_clip(features.paths[row], look.data, 1)[0].numpy()
        return Shown(frame, int(features.labels[row]), cosine)

    for number, row in enumerate(look.chosen):
        found = [shown(look.gallery, *pair) for pair in zip(rows_qk[row].tolist(), cosines_qk[row].tolist())]
        figure = draw_retrieval(shown(look.queries, row), found, look.evaluated.classes)
        yield picture(f"retrieval_{number}", figure, look.caption(row))


def searches(look: Look) -> Iterator[Picture]:
    """Two views of each chosen video, and the gallery clip nearest to each by static clip and by difference."""
    augment, frames = look.pretraining.augment, look.data.frames + 1
    descriptor = Descriptor(look.encoder, getattr(look.method, "search", None), augment.mean, augment.std)
    rows = np.unique(np.linspace(0, len(look.gallery.clips) - 1, SEARCHED).round().astype(int)).tolist()
    paths = [look.gallery.paths[row] for row in rows]
    clips = torch.stack([evaluation_clip(path, look.data, frames) for path in paths])
    described = _described(descriptor, clips, look.device)
    for number, row in enumerate(look.chosen):
        path = look.queries.paths[row]
        others = [place for place, other in enumerate(paths) if other != path]
        views = torch.stack([evaluation_clip(path, look.data, frames, share) for share in (0.25, 0.75)])
        nearest_of = {}
        for kind, query in _described(descriptor, views, look.device).items():
            cosines, places = (query @ described[kind][others].T).max(1)
            hits = [(others[place], cosine) for place, cosine in zip(places.tolist(), cosines.tolist())]
            nearest_of[kind] = [Found(clips[i].numpy(), look.class_name(look.gallery, rows[i]), c) for i, c in hits]
        figure = draw_search([Found(view.numpy(), "") for view in views], nearest_of)
        caption = f"{look.caption(row)}; among {len(others)} videos, by the {descriptor.name}"
        yield picture(f"search_{number}", figure, caption)


def _described(descriptor: Descriptor, clips: Tensor, device: torch.device) -> dict[str, Tensor]:
    parts = [descriptor(part.to(device)) for part in clips.split(BATCH)]
    return {kind: torch.cat([part[kind] for part in parts]) for kind in parts[0]}


def kernels(encoder: nn.Module, pretraining: PretrainConfig, beside: Mapping[str, nn.Module]) -> list[Picture]:
    """Temporal kernels of the encoder, of one freshly initialised, and of others; none where it has no such kernels."""
    weights = temporal_weights(encoder)
    if not weights:
        return []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(pretraining.train.seed)
        start = build_encoder(pretraining.encoder)
    encoders = {"before training": start, "this run": encoder, **beside}
    figure = draw_kernels({name: temporal_weights(other) for name, other in encoders.items()})
    return [picture("kernels", figure, f"Temporal kernel weights of {pretraining.encoder}, from input to output")]


def masks(look: Look) -> Iterator[Picture]:
    """FAME's masks of the first two chosen videos, each merged onto the other."""
    foreground = getattr(look.pretraining.method, "foreground", look.pretraining.augment.foreground)
    rows = look.chosen[:2]
    clips = [evaluation_clip(look.queries.paths[row], look.data, look.data.frames) for row in rows]
    for number, row in enumerate(rows):
        weights = foreground_masks(clips[number], foreground.beta, foreground.hue)
        figure = draw_masks(clips[number], clips[(number + 1) % len(clips)], weights)
        used = f"this run merges by {foreground.mask}" if foreground.merges else "this run merges none"
        yield picture(f"masks_{number}", figure, f"{look.caption(row)}; beta {foreground.beta:g}, {used}")
