"""What the features of real videos know of motion: how fast a clip is played, and whether forwards or backwards.

    python -m benchmarks.real_motion FOLDER --runs runs/clips

Both questions have the same frames behind each answer, so that the scene gives nothing away. FOLDER is that of
`benchmarks.real_clips`, and `--runs` its output: each encoder in there is asked, by a linear probe on frozen features
that is trained on clips of the training videos and tested on those of the test videos. Writes `motion.json` beside each
`result.json`, and prints a table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.real_clips import CLIPS, encoder_of, means_table
from dclr.data import EvaluationClips, load_dataset
from dclr.evaluation import Encoding, Features, extract_features, linear_probe
from dclr.presets.small import small
from dclr.training.metrics import environment

STRIDES = (1, 2, 4, 8)  # frames of the video from one frame of a clip to the next
FIGURES = {"speed": 100 / len(STRIDES), "direction": 50.0}  # and their chance


class Backwards(nn.Module):
    """An encoder that is shown each clip from its last frame to its first."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        return self.encoder(clip_bcthw.flip(2))


def played(encoder: nn.Module, root: Path, subset: str, stride: int, label: int) -> Features:
    """Features of the clips of each video at this stride, all with one label."""
    run = small()
    videos = load_dataset("folder", root, subset=subset)
    clips = EvaluationClips(videos, frames=run.data.frames, stride=stride, size=run.data.size, clips=CLIPS)
    encoding = Encoding(encoder, "cpu", run.augment.mean, run.augment.std)
    features = extract_features(encoding, clips, batch_videos=8, progress=False)
    return features._replace(labels=torch.full_like(features.labels, label))


def probe(ways: Sequence[tuple[nn.Module, int]], root: Path) -> dict[str, Any]:
    """How often a linear layer tells these ways of playing a video, an encoder and a stride each, from one another."""
    subsets = []
    for subset in ("train", "test"):
        each = [played(encoder, root, subset, stride, label) for label, (encoder, stride) in enumerate(ways)]
        subsets.append(Features(torch.cat([part.clips for part in each]), torch.cat([part.labels for part in each])))
    return linear_probe(*subsets).figures


def motion_of(folder: Path, root: Path) -> dict[str, Any]:
    """Figures of a run of `benchmarks.real_clips`, read where they are there already."""
    path = folder / "motion.json"
    if not path.exists():
        run = json.loads((folder / "result.json").read_text())
        encoder = encoder_of(run["method"], root, run["epochs"], run["seed"], folder)
        stride = small().data.stride
        found = {
            "speed": probe([(encoder, stride) for stride in STRIDES], root),
            "direction": probe([(encoder, stride), (Backwards(encoder), stride)], root),
        }
        result = {key: run[key] for key in ("method", "seed", "epochs")}
        result |= {name: figures["top1"] for name, figures in found.items()}
        result |= {f"{name} protocol": figures["protocol"] for name, figures in found.items()}
        path.write_text(json.dumps({**result, "environment": environment(torch.device("cpu"))}, indent=1) + "\n")
    return json.loads(path.read_text())


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each method, and under it what the figures are."""
    chance = ", ".join(f"{value:.0f} for {name}" for name, value in FIGURES.items())
    return f"{means_table(results, tuple(FIGURES))}\n\nPercent; chance is {chance}. {results[0]['speed protocol']}"


def main() -> None:
    """Ask every encoder that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="FOLDER")
    parser.add_argument("--runs", type=Path, required=True, help="output folder of benchmarks.real_clips")
    args = parser.parse_args()
    folders = sorted(path.parent for path in args.runs.glob("*/result.json"))
    if not folders:
        parser.error(f"--runs: {args.runs} has no run of benchmarks.real_clips (a folder with result.json)")
    results = []
    for folder in folders:
        results.append(motion_of(folder, args.root))
        print(folder.name, *(f"{name} {results[-1][name]:.1f}" for name in FIGURES), flush=True)
    print(table(results))
    (args.runs / "motion.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
