"""`dclr visualize`: pictures of a run and the page that holds them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dclr.config import ConfigError, to_dict
from dclr.distributed import choose_device
from dclr.evaluation import retrieval
from dclr.evaluation.checkpoint import (
    Evaluated,
    EvaluationConfig,
    features_of,
    load_subject,
    run_folder,
    usable_folder,
)
from dclr.evaluation.dataset import EvaluationDataConfig
from dclr.files import write_or_explain
from dclr.methods import Method
from dclr.training import CheckpointError, load_method
from dclr.visualize import pictures
from dclr.visualize.pictures import Look
from dclr.visualize.report import Picture, Report, page
from dclr.visualize.retrieval import choose
from dclr.visualize.run import Run, read_run

PAGE, PICTURES = "report.html", "report"
# What the files of pictures begin with.
DRAWN = ("curve", "activation", "retrieval", "search", "kernels", "masks")


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


def visualize(config: VisualizeConfig) -> Path | None:
    """Write report.html, and its pictures as files of the folder report/ beside it.

    Returns:
        The page; None on other processes of torchrun than the first.

    Raises:
        ConfigError: no run there, or no dataset (`curves_only` goes without).
        OSError, WeightsError, DatasetError, ValueError: as `dclr.commands.evaluate.retrieve`.
    """
    run = read_run(run_folder(config.checkpoint))
    folder = usable_folder(config.output or run.folder)
    report = _report_of_folder(config, run) if config.curves_only else _report_of_encoder(config, run)
    return None if report is None else _write_page(report, folder)


def _report_of_folder(config: VisualizeConfig, run: Run) -> Report:
    if not (run.configuration or run.steps or run.evaluations):
        raise ConfigError(
            f"checkpoint: got {config.checkpoint}, expected a run: {run.folder} has no config.yaml or metrics.jsonl"
        )
    last = run.steps[-1] if run.steps else {}
    position = f"the log, up to step {last['step']}" if last else "the folder"
    curves, left_out = _curves(run)
    left_out.append(f"Pictures of the encoder: `dclr visualize --checkpoint {shlex.quote(str(run.folder))}` adds them.")
    return Report(run, run.configuration, position, curves, left_out=left_out + _of_records(run))


def _report_of_encoder(config: VisualizeConfig, run: Run) -> Report | None:
    subject = load_subject(config.checkpoint)
    _require_root(config.data.completed(subject.pretraining.data))
    evaluated = features_of(["visualize"], config, subject=subject)
    if evaluated is None:
        return None
    look = _look_at(config, evaluated)
    shown, left_out = _curves(run)
    shown["activation"] = list(pictures.activations(look))
    shown["retrieval"] = list(pictures.neighbours(look, config.neighbours))
    shown["search"] = list(pictures.searches(look))
    shown["kernels"] = pictures.kernels(look.encoder, look.pretraining, _encoders(config.beside))
    shown["masks"] = list(pictures.masks(look))
    result, unlabelled = _retrieval_figures(evaluated)
    for name, features, videos in zip(("training", "test"), (evaluated.train, evaluated.test), evaluated.videos):
        left_out += [f"Unreadable {name} video: {failure}" for failure in features.failures]
        left_out += [f"Missing {name} video: {path}" for path in videos.missing]
    configuration = run.configuration or to_dict(look.pretraining)
    return Report(run, configuration, subject.words, shown, result, [*left_out, *unlabelled, *_of_records(run)])


def _encoders(checkpoints: Sequence[str]) -> dict[str, nn.Module]:
    """The encoders of further runs, by the names of their folders, or as they were given where two have one name."""
    encoders: dict[str, nn.Module] = {}
    for checkpoint in checkpoints:
        name = run_folder(checkpoint).resolve().name
        encoders[checkpoint if name in encoders else name] = load_subject(checkpoint).encoder
    return encoders


def _look_at(config: VisualizeConfig, evaluated: Evaluated) -> Look:
    """What the pictures are made from: encoder, method, features, and the videos to show."""
    device = choose_device(config.device)
    encoder = evaluated.subject.encoder.to(device).eval()
    return Look(encoder, _method(config.checkpoint, device), evaluated, choose(evaluated.test.labels, config.videos))


def _method(checkpoint: str, device: torch.device) -> Method | None:
    """The method of a run as it was in its last epoch; None of weights alone."""
    try:
        method, _, position = load_method(checkpoint)
    except CheckpointError:
        return None
    method.start_epoch(max(position["epoch"] - 1, 0), resumed=True)
    return method.to(device).eval()


def _require_root(data: EvaluationDataConfig) -> None:
    if not data.root or not Path(data.root).expanduser().is_dir():
        raise ConfigError(
            f"data.root: got {data.root or 'none'}, expected the folder of the videos (data.dataset is "
            f"{data.dataset}); --curves-only goes without them"
        )


def _curves(run: Run) -> tuple[dict[str, Sequence[Picture]], list[str]]:
    """The pictures of the curves, and why there are none."""
    if not run.steps:
        return {}, [f"Curves: {run.folder / 'metrics.jsonl'} has no step of training."]
    return {"curves": pictures.curves(run.steps)}, []


def _retrieval_figures(evaluated: Evaluated) -> tuple[Mapping, list[str]]:
    """Figures and protocol of `dclr retrieve`, and why there are none."""
    train, test = evaluated.train, evaluated.test
    if (train.labels < 0).any() or (test.labels < 0).any():
        return {}, ["R@k: there are videos without a label."]
    result = retrieval(train.clips, train.labels, test.clips, test.labels, own=evaluated.own)
    return {**result, "protocol": f"{evaluated.protocol}; {result['protocol']}"}, []


def _of_records(run: Run) -> list[str]:
    """Videos that the pretraining and the evaluations could not read, as their records say."""
    unreadable = (run.cost or {}).get("unreadable_videos") or {}
    found = [f"Unreadable in pretraining: {path}: {reason}" for path, reason in unreadable.items()]
    for folder, record in run.evaluations:
        found += [f"Unreadable in {folder}: {failure}" for failure in record.get("unreadable_videos") or ()]
    return found


def _write_page(report: Report, folder: Path) -> Path:
    place = folder / PICTURES
    names = set()
    for picture in (picture for group in report.pictures.values() for picture in group):
        write_or_explain(place / picture.name, picture.svg.encode())
        names.add(picture.name)
    # Those of an earlier call that showed more are not of this page.
    for old in [old for kind in DRAWN for old in place.glob(f"{kind}*.svg") if old.name not in names]:
        old.unlink()
    path = folder / PAGE
    write_or_explain(path, page(report).encode(errors="backslashreplace"))  # names of files may be no text
    print(path)
    return path
