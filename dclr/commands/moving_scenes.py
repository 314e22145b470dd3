"""What experiments on generated moving scenes share: videos, figures, and the settings they were made with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dclr.config import ConfigError, PretrainConfig, to_dict
from dclr.data import EvaluationClips, load_dataset
from dclr.data.synth import SynthConfig, synthesize
from dclr.distributed import choose_device
from dclr.evaluation import Encoding, Features, extract_features, linear_probe, retrieval

# What `motion_and_scene` gives, in percent.
FIGURES = ("motion R@1", "motion linear", "scene R@1", "scene linear")
CHANCE = 100 / 8
CLIPS = 10  # of each video, as in the paper's protocol


def check_runs(config: Any) -> None:
    """Raise ConfigError where no `rows` can be compared over the `seeds`, `epochs` and videos of a configuration."""
    seeds, epochs, synth = config.seeds, config.epochs, config.synth
    if not config.rows:
        raise ConfigError("rows: got none, expected at least one")
    if not seeds or min(seeds) < 0:
        raise ConfigError(f"seeds: got {seeds or 'none'}, expected at least one, not negative")
    if epochs is not None and epochs < 1:
        raise ConfigError(f"epochs: got {epochs}, expected at least 1")
    if synth.seed:
        raise ConfigError(f"synth.seed: got {synth.seed}, expected none: each of the seeds draws its own videos")


def claim(path: Path, run: PretrainConfig, synth: SynthConfig) -> None:
    """Note the settings of a run in a file of its folder, or check them against those noted by an earlier call."""
    settings = json.dumps({"run": to_dict(run), "videos": asdict(synth)}, indent=1)
    if path.exists():
        if path.read_text(encoding="utf-8") != settings:
            raise ConfigError(f"{path.parent} holds a run with other settings ({path}); expected another --output")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(settings, encoding="utf-8")


def generated_videos(root: Path, config: SynthConfig) -> Path:
    """The set for a configuration, generated unless it is there already."""
    described = root / "synth.json"
    wanted = json.dumps(asdict(config))
    if not (described.exists() and described.read_text() == wanted):
        synthesize(root, config)
        described.write_text(wanted)
    return root


def motion_and_scene(encoder: Any, run: PretrainConfig, root: Path) -> dict[str, Any]:
    """`FIGURES` by retrieval and linear probe, for motion and for scene, from the same features; and the protocol."""
    features = {subset: _features(encoder, run, root, subset) for subset in ("train", "test")}
    figures: dict[str, Any] = {}
    for label in ("motion", "scene"):
        train, test = (_labelled(features[subset], root, label, subset) for subset in ("train", "test"))
        found = retrieval(train.clips, train.labels, test.clips, test.labels, ks=(1,))
        probe = linear_probe(train, test).figures
        figures[f"{label} R@1"], figures[f"{label} linear"] = found["R@1"], probe["top1"]
    return {**figures, "protocol": f"{found['protocol']}; {probe['protocol']}"}


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table of these cells in Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def _features(encoder: Any, run: PretrainConfig, root: Path, subset: str) -> Features:
    dataset = load_dataset("folder", root, label="motion", subset=subset)
    data = run.data
    clips = EvaluationClips(dataset, frames=data.frames, stride=data.stride, size=data.size, clips=CLIPS)
    encoding = Encoding(encoder, choose_device(run.train.device), run.augment.mean, run.augment.std)
    return extract_features(encoding, clips, batch_videos=32, progress=False)


def _labelled(features: Features, root: Path, label: str, subset: str) -> Features:
    dataset = load_dataset("folder", root, label=label, subset=subset)
    return features._replace(labels=features.labels.new_tensor(dataset.labels))
