"""Bytes and FLOPs that the kernels ask for, held to what the computation cannot do without."""

import pytest
import torch

from benchmarks.traffic import count_traffic
from dclr.kernels import decoupled_pool, info_nce
from dclr.kernels.info_nce import launch

from .helpers import size


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


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=str)
def two_views(request):
    """A batch (M, D) whose query is its key, and the traffic of its loss and gradient, without split columns."""
    rows = torch.randn(1024, 128).to(request.param).requires_grad_()
    own = torch.arange(len(rows))
    with pytest.MonkeyPatch.context() as patch, count_traffic() as traffic:
        patch.setattr(launch, "split_count", lambda *args: 1)
        info_nce(rows, rows, positive=own.roll(512), exclude=own, temperature=0.1).backward()
    return rows.detach(), traffic


def test_info_nce_multiplies_no_more_than_it_must(two_views):
    """One similarity matrix forward, one again backward and one product with it."""
    rows, traffic = two_views
    assert traffic.dot_flops == 6 * len(rows) ** 2 * rows.shape[1]


@pytest.mark.parametrize("shared", [True, False])
def test_long_rows_are_multiplied_no_more_often(shared):
    """Scores of each side are computed once, not once for each of the four blocks of columns."""
    query = torch.randn(256, 512, dtype=torch.bfloat16, requires_grad=True)
    key = query if shared else torch.randn(256, 512, dtype=torch.bfloat16, requires_grad=True)
    with count_traffic() as traffic:
        info_nce(query, key, positive=torch.arange(256).roll(128), temperature=0.1).backward()
    assert traffic.dot_flops == (6 if shared else 10) * 256**2 * 512


# Bytes of a row beside its elements: scale, index and excluded row; backward its log sum and weight too. Of the rows
# that pass by, index and excluded row are looked at in few tiles, and forward the scale is all there is.
ROW_BYTES = {"forward_kernel": (4 + 8 + 8, 4), "gradient_kernel": (4 + 8 + 8 + 8, 4 + 8)}


@pytest.mark.parametrize("name", ROW_BYTES)
def test_info_nce_keeps_a_tile_while_the_keys_pass_by(two_views, name):
    """The rows once, the keys once for each tile of rows; in parts, each part of the rows again with each of keys."""
    rows, traffic = two_views
    kernel = traffic.per_kernel[name]
    (across, beside, depth), *_ = kernel.dot_shapes
    parts = rows.shape[1] // depth
    tiles = len(rows) // across
    again = 1 if parts == 1 else len(rows) // beside
    own, passing = ROW_BYTES[name]
    hold(kernel.bytes_loaded, (tiles + again) * size(rows) + len(rows) * (own + tiles * passing), 1.15)
    results = rows.shape[1] if name == "gradient_kernel" else 1
    assert kernel.bytes_stored == 4 * len(rows) * results


def test_info_nce_takes_six_launches(two_views):
    _, traffic = two_views
    assert traffic.launches == 6
