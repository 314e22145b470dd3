"""Names for the parts of a step, as profilers show them, and how long each takes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nvtx
import torch
from torch.profiler import record_function


@contextmanager
def phase(name: str) -> Iterator[None]:
    """A named range for Nsight (NVTX), torch.profiler and `phase_seconds`; `with phase(name):` or `@phase(name)`.

    Within a compiled graph it is none: what runs there runs as a whole.
    """
    if torch.compiler.is_compiling():
        yield
        return
    with nvtx.annotate(name), record_function(name):
        begin = None if _clock is None else _clock.now()
        yield
        if _clock is not None and begin is not None:
            _clock.spans.append((name, begin, _clock.now()))


class _Clock:
    """Spans of phases, by the host's clock or by events of a GPU's current stream."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.spans: list[tuple[str, Any, Any]] = []

    def now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) / 1e3 if self.on_gpu else end - begin


_clock: _Clock | None = None


@contextmanager
def phase_seconds(device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds that the phases in the block take, by name; filled when the block ends.

    On a GPU they are the device's, waiting for the host included. Profilers cannot tell them: the kernels of a backward
    pass are launched by a thread of its own, outside of the ranges.
    """
    global _clock
    on_gpu = device.type == "cuda"
    seconds: dict[str, float] = defaultdict(float)
    clock = _clock = _Clock(on_gpu)
    try:
        yield seconds
        if on_gpu:
            torch.cuda.synchronize(device)
        for name, begin, end in clock.spans:
            seconds[name] += clock.seconds(begin, end)
    finally:
        _clock = None
