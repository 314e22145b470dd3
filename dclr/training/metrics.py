"""What a run leaves to read: metrics.jsonl, TensorBoard events, and the environment that it ran in."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import dclr
from dclr.distributed import world
from dclr.files import append_or_explain, write_or_explain
from dclr.training.trackers import TRACKERS, TensorBoardEvents

METRICS = "metrics.jsonl"


def append_metrics(folder: Path | str, record: Mapping[str, Any]) -> None:
    """Append one JSON line to the folder's metrics.jsonl; NaN and infinity, which JSON lacks, become null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
    append_or_explain(Path(folder) / METRICS, (json.dumps(finite) + "\n").encode())


def read_metrics(folder: Path | str) -> list[dict[str, Any]]:
    """The records of a folder's metrics.jsonl, oldest first, without a last one cut off in writing."""
    path = Path(folder) / METRICS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class MetricsLog:
    """Log of a run: appends records to metrics.jsonl, and to TensorBoard and trackers where they are wanted.

    Args:
        folder: run folder.
        step: step that the run goes on from; records of later steps, of a run that was cut off, are dropped.
        tensorboard: also write TensorBoard events.
        trackers: names of `TRACKERS` that get the same numbers.
        settings: of the run, for the trackers.
    """

    def __init__(
        self,
        folder: Path,
        step: int = 0,
        tensorboard: bool = True,
        trackers: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.trackers = [TRACKERS[name](folder, settings or {}) for name in trackers]
        self._rewind(step)
        if tensorboard:
            self.trackers.append(TensorBoardEvents(folder, step))

    def _rewind(self, step: int) -> None:
        path = self.folder / METRICS
        kept = [record for record in read_metrics(self.folder) if record.get("step", 0) <= step]
        if path.exists():
            write_or_explain(path, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; TensorBoard and the trackers get its numbers, at its `step`."""
        append_metrics(self.folder, record)
        numbers = {name: value for name, value in record.items() if isinstance(value, (int, float)) and name != "step"}
        for tracker in self.trackers:
            tracker.write(record["step"], numbers)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


class Meter:
    """Clips a second and the share of time spent waiting for data, since the last reading and in all."""

    def __init__(self) -> None:
        self._clips_before, self._seconds_before = 0, 0.0
        self._restart()

    def _restart(self) -> None:
        self._clips, self._waited, self._since = 0, 0.0, time.perf_counter()

    def add(self, clips: int, waited: float) -> None:
        """Count a batch of `clips`, for which the process waited `waited` seconds."""
        self._clips += clips
        self._waited += waited

    def leave_out(self, seconds: float) -> None:
        """Do not count the `seconds` that have just passed, in which no clip was trained on."""
        self._since += seconds

    def read(self) -> dict[str, float]:
        """Rates since the last reading; starts the next."""
        seconds = time.perf_counter() - self._since
        rates = {"clips_per_second": self._clips / seconds, "data_wait_share": self._waited / seconds}
        self._seconds_before, self._clips_before = self.totals()
        self._restart()
        return rates

    def totals(self) -> tuple[float, int]:
        """Seconds and clips in all, those before a resume included."""
        return self._seconds_before + time.perf_counter() - self._since, self._clips_before + self._clips

    def state_dict(self) -> dict[str, float]:
        return dict(zip(("seconds", "clips"), self.totals()))

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._seconds_before, self._clips_before = state["seconds"], state["clips"]
        self._restart()


def memory_mib(device: torch.device) -> float:
    """Peak memory so far, MiB: allocated on the GPU, or resident of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def device_name(device: torch.device) -> str:
    """The GPU's name, or `CPU` with its architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit and hardware of a run, for its records."""
    return {
        "dclr": dclr.__version__,
        "commit": source_commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{name: _version(name) for name in ("triton", "numpy", "av", "kornia")},
        "device": device_name(device),
        "processes": world(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_commit() -> str | None:
    """Commit of the source that runs, with `-dirty` where files differ from it; None outside of a checkout.

    DCLR_COMMIT, of the environment, is the commit of a copy, whose own checkout may be of another or none.
    """
    if copied := os.environ.get("DCLR_COMMIT"):
        return copied
    source = Path(dclr.__file__).parents[1]
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
