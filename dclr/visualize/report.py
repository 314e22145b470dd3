"""The page of a run: one HTML file that holds its pictures, runs no code and loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from html import escape
from typing import Any

import yaml

from dclr.visualize.run import Run

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 75rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
.pictures figure { flex: 1 1 26rem; }
figcaption, .protocol { color: #555; font-size: 13px; overflow-wrap: anywhere; }
table { border-collapse: collapse; }
th, td { padding: 0.2rem 0.8rem 0.2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #eee; }
td.figures { white-space: pre; font-variant-numeric: tabular-nums; }
pre { background: #f6f6f6; padding: 0.8rem; overflow-x: auto; font-size: 13px; }
"""

INTRODUCTIONS = {
    "curves": "Over the steps of training. A similarity is a mean cosine, of positives and of negatives.",
    "activation": (
        "The encoder's activation (DCLR Eq. 11) on the middle clip of a test video, on that clip's middle frame "
        "standing still, and on its frame differences, over what the encoder sees of each. Where the first is like the "
        "second, the encoder looks at the scene; where it is like the third, at the motion."
    ),
    "retrieval": (
        "Middle frames of test videos, each followed by those of the nearest training videos and their cosine. "
        "✓, solid green: of the same class; ✗, dashed red: of another."
    ),
}


@dataclass(frozen=True)
class Picture:
    """A PNG, and in words what is on it; `name` is its file's."""

    name: str
    png: bytes
    caption: str


@dataclass(frozen=True)
class Report:
    """Everything that the page says.

    Attributes:
        run: the run folder.
        configuration: of the pretraining.
        position: the state that the page shows, in words.
        pictures: under "curves", "activation" and "retrieval"; a kind may be missing.
        retrieval: figures in percent and "protocol", of the panels' features; empty where there are none.
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
    sections = {
        "Run": _facts(report),
        "Training": _pictures(report, "curves"),
        "Evaluations": _evaluations(run.evaluations),
        "Where the encoder looks": _pictures(report, "activation"),
        "Retrieval": _protocol(report.retrieval) + _pictures(report, "retrieval"),
        "Left out": _list(report.left_out) or "<p>Nothing.</p>",
        "Configuration": f"<pre>{escape(_yaml(report.configuration))}</pre>" if report.configuration else "",
        "Environment": _table(run.environment.items()),
    }
    body = "\n".join(f"<h2>{name}</h2>\n{content}" for name, content in sections.items() if content)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
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
        "Pretrained on": " ".join(str(data[key]) for key in ("dataset", "root") if data.get(key)),
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
        f'<figure><img alt="{escape(picture.caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(picture.png).decode()}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in pictures
    ]
    return f'<p>{escape(INTRODUCTIONS[kind])}</p>\n<div class="pictures">\n' + "\n".join(figures) + "\n</div>"


def _evaluations(evaluations: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """A line for each record: figures in percent, and the protocol that gave them."""
    lines = []
    for folder, record in evaluations:
        name = record.get("evaluation") or record.get("row") or "evaluation"
        place = f"epoch {record['epoch']}" if "epoch" in record else f"step {record.get('step', '?')}"
        source = f"{place}, {record['checkpoint']}" if "checkpoint" in record else place
        lines.append(
            f'<tr><td>{escape(str(name))}<br>{escape(folder)}</td><td class="figures">{escape(_figures(record))}</td>'
            f'<td class="protocol">{escape(str(record["protocol"]))}<br>{escape(source)}</td></tr>'
        )
    head = "<tr><th>evaluation, folder</th><th>figures, %</th><th>protocol, checkpoint</th></tr>"
    return f"<table>\n{head}\n" + "\n".join(lines) + "\n</table>" if lines else ""


def _figures(record: Mapping[str, Any]) -> str:
    return "\n".join(f"{name} {value:.2f}" for name, value in record.items() if isinstance(value, float))


def _protocol(result: Mapping[str, Any]) -> str:
    if not result:
        return ""
    figures = escape(_figures(result).replace("\n", ", "))
    return f'<p>{figures} (percent)</p>\n<p class="protocol">{escape(result["protocol"])}</p>\n'


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>" for name, value in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>" if lines else ""


def _list(items: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{escape(item)}</li>" for item in items) + "\n</ul>" if items else ""


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
