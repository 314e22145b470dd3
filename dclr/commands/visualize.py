"""`dclr visualize`: pictures of a run and the page that holds them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dclr.config import ConfigError, to_dict
from dclr.distributed import choose_device
from dclr.evaluation import Features, retrieval
from dclr.evaluation.checkpoint import EvaluationConfig, run_folder, usable_folder
from dclr.evaluation.dataset import EvaluationDataConfig, clip_protocol, encode, load_subsets
from dclr.training import find_checkpoint, load_method
from dclr.visualize import pictures
from dclr.visualize.pictures import Look, Subset
from dclr.visualize.report import Picture, Report, page
from dclr.visualize.retrieval import choose
from dclr.visualize.run import Run, read_run

PAGE, PICTURES = "report.html", "report"


@dataclass
class VisualizeConfig(EvaluationConfig):
    """Draw curves, activation maps, neighbours, searches, kernels and masks of a run, into one page."""

    output: str | None = None
    """Folder of report.html and report/; by default the run folder."""
    videos: int = 6
    """Test videos to show, evenly over the classes."""
    neighbours: int = 5
    """Retrieved videos beside each of them."""
    beside: tuple[str, ...] = ()
    """Further runs whose temporal kernels are drawn beside this one's."""
    curves_only: bool = False
    """Make the page of the run folder alone, without checkpoint and videos."""

    def __post_init__(self) -> None:
        for name in ("videos", "neighbours"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected at least 1")


def visualize(config: VisualizeConfig) -> Path:
    """Write report.html, and its pictures as files of the folder report/ beside it.

    Returns:
        The page.

    Raises:
        ConfigError: no run there, or no dataset (`curves_only` goes without).
        CheckpointError, DatasetError, ValueError: as `dclr.commands.evaluate.retrieve`.
    """
    run = read_run(run_folder(config.checkpoint))
    folder = usable_folder(config.output or run.folder)
    return _write(_report_of_folder(config, run) if config.curves_only else _report_of_encoder(config, run), folder)


def _report_of_folder(config: VisualizeConfig, run: Run) -> Report:
    if not (run.configuration or run.steps or run.evaluations):
        raise ConfigError(
            f"checkpoint: got {config.checkpoint}, expected a run: {run.folder} has no config.yaml or metrics.jsonl"
        )
    last = run.steps[-1] if run.steps else {}
    position = f"the log, up to step {last['step']} (epoch {last.get('epoch', '?')})" if last else "the folder"
    curves, left_out = _curves(run)
    left_out.append(f"Pictures of the encoder: `dclr visualize --checkpoint {shlex.quote(str(run.folder))}` adds them.")
    return Report(run, run.configuration, position, curves, left_out=left_out + _of_records(run))


def _report_of_encoder(config: VisualizeConfig, run: Run) -> Report:
    look, position = _look(config)
    beside = _encoders(config.beside)
    shown, left_out = _curves(run)
    shown["activation"] = list(pictures.activations(look))
    shown["retrieval"] = list(pictures.neighbours(look, config.neighbours))
    shown["search"] = list(pictures.searches(look))
    shown["kernels"] = pictures.kernels(look.method.encoder, look.pretraining, beside)
    shown["masks"] = list(pictures.masks(look))
    result, unlabelled = _retrieval(look.gallery.features, look.queries.features, look.data)
    for name, part in (("training", look.gallery), ("test", look.queries)):
        left_out += [f"Unreadable {name} video: {failure}" for failure in part.features.failures]
        left_out += [f"Missing {name} video: {path}" for path in part.videos.missing]
    configuration = run.configuration or to_dict(look.pretraining)
    return Report(run, configuration, position, shown, result, [*left_out, *unlabelled, *_of_records(run)])


def _look(config: VisualizeConfig) -> tuple[Look, str]:
    """Encoder, features and the videos to show, and in words which state of the run it is."""
    device = choose_device(config.device)
    method, pretraining, position = load_method(config.checkpoint)
    data = config.data.completed(pretraining.data)
    _require_root(data)
    videos = load_subsets(data)
    method = method.to(device).eval()
    method.start_epoch(max(position["epoch"] - 1, 0), resumed=True)
    gallery, queries = (
        Subset(part, encode(method.encoder, part, data, pretraining.augment, device)) for part in videos
    )
    more = f" and {position['step']} steps" if position["step"] else ""
    where = f"{find_checkpoint(config.checkpoint)}, after {position['epoch']} epochs{more}"
    return Look(method, pretraining, data, gallery, queries, choose(queries.features.labels, config.videos)), where


def _encoders(checkpoints: Sequence[str]) -> dict[str, nn.Module]:
    """Encoders of other runs, by the runs' names."""
    return {run_folder(checkpoint).resolve().name: load_method(checkpoint).encoder for checkpoint in checkpoints}


def _require_root(data: EvaluationDataConfig) -> None:
    if not data.root or not Path(data.root).expanduser().is_dir():
        raise ConfigError(
            f"data.root: got {data.root or 'none'}, expected the folder of the dataset {data.dataset}; "
            f"--curves-only goes without it"
        )


def _curves(run: Run) -> tuple[dict[str, Sequence[Picture]], list[str]]:
    """The pictures of the curves, and why there are none."""
    if not run.steps:
        return {}, [f"Curves: {run.folder / 'metrics.jsonl'} has no step of training."]
    return {"curves": pictures.curves(run.steps)}, []


def _retrieval(gallery: Features, queries: Features, data: EvaluationDataConfig) -> tuple[Mapping, list[str]]:
    """Figures and protocol of `dclr retrieve`, and why there are none."""
    if (gallery.labels < 0).any() or (queries.labels < 0).any():
        return {}, ["R@k: there are videos without a label."]
    result = retrieval(gallery.clips, gallery.labels, queries.clips, queries.labels)
    return {**result, "protocol": f"{clip_protocol(data)}; {result['protocol']}"}, []


def _of_records(run: Run) -> list[str]:
    """Videos that the pretraining and the evaluations could not read, as their records say."""
    unreadable = (run.cost or {}).get("unreadable_videos") or {}
    found = [f"Unreadable in pretraining: {path}: {reason}" for path, reason in unreadable.items()]
    for folder, record in run.evaluations:
        found += [f"Unreadable in {folder}: {failure}" for failure in record.get("unreadable_videos") or ()]
    return found


def _write(report: Report, folder: Path) -> Path:
    place = folder / PICTURES
    place.mkdir(parents=True, exist_ok=True)
    # Those of an earlier call that showed more are not of this page.
    for old in (*place.glob("*.svg"), *place.glob("*.png")):
        old.unlink()
    for group in report.pictures.values():
        for picture in group:
            (place / picture.name).write_text(picture.svg, encoding="utf-8")
    path = folder / PAGE
    path.write_text(page(report), encoding="utf-8")
    print(path)
    return path
