"""`dclr visualize`: pictures of a run and the page that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from dclr.config import ConfigError, PretrainConfig, to_dict
from dclr.data import VideoDataset
from dclr.distributed import choose_device
from dclr.evaluation import Features, nearest, retrieval
from dclr.evaluation.checkpoint import (
    EvaluationConfig,
    cached_encoder,
    load_subject,
    own_rows,
    run_folder,
    usable_folder,
)
from dclr.evaluation.dataset import EvaluationDataConfig, clip_protocol, load_subsets
from dclr.visualize.activation import activation_maps, draw_activation, middle_clip
from dclr.visualize.curves import draw_curves
from dclr.visualize.drawing import class_name, png_bytes
from dclr.visualize.report import Picture, Report, page
from dclr.visualize.retrieval import Shown, choose, draw_retrieval
from dclr.visualize.run import Run, read_run

PAGE, PICTURES = "report.html", "report"


@dataclass
class VisualizeConfig(EvaluationConfig):
    """Draw curves, activation maps and retrieved videos of a run, into one page."""

    output: str | None = None
    """Folder of report.html and report/; by default the run folder."""
    videos: int = 6
    """Test videos to show, evenly over the classes."""
    neighbours: int = 5
    """Retrieved videos beside each of them."""
    curves_only: bool = False
    """Make the page of the run folder alone, without checkpoint and videos."""

    def __post_init__(self) -> None:
        for name in ("videos", "neighbours"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True)
class Subset:
    """Videos of a subset, and the features of those that could be read."""

    videos: VideoDataset
    features: Features

    def path(self, row: int) -> str:
        return self.videos.paths[int(self.features.video_id[row])]

    def label(self, row: int) -> int:
        return int(self.features.labels[row])


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
    left_out.append("Activation maps and retrieval: only the curves were asked for (--curves-only).")
    return Report(run, run.configuration, position, curves, left_out=left_out + _of_records(run))


def _report_of_encoder(config: VisualizeConfig, run: Run) -> Report:
    device = choose_device(config.device)
    subject = load_subject(config.checkpoint)
    encoder, pretraining = subject.encoder.to(device), subject.pretraining
    data = config.data.completed(pretraining.data)
    _require_root(data)
    videos = load_subsets(data)
    encode = cached_encoder(subject, config, data, device)
    gallery, queries = (Subset(part, encode(part)) for part in videos)
    chosen = choose(queries.features.labels, config.videos)
    pictures, left_out = _curves(run)
    pictures["activation"] = _activations(encoder, queries, chosen, data, pretraining)
    pictures["retrieval"] = [_panels(gallery, queries, chosen, data, config.neighbours)]
    result, unlabelled = _retrieval(gallery, queries, data)
    for name, part in (("training", gallery), ("test", queries)):
        left_out += [f"Unreadable {name} video: {failure}" for failure in part.features.failures]
        left_out += [f"Missing {name} video: {path}" for path in part.videos.missing]
    where = subject.words
    configuration = run.configuration or to_dict(pretraining)
    return Report(run, configuration, where, pictures, result, [*left_out, *unlabelled, *_of_records(run)])


def _require_root(data: EvaluationDataConfig) -> None:
    if not data.root or not Path(data.root).expanduser().is_dir():
        raise ConfigError(
            f"data.root: got {data.root or 'none'}, expected the folder of the dataset {data.dataset}; "
            f"--curves-only goes without it"
        )


def _curves(run: Run) -> tuple[dict[str, Sequence[Picture]], list[str]]:
    """The picture of the curves, and why there is none."""
    if not run.steps:
        return {}, [f"Curves: {run.folder / 'metrics.jsonl'} has no step of training."]
    png = png_bytes(draw_curves(run.steps))
    return {"curves": [Picture("curves.png", png, "Losses, statistics, rate and speed")]}, []


def _activations(
    encoder: nn.Module, queries: Subset, chosen: list[int], data: EvaluationDataConfig, pretraining: PretrainConfig
) -> list[Picture]:
    device, augment = next(encoder.parameters()).device, pretraining.augment
    pictures = []
    for number, row in enumerate(chosen):
        path, label = queries.path(row), class_name(queries.videos.classes, queries.label(row))
        clip = middle_clip(path, data, data.frames + 1)
        maps = activation_maps(encoder, clip.to(device), augment.mean, augment.std)
        png = png_bytes(draw_activation(clip, maps, f"{label}, {Path(path).name}"))
        pictures.append(Picture(f"activation_{number}.png", png, f"{label}: {path}"))
    return pictures


def _panels(gallery: Subset, queries: Subset, chosen: list[int], data: EvaluationDataConfig, k: int) -> Picture:
    # Of all queries, as their mean is part of the protocol.
    cosines_qk, rows_qk = nearest(gallery.features.clips, queries.features.clips, k, own=_own(gallery, queries))

    def shown(part: Subset, row: int, cosine: float = 1.0) -> Shown:
        return Shown(middle_clip(part.path(row), data, 1)[0].numpy(), part.label(row), cosine)

    found = [
        [shown(gallery, row, cosine) for row, cosine in zip(rows_qk[query].tolist(), cosines_qk[query].tolist())]
        for query in chosen
    ]
    figure = draw_retrieval([shown(queries, query) for query in chosen], found, gallery.videos.classes)
    return Picture("retrieval.png", png_bytes(figure), "Queries and what is nearest to them")


def _own(gallery: Subset, queries: Subset) -> Tensor:
    """The row of the gallery that is each query's own video."""
    paths = [[part.path(row) for row in range(len(part.features.labels))] for part in (gallery, queries)]
    return own_rows(*map(tuple, paths))


def _retrieval(gallery: Subset, queries: Subset, data: EvaluationDataConfig) -> tuple[Mapping, list[str]]:
    """Figures and protocol of `dclr retrieve`, and why there are none."""
    searched, asked = gallery.features, queries.features
    if (searched.labels < 0).any() or (asked.labels < 0).any():
        return {}, ["R@k: there are videos without a label."]
    own = _own(gallery, queries)
    result = retrieval(searched.clips, searched.labels, asked.clips, asked.labels, own=own)
    return {**result, "protocol": f"{clip_protocol(data, gallery.videos, queries.videos)}; {result['protocol']}"}, []


def _of_records(run: Run) -> list[str]:
    """Videos that the pretraining and the evaluations could not read, as their records say."""
    unreadable = (run.cost or {}).get("unreadable_videos") or {}
    found = [f"Unreadable in pretraining: {path}: {reason}" for path, reason in unreadable.items()]
    for folder, record in run.evaluations:
        found += [f"Unreadable in {folder}: {failure}" for failure in record.get("unreadable_videos") or ()]
    return found


def _write(report: Report, folder: Path) -> Path:
    pictures = folder / PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    # Those of an earlier call that showed more videos are not of this page.
    for old in (*pictures.glob("activation_*.png"), pictures / "curves.png", pictures / "retrieval.png"):
        old.unlink(missing_ok=True)
    for group in report.pictures.values():
        for picture in group:
            (pictures / picture.name).write_bytes(picture.png)
    path = folder / PAGE
    path.write_text(page(report), encoding="utf-8")
    print(path)
    return path
