"""Model card of an exported encoder: what it takes, how it was pretrained, what it reached, what it cost."""

from __future__ import annotations

from pathlib import Path

import yaml

from dclr.config import to_dict
from dclr.evaluation.checkpoint import Subject
from dclr.evaluation.records import figures_in_words
from dclr.methods import method_name
from dclr.visualize.report import cost_line
from dclr.visualize.run import Run, read_run

# What model hubs read.
FRONT = """---
library_name: dclr
pipeline_tag: video-classification
tags: [video, self-supervised, feature-extraction]
---"""


def model_card(subject: Subject, file: Path, folder: Path) -> str:
    """Markdown with the fields that model hubs read in front.

    Args:
        file: the export that it describes.
        folder: of the run, whose records it cites.
    """
    run, own = read_run(folder), subject.epoch is not None
    data, augment = subject.pretraining.data, subject.pretraining.augment
    parameters = sum(parameter.numel() for parameter in subject.encoder.parameters())
    parts = [
        FRONT,
        f"# {subject.name}" + (f", {method_name(subject.pretraining.method)}" if own else ""),
        f"A video encoder with {parameters / 1e6:.2f} M parameters and {subject.encoder.feature_dim} features.",
        "## Input",
        f"Clips of {data.frames} frames, every {data.stride} of the video, {data.size} x {data.size} pixels, RGB in "
        f"[0, 1], minus the mean {tuple(augment.mean)}, over the standard deviation {tuple(augment.std)}.",
        f'```python\nimport dclr\n\nfeatures = dclr.embed("video.mp4", "{file.name}")  # (clips, features)\n```',
        "## Pretraining",
        *(_pretraining(subject, run) if own else [f"Weights of others: {subject.matched}."]),
        "## Evaluations",
        *(_card_evaluations(run) or ["None on record."]),
    ]
    return "\n\n".join(parts) + "\n"


def _pretraining(subject: Subject, run: Run) -> list[str]:
    data = subject.pretraining.data
    settings = yaml.safe_dump(to_dict(subject.pretraining), sort_keys=False, allow_unicode=True)
    return [
        f"On {data.dataset}{f', split {data.split}' if data.dataset != 'folder' else ''}, without labels; "
        f"{subject.epoch} epochs.",
        f"Cost: {cost_line(run.cost)}.",
        f"<details><summary>All settings</summary>\n\n```yaml\n{settings}```\n\n</details>",
    ]


def _card_evaluations(run: Run) -> list[str]:
    """A table of the figures, and below it the protocol of each row."""
    if not run.evaluations:
        return []
    rows = [
        f"| {number} | {record.get('evaluation', 'evaluation')} | {', '.join(figures_in_words(record))} "
        f"| {record.get('epoch', '')} |"
        for number, (_, record) in enumerate(run.evaluations, start=1)
    ]
    protocols = [f"{number}. {record['protocol']}" for number, (_, record) in enumerate(run.evaluations, start=1)]
    table = "\n".join(["| | evaluation | figures, % | epoch |", "|---|---|---|---|", *rows])
    return [table, "Protocols:", "\n".join(protocols)]
