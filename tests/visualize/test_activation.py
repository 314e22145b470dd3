"""Activation maps against an independent float64 computation, and what the overlays show."""

import numpy as np
import pytest
import torch
from torch import nn

from dclr.models import build_encoder
from dclr.visualize import activation_maps, draw_activation
from dclr.visualize.drawing import svg

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def clip_of(frames, height=20, width=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (frames, height, width, 3), generator=generator, dtype=torch.uint8)


def maps_float64(encoder, clip):
    """DCLR Eq. 3, 4 and 11 in numpy but for the encoder, then the minimum and the maximum of each."""
    pixels = clip.numpy().astype(np.float64) / 255
    normalised = (pixels - MEAN) / STD
    rgb = normalised[:-1]
    static = np.stack([rgb[len(rgb) // 2]] * len(rgb))
    difference = normalised[1:] - normalised[:-1]
    maps = []
    for stream in (rgb, static, difference):
        features = encoder(torch.from_numpy(stream.transpose(3, 0, 1, 2)[None]))[0]
        summed = np.abs(features.detach().numpy()).sum(0)
        maps.append((summed - summed.min()) / (summed.max() - summed.min()))
    return np.stack(maps)


def linear(values, size, axis):
    """Linear interpolation of cells along an axis, by their centres."""
    cells = values.shape[axis]
    centres = (np.arange(size) + 0.5) * cells / size - 0.5
    return np.apply_along_axis(lambda row: np.interp(centres, np.arange(cells), row), axis, values)


@pytest.mark.parametrize(
    "build, frames",
    [
        (lambda: build_encoder("r2plus1d_tiny"), 9),
        (lambda: build_encoder("r2plus1d_tiny"), 6),
        (lambda: nn.Conv3d(3, 5, (2, 4, 4), stride=(2, 4, 4)), 9),  # features of both signs
    ],
)
def test_maps_and_overlays_equal_the_formula(build, frames):
    torch.manual_seed(0)
    encoder = build().eval()
    clip = clip_of(frames, 36, 52)
    maps = activation_maps(encoder, clip, MEAN, STD)
    expected = maps_float64(encoder.double(), clip)
    np.testing.assert_allclose(maps.numpy(), expected, atol=2e-5)

    figure = draw_activation(clip, maps, "title")
    for axis, size in ((1, frames - 1), (2, 36), (3, 52)):
        expected = linear(expected, size, axis)
    times = np.linspace(0, frames - 2, 3).round().astype(int)
    grid = np.array(figure.axes[:12]).reshape(4, 3)
    for column, time in enumerate(times):
        assert (grid[0, column].images[0].get_array() == clip[time].numpy()).all()
        assert grid[0, column].get_title() == f"frame {time}"
        for stream in range(3):
            overlay = grid[1 + stream, column].images[1]
            np.testing.assert_allclose(overlay.get_array(), expected[stream, time], atol=2e-5)
            assert overlay.get_clim() == (0, 1)
    assert [row[0].get_ylabel() for row in grid] == ["clip", "rgb", "static", "difference"]


def test_a_constant_map_is_zero():
    encoder = nn.Conv3d(3, 2, 1)
    nn.init.zeros_(encoder.weight)
    maps = activation_maps(encoder, clip_of(5), MEAN, STD)
    assert maps.shape == (3, 4, 20, 20) and (maps == 0).all()


def test_what_stands_still_has_no_difference():
    clip = clip_of(1).expand(5, 20, 20, 3)
    torch.manual_seed(0)
    rgb, static, difference = activation_maps(nn.Conv3d(3, 4, 1, bias=False), clip, MEAN, STD)
    assert (difference == 0).all() and torch.equal(rgb, static) and rgb.max() == 1
    assert "<svg" in svg(draw_activation(clip, torch.stack([rgb, static, difference]), "still"), "still")


def test_one_frame():
    maps = activation_maps(nn.Conv3d(3, 4, 1), clip_of(2), MEAN, STD)
    figure = draw_activation(clip_of(2), maps, "$title of any length" * 9)
    assert len(figure.axes) == 4 + 1 and "<svg" in svg(figure, "one")
