"""`decouple` as an operator: checks, compilation, export, fake tensors; what it says of wrong arguments."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dclr.kernels import decouple
from dclr.kernels.decouple import _cached_constant

from .helpers import compiled_for_all_sizes
from .test_decouple import MEAN, SHAPES, STD, draw, make_clip


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("layout", ["planar", "decoded", "cropped"])
def test_opcheck(layout, channels_last):
    shape = 2, 3, 4, 2, 4
    index, flip = draw(shape)
    std = torch.tensor(STD[:3])
    for clip in (make_clip(shape, torch.uint8, layout), make_clip(shape, torch.float32, layout).requires_grad_()):
        for options in ((flip, None, std), (None, std, None)):
            arguments = clip, index, *options, torch.float32, channels_last
            torch.library.opcheck(torch.ops.dclr.decouple.default, arguments)
    grads = make_clip((2, 3, 3, 2, 4)), None, make_clip((2, 3, 3, 2, 4), layout="expanded")
    arguments = *grads, index, flip, std, list(shape), torch.float32, channels_last
    torch.library.opcheck(torch.ops.dclr.decouple_backward.default, arguments)


def loss(clip, index, flip):
    results = decouple(clip, index, flip=flip, mean=MEAN[:3], std=STD[:3])
    return sum(part.square().sum() for part in results)


INDUCTOR = pytest.param(
    "inductor",
    False,
    marks=pytest.mark.skipif(
        " " in torch.__file__, reason="Inductor cannot link against a torch at a path with a space"
    ),
)


@pytest.mark.parametrize("backend, dynamic", [("aot_eager", False), ("aot_eager", True), INDUCTOR])
def test_compiled(backend, dynamic):
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=backend, dynamic=dynamic)
    for shape in [(2, 3, 3, 2, 4), (4, 3, 5, 3, 2)][: 1 if backend == "inductor" else 2]:
        clip = make_clip(shape).requires_grad_()
        arguments = clip, *draw(shape)
        (expected,) = torch.autograd.grad(loss(*arguments), clip)
        torch.testing.assert_close(torch.autograd.grad(compiled(*arguments), clip)[0], expected)


def test_one_graph_serves_all_batch_sizes():
    compiled, graphs = compiled_for_all_sizes(loss)
    for batch in (2, 5, 8, 9):
        clip = make_clip((batch, 3, 4, 6, 7), torch.uint8, "decoded")
        arguments = clip, *draw(clip.shape)
        torch.testing.assert_close(compiled(*arguments), loss(*arguments))
    assert len(graphs) == 1


def test_exported():
    class Split(torch.nn.Module):
        def forward(self, clip, index, flip):
            return tuple(decouple(clip, index, flip=flip, mean=MEAN[:3], std=STD[:3]))

    clip = make_clip(SHAPES[0], torch.uint8, "decoded")
    arguments = clip, *draw(clip.shape)
    program = torch.export.export(Split(), arguments)
    assert all(map(torch.equal, program.module()(*arguments), Split()(*arguments)))


def test_fake_tensors_leave_no_constants_behind():
    _cached_constant.cache_clear()
    with FakeTensorMode():
        clip = torch.empty(2, 3, 3, 2, 4, device="cuda", dtype=torch.uint8)
        parts = decouple(clip, torch.empty(2, dtype=torch.int64, device="cuda"), mean=MEAN[:3], std=STD[:3])
    assert parts.rgb.shape == (2, 3, 2, 2, 4) and parts.rgb.device.type == "cuda"
    assert _cached_constant.cache_info().currsize == 0


def test_autocast_keeps_the_dtype():
    clip = make_clip(SHAPES[0])
    index, flip = draw(clip.shape)
    with torch.autocast("cpu", torch.bfloat16):
        results = decouple(clip, index, flip=flip)
    assert all(map(torch.equal, results, decouple(clip, index, flip=flip)))


def bad_arguments():
    clip, index = torch.rand(2, 3, 3, 2, 2), torch.tensor([0, 1])
    yield (clip[0], index), {}, ValueError, "clip"
    yield (clip[:, :, :1], index), {}, ValueError, "clip"
    yield (torch.empty(1).expand(2, 1, 2, 2**16, 2**15), index), {}, ValueError, "clip: .* fewer than 2\\^31"
    yield (clip.long(), index), {}, TypeError, "clip"
    yield (clip, index.float()), {}, TypeError, "static_index"
    yield (clip, index[:1]), {}, ValueError, "static_index"
    yield (clip, index + 1), {}, ValueError, "static_index"
    yield (clip, index - 1), {}, ValueError, "static_index"
    yield (clip, index.to("meta")), {}, ValueError, "static_index"
    yield (clip, index), {"flip": index}, TypeError, "flip"
    yield (clip, index), {"flip": torch.tensor([True])}, ValueError, "flip"
    yield (clip, index), {"mean": (0.5,)}, ValueError, "mean: got"
    yield (clip, index), {"std": torch.ones(4)}, ValueError, "std"
    yield (clip, index), {"std": torch.ones(3, device="meta")}, ValueError, "std on meta"
    yield (clip, index), {"dtype": torch.int32}, TypeError, "dtype"
    yield (clip, index), {"memory_format": torch.channels_last}, ValueError, "memory_format"


@pytest.mark.parametrize("arguments, options, error, name", list(bad_arguments()))
def test_bad_arguments(arguments, options, error, name):
    with pytest.raises(error, match=name):
        decouple(*arguments, **options)
