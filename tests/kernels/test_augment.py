"""`augment_clip` against kornia, clip by clip in float64: all steps, one at a time and together, in awkward shapes."""

import math

import kornia
import pytest
import torch
import torch.nn.functional as F

from dclr.kernels import augment_clip
from dclr.kernels._common import INTERPRET
from dclr.kernels.augment.kernel import SIDE, tile_size

from .helpers import far_apart
from .test_decouple import LAYOUTS, lay_out

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NEUTRAL = (0, 1, 1, 1, 0, 0)

# (B, T+1, H, W): two tiles of pixels, sides that are odd, one pixel, one frame; the blur needs a side above its radius.
SHAPES = [(3, 4, 24, 23), (1, 2, 9, 15), (2, 3, 33, 7), (1, 2, 6, 90)]


def make_clip(shape, layout="decoded", dtype=torch.uint8, seed=0):
    """Random pixels, a quarter of them gray or black, where hue and saturation are not defined."""
    generator = torch.Generator().manual_seed(seed)
    batch, frames, height, width = shape
    clip = torch.randint(256, (batch, 3, frames, height, width), generator=generator, dtype=torch.uint8)
    clip[..., ::8] = clip[:, :1, :, :, ::8]
    clip[..., 4::8] = 0
    return lay_out(clip if dtype == torch.uint8 else (clip / 255).to(dtype), layout)


def draw_colors(batch, seed=0, blur=True):
    """Rows of which one in three keeps its colours, is gray, or stays sharp."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([[0, 0.6, 0.6, 0.6, -0.1, 0.1], [1, 1.4, 1.4, 1.4, 0.1, 2.0]])
    color = low + (high - low) * torch.rand(batch, 6, generator=generator)
    color[:, 0] = (color[:, 0] > 0.7).float()
    color[torch.rand(batch, generator=generator) < 0.3, 1:5] = torch.tensor(NEUTRAL[1:5]).float()
    color[torch.rand(batch, generator=generator) < 0.3, 5] = 0
    return color if blur else color * torch.tensor([1, 1, 1, 1, 1, 0])


def expected_colors(clip_cthw, row, size):
    """kornia's colours of one clip, float64 in [0, 1]."""
    gray, brightness, contrast, saturation, hue, sigma = row.double()
    frames = clip_cthw.transpose(0, 1)
    if gray:
        frames = kornia.color.rgb_to_grayscale(frames).expand(-1, 3, -1, -1)
    frames = (frames * brightness).clamp(0, 1)
    mean = kornia.color.rgb_to_grayscale(frames).mean()
    frames = (mean + (frames - mean) * contrast).clamp(0, 1)
    frames = kornia.enhance.adjust_saturation(frames, saturation)
    frames = kornia.enhance.adjust_hue(frames, hue * 2 * math.pi)
    if sigma > 0 and size > 1:
        frames = kornia.filters.gaussian_blur2d(frames, (size, size), (sigma.item(),) * 2)
    return frames.transpose(0, 1)


def formula(clip, color, index=None, static_color=None, flip=None, size=1, mean=MEAN, std=STD):
    """Clip by clip in float64: rgb, and with an index static and difference."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1, 1) for values in (mean, std))
    results = []
    for b, x in enumerate(clip.double() / (255 if clip.dtype == torch.uint8 else 1)):
        x = x.flip(3) if flip is not None and flip[b] else x
        if index is None:
            results.append([(expected_colors(x, color[b], size) - mean) / std])
            continue
        still = x[:, index[b] : index[b] + 1]
        parts = expected_colors(x[:, :-1], color[b], size), expected_colors(still, static_color[b], size)
        results.append([*((part - mean) / std for part in parts), (x[:, 1:] - x[:, :-1]) / std])
    return [torch.stack(parts) for parts in zip(*results)]


def arguments(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(shape[1] - 1, (shape[0],), generator=generator)
    return draw_colors(shape[0], seed), index, draw_colors(shape[0], seed + 100), torch.arange(shape[0]) % 2 == 0


def run(clip, color, index=None, static_color=None, flip=None, size=1, dtype=torch.float32, mean=MEAN, std=STD):
    options = {"static_index": index, "static_color": static_color, "flip": flip, "blur_size": size}
    return [x for x in augment_clip(clip, color, mean=mean, std=std, dtype=dtype, **options) if x is not None]


def tolerance(dtype, size):
    """For values of up to 3: of a rounding to `dtype`, and of the blur's float16 operands (1 / 255 before std)."""
    rounding = {torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2 * (1 + INTERPRET)}
    return rounding[dtype] + (0.5 / 255 / min(STD) if size > 1 else 0)


def assert_close(results, expected, dtype=torch.float32, size=1):
    assert len(results) == len(expected)
    for result, right in zip(results, expected):
        assert result.dtype == dtype and result.shape == right.shape
        assert result.is_contiguous(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(result.double(), right, rtol=0, atol=tolerance(dtype, size))


@pytest.mark.parametrize("size", [1, 3, 11])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_streams(shape, size):
    clip, (color, index, static_color, flip) = make_clip(shape), arguments(shape)
    results = run(clip, color, index, static_color, flip, size)
    assert_close(results, formula(clip, color, index, static_color, flip, size), size=size)
    assert results[1].shape[2] == 1


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rgb_alone(shape, size):
    clip, color = make_clip(shape), draw_colors(shape[0], seed=5)
    (rgb,) = run(clip, color, size=size)
    assert_close([rgb], formula(clip, color, size=size), size=size)


STEPS = {
    "nothing": (0, 1, 1, 1, 0, 0),
    "grayscale": (1, 1, 1, 1, 0, 0),
    "darker": (0, 0.6, 1, 1, 0, 0),
    "brighter": (0, 1.4, 1, 1, 0, 0),
    "contrast": (0, 1, 1.4, 1, 0, 0),
    "flatter": (0, 1, 0.0, 1, 0, 0),
    "saturation": (0, 1, 1, 1.8, 0, 0),
    "paler": (0, 1, 1, 0.2, 0, 0),
    "hue": (0, 1, 1, 1, 0.1, 0),
    "hue backwards": (0, 1, 1, 1, -0.5, 0),
    "sharp": (0, 1, 1, 1, 0, 0.1),
    "blurred": (0, 1, 1, 1, 0, 2.0),
    "all": (1, 1.4, 1.4, 1.4, 0.1, 2.0),
}


@pytest.mark.parametrize("row", STEPS.values(), ids=STEPS)
def test_one_step_at_a_time(row):
    """Within half a level of 255 before normalising: without a blur to float32's precision."""
    clip, color = make_clip((1, 2, 20, 21)), torch.tensor([row], dtype=torch.float32)
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    (rgb,), (expected,) = run(clip, color, size=7, **plain), formula(clip, color, size=7, **plain)
    torch.testing.assert_close(rgb.double(), expected, rtol=0, atol=0.5 / 255 if row[5] else 5e-6)


@pytest.mark.parametrize("seed", range(8))
def test_random_parameters(seed):
    """Over the ranges that are drawn from, within 2 / 255 before normalising and far closer in the mean."""
    shape = (4, 3, 21, 26)
    clip, (color, index, static_color, flip) = make_clip(shape, seed=seed), arguments(shape, seed)
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    results = run(clip, color, index, static_color, flip, 3, **plain)
    for result, right in zip(results, formula(clip, color, index, static_color, flip, 3, **plain)):
        error = (result.double() - right).abs()
        assert error.max() < 0.5 / 255 and error.mean() < 0.05 / 255


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    shape = (2, 3, 12, 10)
    color, index, static_color, flip = arguments(shape, seed=3)
    clip = make_clip(shape, layout)
    expected = formula(clip, color, index, static_color, flip, 3)
    assert_close(run(clip, color, index, static_color, flip, 3), expected, size=3)
    strided = torch.stack([color, color], 2)[..., 0]
    assert_close(run(clip, strided, index.int(), static_color, flip, 3), expected, size=3)


@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype, into):
    shape = (2, 3, 12, 10)
    color, index, static_color, flip = arguments(shape, seed=7)
    clip = make_clip(shape, dtype=dtype)
    expected = formula(clip, color, index, static_color, flip, 3)
    assert_close(run(clip, color, index, static_color, flip, 3, into), expected, into, 3)


def test_float64_runs_the_reference():
    shape = (2, 3, 24, 10)
    color, index, static_color, flip = arguments(shape)
    clip = make_clip(shape, dtype=torch.float64)
    results = run(clip, color, index, static_color, flip, 5, torch.float64)
    for result, right in zip(results, formula(clip, color, index, static_color, flip, 5)):
        torch.testing.assert_close(result, right, rtol=0, atol=1e-6)  # kornia's eps


def test_equal_frames_differ_by_exactly_0():
    clip = make_clip((2, 2, 16, 40))[:, :, :1].expand(-1, -1, 4, -1, -1)
    *_, difference = run(clip, draw_colors(2), torch.zeros(2, dtype=torch.int64), draw_colors(2), size=3)
    assert not difference.any()


def test_static_colors_are_those_of_the_clip_where_not_given():
    clip, color = make_clip((2, 2, 16, 16)), draw_colors(2, seed=4)
    rgb, static, _ = augment_clip(clip, color, static_index=torch.zeros(2, dtype=torch.int64), blur_size=5)
    torch.testing.assert_close(rgb, static)


def test_static_contrast_turns_about_its_own_frame():
    clip = torch.zeros(1, 3, 3, 4, 4, dtype=torch.uint8)
    clip[:, :, 1:] = 128
    color = torch.tensor([[0, 1, 0.0, 1, 0, 0]])
    rgb, static, _ = augment_clip(clip, color, static_index=torch.tensor([1]))
    torch.testing.assert_close(rgb, torch.full_like(rgb, 64 / 255))
    torch.testing.assert_close(static, torch.full_like(static, 128 / 255))


@pytest.mark.parametrize("height, width, size", [(65, 20, 3), (30, 130, 21), (66, 64, 63)])
def test_blur_over_several_tiles(height, width, size):
    """Each tile has the border that it needs, and the reflection where the frame ends."""
    clip = make_clip((1, 1, height, width))
    if 2 * min(height, width) <= size:
        clip = make_clip((1, 1, size, width))
    color = torch.tensor([[0, 1, 1, 1, 0, size / 3]])
    assert_close(run(clip, color, size=size), formula(clip, color, size=size), size=size)


def test_blur_too_wide_for_a_tile_runs_the_reference():
    clip, color = make_clip((1, 1, 40, 36)), torch.tensor([[0, 1, 1, 1, 0, 9.0]])
    assert_close(run(clip, color, size=65), formula(clip, color, size=65))


@pytest.mark.parametrize("radius", [1, 5, 11, 31])
def test_tiles_fit_with_their_border(radius):
    for length in (1, 63, 64, 65, 112, 128, 224, 1000):
        tile = tile_size(length, radius)
        starts = range(0, length, tile)
        assert all(min(s + tile + radius, length) - max(s - radius, 0) <= SIDE for s in starts)


def test_sigma_that_is_no_number_is_no_blur():
    clip, color = make_clip((1, 2, 10, 12)), torch.tensor([[0, 1.1, 0.9, 1.1, 0.05, float("nan")]])
    index = torch.zeros(1, dtype=torch.int64)
    results, plain = run(clip, color, index, size=3), run(clip, color.nan_to_num(0), index, size=3)
    assert all(map(torch.equal, results, plain))


def test_offsets_past_32_bits():
    shape = 2, 3, 2, 2, 3
    clip = far_apart(shape).abs().clamp_(max=1)
    color, index = draw_colors(2), torch.zeros(2, dtype=torch.int64)
    expected = formula(clip.contiguous(), color, index, color, size=3)
    assert_close(run(clip, color, index, color, size=3), expected, size=3)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)], ids=str)
def test_empty(shape):
    clip = torch.empty(shape[0], 3, *shape[1:], dtype=torch.uint8)
    results = run(clip, draw_colors(shape[0]), torch.zeros(shape[0], dtype=torch.int64))
    assert [part.shape[2] for part in results] == [2, 1, 2]


def test_frames_do_not_mix():
    """A clip's colours come from it alone."""
    clip, color = make_clip((3, 3, 10, 11)), draw_colors(3, seed=2)
    together = run(clip, color, size=3)[0]
    for b in range(3):
        assert torch.equal(run(clip[b : b + 1], color[b : b + 1], size=3)[0][0], together[b])


def test_reflection_of_a_single_bright_pixel():
    """A golden case: taps 3, sigma 1, a white pixel in the second row; row 0 gets it from below and by reflection."""
    clip = torch.zeros(1, 3, 1, 4, 5, dtype=torch.uint8)
    clip[..., 1, 2] = 255
    rgb = augment_clip(clip, torch.tensor([[0, 1, 1, 1, 0, 1.0]]), blur_size=3).rgb[0, 0, 0]
    side, centre = 0.274068, 0.451863
    down, across = torch.tensor([2 * side, centre, side]), torch.tensor([side, centre, side])
    expected = F.pad(torch.outer(down, across), (1, 1, 0, 1))
    torch.testing.assert_close(rgb, expected, rtol=0, atol=1e-3)
