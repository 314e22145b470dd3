"""Names for the parts of a step, as profilers show them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import nvtx
import torch
from torch.profiler import record_function


@contextmanager
def phase(name: str) -> Iterator[None]:
    """A named range for Nsight (NVTX) and for torch.profiler alike; `with phase(name):` or `@phase(name)`.

    Within a compiled graph it is none: what runs there runs as a whole.
    """
    if torch.compiler.is_compiling():
        yield
        return
    with nvtx.annotate(name), record_function(name):
        yield
