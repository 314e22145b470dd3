"""Bytes and FLOPs that the kernels ask for, held to what the computation cannot do without."""

import pytest
import torch

from benchmarks.traffic import count_traffic
from dclr.kernels import decouple, decoupled_pool, info_nce, topk_similarity


def size(*tensors):
    """Bytes of tensors, each element once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def hold(count, floor, factor):
    """At most `factor` floors, and no less than one: a kernel that did not run has no traffic."""
    assert floor <= count <= factor * floor, f"{count} is {count / floor:.4f} of the floor, {floor}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("decoded", [True, False], ids=["decoded", "planar"])
def test_decouple_reads_and_writes_once(decoded, dtype):
    clip = torch.randint(256, (2, 17, 28, 28, 3) if decoded else (2, 3, 17, 28, 28), dtype=torch.uint8)
    clip = clip.permute(0, 4, 1, 2, 3) if decoded else clip
    index, flip = torch.tensor([3, 15]), torch.tensor([True, False])
    with count_traffic() as traffic:
        outputs = decouple(clip, index, flip=flip, mean=(0.4,) * 3, std=(0.2,) * 3, dtype=dtype)
    assert traffic.bytes_stored == size(*outputs)
    hold(traffic.bytes, size(clip, *outputs), 1.05)


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


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_topk_reads_the_queue_once(rows, dtype):
    """No more query rows than one tile has."""
    query, queue = torch.randn(rows, 64).to(dtype), torch.randn(4096, 64).to(dtype)
    with count_traffic() as traffic:
        topk_similarity(query, queue, 5)
    hold(traffic.bytes, size(query, queue), 1.1)


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=str)
def shared_info_nce(request):
    """A two-view batch (M, D) whose query is its key, and the traffic of its loss and gradient."""
    z = torch.randn(256, 128).to(request.param).requires_grad_()
    own = torch.arange(len(z))
    with count_traffic() as traffic:
        info_nce(z, z, positive=own.roll(128), exclude=own, temperature=0.1).backward()
    return z.detach(), traffic


def test_info_nce_multiplies_no_more_than_it_must(shared_info_nce):
    """One similarity matrix forward, one again backward and one product with it."""
    z, traffic = shared_info_nce
    rows, dim = z.shape
    hold(traffic.dot_flops, 6 * rows**2 * dim, 1.05)


def test_info_nce_loads_each_tile_once(shared_info_nce):
    """A tile of rows stays while all keys pass by: the keys once for each tile of rows, and the rows once."""
    z, traffic = shared_info_nce
    kernels = [kernel for kernel in traffic.per_kernel.values() if kernel.dot_flops]
    assert kernels
    for kernel in kernels:
        tile = max(m for m, n, k in kernel.dot_shapes)
        hold(kernel.bytes_loaded, (len(z) // tile + 1) * size(z), 1.15)
