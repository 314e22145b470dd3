"""The ablation: rows of the papers' tables, pretrained on moving scenes; what each learned of motion and of scene.

A row is any preset. Its method and its augmentation are the preset's; encoder, videos and schedule are the same small
ones for all rows (see `ablation_run`), so that the rows of a table differ by nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from matplotlib.figure import Figure

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
from dclr.distributed import choose_device
from dclr.files import write_or_explain
from dclr.methods.dclr_release import DCLRReleaseConfig
from dclr.presets import PRESETS
from dclr.presets.demo import demo_vanilla
from dclr.suggest import did_you_mean
from dclr.training import load_method
from dclr.training.metrics import environment

SETTINGS_FILE, RESULT_FILE = "ablation.json", "result.json"


@dataclass
class AblateConfig:
    """What `dclr ablate` does."""

    rows: tuple[str, ...] = ("T4.1", "T4.3", "T4.4")
    """Presets to compare, with commas or spaces between them: T4.1 to T7.5, F1.1 to F5.2 and so on."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each seed has videos and initial weights of its own."""
    size: Literal["cpu", "gpu"] = "cpu"
    """cpu: the demo's 8 frames of 24 x 24 and encoder; gpu: 16 frames of 64 x 64, R(2+1)D, bf16, 20000 videos."""
    output: str = "runs/ablate"
    """Folder of the videos, the runs, results.json, table.md and plot.png."""
    epochs: int | None = None
    """Epochs of every row; as the size says where not given."""
    synth: SynthConfig | None = None
    """The videos; as the size says where not given. Those with `turn` are for pretraining alone: the figures are of
    the same videos going straight on."""

    def __post_init__(self) -> None:
        self.rows = tuple(dict.fromkeys(name for item in self.rows for name in item.split(",") if name))
        self.seeds = tuple(dict.fromkeys(self.seeds))
        for row in self.rows:
            if row not in PRESETS:
                raise ConfigError(f"rows: got {row}{did_you_mean(row, PRESETS)}")
        if self.size not in SIZES:
            raise ConfigError(f"size: got {self.size!r}, expected one of {', '.join(SIZES)}")
        if self.synth is None:
            self.synth = SIZES[self.size].synth
        check_runs(self)


@dataclass(frozen=True)
class AblationSize:
    """What all rows of an ablation share.

    Attributes:
        synth: the videos.
        run: encoder, data, optimiser and schedule; its method and augmentation are the rows' own.
        dim, hidden: widths of the projection heads.
        momentum: share that a momentum encoder keeps of itself at each step.
    """

    synth: SynthConfig
    run: PretrainConfig
    dim: int
    hidden: int
    momentum: float


def _gpu_run() -> PretrainConfig:
    run = demo_vanilla()
    return dataclasses.replace(
        run,
        encoder="r2plus1d_vcop",
        data=dataclasses.replace(run.data, frames=16, size=64, workers=8, cache=None),
        optim=dataclasses.replace(run.optim, lr=0.002, warmup=200),
        train=dataclasses.replace(run.train, epochs=20, batch=64, device="cuda", precision="bf16", fold=False),
    )


def _cpu_run() -> PretrainConfig:
    run = demo_vanilla()
    return dataclasses.replace(run, train=dataclasses.replace(run.train, epochs=16))


SIZES = {
    # 16 x 32 steps: a momentum of 0.999 would leave most of the initial weights to the end.
    "cpu": AblationSize(SynthConfig(), _cpu_run(), dim=64, hidden=96, momentum=0.99),
    "gpu": AblationSize(
        SynthConfig(train=20000, test=2000, size=72, frames=32, object_size=16),
        _gpu_run(),
        dim=128,
        hidden=512,
        momentum=0.999,
    ),
}


def ablation_run(row: str, config: AblateConfig) -> PretrainConfig:
    """The configuration of a row, without its seed and folders.

    Of the preset: the method, the augmentation, and whether BatchNorm spans the GPUs. Everything else is the size's.
    No mirror flips, which would merge directions; no hue shift and no blur, as what tells the scene families apart
    is their hue, and an object's holes are as small as the blur.
    """
    preset, size = PRESETS[row](), SIZES[config.size]
    epochs = config.epochs or size.run.train.epochs
    train = dataclasses.replace(size.run.train, epochs=epochs, sync_bn=preset.train.sync_bn)
    return dataclasses.replace(
        size.run,
        augment=dataclasses.replace(preset.augment, flip=0, hue=0, blur=0),
        train=train,
        method=_adapted(preset, size, epochs, train.batch, config.synth.train),
    )


def _adapted(preset: PretrainConfig, size: AblationSize, epochs: int, batch: int, train_videos: int) -> Any:
    """The preset's method with what a small set and a short run need, alike for all rows.

    Heads of the size's widths standardise their input, and the temperature is 0.1: else every cosine starts near 1 and
    a short run stays there. A queue holds a quarter of the videos (2048 is about a fifth of UCF-101). Search and
    refinement start, and the slow encoder is refreshed, after a quarter of the epochs: the paper's twentieth would be
    over before features mean anything. The released recipe of DCLR has no standardised heads and keeps its momentum of
    0.999.
    """
    method = preset.method
    changes = {
        "temperature": 0.1,
        "dim": size.dim,
        "hidden": size.hidden,
        "center": not isinstance(method, DCLRReleaseConfig),
        "momentum": size.momentum,
        "queue": max(train_videos // 4, 2 * batch),
    }
    quarter = max(1, epochs // 4)
    if hasattr(method, "search"):
        # Unlike a queue of negatives, it need not hold a batch, but must fill anew after each refresh.
        queue = max(train_videos // 4, method.search.k)
        start = quarter if method.search.start else 0
        changes["search"] = dataclasses.replace(method.search, queue=queue, start=start, refresh=quarter)
        changes["refine"] = dataclasses.replace(method.refine, start=quarter if method.refine.start else 0)
    fields = {field.name for field in dataclasses.fields(method)}
    return dataclasses.replace(method, **{name: value for name, value in changes.items() if name in fields})


def ablate(config: AblateConfig | None = None) -> dict[str, Any]:
    """Pretrain, evaluate, compare; what is finished already is not run again, what was interrupted goes on.

    Processes with different seeds may share an output folder; a last call with all seeds then writes the whole table.

    Returns:
        What results.json holds: "runs", the figures of each row and seed in percent; "rows", their means and spreads
        (the sample standard deviation over seeds, null for one seed); "protocol"; and "environment", the commit,
        versions and hardware of this call.

    Raises:
        ConfigError: the output folder holds other runs, or the size's device is missing.
    """
    config = config or AblateConfig()
    folder = Path(config.output).expanduser()
    # A missing GPU is an error now, not after an hour of videos.
    device = choose_device(SIZES[config.size].run.train.device)
    planned = [(row, seed) for seed in config.seeds for row in config.rows]
    for row, seed in planned:
        claim(_run_folder(folder, row, seed) / SETTINGS_FILE, ablation_run(row, config), config.synth)
    runs: list[dict[str, Any]] = []
    for number, (row, seed) in enumerate(planned, 1):
        print(f"[{number}/{len(planned)}] {row}, seed {seed}: {_describe(row)[0]}", flush=True)
        result = ablate_row(row, seed, config)
        runs.append({"row": row, "seed": seed, **result})
        print("    " + ", ".join(f"{figure} {result[figure]:.1f}" for figure in FIGURES), flush=True)
        results = {"environment": environment(device), **summarize(config, runs)}
        # After each run, so that a look at a long experiment, or an end to it, finds what there is.
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (folder / "table.md").write_text(ablation_table(results) + "\n", encoding="utf-8")
    print(f"\n{ablation_table(results)}\n\n{folder / 'results.json'}\n{folder / 'table.md'}")
    print(plot_ablation(results, folder / "plot.png"))
    return results


def ablate_row(row: str, seed: int, config: AblateConfig) -> dict[str, Any]:
    """Figures of a row and seed: read where the run is finished, else pretrained, from where it was, and evaluated."""
    folder = Path(config.output).expanduser()
    output = _run_folder(folder, row, seed)
    finished = output / RESULT_FILE
    if finished.exists():
        return json.loads(finished.read_text(encoding="utf-8"))
    synth = dataclasses.replace(config.synth, seed=seed)
    run = ablation_run(row, config)
    root = generated_videos(folder / f"videos_{seed}", synth)
    run = dataclasses.replace(
        run,
        output=str(output),
        data=dataclasses.replace(run.data, root=str(root)),
        train=dataclasses.replace(run.train, seed=seed),
    )
    pretrain(run, resume="or_start")
    if synth.turn:
        root = generated_videos(folder / f"straight_{seed}", dataclasses.replace(synth, turn=0.0))
    result = motion_and_scene(load_method(output).encoder, run, root)
    write_or_explain(finished, (json.dumps(result, indent=1) + "\n").encode())
    return result


def _run_folder(folder: Path, row: str, seed: int) -> Path:
    """Of the first preset with the same configuration: T5.1, T6.1 and T7.5, say, are one run."""
    wanted = PRESETS[row]()
    return folder / f"{next(name for name, preset in PRESETS.items() if preset() == wanted)}_{seed}"


def _describe(row: str) -> tuple[str, str]:
    """What a preset shows, and the paper's figures for it, as its docstring says."""
    text = (PRESETS[row].__doc__ or "").splitlines()[0].rstrip(".")
    shows, *published = re.split("; (?:paper|poster): ", text)
    return shows, published[0] if published else "-"


def summarize(config: AblateConfig, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread of each figure over the seeds, for each row that has a run."""
    rows = []
    for row in config.rows:
        mine = [run for run in runs if run["row"] == row]
        if mine:
            shows, published = _describe(row)
            summary = {"row": row, "shows": shows, "published": published, "seeds": len(mine)}
            rows.append(summary | {figure: _mean_and_spread([run[figure] for run in mine]) for figure in FIGURES})
    settings = {"size": config.size, "videos": asdict(config.synth)}
    return {**settings, "chance": CHANCE, "protocol": runs[0]["protocol"], "rows": rows, "runs": list(runs)}


def _mean_and_spread(values: list[float]) -> dict[str, float | None]:
    return {"mean": mean(values), "spread": stdev(values) if len(values) > 1 else None}


def ablation_table(results: dict[str, Any]) -> str:
    """Markdown: a line for each row, and under it what the figures are."""
    rows = [
        [row["row"], row["shows"], str(row["seeds"]), *(_figure_cell(row[name]) for name in FIGURES), row["published"]]
        for row in results["rows"]
    ]
    table = markdown_table(["row", "what", "seeds", *FIGURES, "published"], rows)
    return (
        f"{table}\n\nPercent: mean ± sample standard deviation over seeds; chance is {CHANCE}. The published figures "
        f"are of other data. Protocol: {results['protocol']}"
    )


def _figure_cell(figure: dict[str, float | None]) -> str:
    spread = "" if figure["spread"] is None else f" ± {figure['spread']:.1f}"
    return f"{figure['mean']:.1f}{spread}"


def plot_ablation(results: dict[str, Any], path: Path) -> Path:
    """Draw motion and scene of each row as bars with spreads, one panel for retrieval and one for the linear probe."""
    rows = results["rows"]
    figure = Figure(figsize=(3 + 0.7 * len(rows), 6), layout="constrained")
    panels = figure.subplots(2, sharex=True)
    for axes, measure in zip(panels, ("R@1", "linear")):
        for shift, label in ((-0.2, "motion"), (0.2, "scene")):
            figures = [row[f"{label} {measure}"] for row in rows]
            places = [place + shift for place in range(len(rows))]
            spreads = [value["spread"] or 0 for value in figures]
            axes.bar(places, [value["mean"] for value in figures], 0.4, yerr=spreads, capsize=3, label=label)
        axes.axhline(results["chance"], color="black", linestyle="--", linewidth=1, label="chance")
        axes.set(ylabel=f"{measure}, %", ylim=(0, 100))
    panels[0].legend(ncols=3, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    panels[1].set_xticks(range(len(rows)), [row["row"] for row in rows], rotation=45 if len(rows) > 6 else 0)
    figure.savefig(path, dpi=120)
    return path
