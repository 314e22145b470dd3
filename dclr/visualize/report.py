"""The page of a run: one HTML file that holds its pictures, runs no code and loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from html import escape
from typing import Any

import yaml

from dclr.evaluation.records import figures_in_words
from dclr.visualize.drawing import inline
from dclr.visualize.run import Run
from dclr.visualize.style import STYLE

# Kind of picture -> heading of its section, and how to read what is in it.
SECTIONS = {
    "curves": (
        "Training",
        "Over the steps: faint as logged, strong its running mean. Dotted, where a loss has it, is chance: the value "
        "at which a clip's partner is guessed among all candidates.",
    ),
    "activation": (
        "Where the encoder looks",
        "Its activation (DCLR Eq. 11) on the middle clip of a video, on that clip's middle frame standing still, and "
        "on its frame differences, over what the encoder sees of each. Where the first is like the second, the encoder "
        "looks at the scene; where it is like the third, at the motion.",
    ),
    "retrieval": (
        "Nearest neighbours",
        "Middle frames of a video and of those nearest to it, with their cosine. ✓ and solid green: of the same class; "
        "✗ and dashed orange: of another.",
    ),
    "search": (
        "Search by scene and by motion",
        "As DCLR Fig. 4: two views of a video, and for each the nearest clip of another video by its static frame and "
        "by its frame difference. By the difference the motion should agree, whatever the scene.",
    ),
    "kernels": (
        "Temporal kernels",
        "As FAME Fig. 3: the weights of every convolution over several frames, layer by layer, beside those before "
        "training; the bar spans half of them. Weights near each other treat frames alike, far apart they tell frames "
        "apart.",
    ),
    "masks": (
        "Foreground masks",
        "As FAME Fig. 4: what each mask keeps of a clip, and the clip merged by FAME's onto another one. What moves "
        "should be kept.",
    ),
}


@dataclass(frozen=True)
class Picture:
    """An SVG document, and in words what is on it; `name` is its file's."""

    name: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Report:
    """Everything that the page says.

    Attributes:
        run: the run folder.
        configuration: of the run.
        position: the state that the page shows, in words.
        pictures: under names of `SECTIONS`; a kind may be missing.
        retrieval: figures in percent and "protocol", of the neighbours shown; empty where there are none.
        left_out: what the page lacks, and why, a sentence each.
    """

    run: Run
    configuration: Mapping[str, Any]
    position: str
    pictures: Mapping[str, Sequence[Picture]]
    retrieval: Mapping[str, Any] = field(default_factory=dict)
    left_out: Sequence[str] = ()


def page(report: Report) -> str:
    """The page as HTML; all text in it is escaped."""
    run = report.run
    title = f"{report.configuration.get('method', {}).get('name', 'run')}: {run.folder.resolve().name}"
    sections = {"Run": _facts(report), "Warnings": _list(run.warnings)}
    sections[SECTIONS["curves"][0]] = _pictures(report, "curves")
    sections["Evaluations"] = _evaluations(run.evaluations)
    sections |= {heading: _pictures(report, kind) for kind, (heading, _) in SECTIONS.items() if kind != "curves"}
    sections |= {
        "Not shown": _list(report.left_out),
        "Configuration": _configuration(report.configuration),
        "Environment": _table(run.environment.items()),
    }
    body = "\n".join(f"<h2>{name}</h2>\n{content}" for name, content in sections.items() if content)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def cost_line(cost: Mapping[str, Any] | None) -> str:
    """What the run cost, as it said at its end."""
    if cost is None:
        return "not known: the run has not finished"
    wall = timedelta(seconds=round(cost["wall_seconds"]))
    return (
        f"{cost['step']} steps in {wall} on {cost['device']}, {cost['mean_clips_per_second']:.1f} clips/s, "
        f"{cost['device_hours']:.3g} device-hours"
    )


def _facts(report: Report) -> str:
    configuration = report.configuration
    data = configuration.get("data", {})
    facts = {
        "Folder": report.run.folder,
        "Method": configuration.get("method", {}).get("name"),
        "Encoder": configuration.get("encoder"),
        "Started from": report.run.start,
        "Trained on": " ".join(str(data[key]) for key in ("dataset", "root") if data.get(key)),
        "Shown": report.position,
        "Cost": cost_line(report.run.cost),
        "Commit": report.run.environment.get("commit"),
    }
    return _table((name, value) for name, value in facts.items() if value)


def _pictures(report: Report, kind: str) -> str:
    pictures = report.pictures.get(kind, ())
    if not pictures:
        return ""
    figures = [
        f'<figure role="img" aria-label="{escape(picture.caption)}">{inline(picture.svg)}\n'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in pictures
    ]
    reading = f"<p>{escape(SECTIONS[kind][1])}</p>\n"
    figures_of_neighbours = _retrieval(report) if kind == "retrieval" else ""
    return f'{reading}{figures_of_neighbours}<div class="pictures">\n' + "\n".join(figures) + "\n</div>"


def _evaluations(evaluations: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """A row for each evaluation: figures in percent, and the protocol that gave them; of a repeated one the last."""
    last = {}
    for folder, record in evaluations:
        name = str(record.get("evaluation") or record.get("row") or "evaluation")
        place = f"epoch {record['epoch']}" if "epoch" in record else f"step {record.get('step', '?')}"
        source = f"{place}, {record['checkpoint']}" if "checkpoint" in record else place
        last[folder, name, str(record["protocol"]), source] = "\n".join(figures_in_words(record))
    rows = [
        f'<tr><td data-name="evaluation, folder">{escape(name)}<br>{escape(folder)}</td>'
        f'<td data-name="percent" class="figures">{escape(figures)}</td>'
        f'<td data-name="protocol, checkpoint" class="protocol">{escape(protocol)}<br>{escape(source)}</td></tr>'
        for (folder, name, protocol, source), figures in last.items()
    ]
    head = "<tr><th>evaluation, folder</th><th>percent</th><th>protocol, checkpoint</th></tr>"
    return f'<table class="cards">\n{head}\n' + "\n".join(rows) + "\n</table>" if rows else ""


def _retrieval(report: Report) -> str:
    """Figures of the neighbours shown, where they do not stand among the evaluations already."""
    result = report.retrieval
    if not result or any(_agree(record, result) for _, record in report.run.evaluations):
        return ""
    figures = escape(", ".join(figures_in_words(result)))
    return f'<p>{figures} (percent)</p>\n<p class="protocol">{escape(result["protocol"])}</p>\n'


def _agree(record: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Whether a record is of the same protocol, and every figure that both have is the same."""
    figures = {name: value for name, value in result.items() if isinstance(value, float)}
    same = all(record.get(name, value) == value for name, value in figures.items())
    return record["protocol"] == result["protocol"] and same


def _configuration(values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    return f"<details><summary>config.yaml, resolved</summary><pre>{escape(text)}</pre></details>"


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>" for name, value in rows]
    return '<table class="facts">\n' + "\n".join(lines) + "\n</table>" if lines else ""


def _list(items: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{escape(item)}</li>" for item in items) + "\n</ul>" if items else ""
