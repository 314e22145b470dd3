import gc

import pytest
import torch

from dclr.kernels import decouple
from dclr.kernels._common import INTERPRET
from dclr.kernels.decouple import _cached_constant

from .helpers import far_apart

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("planar", "decoded", "channels_last", "cropped", "transposed", "expanded")
FORMATS = (torch.contiguous_format, torch.channels_last_3d)

# (B, C, T+1, H, W): whole runs, W odd, one frame, one pixel, one and many channels, several tiles.
SHAPES = [
    (2, 3, 5, 4, 8),
    (3, 3, 4, 3, 5),
    (1, 3, 2, 2, 16),
    (2, 2, 3, 1, 1),
    (1, 1, 4, 3, 4),
    (1, 9, 3, 2, 6),
    (1, 3, 3, 9, 40),
]

MEAN, STD = (0.43216, 0.394666, 0.37645, 0.5), (0.22803, 0.22145, 0.216989, 2.0)

# Half the distance between numbers, relative to them: the error of one rounding.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}
if INTERPRET:
    ROUNDING[torch.bfloat16] *= 2  # the interpreter truncates


def per_channel(values, channels):
    return (values * channels)[:channels]


def make_clip(shape, dtype=torch.float32, layout="planar", seed=0):
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        values = torch.randint(256, shape, generator=generator, dtype=dtype)
    else:
        values = torch.randn(shape, generator=generator).to(dtype)
    return lay_out(values, layout)


def lay_out(values, layout):
    batch, channels, frames, height, width = values.shape
    if layout == "decoded":
        return values.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last_3d)
    if layout == "cropped":
        larger = values.new_full((batch, channels + 1, frames + 1, height + 2, width + 3), 77)
        return larger[:, 1:, 1:, 1:-1, 2:-1].copy_(values)
    if layout == "transposed":
        return values.transpose(1, 4).contiguous().transpose(1, 4)
    if layout == "expanded":
        return values[:1].expand(values.shape)
    return values.contiguous()


def draw(shape, flipped=True, seed=1):
    """A frame and a side for each sample, both sides among them."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(shape[2] - 1, (shape[0],), generator=generator)
    return index, torch.arange(shape[0]) % 2 == 0 if flipped else None


def formula(clip, index, flip, mean, std):
    """Sample by sample and channel by channel in float64; `clip` is float64 already, in [0, 1] where it was uint8."""
    batch, channels, frames = clip.shape[:3]
    rgb, static, difference = [], [], []
    for b in range(batch):
        for c in range(channels):
            x = clip[b, c].flip(2) if flip is not None and flip[b] else clip[b, c]
            normal = (x - mean[c]) / std[c]
            rgb.append(normal[: frames - 1])
            static.append(torch.stack([normal[index[b]]] * (frames - 1)))
            difference.append(torch.stack([(x[t + 1] - x[t]) / std[c] for t in range(frames - 1)]))
    shape = batch, channels, frames - 1, *clip.shape[3:]
    return [torch.stack(parts).view(shape) for parts in (rgb, static, difference)]


def widen(clip):
    return clip.detach().double() / 255 if clip.dtype == torch.uint8 else clip.detach().double()


def assert_rounded_once(actual, expected, error):
    """One rounding to `actual`'s dtype, after float32 arithmetic on values of size `error`."""
    bound = {"rtol": 1.001 * ROUNDING[actual.dtype], "atol": error * 2.0**-22}
    torch.testing.assert_close(actual.detach().double(), expected.detach(), **bound)


def check_results(clip, dtype, flipped, memory_format, mean=MEAN, std=STD):
    channels = clip.shape[1]
    mean, std = per_channel(mean, channels), per_channel(std, channels)
    index, flip = draw(clip.shape, flipped)
    results = decouple(clip, index, flip=flip, mean=mean, std=std, dtype=dtype, memory_format=memory_format)
    expected = formula(widen(clip), index, flip, mean, std)
    for actual, reference in zip(results, expected):
        assert actual.dtype == dtype and actual.is_contiguous(memory_format=memory_format)
        assert_rounded_once(actual, reference, 10 * widen(clip).abs().max().item())


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("flipped", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_uint8(shape, layout, flipped, memory_format):
    clip = make_clip(shape, torch.uint8, layout)
    for dtype in (torch.bfloat16, torch.float32):
        check_results(clip, dtype, flipped, memory_format)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("flipped", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floating(dtype, layout, flipped, memory_format):
    for shape in SHAPES[:3]:
        check_results(make_clip(shape, dtype, layout), dtype, flipped, memory_format)


@pytest.mark.parametrize(
    "dtype, into",
    [
        (torch.uint8, torch.float16),
        (torch.uint8, torch.float64),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float16),
    ],
    ids=str,
)
def test_dtype_of_the_results(dtype, into):
    clip = make_clip(SHAPES[0], dtype)
    check_results(clip, into, True, torch.contiguous_format)
    default = decouple(clip, draw(clip.shape)[0])
    assert {part.dtype for part in default} == {torch.float32 if dtype == torch.uint8 else dtype}


def test_the_worked_example():
    """x = 1, 3, 6, 10, 15: d = 2, 3, 4, 5, and s for t* = 2 is 6, 6, 6, 6."""
    results = decouple(torch.tensor([1.0, 3, 6, 10, 15]).view(1, 1, 5, 1, 1), torch.tensor([2]))
    assert results.difference.flatten().tolist() == [2, 3, 4, 5]
    assert results.static.flatten().tolist() == [6, 6, 6, 6]


def test_every_byte():
    """0 and 255 are exactly 0 and 1, and a clip that stands still has no difference, scaled or not."""
    clip = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16).expand(1, 1, 3, 16, 16)
    for options in ({}, {"mean": (0.4,), "std": (0.3,)}):
        assert not decouple(clip, torch.tensor([1]), **options).difference.any()
    rgb = decouple(clip, torch.tensor([1])).rgb[0, 0, 1].flatten()
    assert rgb[0] == 0 and rgb[255] == 1
    torch.testing.assert_close(rgb.double(), torch.arange(256).double() / 255, rtol=2.0**-22, atol=0)


def test_without_mean_or_std():
    clip = make_clip(SHAPES[0])
    index, flip = draw(clip.shape)
    zeros, ones = (0.0,) * 3, (1.0,) * 3
    for given in ({}, {"mean": MEAN[:3]}, {"std": STD[:3]}):
        results = decouple(clip, index, flip=flip, **given)
        expected = formula(widen(clip), index, flip, given.get("mean", zeros), given.get("std", ones))
        for actual, reference in zip(results, expected):
            assert_rounded_once(actual, reference, 10)


def test_mean_and_std_as_tensors_and_sequences():
    clip = make_clip(SHAPES[0], torch.uint8)
    index, _ = draw(clip.shape)
    expected = decouple(clip, index, mean=MEAN[:3], std=STD[:3])
    for convert in (list, torch.tensor, lambda values: torch.tensor(values).repeat_interleave(2)[::2]):
        results = decouple(clip, index, mean=convert(MEAN[:3]), std=convert(STD[:3]))
        assert all(map(torch.equal, results, expected))


def test_constants_reach_the_device_once():
    clip = make_clip(SHAPES[0])
    index, _ = draw(clip.shape)
    _cached_constant.cache_clear()
    for _ in range(3):
        with torch.inference_mode():
            decouple(clip, index, mean=MEAN[:3], std=STD[:3])
    assert _cached_constant.cache_info().misses == 2
    clip.requires_grad_()
    decouple(clip, index, mean=MEAN[:3], std=STD[:3]).rgb.sum().backward()
    assert _cached_constant.cache_info().misses == 2


def test_strided_int32_index_and_strided_flip():
    clip = make_clip((3, 3, 5, 4, 8), torch.uint8)
    index, flip = torch.tensor([3, 9, 0, 9, 2], dtype=torch.int32)[::2], torch.tensor([1, 0, 0, 1, 1]).bool()[::2]
    results = decouple(clip, index, flip=flip)
    for actual, reference in zip(results, formula(widen(clip), index, flip, (0.0,) * 3, (1.0,) * 3)):
        assert_rounded_once(actual, reference, 10)


def test_results_are_fresh_memory():
    clip = torch.randn(1, 1, 2, 2, 2)
    before = clip.clone()
    results = decouple(clip, torch.tensor([0]))
    assert len({tensor.untyped_storage().data_ptr() for tensor in (clip, *results)}) == 4
    assert torch.equal(clip, before)


@pytest.mark.parametrize("shape", [(0, 3, 3, 4, 4), (2, 0, 3, 4, 4), (2, 3, 3, 0, 4)])
def test_empty(shape):
    clip = torch.rand(shape, requires_grad=True)
    results = decouple(clip, torch.zeros(shape[0], dtype=torch.int64), flip=torch.ones(shape[0], dtype=torch.bool))
    assert [part.shape for part in results] == [(shape[0], shape[1], 2, *shape[3:])] * 3
    sum(part.sum() for part in results).backward()
    assert clip.grad.shape == clip.shape


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_sample_stays_alone(bad):
    clip = make_clip((3, 3, 3, 2, 4))
    clip[1, 0, 1, 1, 2] = bad
    clip.requires_grad_()
    results = decouple(clip, torch.tensor([1, 1, 1]), flip=torch.tensor([True, True, False]), mean=MEAN[:3])
    for part in results:
        assert [sample.isfinite().all().item() for sample in part] == [True, False, True]
        assert part[1, 0].isfinite().sum() < part[1, 0].numel() and part[1, 1:].isfinite().all()
    sum(part.square().sum() for part in results).backward()
    assert [sample.isfinite().all().item() for sample in clip.grad] == [True, False, True]


# Gradients


def gradient_layouts(shape, dtype):
    """Gradients of the three results: as they come from a network, and in odd strides."""
    dense = [make_clip(shape, dtype, seed=seed) for seed in range(3)]
    yield dense
    yield [lay_out(grad, "channels_last") for grad in dense]
    yield [lay_out(grad, layout) for grad, layout in zip(dense, ("cropped", "transposed", "decoded"))]
    yield [dense[0][:, :, :1].expand(shape), dense[1], lay_out(dense[2], "expanded")]
    yield [torch.ones((), dtype=dtype).expand(shape)] * 3
    for alone in range(3):
        yield [grad if place == alone else None for place, grad in enumerate(dense)]


def check_gradients(clip, grads, flipped, dtype=None, memory_format=torch.contiguous_format):
    channels = clip.shape[1]
    mean, std = per_channel(MEAN, channels), per_channel(STD, channels)
    index, flip = draw(clip.shape, flipped)
    clip = clip.detach().requires_grad_()
    results = decouple(clip, index, flip=flip, mean=mean, std=std, dtype=dtype, memory_format=memory_format)
    wide = widen(clip).requires_grad_()
    expected = formula(wide, index, flip, mean, std)
    given = [place for place, grad in enumerate(grads) if grad is not None]
    (actual,) = torch.autograd.grad([results[i] for i in given], clip, [grads[i] for i in given])
    (reference,) = torch.autograd.grad([expected[i] for i in given], wide, [grads[i].double() for i in given])
    assert actual.dtype == clip.dtype and actual.shape == clip.shape
    assert_rounded_once(actual, reference, 10 * reference.abs().max().item())


@pytest.mark.parametrize("flipped", [True, False])
@pytest.mark.parametrize("layout", ["planar", "decoded", "cropped"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape, layout, flipped):
    batch, channels, frames, height, width = shape
    clip = make_clip(shape, torch.float32, layout)
    for grads in gradient_layouts((batch, channels, frames - 1, height, width), torch.float32):
        check_gradients(clip, grads, flipped)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize(
    "dtype, into",
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
    ],
    ids=str,
)
def test_gradients_of_other_dtypes(dtype, into, memory_format):
    clip = make_clip(SHAPES[0], dtype)
    grads = [lay_out(make_clip((2, 3, 4, 4, 8), into, seed=seed), "channels_last") for seed in range(3)]
    check_gradients(clip, grads, True, into, memory_format)


def test_bytes_have_no_gradient():
    clip = make_clip(SHAPES[0], torch.uint8)
    std = torch.tensor(STD[:3], requires_grad=True)
    assert not any(part.requires_grad for part in decouple(clip, draw(clip.shape)[0], std=std.detach()))
    floating = decouple(make_clip(SHAPES[0]).requires_grad_(), draw(clip.shape)[0], std=std)
    sum(part.sum() for part in floating).backward()
    assert std.grad is None


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_gradcheck(memory_format):
    clip = torch.randn(2, 2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    index, flip = torch.tensor([0, 2]), torch.tensor([True, False])

    def function(clip):
        return decouple(clip, index, flip=flip, mean=(0.3, 0.4), std=(0.5, 2.0), memory_format=memory_format)

    assert torch.autograd.gradcheck(function, (clip,))


# Addresses


@pytest.mark.parametrize("flipped", [True, False])
def test_offsets_past_32_bits(flipped):
    """Every stride but that of columns past 2^31, in turn: samples and channels, frames, rows."""
    far = 2**31 + 2**20
    check_results(far_apart((2, 2, 3, 2, 8)), torch.float16, flipped, torch.contiguous_format)
    for strides, shape in (((8, 8, far, 4, 1), (1, 1, 2, 2, 4)), ((8, 8, 4, far, 1), (1, 1, 2, 2, 4))):
        memory = torch.empty(far + 64, dtype=torch.uint8)
        clip = memory.as_strided(shape, strides).copy_(make_clip(shape, torch.uint8))
        check_results(clip, torch.float32, flipped, torch.contiguous_format)
        del memory, clip
        gc.collect()
    check_gradients(make_clip((2, 2, 2, 2, 8), torch.float16), [far_apart((2, 2, 1, 2, 8))] * 3, flipped)
