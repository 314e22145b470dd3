"""The video transformers: VideoMAE's keys, shapes and arithmetic."""

import math

import pytest
import torch
from torch.nn.functional import conv3d, interpolate, layer_norm

from dclr.models import build_encoder
from dclr.models.vit import VideoTransformer, sinusoids


def public_shapes(dim, depth):
    """Keys and shapes of a pretrained VideoMAE encoder."""
    shapes = {"patch_embed.proj.weight": (dim, 3, 2, 16, 16), "patch_embed.proj.bias": (dim,)}
    for block in range(depth):
        parts = {
            "norm1.weight": (dim,), "norm1.bias": (dim,), "attn.q_bias": (dim,), "attn.v_bias": (dim,),
            "attn.qkv.weight": (3 * dim, dim), "attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,),
            "norm2.weight": (dim,), "norm2.bias": (dim,), "mlp.fc1.weight": (4 * dim, dim), "mlp.fc1.bias": (4 * dim,),
            "mlp.fc2.weight": (dim, 4 * dim), "mlp.fc2.bias": (dim,),
        }  # fmt: skip
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in parts.items()}
    return {**shapes, "norm.weight": (dim,), "norm.bias": (dim,)}


@pytest.mark.parametrize(("name", "dim"), [("vit_small", 384), ("vit_base", 768)])
def test_the_state_dict_is_videomaes(name, dim):
    with torch.device("meta"):
        state = build_encoder(name).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == public_shapes(dim, 12)


def written_out(state, clip, heads, depth):
    """VideoMAE's encoder in float64 from its state dict, attention as matrices; its tokens (B, n, c)."""
    weight = state["patch_embed.proj.weight"]
    tokens = conv3d(clip, weight, state["patch_embed.proj.bias"], stride=weight.shape[2:])
    dim = tokens.shape[1]
    position = interpolate(sinusoids(dim).double(), size=tokens.shape[2:], mode="trilinear", align_corners=False)
    x = (tokens + position).flatten(2).mT

    def norm(x, name):
        return layer_norm(x, (dim,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    for block in (f"blocks.{number}" for number in range(depth)):
        bias = torch.cat([state[f"{block}.attn.q_bias"], torch.zeros(dim), state[f"{block}.attn.v_bias"]])
        q, k, v = (norm(x, f"{block}.norm1") @ state[f"{block}.attn.qkv.weight"].mT + bias).chunk(3, -1)
        width = dim // heads
        parts = []
        for head in (slice(first, first + width) for first in range(0, dim, width)):
            weights = (q[..., head] @ k[..., head].mT / math.sqrt(width)).softmax(-1)
            parts.append(weights @ v[..., head])
        x = x + torch.cat(parts, -1) @ state[f"{block}.attn.proj.weight"].mT + state[f"{block}.attn.proj.bias"]
        hidden = norm(x, f"{block}.norm2") @ state[f"{block}.mlp.fc1.weight"].mT + state[f"{block}.mlp.fc1.bias"]
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + hidden @ state[f"{block}.mlp.fc2.weight"].mT + state[f"{block}.mlp.fc2.bias"]
    return norm(x, "norm")


def trained():
    """A narrow transformer none of whose parameters is 0 or 1."""
    torch.manual_seed(0)
    encoder = VideoTransformer(12, 2, 3, (2, 4, 4)).double()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


@pytest.mark.parametrize("size", [(4, 8, 8), (5, 9, 15), (2, 4, 4)])
def test_the_map_is_the_tokens_on_their_grid(size):
    encoder = trained()
    clip = torch.randn(2, 3, *size, dtype=torch.float64)
    whole = [patch * (length // patch) for patch, length in zip((2, 4, 4), size)]
    tokens = written_out(encoder.state_dict(), clip[:, :, : whole[0], : whole[1], : whole[2]], 3, 2)
    features = encoder(clip)
    assert features.shape == (2, 12, *(length // patch for patch, length in zip((2, 4, 4), whole)))
    torch.testing.assert_close(features.flatten(2).mT, tokens)


def test_positions_number_the_tokens():
    """VideoMAE's table, by its definition, of a clip of 16 frames of 224 x 224."""
    table = sinusoids(6)[0].flatten(1).T
    assert table.shape == (8 * 14 * 14, 6)
    for token, feature in ((0, 0), (1, 0), (15, 3), (1567, 4), (1567, 5)):
        angle = token / 10000 ** (2 * (feature // 2) / 6)
        expected = math.cos(angle) if feature % 2 else math.sin(angle)
        assert table[token, feature].item() == pytest.approx(expected, abs=1e-6)


def test_positions_of_the_pretraining_are_taken_as_they_are():
    encoder = VideoTransformer(6, 0, 1, (1, 1, 1)).double()
    clip = torch.randn(1, 3, 8, 14, 14, dtype=torch.float64)
    expected = layer_norm((encoder.patch_embed(clip) + sinusoids(6)).movedim(1, -1), (6,), eps=1e-6)
    torch.testing.assert_close(encoder(clip), expected.movedim(-1, 1))


def test_a_clip_smaller_than_a_patch():
    with pytest.raises(ValueError, match=r"clip: got .*\(2, 8, 15\), expected at least one patch, \(2, 16, 16\)"):
        VideoTransformer(6, 0, 1)(torch.zeros(1, 3, 2, 8, 15))


def test_heads_divide_the_features():
    with pytest.raises(ValueError, match="dim: got 7, expected a multiple of the 2 heads"):
        VideoTransformer(7, 1, 2)
