"""`crop_resize_yuv` against the formula in float64, with dense matrices, clip by clip: boxes of any place and size."""

import pytest
import torch
import torch.nn.functional as F

from dclr.kernels import crop_resize_yuv
from dclr.kernels._common import INTERPRET
from dclr.kernels.crop_resize import crop_resize_yuv_reference

# h, w, and for rows and columns whether the box begins inside a pair: one pixel, thin and long ones, pairs cut in two.
BOXES = [
    (5, 7, 0, 1),
    (1, 1, 0, 0),
    (1, 1, 1, 1),
    (13, 9, 1, 0),
    (8, 8, 0, 0),
    (1, 9, 0, 0),
    (6, 1, 1, 1),
    (9, 12, 1, 1),
]
LIMITED_601 = [[1.1644, 0, 1.596, -222.92], [1.1644, -0.3918, -0.813, 135.58], [1.1644, 2.0172, 0, -276.84]]
FULL_709 = [[1, 0, 1.5748, -201.57], [1, -0.1873, -0.4681, 83.89], [1, 1.8556, 0, -237.52]]
SIZES = [1, 3, 8, 19]


def make_crops(boxes=BOXES, frames=2, before=3, low=0, high=256, seed=0):
    """Random boxes, with bytes of nobody's before and after them; half the clips of each colour matrix."""
    generator = torch.Generator().manual_seed(seed)
    rows, end = [], before
    for h, w, odd_h, odd_w in boxes:
        rows.append([end, h, w, odd_h, odd_w])
        end += frames * (h * w + 2 * ((h + odd_h + 1) // 2) * ((w + odd_w + 1) // 2))
    planes = torch.randint(low, high, (end + 5,), dtype=torch.uint8, generator=generator)
    matrix = torch.tensor([LIMITED_601, FULL_709] * (len(boxes) + 1))[: len(boxes)]
    return planes, torch.tensor(rows, dtype=torch.int64).view(-1, 5), matrix


def triangle(length, size):
    """The filter as a matrix (size, length)."""
    scale = length / size
    centers = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * scale
    weights = 1 - (torch.arange(length, dtype=torch.float64) + 0.5 - centers).abs() / max(scale, 1)
    return weights.clamp(min=0) / weights.clamp(min=0).sum(1, keepdim=True)


def formula(planes, geometry, matrix, frames, size):
    """Before rounding: float64 (B, T, size, size, 3)."""
    clips = []
    for (start, h, w, odd_h, odd_w), affine in zip(geometry.tolist(), matrix.double()):
        down, across = triangle(h, size), triangle(w, size)
        rows, columns = (torch.arange(h) + odd_h) // 2, (torch.arange(w) + odd_w) // 2
        half_h, half_w = int(rows[-1]) + 1, int(columns[-1]) + 1
        parts = []
        for height, width in ((h, w), (half_h, half_w), (half_h, half_w)):
            parts.append(planes[start : start + frames * height * width].view(frames, height, width).double())
            start += parts[-1].numel()
        parts[1:] = [part[:, rows][:, :, columns] for part in parts[1:]]
        y, u, v = (torch.einsum("ih,thw,jw->tij", down, part, across) for part in parts)
        clips.append(torch.stack([sum(c * x for c, x in zip(row, (y, u, v, 1))) for row in affine], -1).clamp(0, 255))
    return torch.stack(clips) if clips else torch.empty(0, frames, size, size, 3, dtype=torch.float64)


def assert_rounded(actual, expected, error=1e-3):
    """`actual` is `expected` rounded, give or take where it is half way between two."""
    assert actual.dtype == torch.uint8 and actual.shape == expected.shape and actual.is_contiguous()
    assert not actual.numel() or (actual.double() - expected).abs().max() <= 0.5 + error


@pytest.mark.parametrize("size", SIZES)
def test_against_the_formula(size):
    crops = make_crops()
    assert_rounded(crop_resize_yuv(*crops, 2, size), formula(*crops, 2, size))


@pytest.mark.parametrize("frames, boxes", [(1, BOXES[:1]), (3, BOXES[2:4]), (2, [(60, 3, 1, 0), (2, 51, 0, 1)])])
def test_other_counts_and_large_scales(frames, boxes):
    crops = make_crops(boxes, frames)
    assert_rounded(crop_resize_yuv(*crops, frames, 5), formula(*crops, frames, 5), 2e-3)


def test_the_reference_in_float64():
    crops = make_crops()
    for size in SIZES:
        assert_rounded(crop_resize_yuv_reference(*crops, 2, size, torch.float64), formula(*crops, 2, size), 1e-9)


@pytest.mark.parametrize("size", [5, 17])
def test_against_rgb_resized_by_torch(size):
    """Colours that stay in range, converted first and resized as float64 RGB by `F.interpolate`."""
    planes, geometry, matrix = make_crops(low=100, high=156)
    same = formula_of_rgb(planes, geometry, matrix, 2, size)
    assert_rounded(crop_resize_yuv(planes, geometry, matrix, 2, size), same)


def formula_of_rgb(planes, geometry, matrix, frames, size):
    clips = []
    for row, affine in zip(geometry, matrix):
        h, w = row[1:3].tolist()
        # Each pixel alone is its own filter: the box as RGB.
        pixels = formula_of_pixels(planes, row, affine, frames, h, w)
        resized = F.interpolate(pixels.permute(0, 3, 1, 2), (size, size), mode="bilinear", antialias=True)
        clips.append(resized.permute(0, 2, 3, 1))
    return torch.stack(clips)


def formula_of_pixels(planes, row, affine, frames, h, w):
    start, _, _, odd_h, odd_w = row.tolist()
    half_h, half_w = (h + odd_h + 1) // 2, (w + odd_w + 1) // 2
    rgb = torch.empty(frames, h, w, 3, dtype=torch.float64)
    for t in range(frames):
        for i in range(h):
            for j in range(w):
                chroma = start + frames * h * w + t * half_h * half_w + (i + odd_h) // 2 * half_w + (j + odd_w) // 2
                places = start + t * h * w + i * w + j, chroma, chroma + frames * half_h * half_w
                rgb[t, i, j] = (
                    affine.double() @ torch.tensor([*(float(planes[place]) for place in places), 1.0]).double()
                )
    return rgb


def test_a_box_of_the_right_size_is_only_converted():
    crops = make_crops([(8, 8, 1, 0), (8, 8, 1, 1)])
    rows = zip(crops[1], crops[2])
    pixels = torch.stack([formula_of_pixels(crops[0], row, affine, 2, 8, 8) for row, affine in rows])
    assert_rounded(crop_resize_yuv(*crops, 2, 8), pixels.clamp(0, 255))


def test_a_clip_does_not_depend_on_the_others():
    planes, geometry, matrix = make_crops()
    together = crop_resize_yuv(planes, geometry, matrix, 2, 9)
    for i in range(len(geometry)):
        assert torch.equal(crop_resize_yuv(planes, geometry[i : i + 1], matrix[i : i + 1], 2, 9), together[i : i + 1])
    order = torch.tensor([3, 0, 3, 7])
    assert torch.equal(crop_resize_yuv(planes, geometry[order], matrix[order], 2, 9), together[order])


def test_one_colour_stays_that_colour():
    planes, geometry, matrix = make_crops(low=90, high=91)
    expected = (matrix.double() @ torch.tensor([90.0, 90, 90, 1]).double()).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(
        crop_resize_yuv(planes, geometry, matrix, 2, 13), expected[:, None, None, None].expand(-1, 2, 13, 13, -1)
    )


def test_any_strides():
    planes, geometry, matrix = make_crops()
    apart = (
        planes.repeat_interleave(2)[::2],
        geometry.T.contiguous().T,
        matrix.transpose(1, 2).contiguous().transpose(1, 2),
    )
    assert not any(tensor.is_contiguous() for tensor in apart)
    assert torch.equal(crop_resize_yuv(*apart, 2, 9), crop_resize_yuv(planes, geometry, matrix, 2, 9))


def test_no_clips():
    crops = make_crops([])
    assert crop_resize_yuv(*crops, 2, 9).shape == (0, 2, 9, 9, 3)


def test_past_two_to_the_31():
    """A box that starts there; pages that nothing touches cost nothing."""
    planes, geometry, matrix = make_crops(BOXES[3:4])
    far = torch.empty(2**31 + 2**20, dtype=torch.uint8)
    far[2**31 + 7 :][: planes.numel()] = planes
    moved = geometry + torch.tensor([2**31 + 7, 0, 0, 0, 0])
    assert torch.equal(crop_resize_yuv(far, moved, matrix, 2, 9), crop_resize_yuv(planes, geometry, matrix, 2, 9))


@pytest.mark.skipif(not INTERPRET, reason="the reference needs boxes that are there")
@pytest.mark.parametrize("change", [(0, -9), (0, 10**6), (1, 10**6), (2, -1), (1, 0)])
def test_what_a_gpu_makes_of_a_wrong_box(change, monkeypatch):
    """It reads nothing, and writes Y = U = V = 0; the other clips are as they were."""
    monkeypatch.setattr("dclr.kernels.crop_resize._check_boxes", lambda *arguments: None)
    planes, geometry, matrix = make_crops()
    right = crop_resize_yuv(planes, geometry, matrix, 2, 9)
    geometry[3, change[0]] = change[1]
    wrong = crop_resize_yuv(planes, geometry, matrix, 2, 9)
    black = (matrix[3, :, 3].clamp(0, 255) + 0.5).to(torch.uint8)
    assert (wrong[3] == black).all()
    others = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(wrong[others], right[others])
