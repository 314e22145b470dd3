"""What a run reports: metrics.jsonl (one JSON object a line), TensorBoard, and its cost."""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends records to metrics.jsonl, and to TensorBoard where that is wanted.

    Args:
        folder: run folder.
        step: step that the run goes on from; records of later steps, of a run that was cut off, are dropped.
        tensorboard: also write TensorBoard events.
    """

    def __init__(self, folder: Path, step: int = 0, tensorboard: bool = True) -> None:
        self.path = folder / METRICS
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if json.loads(line).get("step", 0) <= step]
        if len(kept) != len(lines):
            self.path.write_text("".join(f"{line}\n" for line in kept))
        self.events = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self.events = SummaryWriter(folder / "tensorboard", purge_step=step)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; its numbers become TensorBoard scalars at its `step`."""
        append(self.path, record)
        if self.events is not None:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name != "step":
                    self.events.add_scalar(name, value, record.get("step"))

    def close(self) -> None:
        if self.events is not None:
            self.events.close()


def append(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line."""
    with Path(path).open("a") as file:
        file.write(json.dumps(record) + "\n")


def memory_mib(device: torch.device) -> float:
    """Peak memory so far, MiB: allocated on the GPU, or resident of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def environment() -> dict[str, str]:
    """Versions, device and commit of this run."""
    packages = ("dclr", "torch", "triton", "numpy", "av", "kornia")
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {**found, "python": platform.python_version(), "device": device, "commit": commit()}


def commit() -> str:
    """Commit of the sources, `+` after it where they were changed since; `unknown` outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "-C", here, "status", "--porcelain"], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
