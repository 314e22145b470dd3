"""Services that follow runs, Weights & Biases and MLflow: they get what metrics.jsonl gets, and nothing else does."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from dclr.config import ConfigError, flat_settings


class Tracker(ABC):
    """One run of a service.

    Args:
        folder: of the run, whose name it gets.
        settings: the run's configuration, nested plain values.
    """

    @abstractmethod
    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Hand over the numbers of a step."""

    @abstractmethod
    def close(self) -> None:
        """The run has ended."""


class WandbTracker(Tracker):
    """Weights & Biases. A run that is resumed in its folder goes on there too."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        number = hashlib.sha256(str(folder.absolute()).encode(errors="surrogateescape")).hexdigest()[:16]
        options = {"name": folder.name, "id": number, "resume": "allow", "dir": str(folder), "config": dict(settings)}
        self.run = _installed("wandb").init(project="dclr", **options)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        self.run.finish()


class MlflowTracker(Tracker):
    """MLflow, at the tracking URI of its environment."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.mlflow = _installed("mlflow")
        self.mlflow.start_run(run_name=folder.name)
        self.mlflow.log_params({name: str(value) for name, value in flat_settings(settings)})

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        # MLflow refuses names with an at sign.
        self.mlflow.log_metrics({name.replace("@", "_at_"): value for name, value in numbers.items()}, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


TRACKERS: dict[str, type[Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


def _installed(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"train.trackers: {name} is not installed: pip install dclr[{name}]") from error
