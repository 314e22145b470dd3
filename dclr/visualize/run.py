"""What a run folder says of its run: configuration, environment, records of training and of evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dclr.config import ConfigError, read_values
from dclr.training import read_metrics
from dclr.training.metrics import METRICS

CONFIG, FINETUNE = "config.yaml", "finetune.yaml"


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    Attributes:
        folder: where it is.
        configuration: nested values of config.yaml, empty where there is none.
        environment: versions, commit and hardware, of config.yaml.
        start: of a finetuning, what it started from, in words; else empty.
        warnings: what the run warned of, with its step.
        steps: records of training steps, each of a later step than the one before.
        cost: record of what the run cost; None of a run that has not finished.
        evaluations: name of the folder, relative to the run's, and record of each evaluation.
    """

    folder: Path
    configuration: dict[str, Any]
    environment: dict[str, Any]
    start: str
    warnings: list[str]
    steps: list[dict[str, Any]]
    cost: dict[str, Any] | None
    evaluations: list[tuple[str, dict[str, Any]]]


def read_run(folder: Path) -> Run:
    """Everything that a run folder holds but its checkpoints; a file that is not there says nothing.

    Raises:
        ConfigError: a file that cannot be read.
    """
    configuration = _values(folder / CONFIG)
    environment = configuration.pop("run", None) or {}
    own = _records(folder)
    # A demo's and an ablation's figures stand among the records of their runs.
    evaluations = [(".", record) for record in own if "protocol" in record]
    for path in sorted(folder.glob(f"*/{METRICS}")):
        evaluations += [(path.parent.name, record) for record in _records(path.parent) if "protocol" in record]
    costs = [record for record in own if "wall_seconds" in record]
    cost = costs[-1] if costs else None
    start, steps = _start(_values(folder / FINETUNE)), _monotonic(own)
    warnings = [f"step {record['step']}: {text}" for record in steps for text in record.get("warnings", ())]
    return Run(folder, configuration, environment, start, warnings, steps, cost, evaluations)


def _start(settings: dict[str, Any]) -> str:
    """What a finetuning with these settings starts from; empty where there are none."""
    checkpoint = settings.get("checkpoint", "")
    return f"random weights, with the encoder of {checkpoint}" if settings.get("scratch") else str(checkpoint)


def _values(path: Path) -> dict[str, Any]:
    return read_values(path) if path.exists() else {}


def _records(folder: Path) -> list[dict[str, Any]]:
    try:
        records = read_metrics(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / METRICS}: cannot be read, expected a JSON object a line: {error}") from error
    strange = [record for record in records if not isinstance(record, dict)]
    if strange:
        raise ConfigError(f"{folder / METRICS}: got {strange[0]!r}, expected a JSON object a line")
    return records


def _monotonic(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of training steps; where a run went on from an earlier step, the steps that it took anew.

    The figures of an evaluation after an epoch join the record of its last step.
    """
    kept: list[dict[str, Any]] = []
    for record in records:
        if "loss" in record and "step" in record:
            while kept and kept[-1]["step"] >= record["step"]:
                kept.pop()
            kept.append(record)
        elif kept and kept[-1]["step"] == record.get("step") and any(name.startswith("eval/") for name in record):
            kept[-1] = {**kept[-1], **record}
    return kept
