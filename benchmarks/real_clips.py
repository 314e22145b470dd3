"""What each method learns from some hundred real clips: kNN and linear probe beside an untrained encoder.

    python -m benchmarks.real_clips FOLDER --folds group --epochs 40 --seeds 0 1 2 --output runs/clips

FOLDER has class folders and one list (csv) that splits them. All methods have the encoder, clips, optimiser and steps
of `--preset small` and see the training videos alone; what is finished is not run again. Prints a table, and writes it
beside `results.json`.

Two kinds of figures: of the list's split; and of all videos by cross-validation, where each value of the list's column
`--folds` in turn is left out. The second has more videos to test on, and so less noise, but of these the encoder has
seen the training videos, without their labels.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from dclr.commands.moving_scenes import markdown_table
from dclr.commands.pretrain import pretrain
from dclr.config import PretrainConfig
from dclr.data import EvaluationClips, load_dataset
from dclr.evaluation import Encoding, Features, extract_features, knn_classification, linear_probe
from dclr.evaluation.classification import Classified, class_accuracy, confusion
from dclr.methods.base import MethodConfig
from dclr.methods.dclr import DCLRConfig, RefineConfig
from dclr.methods.dualvar import DualVarConfig
from dclr.methods.fame import FAMEConfig
from dclr.methods.moco import MoCoConfig
from dclr.methods.search import SearchConfig
from dclr.models import build_encoder
from dclr.presets.demo import SHORT
from dclr.presets.small import small, small_simclr
from dclr.training import load_method
from dclr.training.metrics import environment

CLIPS = 5
NEIGHBOURS = (1, 5, 20)
SPLIT_FIGURES = (*(f"{k} nearest" for k in NEIGHBOURS), "linear")
FOLD_FIGURES = ("5 nearest, folds", "linear, folds")
FIGURES = SPLIT_FIGURES + FOLD_FIGURES

# A queue of a quarter to a half of such a set; 0.999 would leave the initial weights to the end of so short a run.
QUEUE = {"queue": 128, "momentum": 0.99}


def whole_dclr(epochs: int) -> DCLRConfig:
    """DCLR with all its terms, where `small` has L_VS and L_VD; search and refinement begin after a quarter."""
    quarter = max(1, epochs // 4)
    search = SearchConfig(queue=64, start=quarter, refresh=quarter)
    return DCLRConfig(search=search, refine=RefineConfig(start=quarter), **SHORT)


# Epochs -> method.
METHODS: dict[str, Callable[[int], MethodConfig | None]] = {
    "untrained": lambda _: None,
    "simclr": lambda _: small_simclr().method,
    "moco": lambda _: MoCoConfig(**SHORT, **QUEUE),
    "fame": lambda _: FAMEConfig(**SHORT, **QUEUE),
    "dualvar": lambda _: DualVarConfig(**SHORT),
    "dclr": lambda _: small().method,
    "dclr_whole": whole_dclr,
}


def run_of(method: MethodConfig, root: Path, epochs: int, seed: int, output: Path) -> PretrainConfig:
    """`--preset small` with another method."""
    run = small()
    return dataclasses.replace(
        run,
        output=str(output),
        data=dataclasses.replace(run.data, root=str(root), workers=0, cache="memory"),
        train=dataclasses.replace(run.train, epochs=epochs, seed=seed, device="cpu", tensorboard=False),
        method=method,
    )


def encoder_of(name: str, root: Path, epochs: int, seed: int, output: Path) -> nn.Module:
    """The encoder that a method trains, or the one that it would start from."""
    method = METHODS[name](epochs)
    if method is None:
        torch.manual_seed(seed)
        return build_encoder(small().encoder)
    pretrain(run_of(method, root, epochs, seed, output), resume="or_start")
    return load_method(output).method.encoder


def figures(encoder: nn.Module, root: Path, column: str) -> dict[str, Any]:
    """Balanced accuracy in percent by so many neighbours and by a linear layer, with their protocols."""
    (train, train_folds), (test, test_folds) = (
        _clip_features(encoder, root, subset, column) for subset in ("train", "test")
    )
    classes = int(train.labels.max()) + 1
    linear = _layer(train, test, classes)
    found = {f"{k} nearest": _neighbours(train, test, classes, k).guesses for k in NEIGHBOURS}
    found = {name: _balanced(guesses, test.labels, classes) for name, guesses in found.items()}
    found["linear"] = _balanced(linear.guesses, test.labels, classes)

    videos = Features(torch.cat([train.clips, test.clips]), torch.cat([train.labels, test.labels]))
    folds = train_folds + test_folds
    for name, classify in zip(FOLD_FIGURES, (_neighbours, _layer)):
        found[name] = _balanced(cross_validated(videos, folds, classes, classify), videos.labels, classes)
    protocol = (
        f"balanced accuracy: {_neighbours(train, test, classes, 5).figures['protocol']}; {linear.figures['protocol']}; "
        f"folds: the same of {len(folds)} videos, each by those with another {column}, {len(set(folds))} in all"
    )
    return {**found, "chance": 100 / classes, "protocol": protocol}


def _neighbours(train: Features, test: Features, classes: int, k: int = 5) -> Classified:
    return knn_classification(train, test, classes=classes, k=k)


def _layer(train: Features, test: Features, classes: int) -> Classified:
    return linear_probe(train, test, classes=classes)


def cross_validated(
    videos: Features, folds: Sequence[str], classes: int, classify: Callable[..., Classified]
) -> torch.Tensor:
    """The guess for each video, (V,), by the videos of other folds."""
    guesses = torch.full_like(videos.labels, -1)
    for fold in sorted(set(folds)):
        mine = torch.tensor([other == fold for other in folds])
        train, test = (Features(videos.clips[part], videos.labels[part]) for part in (~mine, mine))
        guesses[mine] = classify(train, test, classes).guesses
    return guesses


def _balanced(guesses: torch.Tensor, labels: torch.Tensor, classes: int) -> float:
    return class_accuracy(confusion(guesses, labels, classes)).mean().item()


def _clip_features(encoder: nn.Module, root: Path, subset: str, column: str) -> tuple[Features, list[str]]:
    """Features of a part of the videos, and the fold of each."""
    run = small()
    data, augment = run.data, run.augment
    videos = load_dataset("folder", root, subset=subset)
    clips = EvaluationClips(videos, frames=data.frames, stride=data.stride, size=data.size, clips=CLIPS)
    encoding = Encoding(encoder, "cpu", augment.mean, augment.std)
    features = extract_features(encoding, clips, batch_videos=8, progress=False)
    folds = _table_column(root, column)
    return features, [folds[os.path.abspath(path)] for path in features.paths]


def _table_column(root: Path, name: str) -> dict[str, str]:
    """Path of a video -> what the list's column has for it."""
    (listing,) = root.glob("*.csv")
    with listing.open(newline="", encoding="utf-8") as lines:
        return {os.path.abspath(root / row["path"]): row[name] for row in csv.DictReader(lines)}


def result_of(name: str, root: Path, column: str, epochs: int, seed: int, folder: Path) -> dict[str, Any]:
    """Figures of one method and seed, read where they are there already."""
    output = folder / f"{name}_{seed}"
    path = output / "result.json"
    if not path.exists():
        start = time.process_time()
        encoder = encoder_of(name, root, epochs, seed, output)
        seconds = time.process_time() - start
        result = {"method": name, "seed": seed, "epochs": epochs, "cpu_seconds": round(seconds)}
        output.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({**result, **figures(encoder, root, column), **_program_versions()}, indent=1) + "\n"
        )
    return json.loads(path.read_text())


def _program_versions() -> dict[str, Any]:
    return {"environment": environment(torch.device("cpu"))}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each method, and under it what the figures are."""
    return f"{means_table(results, FIGURES)}\n\nPercent; chance is {results[0]['chance']:.1f}. {results[0]['protocol']}"


def means_table(results: Sequence[dict[str, Any]], figures: Sequence[str]) -> str:
    """Markdown: mean and sample standard deviation of these figures over the seeds of each method."""
    rows = []
    for name in dict.fromkeys(result["method"] for result in results):
        mine = [result for result in results if result["method"] == name]
        rows.append([name, str(len(mine)), *(_cell([result[figure] for result in mine]) for figure in figures)])
    return markdown_table(["method", "seeds", *figures], rows)


def _cell(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Run what is missing, then write the table of everything asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="FOLDER")
    parser.add_argument("--folds", required=True, metavar="COLUMN")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=small().train.epochs)
    parser.add_argument("--output", type=Path, default=Path("runs/real_clips"))
    args = parser.parse_args()
    results = []
    for seed in args.seeds:
        for name in args.methods:
            results.append(result_of(name, args.root, args.folds, args.epochs, seed, args.output))
            print(name, seed, *(f"{figure} {results[-1][figure]:.1f}" for figure in FIGURES), flush=True)
    (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.output / "table.md").write_text(table(results) + "\n")
    print(f"\n{table(results)}")


if __name__ == "__main__":
    main()
