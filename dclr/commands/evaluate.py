"""`dclr evaluate`, `linear`, `retrieve` and `knn`: evaluations of a checkpoint on a dataset by its features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dclr.config import ConfigError
from dclr.distributed import choose_device
from dclr.evaluation import LinearConfig, knn_classification, linear_probe, retrieval
from dclr.evaluation.checkpoint import Evaluated, EvaluationConfig, features_of
from dclr.evaluation.knn import VOTERS
from dclr.evaluation.recipes import FROZEN_RECIPES
from dclr.evaluation.records import add_record, add_summary
from dclr.evaluation.retrieval import Center
from dclr.evaluation.targets import published
from dclr.suggest import did_you_mean
from dclr.visualize.confusion import write_confusion

KS = (1, 5, 10, 20, 50)


@dataclass
class LinearOptions:
    """How the linear layer is trained, and how often."""

    linear: LinearConfig = field(default_factory=LinearConfig)
    """Of the linear layer."""
    seeds: tuple[int, ...] = (0,)
    """Of the layer's initial weights and the order of clips; several give mean and spread."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ConfigError("seeds: got none, expected at least one")


@dataclass
class RetrieveOptions:
    """What is similar, and how many are looked at."""

    ks: tuple[int, ...] | None = None
    """Numbers of neighbours; by default those of 1, 5, 10, 20, 50 that the gallery has."""
    clip_l2: bool = True
    """Normalise each clip's feature before the mean over clips."""
    center: Center = "per_split"
    """What is subtracted before the cosine; the figures without it, or with it, stand beside."""

    def __post_init__(self) -> None:
        if self.ks is not None and (not self.ks or min(self.ks) < 1):
            raise ConfigError(f"ks: got {self.ks}, expected numbers of at least 1")


@dataclass
class KnnOptions:
    """Who votes, and how much a vote counts."""

    k: int | None = None
    """Neighbours that vote; by default 20, or all of fewer."""
    temperature: float = 0.07
    """A neighbour's vote weighs exp(cosine / temperature)."""
    clip_l2: bool = True
    """Normalise each clip's feature before the mean over clips."""
    center: Center = "none"
    """What is subtracted before the cosine."""

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise ConfigError(f"k: got {self.k}, expected at least 1")
        if not self.temperature > 0:
            raise ConfigError(f"temperature: got {self.temperature}, expected a temperature above 0")


@dataclass
class SplitsConfig(EvaluationConfig):
    """An evaluation of one split or several."""

    splits: tuple[int, ...] = ()
    """Splits of the dataset to evaluate on, with mean and spread; by default `data.split` alone."""


@dataclass
class LeaveOneOutConfig(SplitsConfig):
    """An evaluation that needs no videos set apart."""

    leave_one_out: bool = False
    """Compare every video, of both subsets, with all others instead of the test with the training videos."""


@dataclass
class LinearProbeConfig(LinearOptions, SplitsConfig):
    """Train a linear classifier on the features of a frozen encoder."""


@dataclass
class RetrieveConfig(RetrieveOptions, LeaveOneOutConfig):
    """Find the nearest training videos of each test video: R@k."""


@dataclass
class KnnConfig(KnnOptions, LeaveOneOutConfig):
    """Classify each test video by a weighted vote of the nearest training videos."""


@dataclass
class EvaluateConfig(LinearOptions, LeaveOneOutConfig):
    """Several evaluations of a checkpoint; each video is decoded and encoded once for all of them."""

    protocols: str = "linear,knn,retrieve"
    """Which, with commas between."""
    retrieve: RetrieveOptions = field(default_factory=RetrieveOptions)
    """Of the retrieval."""
    knn: KnnOptions = field(default_factory=KnnOptions)
    """Of the nearest-neighbour classification."""


_CONFIGS = {
    "evaluate": EvaluateConfig,
    "linear": LinearProbeConfig,
    "knn": KnnConfig,
    "retrieve": RetrieveConfig,
}


def recipe_config(verb: str, recipe: str | None, checkpoint: Any) -> Any:
    """The configuration of a verb, by one of `dclr.evaluation.recipes.FROZEN_RECIPES`.

    Raises:
        ConfigError: there is no such recipe, or its source has no such evaluation.
    """
    config = _CONFIGS[verb](checkpoint)
    if recipe is None:
        return config
    if recipe not in FROZEN_RECIPES:
        raise ConfigError(f"recipe: got {recipe!r}{did_you_mean(recipe, FROZEN_RECIPES)}")
    found = FROZEN_RECIPES[recipe]
    if verb in ("linear", "retrieve") and getattr(found, verb) is None:
        having = ", ".join(name for name, other in FROZEN_RECIPES.items() if getattr(other, verb) is not None)
        raise ConfigError(f"recipe: got {recipe}, whose source has no such evaluation; expected one of {having}")
    config.data = replace(config.data, **found.data)
    if verb in ("evaluate", "linear") and found.linear is not None:
        config.linear = found.linear
    if verb == "retrieve":
        config = replace(config, **found.retrieve)
    if verb == "evaluate":
        names = [name for name in ("linear", "knn", "retrieve") if name == "knn" or getattr(found, name) is not None]
        config.protocols = ",".join(names)
        config.retrieve = replace(config.retrieve, **(found.retrieve or {}))
    return config


class Result(NamedTuple):
    """One evaluation: what goes to its record, and each test video's guess, where it classifies."""

    record: dict[str, Any]
    guesses: Tensor | None = None


# From features to the results of one protocol, of each seed one.
Protocol = Callable[[Evaluated], Iterator[Result]]


def evaluate(config: EvaluateConfig) -> dict[str, dict[str, Any]]:
    """Linear probe, nearest-neighbour classification and retrieval of a checkpoint, on features computed once.

    Under torchrun all processes encode; what follows is the first's.

    Returns:
        Of each protocol its record, as `linear`, `knn` and `retrieve` return it; empty on other processes.
    """
    known: dict[str, Protocol] = {
        "linear": _linear_protocol(config, config.device),
        "knn": _knn_protocol(config.knn),
        "retrieve": _retrieve_protocol(config.retrieve),
    }
    names = [name.strip() for name in config.protocols.split(",") if name.strip()]
    for name in names or [""]:
        if name not in known:
            raise ConfigError(f"protocols: got {name!r}{did_you_mean(name, known)}")
    return _evaluate(config, {name: known[name] for name in names})


def linear(config: LinearProbeConfig) -> dict[str, Any]:
    """Linear probe of a checkpoint (DCLR Sec. 4.1); see `dclr.evaluation.linear_probe`.

    Returns:
        The record that was appended to <output>/metrics.jsonl: "top1" and so on in percent, and the protocol; of
        several seeds or splits their mean, with the standard deviation under "spread".
    """
    return _evaluate(config, {"linear": _linear_protocol(config, config.device)}).get("linear", {})


def retrieve(config: RetrieveConfig) -> dict[str, Any]:
    """Retrieval by the features of a checkpoint (DCLR Tab. 3); see `dclr.evaluation.retrieval`.

    Returns:
        The record that was appended to <output>/metrics.jsonl: "R@1" and so on in percent, and the protocol.
    """
    return _evaluate(config, {"retrieve": _retrieve_protocol(config)}).get("retrieve", {})


def knn(config: KnnConfig) -> dict[str, Any]:
    """Nearest-neighbour classification by the features of a checkpoint; see `dclr.evaluation.knn_classification`.

    Returns:
        The record that was appended to <output>/metrics.jsonl: "top1" and so on in percent, and the protocol.
    """
    return _evaluate(config, {"knn": _knn_protocol(config)}).get("knn", {})


def _linear_protocol(options: LinearOptions, device: str) -> Protocol:
    """The probe, and beside it the one whose features are normalised where its are not."""
    other = replace(options.linear, l2=not options.linear.l2)
    beside = "l2-normalised" if other.l2 else "not normalised"

    def probe(evaluated: Evaluated) -> Iterator[Result]:
        where, classes = choose_device(device), len(evaluated.classes)
        for seed in options.seeds:
            settings = {"classes": classes, "seed": seed, "device": where}
            found, second = (
                linear_probe(evaluated.train, evaluated.test, each, **settings) for each in (options.linear, other)
            )
            trained_on = int((evaluated.own >= 0).sum())
            overlap = f"; {trained_on} of the {len(evaluated.own)} test videos were trained on" if trained_on else ""
            record = _with(found.figures, second.figures, ("top1",), beside)
            yield Result({"seed": seed, **record, "protocol": record["protocol"] + overlap}, found.guesses)

    return probe


def _retrieve_protocol(options: RetrieveOptions) -> Protocol:
    """The retrieval, and beside it the literal one without centring, which the papers' text does not mention."""
    other = "none" if options.center != "none" else "per_split"
    beside = "not centred" if other == "none" else "centred"

    def search(evaluated: Evaluated) -> Iterator[Result]:
        train, test, own = evaluated.train, evaluated.test, evaluated.own
        others = _gallery_size(evaluated)
        ks = options.ks or tuple(k for k in KS if k <= others)
        _require_at_most(others, "ks", max(ks))
        arguments = train.clips, train.labels, test.clips, test.labels, ks, options.clip_l2
        found, second = (retrieval(*arguments, center, own) for center in (options.center, other))
        yield Result(_with(found, second, [f"R@{k}" for k in ks], beside))

    return search


def _knn_protocol(options: KnnOptions) -> Protocol:
    def vote(evaluated: Evaluated) -> Iterator[Result]:
        others = _gallery_size(evaluated)
        k = options.k or min(VOTERS, others)
        _require_at_most(others, "k", k)
        found = knn_classification(
            evaluated.train,
            evaluated.test,
            classes=len(evaluated.classes),
            k=k,
            temperature=options.temperature,
            clip_l2=options.clip_l2,
            center=options.center,
            own=evaluated.own,
        )
        yield Result(found.figures, found.guesses)

    return vote


def _gallery_size(evaluated: Evaluated) -> int:
    """Training videos that every test video can be compared with."""
    others = len(evaluated.train.clips) - bool((evaluated.own >= 0).any())
    if others < 1:
        raise ConfigError(f"data: {evaluated.data.dataset} has no training video but the test video itself")
    return others


def _require_at_most(others: int, name: str, k: int) -> None:
    if k > others:
        raise ConfigError(f"{name}: got {k}, expected at most the {others} training videos to compare with")


def _with(figures: dict[str, Any], second: dict[str, Any], names: Sequence[str], how: str) -> dict[str, Any]:
    """Figures, and behind them those of `names` in `second`, which say how they were computed otherwise."""
    beside = {f"{name}, {how}": second[name] for name in names}
    rest = {name: figures[name] for name in ("chance", "protocol")}
    own = {name: value for name, value in figures.items() if name not in rest}
    return {**own, **beside, **rest}


def _evaluate(config: SplitsConfig, protocols: dict[str, Protocol]) -> dict[str, dict[str, Any]]:
    """The record of each protocol, of all splits; empty on other processes than the first."""
    found: dict[str, list[dict[str, Any]]] = {}
    folders: dict[str, Path] = {}
    for split in config.splits or (config.data.split,):
        of_split = replace(config, data=replace(config.data, split=split))
        for name, evaluated in _evaluated_for(of_split, list(protocols)):
            for result in protocols[name](evaluated):
                record = _split_record(name, evaluated, result, split if config.splits else None)
                found.setdefault(name, []).append(record)
            if result.guesses is not None:
                stem = f"{name}_split{split}" if config.splits else name
                folder, labels = evaluated.folder(name), evaluated.test.labels
                write_confusion(folder, stem, result.guesses, labels, evaluated.classes)
            folders[name] = evaluated.folder(name)
    return {name: add_summary(folders[name], records) for name, records in found.items()}


def _evaluated_for(config: SplitsConfig, names: list[str]) -> Iterator[tuple[str, Evaluated]]:
    """Of each protocol the features that it takes; on the first process."""
    alone = getattr(config, "leave_one_out", False)
    needs = {name: alone and name != "linear" for name in names}
    made = {need: features_of(names, config, labelled=True, leave_one_out=need) for need in sorted(set(needs.values()))}
    for name in names:
        if made[needs[name]] is not None:
            yield name, made[needs[name]]


def _split_record(name: str, evaluated: Evaluated, result: Result, split: int | None) -> dict[str, Any]:
    """One result as a record of the folder's metrics.jsonl, with the published figures of its setting."""
    place = {} if split is None else {"split": split}
    beside = published(name, evaluated.data.dataset, evaluated.subject.pretrained_on)
    record = {**place, **result.record, **evaluated.subject.record, **beside}
    return add_record(evaluated.folder(name), name, evaluated.protocol, record, evaluated.train, evaluated.test)
