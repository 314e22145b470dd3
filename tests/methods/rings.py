"""A set on which an objective learns, or fails to, within seconds: moving scenes of one dimension.

A video is a ring of 40 pixels in colour: a texture of its own, of one of eight hues (`scene`), over which three faint
objects, alike and with a look of the video's own, move at one of eight velocities (`motion`). The texture is easy to
learn and the motion is hard, as in real videos, so that terms of an objective that share an encoder race each other.
"""

from __future__ import annotations

import colorsys
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from dclr.augment import AugmentConfig, Draw
from dclr.data.clips import Batch
from dclr.evaluation import retrieval
from dclr.methods import build_method

VELOCITIES = (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0)
PIXELS, FRAMES, CLIP, CROP = 40, 24, 8, 32
AUGMENT = AugmentConfig(flip=0, hue=0, blur=0)


class Rings(NamedTuple):
    """`videos` (n, FRAMES, PIXELS, 3) uint8; `motion` and `scene` (n,) int64."""

    videos: np.ndarray
    motion: np.ndarray
    scene: np.ndarray


def rings(number: int, seed: int, turning: bool = False) -> Rings:
    """Where `turning`, the second half of each video has a motion drawn anew; its label is the first half's."""
    rng = np.random.default_rng(seed)
    motion, scene = np.arange(number) % 8, rng.integers(8, size=number)
    return Rings(np.stack([_ring(m, s, rng, turning) for m, s in zip(motion, scene)]), motion, scene)


def _ring(motion: int, scene: int, rng: np.random.Generator, turning: bool) -> np.ndarray:
    velocity = np.full(FRAMES, VELOCITIES[motion] + rng.uniform(-0.12, 0.12))
    if turning:
        velocity[FRAMES // 2 :] = VELOCITIES[rng.integers(8)] + rng.uniform(-0.12, 0.12)
    look = np.zeros(7)
    while not 2 <= look.sum() <= 5:
        look = (rng.random(7) < 0.5).astype(float)
    fine = np.convolve(np.repeat(look, 20), np.full(12, 1 / 12), "same")  # ten values a pixel, soft edges
    start = rng.uniform(0, PIXELS, 3) + (velocity.cumsum() - velocity[0])[:, None]
    place = (np.arange(PIXELS) - start[:, :, None]) % PIXELS  # (frames, objects, pixels)
    objects = np.interp(place * 10, np.arange(len(fine)), fine, right=0).sum(1).clip(0, 1)
    return np.round(255 * np.clip(_texture(scene, rng) + 0.2 * objects[..., None], 0, 1)).astype(np.uint8)


def _texture(scene: int, rng: np.random.Generator) -> np.ndarray:
    angle = 2 * np.pi * np.arange(PIXELS) / PIXELS
    wave = sum(rng.normal() * np.sin(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(1, 7))
    wave = (wave - wave.min()) / np.ptp(wave)
    hue = scene / 8 + rng.uniform(-0.05, 0.05)
    light = np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.6, 1), rng.uniform(0.7, 1)))
    dark = np.array(colorsys.hsv_to_rgb((hue + 0.05) % 1, rng.uniform(0.3, 1), rng.uniform(0, 0.4)))
    return 0.3 + 0.6 * (dark + (light - dark) * wave[:, None] - 0.5)  # objects add to it without an end at 0 or 1


class RingEncoder(nn.Module):
    """Four units of a convolution over the ring and one over time."""

    feature_dim = 32

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width, kernel, stride in ((3, 12, 7, 1), (12, 16, 3, 1), (16, 24, 3, 2), (24, 32, 3, 2)):
            space = nn.Conv3d(before, width, (1, 1, kernel), (1, 1, 2), (0, 0, kernel // 2), bias=False)
            time = nn.Conv3d(width, width, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)
            layers += [space, nn.BatchNorm3d(width), nn.ReLU(), time, nn.BatchNorm3d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, clip_bcthw: torch.Tensor) -> torch.Tensor:
        return self.layers(clip_bcthw)


def train(config, data: Rings, steps: int, seed: int = 0, batch: int = 32, lr: float = 0.006):
    """Train an objective, as the demo is trained.

    Returns:
        The method, and name -> value of each loss and of each similarity at each step.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    method = build_method(config, RingEncoder(), AUGMENT).train()
    optimizer = torch.optim.AdamW(method.parameters(), lr, weight_decay=1e-4)
    values: dict[str, list[float]] = defaultdict(list)
    per_epoch = len(data.videos) // batch
    for step in range(steps):
        if step % per_epoch == 0:
            method.start_epoch(step // per_epoch)
            order = rng.permutation(len(data.videos))
        start = step % per_epoch * batch
        output = method(_batch(data, order[start : start + batch], rng), Draw(torch.Generator().manual_seed(step)))
        optimizer.zero_grad()
        output.backward(method.loss_weights)
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 20) * (0.1 if step >= 0.75 * steps else 1)
        optimizer.step()
        method.after_step()
        for name, value in [*output.losses.items(), *output.statistics.items()]:
            values[name].append(value.item())
    return method, values


def _batch(data: Rings, chosen: np.ndarray, rng: np.random.Generator) -> Batch:
    clips = np.stack([_clip(data.videos[number], rng) for _ in range(2) for number in chosen])
    clips = torch.from_numpy(clips).unflatten(0, (2, -1)).unsqueeze(3)  # (2, n, CLIP + 1, 1, CROP, 3)
    return Batch(clips, torch.from_numpy(chosen), torch.from_numpy(data.motion[chosen]))


def _clip(video: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    first, left = rng.integers(FRAMES - CLIP), rng.integers(PIXELS)
    return video[first : first + CLIP + 1, (left + np.arange(CROP)) % PIXELS]


@torch.no_grad()
def figures(encoder: nn.Module, gallery: Rings, query: Rings) -> dict[str, float]:
    """R@1 of motion and of scene, in percent; 12.5 is chance."""
    encoder.eval()
    features = [_features(encoder, data.videos) for data in (gallery, query)]
    found = {}
    for label in ("motion", "scene"):
        labels = [torch.from_numpy(getattr(data, label)) for data in (gallery, query)]
        found[label] = retrieval(features[0], labels[0], features[1], labels[1], (1,))["R@1"]
    return found


def _features(encoder: nn.Module, videos: np.ndarray, starts: Sequence[int] = (0, 5, 10, 15)) -> torch.Tensor:
    mean, std = (torch.tensor(value).view(1, 3, 1, 1, 1) for value in (AUGMENT.mean, AUGMENT.std))
    clips = [
        torch.from_numpy(videos[:, start : start + CLIP, :CROP]).permute(0, 3, 1, 2)[:, :, :, None] for start in starts
    ]
    return torch.stack([encoder((clip.float() / 255 - mean) / std).mean((2, 3, 4)) for clip in clips], 1)
