"""`dclr linear`, `dclr retrieve` and `dclr knn`: evaluations of a checkpoint on a dataset by its features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from dclr.config import ConfigError
from dclr.distributed import choose_device
from dclr.evaluation import LinearConfig, knn_classification, linear_probe, retrieval
from dclr.evaluation.checkpoint import Evaluated, EvaluationConfig, add_record, features_of
from dclr.training import find_checkpoint


@dataclass
class LinearProbeConfig(EvaluationConfig):
    """Train a linear classifier on the features of a frozen encoder (cached: each clip is encoded once)."""

    linear: LinearConfig = field(default_factory=LinearConfig)
    seed: int = 0


@dataclass
class RetrieveConfig(EvaluationConfig):
    """Find the nearest training videos of each test video: R@k."""

    ks: tuple[int, ...] = (1, 5, 10, 20, 50)
    clip_l2: bool = True
    """Normalise each clip's feature before the mean over clips."""
    center: Literal["per_split", "train", "none"] = "per_split"

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ConfigError(f"ks: got {self.ks}, expected numbers of at least 1")


@dataclass
class KnnConfig(EvaluationConfig):
    """Classify each test video by a weighted vote of the nearest training videos."""

    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """A neighbour's vote weighs exp(cosine / temperature)."""
    clip_l2: bool = True
    """Normalise each clip's feature before the mean over clips."""
    center: Literal["per_split", "train", "none"] = "none"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k: got {self.k}, expected at least 1")
        if not self.temperature > 0:
            raise ConfigError(f"temperature: got {self.temperature}, expected a temperature above 0")


def linear(config: LinearProbeConfig) -> dict[str, Any]:
    """Linear probe of a checkpoint (DCLR Sec. 4.1); see `dclr.evaluation.linear_probe`.

    Returns:
        The record that was appended to <output>/metrics.jsonl: "top1" and so on in percent, and the protocol.
    """

    def probe(features: Evaluated) -> dict[str, Any]:
        device, classes = choose_device(config.device), len(features.classes)
        return linear_probe(
            features.train, features.test, config.linear, classes=classes, seed=config.seed, device=device
        )

    return _evaluate("linear", config, probe)


def retrieve(config: RetrieveConfig) -> dict[str, Any]:
    """Retrieval by the features of a checkpoint (DCLR Tab. 3); see `dclr.evaluation.retrieval`.

    Returns:
        The record that was appended to <output>/metrics.jsonl: "R@1" and so on in percent, and the protocol.
    """

    def search(features: Evaluated) -> dict[str, Any]:
        train, test = features.train, features.test
        return retrieval(train.clips, train.labels, test.clips, test.labels, config.ks, config.clip_l2, config.center)

    return _evaluate("retrieve", config, search)


def knn(config: KnnConfig) -> dict[str, Any]:
    """Nearest-neighbour classification by the features of a checkpoint; see `dclr.evaluation.knn_classification`.

    Returns:
        The record that was appended to <output>/metrics.jsonl: "top1" and so on in percent, and the protocol.
    """

    def vote(features: Evaluated) -> dict[str, Any]:
        options = {"k": config.k, "temperature": config.temperature, "clip_l2": config.clip_l2, "center": config.center}
        return knn_classification(features.train, features.test, classes=len(features.classes), **options)

    return _evaluate("knn", config, vote)


def _evaluate(name: str, config: EvaluationConfig, figures: Callable[[Evaluated], dict[str, Any]]) -> dict[str, Any]:
    """Features, figures, one record of both."""
    features = features_of(name, config)
    record = {
        **figures(features),
        "checkpoint": str(find_checkpoint(config.checkpoint)),
        "epoch": features.position["epoch"],
        "encoder": features.pretraining.encoder,
    }
    return add_record(features.folder, name, features.data, record, features.train, features.test)
