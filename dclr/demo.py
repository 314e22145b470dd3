"""The demo: generated moving scenes, vanilla against dual contrast with the same budget, one table.

Motion and scene are independent in the videos, so that retrieval and a linear probe for each tell what an encoder
learned: 12.5% is chance for either.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dclr.config import ConfigError, PretrainConfig, to_dict
from dclr.data import EvaluationClips, load_dataset
from dclr.data.synth import SynthConfig, synthesize
from dclr.evaluation import Features, extract_features, linear_probe, retrieval
from dclr.presets.demo import DEMO_ROWS
from dclr.training import append_metrics, load_method, pretrain, read_metrics
from dclr.training.distributed import choose_device

CHANCE = 100 / 8
# What of the whole objective the row `dclr` trains, and why.
TRAINED = (
    "Of DCLR's terms L_VD is trained alone first, then L_VS with it. L_SD, cross-video search, refinement and "
    "alignment are off: in so few steps L_SD drives L_VD back to chance, and the others were not needed."
)
CLIPS = 10  # of each video, as in the paper's protocol


@dataclass
class DemoConfig:
    """What `dclr demo` does."""

    output: str = "runs/demo"
    """Folder of the videos, the runs and the table."""
    seeds: tuple[int, ...] = (0,)
    """Each seed has videos and initial weights of its own."""
    rows: tuple[str, ...] = ("vanilla", "dclr")
    """Objectives to compare: vanilla, vs, vd, dclr."""
    synth: SynthConfig = field(default_factory=SynthConfig)
    epochs: int | None = None
    """Epochs of every row; as in the presets where not given."""

    def __post_init__(self) -> None:
        unknown = [row for row in self.rows if row not in DEMO_ROWS]
        if unknown:
            raise ConfigError(f"rows: got {unknown[0]}, expected some of {', '.join(DEMO_ROWS)}")
        check_runs(self.rows, self.seeds, self.epochs, self.synth)


def demo(config: DemoConfig | None = None) -> list[dict[str, Any]]:
    """Generate, pretrain, evaluate, print the table.

    Returns:
        One dict for each seed, row and stage of its curriculum: figures in percent under "motion R@1" and so on.

    Raises:
        ConfigError: the output folder holds other runs.
    """
    config = config or DemoConfig()
    folder = Path(config.output).expanduser()
    for seed in config.seeds:
        for row in config.rows:
            claim(folder / f"{row}_{seed}" / "demo.json", _run(row, config.epochs), config.synth)
    results = []
    for seed in config.seeds:
        root = videos(folder / f"videos_{seed}", dataclasses.replace(config.synth, seed=seed))
        for row in config.rows:
            results += run_row(row, seed, root, folder / f"{row}_{seed}", config.epochs)
    table = format_table(results)
    (folder / "table.md").write_text(table + "\n")
    trained = f"{TRAINED} " if "dclr" in config.rows else ""
    print(f"\n{table}\n\n{trained}Chance is {CHANCE}% throughout. Protocol: {results[-1]['protocol']}")
    return results


def check_runs(rows: Sequence[str], seeds: Sequence[int], epochs: int | None, synth: SynthConfig) -> None:
    """Raise ConfigError where no rows can be compared over these seeds, epochs and videos."""
    if not rows:
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


def videos(root: Path, config: SynthConfig) -> Path:
    """The set for a configuration, generated unless it is there already."""
    described = root / "synth.json"
    wanted = json.dumps(asdict(config))
    if not (described.exists() and described.read_text() == wanted):
        synthesize(root, config)
        described.write_text(wanted)
    return root


def run_row(row: str, seed: int, root: Path, output: Path, epochs: int | None = None) -> list[dict[str, Any]]:
    """Pretrain one objective and evaluate its encoder, also as it was before a term joined, if that was kept.

    A finished or interrupted run goes on where it stopped.
    """
    run = _run(row, epochs)
    run.output, run.train.seed, run.data.root = str(output), seed, str(root)
    pretrain(run, resume=True)
    kept = output / "checkpoints"
    stages = [epoch for epoch in _stages(run) if (kept / f"epoch_{epoch:04d}.pt").exists()]
    results = [_stage(row, seed, root, run, epoch) for epoch in (*stages, run.train.epochs)]
    for result in results:
        append_metrics(output, result)
    return results


def _run(row: str, epochs: int | None) -> PretrainConfig:
    """The configuration of a row, without its seed and folders."""
    run = DEMO_ROWS[row]()
    run.train.epochs = epochs or run.train.epochs
    return run


def _stages(run: PretrainConfig) -> list[int]:
    """Epochs, other than the first, at which a term of the objective starts."""
    starts = getattr(run.method, "loss_start", None)
    return sorted({epoch for epoch in asdict(starts).values() if epoch}) if starts else []


def _stage(row: str, seed: int, root: Path, run: PretrainConfig, epochs: int) -> dict[str, Any]:
    """The run as it was after some epochs: figures, and the losses of its last step with their weights."""
    folder = Path(run.output)
    method = load_method(folder / "checkpoints" / f"epoch_{epochs:04d}.pt").method
    method.start_epoch(epochs - 1, resumed=True)
    records = [record for record in read_metrics(folder) if "loss" in record and record["epoch"] < epochs]
    last = records[-1]
    return {
        "step": last["step"],
        "row": row,
        "seed": seed,
        **evaluate(method.encoder, run, root),
        "losses": {name.removeprefix("loss/"): value for name, value in last.items() if name.startswith("loss/")},
        "weights": method.loss_weights,
    }


def evaluate(encoder: Any, run: PretrainConfig, root: Path) -> dict[str, Any]:
    """Retrieval and linear probe, for motion and for scene, from the same features."""
    features = {subset: _features(encoder, run, root, subset) for subset in ("train", "test")}
    figures: dict[str, Any] = {}
    for label in ("motion", "scene"):
        train, test = (_labelled(features[subset], root, label, subset) for subset in ("train", "test"))
        found = retrieval(train.clips, train.labels, test.clips, test.labels, ks=(1,))
        probe = linear_probe(train, test)
        figures[f"{label} R@1"], figures[f"{label} linear"] = found["R@1"], probe["top1"]
    return {**figures, "protocol": f"{found['protocol']}; {probe['protocol']}"}


def _features(encoder: Any, run: PretrainConfig, root: Path, subset: str) -> Features:
    dataset = load_dataset("folder", root, label="motion", subset=subset)
    data = run.data
    clips = EvaluationClips(dataset, frames=data.frames, stride=data.stride, size=data.size, clips=CLIPS)
    return extract_features(
        encoder,
        clips,
        device=choose_device(run.train.device),
        mean=run.augment.mean,
        std=run.augment.std,
        batch_videos=32,
        progress=False,
    )


def _labelled(features: Features, root: Path, label: str, subset: str) -> Features:
    dataset = load_dataset("folder", root, label=label, subset=subset)
    return features._replace(labels=features.labels.new_tensor(dataset.labels))


def format_table(results: list[dict[str, Any]]) -> str:
    """Markdown table, a line for each seed, row and stage, each loss of its last step with its weight."""
    columns = ("motion R@1", "motion linear", "scene R@1", "scene linear")
    head = ["objective", "seed", "steps", *columns, "weight x last loss"]
    lines = [head, ["---"] * len(head)]
    for result in results:
        weights = result["weights"]
        losses = ", ".join(f"{weights[name]:g} x {name} {value:.2f}" for name, value in result["losses"].items())
        figures = [f"{result[column]:.1f}" for column in columns]
        lines.append([result["row"], str(result["seed"]), str(result["step"]), *figures, losses])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
