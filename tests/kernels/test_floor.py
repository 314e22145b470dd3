"""Bytes and FLOPs that the kernels ask for, held to what the computation cannot do without."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.traffic import count_traffic
from dclr.kernels.decouple import decouple
from dclr.kernels.info_nce import info_nce
from dclr.kernels.pooling import decoupled_pool
from dclr.kernels.topk import topk_similarity


def size(*tensors):
    """Bytes of tensors, each element once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("decoded", [True, False], ids=["decoded", "planar"])
def test_decouple_reads_and_writes_once(decoded, dtype):
    clip = torch.randint(256, (2, 17, 28, 28, 3) if decoded else (2, 3, 17, 28, 28), dtype=torch.uint8)
    clip = clip.permute(0, 4, 1, 2, 3) if decoded else clip
    index, flip = torch.tensor([3, 15]), torch.tensor([True, False])
    with count_traffic() as traffic:
        outputs = decouple(clip, index, flip=flip, mean=(0.4,) * 3, std=(0.2,) * 3, dtype=dtype)
    assert traffic.bytes_stored == size(*outputs)
    assert traffic.bytes <= 1.05 * size(clip, *outputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
@pytest.mark.parametrize("batch", [1, 4])
def test_head_reads_and_writes_once(batch, layout, dtype):
    maps = [torch.randn(batch, 512, 2, 7, 7).to(dtype).contiguous(memory_format=layout) for _ in range(3)]
    for features in maps:
        features.requires_grad_()
    with count_traffic() as forward:
        pools = decoupled_pool(*maps)
    assert forward.bytes <= 1.05 * size(*maps, *pools)
    loss = sum((pool * torch.randn_like(pool)).sum() for pool in pools)
    with count_traffic() as backward:
        torch.autograd.grad(loss, maps)
    assert backward.bytes <= 1.05 * size(maps[0], *pools, *maps)


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_topk_reads_the_queue_once(rows, dtype):
    query, queue = torch.randn(rows, 64).to(dtype), torch.randn(4096, 64).to(dtype)
    with count_traffic() as traffic:
        topk_similarity(query, queue, 5)
    assert traffic.bytes <= 1.1 * size(query, queue)
    assert traffic.launches <= 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_info_nce_multiplies_no_more_than_it_must(dtype):
    """Where the query is the key: one similarity matrix forward, one again backward and one product with it."""
    rows, dim = 256, 64
    z = F.normalize(torch.randn(rows, dim), dim=1).to(dtype).requires_grad_()
    own = torch.arange(rows)
    with count_traffic() as traffic:
        info_nce(z, z, positive=own.roll(rows // 2), exclude=own, temperature=0.1).backward()
    assert traffic.dot_flops <= 1.05 * 6 * rows**2 * dim
