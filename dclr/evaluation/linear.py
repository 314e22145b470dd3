"""Linear probe: one linear layer trained on cached features of a frozen encoder (DCLR Sec. 4.1).

V videos, n clips a video, D features, K classes. Hyper-parameters are those of DCLR's released script.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from dclr.config import at_least
from dclr.evaluation.classification import Classified, classified
from dclr.evaluation.features import Features, check_features


@dataclass(frozen=True)
class LinearConfig:
    """SGD of the linear layer, and how a video is scored."""

    lr: float = 5.0
    """Learning rate of the first epoch."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 0.0
    """Of weight and bias."""
    batch: int = 128
    """Clips in a step."""
    epochs: int = 10
    """Passes over all clips of all training videos."""
    milestones: tuple[int, ...] = (6, 8)
    """Epochs before which the learning rate is multiplied by 0.1."""
    clips: int | None = None
    """Clips of each video in an epoch, drawn anew each time; by default all."""
    l2: bool = True
    """L2-normalise each clip's feature."""
    average: Literal["logits", "prob"] = "logits"
    """What is averaged over the clips of a test video: logits or softmax probabilities."""

    def __post_init__(self) -> None:
        at_least("linear", self, lr=0, momentum=0, weight_decay=0, batch=1, epochs=1)
        if self.clips is not None:
            at_least("linear", self, clips=1)


def linear_probe(
    train: Features,
    test: Features,
    config: LinearConfig | None = None,
    *,
    classes: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Classified:
    """Train a linear layer on the clips of `train`, test it on those of `test`.

    Args:
        train, test: features (V, n, D) and labels (V,).
        config: hyper-parameters, by default DCLR's.
        classes: K; by default the largest label + 1.
        seed: of the initial weights and of the order of clips.
        device: where the layer is trained.

    Returns:
        The guesses, and in percent "top1" and "top5" (a test video by the average over its clips), "clip_top1" (a test
        clip by itself) and "train_clip_top1"; and "protocol".

    Raises:
        ValueError: features that don't fit together, a label outside of the classes, an unknown `average`.
    """
    config = config or LinearConfig()
    classes = check_features(train, test, classes)
    if config.average not in ("logits", "prob"):
        raise ValueError(f"average must be logits or prob, got {config.average!r}")
    generator = torch.Generator().manual_seed(seed)
    train_vnd, test_vnd = (_inputs(features, config, device) for features in (train, test))
    layer = _initial_layer(train_vnd.shape[2], classes, generator).to(device)
    _fit(layer, train_vnd, train.labels.to(device), config, generator)
    with torch.inference_mode():
        train_logits, test_logits = layer(train_vnd).cpu(), layer(test_vnd).cpu()
    return classified(
        video_scores(test_logits, config.average),
        test.labels,
        _probe_protocol(train_vnd, test_vnd, config, classes, seed),
        clip_top1=top1(test_logits, test.labels[:, None]),
        train_clip_top1=top1(train_logits, train.labels[:, None]),
    )


def _inputs(features: Features, config: LinearConfig, device: torch.device | str) -> Tensor:
    clips_vnd = features.clips.to(device, torch.float32)
    return normalize(clips_vnd, dim=2) if config.l2 else clips_vnd


def _initial_layer(dim: int, classes: int, generator: torch.Generator) -> nn.Linear:
    # Without PyTorch's own initialisation, which would draw from the global generator.
    layer = nn.utils.skip_init(nn.Linear, dim, classes)
    nn.init.normal_(layer.weight, std=0.01, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _fit(
    layer: nn.Linear, clips_vnd: Tensor, labels_v: Tensor, config: LinearConfig, generator: torch.Generator
) -> None:
    clips_bd = clips_vnd.flatten(0, 1)
    labels_b = labels_v.repeat_interleave(clips_vnd.shape[1])
    clips = clips_vnd.shape[1]
    optimizer = torch.optim.SGD(
        layer.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(config.milestones), gamma=0.1)
    for _ in range(config.epochs):
        # The order is drawn on the CPU: the same on every device.
        order = torch.randperm(len(clips_bd), generator=generator)
        if config.clips is not None and config.clips < clips:
            order = _first_of_each(order, clips, config.clips)
        order = order.to(clips_bd.device)
        for rows in order.split(config.batch):
            optimizer.zero_grad()
            cross_entropy(layer(clips_bd[rows]), labels_b[rows]).backward()
            optimizer.step()
        schedule.step()


def _first_of_each(order_b: Tensor, clips: int, count: int) -> Tensor:
    """Of an order of all clips, the first `count` of each video, in that order."""
    video_b = order_b // clips
    by_video = torch.sort(video_b, stable=True).indices.reshape(-1, clips)[:, :count]
    return order_b[by_video.flatten().sort().values]


def video_scores(logits_vnk: Tensor, average: str) -> Tensor:
    """(V, K): the mean over the clips of each video of its "logits" or softmax probabilities ("prob")."""
    scores_vnk = logits_vnk.softmax(2) if average == "prob" else logits_vnk
    return scores_vnk.mean(1)


def top1(scores: Tensor, labels: Tensor) -> float:
    """Percent of the labels (...) that have the highest of the scores (..., K)."""
    return 100 * (scores.argmax(-1) == labels).double().mean().item()


def _probe_protocol(train_vnd: Tensor, test_vnd: Tensor, config: LinearConfig, classes: int, seed: int) -> str:
    steps = ",".join(map(str, config.milestones)) or "never"
    averaged = "logits" if config.average == "logits" else "softmax probabilities"
    epochs = f"{config.epochs} epochs" + (f" of {config.clips} random clips a video" if config.clips else "")
    return (
        f"linear probe, encoder frozen in evaluation mode, cached features{' l2-normalised' * config.l2}: "
        f"{len(train_vnd)} training videos x {train_vnd.shape[1]} clips, {classes} classes, SGD "
        f"lr {config.lr:g} wd {config.weight_decay:g} m {config.momentum:g} batch {config.batch}, "
        f"{epochs}, x0.1 at {steps}, seed {seed}; "
        f"top-1 of {len(test_vnd)} test videos by the mean {averaged} of {test_vnd.shape[1]} clips"
    )
