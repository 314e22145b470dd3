"""`dclr doctor`: what a bug report needs: versions, devices, kernels against their references, decoding, the disk.

A CPU runs the kernels' references, so there their Triton code is run by Triton's interpreter, in a process of its own.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from dclr.config import ConfigError
from dclr.data import read_clips
from dclr.data.synth import write_video
from dclr.errors import RunError
from dclr.kernels import decouple, decoupled_pool, info_nce, topk_similarity
from dclr.training.metrics import device_name, environment

# A check's result and whether it is as it should be.
Finding = tuple[str, bool]
MIB = 2**20
DISK_MIB = 64
# Largest difference from the reference, as a share of its largest value: a few roundings of float32.
TOLERANCE = 1e-4


@dataclass
class DoctorConfig:
    """Print versions, devices and checks of this installation; the exit status is 1 where a check fails."""

    root: str = "."
    """Folder whose disk is timed, such as that of your videos; a file of 64 MiB is written there and removed."""


def doctor(config: DoctorConfig | None = None) -> dict[str, str]:
    """Look at this installation and print what was found.

    Returns:
        What was looked at -> what was found.

    Raises:
        ConfigError: no folder to time.
        RunError: a check failed; names which.
    """
    config = config or DoctorConfig()
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise ConfigError(f"root: got {config.root}, expected a folder")
    found, failed = {}, []
    for name, value in {**_versions(), **_devices()}.items():
        found[name] = str(value)
        print(f"{name:12} {value}", flush=True)
    checks: dict[str, Callable[[], Finding]] = {
        "kernels": _kernels,
        "decoding": _decoding,
        "disk": lambda: _disk(root),
    }
    for name, check in checks.items():
        found[name], good = _carefully(check)
        failed += [] if good else [name]
        print(f"{name:12} {'' if good else 'FAILED: '}{found[name]}", flush=True)
    if failed:
        raise RunError(f"doctor: {', '.join(failed)} failed; a report of a bug should hold the lines above")
    return found


def _carefully(check: Callable[[], Finding]) -> Finding:
    """The finding of a check; an error is one too."""
    try:
        return check()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}", False


def _versions() -> dict[str, object]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    versions = {name: value for name, value in environment(device).items() if name not in ("device", "processes")}
    ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
    return {
        **versions,
        "libavcodec": ffmpeg,
        "cuda": torch.version.cuda or torch.version.hip,
        "os": platform.platform(),
    }


def _devices() -> dict[str, object]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices: dict[str, object] = {"cpu": f"{platform.machine()}, {cores} cores, {memory:.1f} GiB"}
    for number in range(torch.cuda.device_count()):
        device, about = torch.device("cuda", number), torch.cuda.get_device_properties(number)
        devices[f"gpu {number}"] = (
            f"{device_name(device)}, {about.major}.{about.minor}, {about.total_memory / 2**30:.1f} GiB"
        )
    return devices


def _kernels() -> Finding:
    """Kernels against their references: on a GPU here, else by the interpreter in a process that starts with it."""
    if torch.cuda.is_available():
        worst, seconds = compare_with_references(torch.device("cuda"))
        where = f"compiled by Triton in {seconds:.1f} s"
    elif environment(torch.device("cpu"))["triton"] is None:
        return "no Triton here: the references are used", True
    else:
        command = [sys.executable, "-m", "dclr.commands.doctor"]
        run = subprocess.run(
            command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300
        )
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
            return f"in Triton's interpreter, which training on a CPU does without: {reason}", False
        worst, where = float(run.stdout), "by Triton's interpreter; a CPU uses the references"
    return f"{where}: differ from the references by {worst:.1e}, at most {TOLERANCE:g} expected", worst <= TOLERANCE


def compare_with_references(device: torch.device) -> tuple[float, float]:
    """Largest difference between kernels and references, as a share of the largest value, and seconds it took.

    References are what float64 runs, on any device.
    """
    start = time.perf_counter()
    pairs = zip(_results(device, torch.float32), _results(device, torch.float64))
    worst = max(
        ((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1)).item() for got, expected in pairs
    )
    return worst, time.perf_counter() - start


def _results(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    """What the functions of a step give, with gradients, for fixed inputs of odd sizes."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()

    clip, index = draw(3, 3, 5, 13, 11), torch.tensor([0, 3, 1], device=device)
    yield from (value.detach() for value in decouple(clip.detach(), index, mean=(0.4,) * 3, std=(0.2,) * 3))
    rows = draw(33, 24)
    loss = info_nce(rows, rows, positive=torch.arange(33, device=device).roll(7), temperature=0.2)
    yield from (loss.detach(), *torch.autograd.grad(loss, rows))
    maps = [draw(2, 19, 2, 3, 3) for _ in range(3)]
    pools = decoupled_pool(*maps)
    yield from (value.detach() for value in pools)
    yield from torch.autograd.grad(sum(value.sum() for value in pools), maps)
    yield topk_similarity(rows.detach(), draw(70, 24).detach(), 3).values


def _decoding() -> Finding:
    """A written video is read back: the right frames, and how fast."""
    frames, size = 48, 128
    levels = np.linspace(20, 235, frames).round().astype(np.uint8)
    video = np.broadcast_to(levels[:, None, None, None], (frames, size, size, 3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "levels.mp4"
        write_video(path, np.ascontiguousarray(video))
        start = time.perf_counter()
        clips = read_clips(path, [0, 15], 16, 2)
        seconds = time.perf_counter() - start
    expected = levels[np.array([[0], [15]]) + 2 * np.arange(16)]
    off = np.abs(clips.mean((2, 3, 4)) - expected).max()
    speed = f"{frames / seconds:.0f} frames of {size} x {size} a second"
    # Neighbouring frames are 4.6 levels apart.
    return f"H.264, frames {'right' if off < 2 else f'wrong by {off:.1f} levels'}, {speed}", bool(off < 2)


def _disk(root: Path) -> Finding:
    """How fast a file is written to and read from the disk of a folder, past the system's cache where it can be."""
    block = os.urandom(MIB)
    with tempfile.TemporaryFile(dir=root) as file:
        start = time.perf_counter()
        for _ in range(DISK_MIB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        wrote = DISK_MIB / (time.perf_counter() - start)
        cached = "" if hasattr(os, "posix_fadvise") else " (from the cache)"
        if not cached:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        while file.read(MIB):
            pass
        read = DISK_MIB / (time.perf_counter() - start)
    return f"{root.resolve()}: {wrote:.0f} MiB/s written, {read:.0f} MiB/s read{cached}", True


if __name__ == "__main__":
    print(compare_with_references(torch.device("cpu"))[0])
