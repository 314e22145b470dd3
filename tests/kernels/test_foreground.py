"""`motion_map` and `merge_foreground` against their formulas, clip by clip in float64."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dclr.kernels import merge_foreground, motion_map

from .helpers import compiled_for_all_sizes, far_apart
from .test_decouple import LAYOUTS, ROUNDING, lay_out

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# (B, 3, T, H, W): several tiles, odd sides, one frame, one pixel, one clip, none.
SHAPES = [(3, 3, 4, 17, 20), (2, 3, 5, 3, 7), (4, 3, 1, 6, 5), (2, 3, 3, 1, 1), (1, 3, 2, 9, 1), (0, 3, 2, 4, 4)]


def make_clip(shape, dtype=torch.uint8, layout="decoded", seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return lay_out(values if dtype == torch.uint8 else (values / 255).to(dtype), layout)


def draw(shape, count=None, soft=False, flipped=True, seed=1):
    """Backgrounds and weights of the first `count` clips, and a side for each clip, both sides among them."""
    generator = torch.Generator().manual_seed(seed)
    batch, _, _, height, width = shape
    count = batch if count is None else count
    background = torch.randint(max(batch, 1), (count,), generator=generator)
    weight = torch.rand(count, height, width, generator=generator)
    # Among soft weights a few of 0 and 1, where only one of the two is read.
    weight = (1.5 * weight - 0.25).clamp(0, 1) if soft else (weight < 0.5).float()
    return background, weight, torch.arange(batch) % 2 == 0 if flipped else None


def mirrored(clip, flip):
    """float64 clips in [0, 1], each on its side."""
    clips = clip.double() / (255 if clip.dtype == torch.uint8 else 1)
    return [x.flip(3) if flip is not None and flip[b] else x for b, x in enumerate(clips)]


def expected_motion(clip, flip):
    """Motion and mean of each clip."""
    motions, means = [clip.new_empty((0, *clip.shape[3:]))], [clip.new_empty((0, 3, *clip.shape[3:]))]
    for x in mirrored(clip, flip):
        steps = [
            sum((after[c] - before[c]).abs() for c in range(3))
            for before, after in zip(x.unbind(1), x[:, 1:].unbind(1))
        ]
        motions.append((sum(steps) / len(steps) if steps else torch.zeros_like(x[0, 0]))[None])
        means.append((sum(x.unbind(1)) / x.shape[1])[None])
    return torch.cat(motions).double(), torch.cat(means).double()


def expected_merge(clip, background, weight, flip):
    clips = mirrored(clip, flip)
    merged = [
        x * weight[b].double() + clips[background[b]] * (1 - weight[b].double()) if b < len(background) else x
        for b, x in enumerate(clips)
    ]
    return torch.stack(merged) if merged else clip.double()


def check_motion(clip, flip):
    results = motion_map(clip, flip=flip)
    for result, right in zip(results, expected_motion(clip, flip)):
        assert result.dtype == torch.float32 and result.is_contiguous()
        # Of bytes, the sums are exact and rounded once.
        bound = {"rtol": 2.0**-24, "atol": 0} if clip.dtype == torch.uint8 else {"rtol": 0, "atol": 1e-6}
        torch.testing.assert_close(result.double(), right, **bound)


def check_merge(clip, background, weight, flip, dtype=None):
    merged = merge_foreground(clip, background, weight, flip=flip, dtype=dtype)
    assert merged.dtype == (dtype or clip.dtype) and merged.shape == clip.shape
    assert merged.is_contiguous(memory_format=torch.channels_last_3d)
    right = expected_merge(clip, background, weight, flip)
    if merged.dtype == torch.uint8:
        assert torch.equal(merged, (255 * right).round().to(torch.uint8))
    else:
        torch.testing.assert_close(merged.double(), right, rtol=ROUNDING[merged.dtype], atol=2.0**-22)


@pytest.mark.parametrize("flipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, dtype, flipped):
    clip, flip = make_clip(shape, dtype), draw(shape, flipped=flipped)[2]
    check_motion(clip, flip)
    for count in {shape[0], shape[0] // 2, 0}:
        check_merge(clip, *draw(shape, count, flipped=flipped))
        check_merge(clip, *draw(shape, count, soft=True, flipped=flipped), dtype=torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    shape = (3, 3, 3, 5, 12)
    clip, (background, weight, flip) = make_clip(shape, layout=layout), draw(shape)
    check_motion(clip, flip)
    check_merge(clip, background, weight, flip)
    check_merge(clip, background, weight, flip, torch.float32)
    # Small arguments with strides too.
    background, flip = (torch.stack([x, x], 1)[:, 0] for x in (background, flip))
    check_motion(clip, flip)
    check_merge(clip, background, weight.transpose(1, 2).contiguous().transpose(1, 2), flip)


@pytest.mark.parametrize("dtype", [torch.uint8, *FLOATS], ids=str)
def test_dtypes(dtype):
    shape = (2, 3, 4, 6, 7)
    clip = make_clip(shape, dtype)
    check_motion(clip, draw(shape)[2])
    for into in (None, *FLOATS):
        check_merge(clip, *draw(shape), into)
        if into or dtype != torch.uint8:
            check_merge(clip, *draw(shape, soft=True), into)


def test_float64_runs_the_reference():
    shape = (2, 3, 4, 6, 7)
    clip, (background, weight, flip) = make_clip(shape, torch.float64), draw(shape, soft=True)
    for result, right in zip(motion_map(clip, flip=flip), expected_motion(clip, flip)):
        torch.testing.assert_close(result, right, rtol=0, atol=1e-14)
    for source, tolerance in ((clip, 1e-14), (make_clip(shape), 1e-6)):
        merged = merge_foreground(source, background, weight, flip=flip, dtype=torch.float64)
        torch.testing.assert_close(merged, expected_merge(source, background, weight, flip), rtol=0, atol=tolerance)


def test_bytes_come_from_the_one_with_the_larger_weight():
    shape = (3, 3, 2, 6, 7)
    clip, (background, weight, flip) = make_clip(shape), draw(shape, soft=True)
    merged = merge_foreground(clip, background, weight, flip=flip)
    assert torch.equal(merged, merge_foreground(clip, background, (weight > 0.5).float(), flip=flip))


def test_each_clip_has_its_own_side():
    """A mirrored clip on the background of one that is not: the mask is where the result is."""
    clip = torch.arange(4, dtype=torch.uint8).expand(2, 3, 1, 1, 4) + torch.tensor([0, 10]).view(2, 1, 1, 1, 1)
    weight = torch.tensor([[[1.0, 1, 0, 0]]])
    merged = merge_foreground(clip.to(torch.uint8), torch.tensor([1]), weight, flip=torch.tensor([True, False]))
    assert merged[0, 0].flatten().tolist() == [3, 2, 12, 13]
    assert merged[1, 0].flatten().tolist() == [10, 11, 12, 13]


def test_equal_motion_ties():
    """In float32, the same steps at other levels would differ by rounding."""
    clip = torch.arange(250, dtype=torch.uint8).expand(1, 3, 2, 1, 250).clone()
    clip[:, :, 1] += 5
    assert motion_map(clip).motion.unique().tolist() == [torch.tensor(15.0).div(255).item()]


def test_strides_past_32_bits():
    shape = (2, 3, 2, 3, 8)
    clip = far_apart(shape)
    background, weight, flip = torch.tensor([1, 0]), draw(shape)[1], torch.tensor([True, False])
    for result, right in zip(motion_map(clip, flip=flip), expected_motion(clip, flip)):
        torch.testing.assert_close(result.double(), right, rtol=1e-6, atol=1e-6)
    merged = merge_foreground(clip, background, weight, flip=flip)
    assert torch.equal(merged.double(), expected_merge(clip, background, weight, flip))


# As operators


@pytest.mark.parametrize("layout", ["planar", "decoded", "cropped"])
def test_opcheck(layout):
    shape = (2, 3, 3, 4, 5)
    for dtype in (torch.uint8, torch.float32):
        clip, (background, weight, flip) = make_clip(shape, dtype, layout), draw(shape, 1)
        for side in (flip, None):
            torch.library.opcheck(torch.ops.dclr.motion_map.default, (clip, side))
            for into in {dtype, torch.bfloat16}:
                arguments = clip, background, weight, side, into
                torch.library.opcheck(torch.ops.dclr.merge_foreground.default, arguments)


def both(clip, background, weight, flip):
    return *motion_map(clip, flip=flip), merge_foreground(clip, background, weight, flip=flip)


def test_compiled_as_one_graph():
    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for flipped in (True, False):
        inputs = make_clip((3, 3, 3, 4, 5)), *draw((3, 3, 3, 4, 5), 2, flipped=flipped)
        assert all(map(torch.equal, compiled(*inputs), both(*inputs)))


def test_one_graph_serves_all_batch_sizes():
    compiled, graphs = compiled_for_all_sizes(both)
    for batch in (2, 5, 8):
        shape = batch, 3, 3, 4, 5
        inputs = make_clip(shape), *draw(shape)
        assert all(map(torch.equal, compiled(*inputs), both(*inputs)))
    assert len(graphs) == 1


def test_fake_tensors():
    with FakeTensorMode():
        clip = torch.empty(2, 3, 4, 6, 7, dtype=torch.uint8, device="cuda")
        background, weight = torch.empty(1, dtype=torch.int64, device="cuda"), torch.empty(1, 6, 7, device="cuda")
        motion, mean = motion_map(clip)
        merged = merge_foreground(clip, background, weight)
    assert motion.shape == (2, 6, 7) and mean.shape == (2, 3, 6, 7) and motion.dtype == mean.dtype == torch.float32
    assert merged.shape == clip.shape and merged.dtype == torch.uint8 and merged.device.type == "cuda"
    assert merged.is_contiguous(memory_format=torch.channels_last_3d)


def test_no_gradient():
    shape = (2, 3, 3, 4, 5)
    background, weight, flip = draw(shape)
    results = both(make_clip(shape, torch.float32).requires_grad_(), background, weight.requires_grad_(), flip)
    assert not any(result.requires_grad for result in results)


def bad_arguments():
    shape = (2, 3, 3, 4, 5)
    clip, (background, weight, flip) = make_clip(shape), draw(shape)
    yield clip[0], background, weight, {}, ValueError, "clip"
    yield clip[:, :2], background, weight, {}, ValueError, "clip"
    yield clip[:, :, :0], background, weight, {}, ValueError, "clip"
    yield clip.long(), background, weight, {}, TypeError, "clip"
    yield torch.empty(1).expand(2, 3, 1, 2**16, 2**15), background, weight, {}, ValueError, "clip: .* fewer than 2\\^31"
    yield clip, background, weight, {"flip": background}, TypeError, "flip"
    yield clip, background, weight, {"flip": flip[:1]}, ValueError, "flip"
    yield clip, background, weight, {"flip": flip.to("meta")}, ValueError, "flip on meta"
    yield clip, background.int(), weight, {}, TypeError, "background"
    yield clip, background[:, None], weight, {}, ValueError, "background"
    yield clip, background.repeat(2), weight, {}, ValueError, "background: got \\(4,\\), expected \\(N,\\), N <= 2"
    yield clip, background + 2, weight, {}, ValueError, "background: .* in \\[0, 2\\)"
    yield clip, background - 2, weight, {}, ValueError, "background: .* in \\[0, 2\\)"
    yield clip, background, weight.double(), {}, TypeError, "weight"
    yield clip, background, weight[:1], {}, ValueError, "weight"
    yield clip, background, weight.to("meta"), {}, ValueError, "weight on meta"
    yield clip, background, weight, {"dtype": torch.int32}, TypeError, "dtype"
    yield clip / 255, background, weight, {"dtype": torch.uint8}, TypeError, "dtype"


@pytest.mark.parametrize("clip, background, weight, options, error, name", list(bad_arguments()))
def test_bad_arguments(clip, background, weight, options, error, name):
    with pytest.raises(error, match=name):
        merge_foreground(clip, background, weight, **options)
    if name.startswith(("clip", "flip")):
        with pytest.raises(error, match=name):
            motion_map(clip, **options)
