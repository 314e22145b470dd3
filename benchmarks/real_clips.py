"""What each method learns from some hundred real clips: kNN and linear probe beside an untrained encoder.

    python -m benchmarks.real_clips FOLDER --epochs 40 --seeds 0 1 2 --output runs/clips

FOLDER has class folders and a list that splits them. All methods have the encoder, clips, optimiser and steps of
`--preset small`; what is finished is not run again. Prints a table, and writes it beside `results.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from dclr.commands.pretrain import pretrain
from dclr.config import PretrainConfig
from dclr.data import EvaluationClips, load_dataset
from dclr.evaluation import Features, classify_by_layer, classify_by_neighbours, extract_features
from dclr.evaluation.classification import class_accuracy, confusion
from dclr.methods.base import MethodConfig
from dclr.methods.dualvar import DualVarConfig
from dclr.methods.fame import FAMEConfig
from dclr.methods.moco import MoCoConfig
from dclr.models import build_encoder
from dclr.presets.demo import SHORT
from dclr.presets.small import small, small_simclr
from dclr.training import load_method
from dclr.training.metrics import environment

CLIPS = 5
NEIGHBOURS = (1, 5, 20)
FIGURES = (*(f"{k} nearest" for k in NEIGHBOURS), "linear")

# A queue of a quarter to a half of such a set; 0.999 would leave the initial weights to the end of so short a run.
QUEUE = {"queue": 128, "momentum": 0.99}
METHODS: dict[str, Callable[[], MethodConfig | None]] = {
    "untrained": lambda: None,
    "simclr": lambda: small_simclr().method,
    "moco": lambda: MoCoConfig(**SHORT, **QUEUE),
    "fame": lambda: FAMEConfig(**SHORT, **QUEUE),
    "dualvar": lambda: DualVarConfig(**SHORT),
    "dclr": lambda: small().method,
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
    method = METHODS[name]()
    if method is None:
        torch.manual_seed(seed)
        return build_encoder(small().encoder)
    pretrain(run_of(method, root, epochs, seed, output), resume="or_start")
    return load_method(output).method.encoder


def figures(encoder: nn.Module, root: Path) -> dict[str, Any]:
    """Balanced accuracy in percent by so many neighbours and by a linear layer, with their protocols."""
    train, test = (_features(encoder, root, subset) for subset in ("train", "test"))
    classes = int(train.labels.max()) + 1
    guessed = {f"{k} nearest": classify_by_neighbours(train, test, classes=classes, k=k) for k in NEIGHBOURS}
    guessed["linear"] = classify_by_layer(train, test, classes=classes)
    balanced = {
        name: class_accuracy(confusion(found.guesses, test.labels, classes)).mean().item()
        for name, found in guessed.items()
    }
    protocol = "; ".join(guessed[name].figures["protocol"] for name in ("5 nearest", "linear"))
    return {**balanced, "chance": 100 / classes, "protocol": f"balanced accuracy: {protocol}"}


def _features(encoder: nn.Module, root: Path, subset: str) -> Features:
    run = small()
    data, augment = run.data, run.augment
    videos = load_dataset("folder", root, subset=subset)
    clips = EvaluationClips(videos, frames=data.frames, stride=data.stride, size=data.size, clips=CLIPS)
    return extract_features(
        encoder, clips, device="cpu", mean=augment.mean, std=augment.std, batch_videos=8, progress=False
    )


def result_of(name: str, root: Path, epochs: int, seed: int, folder: Path) -> dict[str, Any]:
    """Figures of one method and seed, read where they are there already."""
    output = folder / f"{name}_{seed}"
    path = output / "result.json"
    if not path.exists():
        start = time.process_time()
        encoder = encoder_of(name, root, epochs, seed, output)
        seconds = time.process_time() - start
        result = {"method": name, "seed": seed, "epochs": epochs, "cpu_seconds": round(seconds)}
        output.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**result, **figures(encoder, root), **_versions()}, indent=1) + "\n")
    return json.loads(path.read_text())


def _versions() -> dict[str, Any]:
    return {"environment": environment(torch.device("cpu"))}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each method, mean and sample standard deviation over its seeds."""
    lines = [["method", "seeds", *FIGURES], ["---"] * (2 + len(FIGURES))]
    for name in dict.fromkeys(result["method"] for result in results):
        mine = [result for result in results if result["method"] == name]
        cells = [_cell([result[figure] for result in mine]) for figure in FIGURES]
        lines.append([name, str(len(mine)), *cells])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\nPercent; chance is {results[0]['chance']:.1f}. {results[0]['protocol']}"


def _cell(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Run what is missing, then write the table of everything asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="FOLDER")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=small().train.epochs)
    parser.add_argument("--output", type=Path, default=Path("runs/real_clips"))
    args = parser.parse_args()
    results = []
    for seed in args.seeds:
        for name in args.methods:
            results.append(result_of(name, args.root, args.epochs, seed, args.output))
            print(name, seed, *(f"{figure} {results[-1][figure]:.1f}" for figure in FIGURES), flush=True)
    (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.output / "table.md").write_text(table(results) + "\n")
    print(f"\n{table(results)}")


if __name__ == "__main__":
    main()
