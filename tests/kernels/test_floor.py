"""Bytes and FLOPs that the kernels ask for, held to what the computation cannot do without."""

import pytest
import torch

from benchmarks.traffic import count_traffic
from dclr.kernels import decoupled_pool


def size(*tensors):
    """Bytes of tensors, each element once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def hold(count, floor, factor):
    """At most `factor` floors, and no less than one: a kernel that did not run has no traffic."""
    assert floor <= count <= factor * floor, f"{count} is {count / floor:.4f} of the floor, {floor}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
@pytest.mark.parametrize("batch", [1, 4])
def test_head_reads_and_writes_once(batch, layout, dtype):
    maps = [torch.randn(batch, 512, 2, 7, 7).to(dtype).contiguous(memory_format=layout) for _ in range(3)]
    for features in maps:
        features.requires_grad_()
    with count_traffic() as forward:
        pools = decoupled_pool(*maps)
    hold(forward.bytes, size(*maps, *pools), 1.05)
    loss = sum((pool * torch.randn_like(pool)).sum() for pool in pools)
    with count_traffic() as backward:
        torch.autograd.grad(loss, maps)
    hold(backward.bytes, size(maps[0], *pools, *maps), 1.05)
