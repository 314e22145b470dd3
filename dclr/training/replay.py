"""Random numbers for a compiled step.

A compiled graph cannot draw from a generator: it would bake the first numbers in. A forward pass on a copy of the
method therefore records once which numbers the method asks for; before each step these are drawn, and the graph takes
them as inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from dclr.augment import Draw
from dclr.data import Batch
from dclr.methods import Method

# A function of `Draw` and the arguments that it is called with.
Request = tuple[Callable[..., Tensor], tuple]


class Replay(Draw):
    """Random numbers drawn beforehand, handed out in the order in which the method asks for them.

    Floating-point numbers are on the device. Integers stay on the CPU, where methods index tables by them.
    """

    def __init__(self, requests: list[Request], draw: Draw, device: torch.device) -> None:
        super().__init__(draw.generator, draw.rank, draw.world)
        self.taken = 0
        drawn = [function(draw, *args) for function, args in requests]
        self.numbers = [x.to(device, non_blocking=True) if x.is_floating_point() else x for x in drawn]

    def uniform(self, *args: float) -> Tensor:
        return self._next()

    def integers(self, *args: int) -> Tensor:
        return self._next()

    def permutations(self, *args: int) -> Tensor:
        return self._next()

    def _next(self) -> Tensor:
        self.taken += 1
        return self.numbers[self.taken - 1]


class _Recorder(Draw):
    """A draw that records what it is asked for."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__(generator)
        self.requests: list[Request] = []

    def uniform(self, *args: float) -> Tensor:
        return self._recorded(Draw.uniform, args)

    def integers(self, *args: int) -> Tensor:
        return self._recorded(Draw.integers, args)

    def permutations(self, *args: int) -> Tensor:
        return self._recorded(Draw.permutations, args)

    def _recorded(self, function: Callable[..., Tensor], args: tuple) -> Tensor:
        self.requests.append((function, args))
        return function(self, *args)


@torch.no_grad()
def recorded_requests(method: Method, batch: Batch) -> list[Request]:
    """The random numbers that a forward pass asks for, in order; found on a copy, so that no state changes."""
    draw = _Recorder(torch.Generator())
    with torch.random.fork_rng(devices=[batch.clips.device] if batch.clips.is_cuda else []):
        copy.deepcopy(method).forward(batch, draw)
    return draw.requests
