"""Encoders are one graph to `torch.compile`, and compute in it what they compute without."""

import copy

import pytest
import torch

from dclr.models import ENCODERS, accelerate, build_encoder

# The others are these without a part, narrower or wider.
DISTINCT = [
    name for name in ENCODERS if name not in ("s3d", "r2plus1d_tiny", "r2plus1d_micro", "vit_small", "vit_base")
]
CHANNELS_LAST, CONTIGUOUS = torch.channels_last_3d, torch.contiguous_format


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
