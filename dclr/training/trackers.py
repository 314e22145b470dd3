"""What follows runs beside metrics.jsonl: TensorBoard, Weights & Biases and MLflow. They get the same numbers."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from dclr.config import ConfigError, flat_settings
from dclr.files import append_or_explain


class Tracker(ABC):
    """One run, as it is followed."""

    @abstractmethod
    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Hand over the numbers of a step."""

    @abstractmethod
    def close(self) -> None:
        """The run has ended."""


class TensorBoardEvents(Tracker):
    """A file of TensorBoard events, each of which is written at once: a full disk stops the run in words of its own.

    Args:
        folder: of the run, which gets the file.
        step: that the run goes on from; TensorBoard forgets later ones, of a run that was cut off.
    """

    def __init__(self, folder: Path, step: int) -> None:
        # TensorBoard's own writer works in a thread, whose errors are tracebacks beside the run's.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self.event = Event
        self.path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if step:
            self._append(Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        values = [{"tag": name, "simple_value": value} for name, value in numbers.items()]
        self._append(self.event(wall_time=time.time(), step=step, summary={"value": values}))

    def _append(self, event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        append_or_explain(self.path, record.getvalue())

    def close(self) -> None:
        pass


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


# Made of the run's folder, whose name it gets there, and of its configuration as nested plain values.
TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


def _installed(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"train.trackers: {name} is not installed: pip install dclr[{name}]") from error
