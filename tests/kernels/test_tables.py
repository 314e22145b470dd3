"""The tables of block sizes of every card give the results of the references, in the interpreter."""

import importlib
from dataclasses import replace

import pytest
import torch

from dclr.kernels import (
    Ranges,
    activation_alignment,
    decouple,
    decoupled_pool,
    info_nce,
    info_nce_ranges,
    topk_similarity,
    weighted_pool,
)
from dclr.kernels._common import INTERPRET

from .aot import TARGETS, answering
from .helpers import compare, lay_out

pytestmark = pytest.mark.skipif(not INTERPRET, reason="TRITON_INTERPRET=1 runs the kernels on a CPU")

SIZES = 300, 300  # terms in the sums


@pytest.fixture(params=TARGETS)
def target(request):
    """A card whose tables are used."""
    with answering(device_class=request.param):
        yield request.param


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


@pytest.mark.parametrize("places", [1, 10_000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_info_nce(dtype, places, target, monkeypatch):
    """With tiles for many rows, and those for rows that would leave multiprocessors without work."""
    launch = importlib.import_module("dclr.kernels.info_nce.launch")
    monkeypatch.setattr(launch, "processors", lambda _: places)
    own = torch.arange(150)

    def losses(query):
        return info_nce(query, query, positive=own.roll(75), exclude=own, temperature=0.5, reduction="none")

    compare(losses, [normal(150, 40, dtype=dtype)], SIZES)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_rows_that_pass_by_come_through_a_descriptor(dtype, shared, monkeypatch):
    """Of groups, whose last tiles reach into the rows of the next; and of ranges of one tensor."""
    launch = importlib.import_module("dclr.kernels.info_nce.launch")
    made, make, row = [], launch.TensorDescriptor.from_tensor, dict(launch.CONFIGS["default"])
    for kind in ("forward", "gradient"):
        row[kind] = {size: replace(tile, descriptor=True) for size, tile in row[kind].items()}
    monkeypatch.setitem(launch.CONFIGS, "default", row)
    monkeypatch.setattr(launch.TensorDescriptor, "from_tensor", lambda *args: made.append(args) or make(*args))
    own = torch.arange(150).expand(2, 150)

    def losses(query, key=None):
        key = query if key is None else key
        return info_nce(query, key, positive=own.roll(75, 1), exclude=own, temperature=0.5, reduction="none")

    leaves = [normal(2, 150, 40, dtype=dtype), normal(2, 170, 40, dtype=dtype, seed=1)]
    compare(losses, leaves[: 1 if shared else 2], SIZES)
    where = Ranges.of((0, 30), (60, 60), torch.full((2, 40), 70), rows=200, keys=130)
    compare(lambda rows: info_nce_ranges(rows, where), [normal(200, 40, dtype=dtype)], SIZES)
    assert len(made) == 4


def test_both_passes_may_have_the_same_tile(monkeypatch):
    launch = importlib.import_module("dclr.kernels.info_nce.launch")
    row = dict(launch.CONFIGS["default"])
    monkeypatch.setitem(launch.CONFIGS, "default", {**row, "forward": row["gradient"]})
    for _ in range(2):
        compare(lambda query: info_nce(query, query, temperature=0.5, reduction="none"), [normal(50, 20)], SIZES)


def test_small_losses_have_small_tiles(target, monkeypatch):
    launch = importlib.import_module("dclr.kernels.info_nce.launch")
    monkeypatch.setattr(launch, "processors", lambda _: 132)
    rows = torch.empty(1, dtype=torch.bfloat16)
    for kind in ("forward", "gradient"):
        few, many = (launch.score_tile(kind, rows, 1, size, size) for size in (512, 4096))
        assert many == launch.kernel_config(kind, rows)
        smaller = few.BLOCK_A * few.BLOCK_B < many.BLOCK_A * many.BLOCK_B
        assert smaller if target == "sm_90" else few == many


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_maps(dtype, layout, target):
    maps = [lay_out(normal(2, 144, 2, 5, 7, dtype=dtype, seed=i).detach(), layout).requires_grad_() for i in range(3)]
    compare(decoupled_pool, maps, SIZES)
    compare(lambda *maps: activation_alignment(*maps, reduction="none"), maps, SIZES)
    compare(weighted_pool, [maps[0], normal(2, 2, 5, 7, dtype=dtype, seed=9).detach().abs().requires_grad_()], SIZES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("ids", [False, True])
def test_topk(ids, dtype, target):
    query, queue = normal(9, 48, dtype=dtype).detach(), normal(150, 48, dtype=dtype, seed=1).detach()
    rows = {"query_id": torch.arange(9) % 7, "queue_id": torch.arange(150) % 7} if ids else {}
    found, expected = (
        topk_similarity(query, queue, 5, **rows),
        topk_similarity(query.double(), queue.double(), 5, **rows),
    )
    torch.testing.assert_close(found.values, expected.values, rtol=2e-6, atol=2e-6)
    assert (found.indices == expected.indices).float().mean() > 0.99


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_decouple(memory_format, target):
    clip = normal(2, 3, 6, 9, 24)
    index = torch.tensor([0, 4])
    compare(lambda clip: decouple(clip, index, memory_format=memory_format), [clip], SIZES)
