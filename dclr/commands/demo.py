"""The demo: generated moving scenes, vanilla against dual contrast with the same budget, one table.

Motion and scene are independent in the videos, so that retrieval and a linear probe for each tell what an encoder
learned: 12.5% is chance for either.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dclr.commands.moving_scenes import (
    CHANCE,
    FIGURES,
    check_runs,
    claim,
    generated_videos,
    markdown_table,
    motion_and_scene,
)
from dclr.commands.pretrain import pretrain
from dclr.config import ConfigError, PretrainConfig
from dclr.data.synth import SynthConfig
from dclr.presets.demo import DEMO_ROWS
from dclr.training import append_metrics, load_method, read_metrics

# What of the whole objective the row `dclr` trains, and why.
TRAINED = (
    "Of DCLR's terms L_VS and L_VD are trained, together from the start. L_SD, cross-video search, refinement and "
    "alignment are off: so short a run does not need them."
)


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
        check_runs(self)


def demo(config: DemoConfig | None = None) -> list[dict[str, Any]]:
    """Generate, pretrain, evaluate, print the table.

    Returns:
        One dict for each seed and row: figures in percent under "motion R@1" and so on.

    Raises:
        ConfigError: the output folder holds other runs.
    """
    config = config or DemoConfig()
    folder = Path(config.output).expanduser()
    for seed in config.seeds:
        for row in config.rows:
            claim(folder / f"{row}_{seed}" / "demo.json", _demo_run(row, config.epochs), config.synth)
    results = []
    for seed in config.seeds:
        root = generated_videos(folder / f"videos_{seed}", dataclasses.replace(config.synth, seed=seed))
        for row in config.rows:
            results.append(run_row(row, seed, root, folder / f"{row}_{seed}", config.epochs))
    table = format_table(results)
    (folder / "table.md").write_text(table + "\n")
    trained = f"{TRAINED} " if "dclr" in config.rows else ""
    print(f"\n{table}\n\n{trained}Chance is {CHANCE}% throughout. Protocol: {results[-1]['protocol']}")
    return results


def run_row(row: str, seed: int, root: Path, output: Path, epochs: int | None) -> dict[str, Any]:
    """Pretrain one objective, and evaluate its encoder.

    A finished or interrupted run goes on where it stopped.

    Returns:
        Figures, and the losses of the last step with their weights.
    """
    run = _demo_run(row, epochs)
    run.output, run.train.seed, run.data.root = str(output), seed, str(root)
    pretrain(run, resume="or_start")
    method = load_method(output).method
    last = [record for record in read_metrics(output) if "loss" in record][-1]
    result = {
        "step": last["step"],
        "row": row,
        "seed": seed,
        **motion_and_scene(method.encoder, run, root),
        "losses": {name.removeprefix("loss/"): value for name, value in last.items() if name.startswith("loss/")},
        "weights": method.loss_weights,
    }
    append_metrics(output, result)
    return result


def _demo_run(row: str, epochs: int | None) -> PretrainConfig:
    """The configuration of a row, without its seed and folders."""
    run = DEMO_ROWS[row]()
    run.train.epochs = epochs or run.train.epochs
    return run


def format_table(results: list[dict[str, Any]]) -> str:
    """Markdown table, a line for each seed and row, each loss of its last step with its weight."""
    rows = []
    for result in results:
        weights = result["weights"]
        losses = ", ".join(f"{weights[name]:g} x {name} {value:.2f}" for name, value in result["losses"].items())
        figures = [f"{result[figure]:.1f}" for figure in FIGURES]
        rows.append([result["row"], str(result["seed"]), str(result["step"]), *figures, losses])
    return markdown_table(["objective", "seed", "steps", *FIGURES, "weight x last loss"], rows)
