"""`augment_clip` as an operator: checks, compilation, export, fake tensors; what it says of wrong arguments."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dclr.kernels import augment_clip

from .helpers import compiled_for_all_sizes
from .test_augment import MEAN, STD, arguments, make_clip

SHAPE = (2, 3, 6, 7)


@pytest.mark.parametrize("layout", ["planar", "decoded", "cropped"])
def test_opcheck(layout):
    color, index, static_color, flip = arguments(SHAPE)
    for dtype in (torch.uint8, torch.float32):
        clip = make_clip(SHAPE, layout, dtype)
        for still in ((index, static_color, flip), (None, None, None)):
            options = list(MEAN), list(STD), 3, torch.float32
            torch.library.opcheck(torch.ops.dclr.augment_clip.default, (clip, color, *still, *options))


def streams(clip, color, index, static_color, flip):
    options = {"mean": MEAN, "std": STD, "blur_size": 3, "dtype": torch.bfloat16}
    return tuple(augment_clip(clip, color, static_index=index, static_color=static_color, flip=flip, **options))


def test_one_graph_serves_all_batch_sizes():
    compiled, graphs = compiled_for_all_sizes(streams)
    for batch in (2, 5, 8):
        shape = batch, *SHAPE[1:]
        inputs = make_clip(shape), *arguments(shape)
        assert all(map(torch.equal, compiled(*inputs), streams(*inputs)))
    assert len(graphs) == 1


def test_exported():
    class Streams(torch.nn.Module):
        def forward(self, *inputs):
            return streams(*inputs)

    inputs = make_clip(SHAPE), *arguments(SHAPE)
    program = torch.export.export(Streams(), inputs)
    assert all(map(torch.equal, program.module()(*inputs), streams(*inputs)))


def test_fake_tensors():
    with FakeTensorMode():
        clip, color = (torch.empty(shape, device="cuda") for shape in ((2, 3, 4, 6, 7), (2, 6)))
        rgb, static, difference = augment_clip(
            clip, color, static_index=torch.empty(2, dtype=torch.int64, device="cuda")
        )
    assert rgb.shape == difference.shape == (2, 3, 3, 6, 7) and static.shape == (2, 3, 1, 6, 7)
    assert rgb.is_contiguous(memory_format=torch.channels_last_3d) and rgb.device.type == "cuda"


def test_autocast_keeps_the_dtype():
    clip, color = make_clip(SHAPE), arguments(SHAPE)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rgb = augment_clip(clip, color).rgb
    assert torch.equal(rgb, augment_clip(clip, color).rgb)


@pytest.mark.parametrize("blur_size", [1, 65])
def test_no_gradient(blur_size):
    """A blur of 65 taps is too wide for the kernel."""
    clip = make_clip((1, 1, 33, 33), dtype=torch.float32).requires_grad_()
    color = torch.ones(1, 6).requires_grad_()
    assert not augment_clip(clip, color, blur_size=blur_size).rgb.requires_grad


def bad_arguments():
    clip, (color, index, static_color, flip) = make_clip(SHAPE), arguments(SHAPE)
    yield (clip[0], color), {}, ValueError, "clip"
    yield (clip[:, :2], color), {}, ValueError, "clip"
    yield (clip[:, :, :1], color), {"static_index": index}, ValueError, "clip"
    yield (clip.long(), color), {}, TypeError, "clip"
    yield (torch.empty(1).expand(2, 3, 2, 2**16, 2**15), color), {}, ValueError, "clip: .* fewer than 2\\^31"
    yield (clip, color.double()), {}, TypeError, "color"
    yield (clip, color[:, :5]), {}, ValueError, "color"
    yield (clip, color.to("meta")), {}, ValueError, "color on meta"
    yield (clip, color), {"static_color": static_color}, ValueError, "static_color"
    yield (clip, color), {"static_index": index, "static_color": static_color[:1]}, ValueError, "static_color"
    yield (clip, color), {"static_index": index.float()}, TypeError, "static_index"
    yield (clip, color), {"static_index": index[:1]}, ValueError, "static_index"
    yield (clip, color), {"static_index": index + 2}, ValueError, "static_index: .* in \\[0, 2\\)"
    yield (clip, color), {"flip": index}, TypeError, "flip"
    yield (clip, color), {"flip": flip[:1]}, ValueError, "flip"
    yield (clip, color), {"mean": (0.5,)}, ValueError, "mean"
    yield (clip, color), {"std": (0.5,) * 4}, ValueError, "std"
    yield (clip, color), {"blur_size": 4}, ValueError, "blur_size: got 4, expected an odd"
    yield (clip, color), {"blur_size": 13}, ValueError, "blur_size: got 13, expected at most 11"
    yield (clip, color), {"dtype": torch.int32}, TypeError, "dtype"


@pytest.mark.parametrize("inputs, options, error, name", list(bad_arguments()))
def test_bad_arguments(inputs, options, error, name):
    with pytest.raises(error, match=name):
        augment_clip(*inputs, **options)
