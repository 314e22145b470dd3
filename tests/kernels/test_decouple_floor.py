"""Bytes that `decouple` asks for: each element read once and each result written once."""

import pytest
import torch

from benchmarks.traffic import count_traffic
from dclr.kernels import decouple

from .helpers import size
from .test_decouple import FORMATS, MEAN, STD, draw, make_clip


def hold(traffic, read, written):
    """Written exactly once; read once, but for the few values that a tile has of its sample and channels."""
    assert traffic.launches == 1
    assert set(traffic.torch_ops) <= {"aten::min", "aten::max"}  # of the index, checked where it is on the CPU
    assert traffic.bytes_stored == traffic.unique_bytes_stored == size(*written)
    assert size(*read) <= traffic.bytes_loaded
    assert traffic.bytes <= 1.05 * size(*read, *written), traffic.bytes / size(*read, *written)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("layout", ["planar", "decoded"])
@pytest.mark.parametrize("frames", [1, 16])
def test_forward(frames, layout, memory_format):
    for dtype, into in ((torch.uint8, torch.bfloat16), (torch.float32, torch.float32)):
        clip = make_clip((2, 3, frames + 1, 8, 32), dtype, layout)
        index, flip = draw(clip.shape)
        mean, std = torch.tensor(MEAN[:3]), torch.tensor(STD[:3])
        with count_traffic() as traffic:
            results = decouple(clip, index, flip=flip, mean=mean, std=std, dtype=into, memory_format=memory_format)
        hold(traffic, [clip], results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", ["planar", "decoded"])
@pytest.mark.parametrize("frames", [1, 16])
def test_backward(frames, layout, dtype):
    clip = make_clip((2, 3, frames + 1, 8, 32), dtype, layout).requires_grad_()
    index, flip = draw(clip.shape)
    results = decouple(clip, index, flip=flip, std=torch.tensor(STD[:3]))
    grads = [torch.randn_like(part) for part in results]
    with count_traffic() as traffic:
        (grad,) = torch.autograd.grad(results, clip, grads)
    hold(traffic, grads, [grad])
