"""Encoders and training steps are one graph to `torch.compile`, and compute in it what they compute without."""

import copy

import pytest
import torch

from dclr.augment import AugmentConfig, Draw
from dclr.data.clips import Batch
from dclr.methods import DCLRConfig, SimCLRConfig, build_method
from dclr.methods.search import SearchConfig
from dclr.models import ENCODERS, accelerate, build_encoder

# The others are these without a part, or in narrow.
DISTINCT = [name for name in ENCODERS if name not in ("s3d", "r2plus1d_tiny")]
CHANNELS_LAST, CONTIGUOUS = torch.channels_last_3d, torch.contiguous_format
VIDEOS, FRAMES, SIZE = 4, 5, 24


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", DISTINCT)
def test_every_encoder_is_one_graph(name):
    with torch.device("meta"):
        encoder, clip = build_encoder(name), torch.empty(2, 3, 8, 32, 32)
    features = torch.compile(encoder, fullgraph=True, backend="aot_eager")(clip)
    features.sum().backward()
    assert features.shape[:2] == (2, encoder.feature_dim)
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize(
    "switches, layout",
    [
        ({"fold": True}, CONTIGUOUS),
        ({"fold": True, "pad": True}, CHANNELS_LAST),
        ({"fold": True, "static_once": True}, CHANNELS_LAST),
    ],
)
def test_rewrites_are_one_graph(switches, layout):
    torch.manual_seed(0)
    eager = accelerate(build_encoder("r2plus1d_tiny", widths=(5, 6, 7, 9)).double(), **switches)
    compiled = copy.deepcopy(eager)
    inputs = [torch.randn(2, 3, 9, 16, 16, dtype=torch.float64).to(memory_format=layout)]
    if "static_once" in switches:
        inputs.append(torch.randn(1, 3, 1, 16, 16, dtype=torch.float64))
    expected, got = eager(*inputs), torch.compile(compiled, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    for features in (expected, got):
        features.square().mean().backward()
    for a, b in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)
    for a, b in zip(compiled.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


class Drawn(Draw):
    """A step's random numbers, drawn beforehand: a compiled graph cannot hold a generator."""

    def __init__(self, seed):
        super().__init__(torch.Generator().manual_seed(seed))
        self.numbers, self.position = [], None

    def replay(self):
        self.position = 0
        return self

    def _next(self, draw, *args):
        if self.position is None:
            self.numbers.append(draw(*args))
            return self.numbers[-1]
        self.position += 1
        return self.numbers[self.position - 1]

    def uniform(self, *args):
        return self._next(super().uniform, *args)

    def integers(self, *args):
        return self._next(super().integers, *args)


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(256, (2, VIDEOS, FRAMES, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    return Batch(clips, VIDEOS * seed + torch.arange(VIDEOS), torch.arange(VIDEOS) % 2)


STEPS = {
    "simclr": SimCLRConfig(hidden=8, dim=4),
    "dclr": DCLRConfig(hidden=8, dim=4, search=SearchConfig(k=2, queue=2 * VIDEOS)),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_is_one_graph(name):
    """From decoded clips to the weighted sum of the losses, the random numbers given."""
    torch.manual_seed(0)
    method = build_method(STEPS[name], build_encoder("r2plus1d_tiny", widths=(4, 5, 6, 7)), AugmentConfig())
    method.start_epoch(10)
    for seed in (1, 2):  # fills the queue of the search
        method(batch(seed), Drawn(seed))
        method.after_step()
    assert name == "simclr" or method.search.ready("d")
    clips, draw = batch(0), Drawn(0)
    method(clips, draw)

    def loss_of(model):
        losses = model(clips, draw.replay()).losses
        return sum(weight * losses[name] for name, weight in model.loss_weights.items())

    eager, compiled = copy.deepcopy(method), copy.deepcopy(method)
    expected, got = loss_of(eager), torch.compile(loss_of, fullgraph=True, backend="aot_eager")(compiled)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    for loss in (expected, got):
        loss.backward()
    for (parameter, a), b in zip(compiled.named_parameters(), eager.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), parameter
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)
