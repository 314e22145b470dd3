"""The traffic counter on kernels whose traffic is known."""

import pytest
import torch
import triton
import triton.language as tl

from benchmarks.traffic import count_traffic


@triton.jit
def add_rows(x, row, out, rows, columns, BLOCK: tl.constexpr):
    """out = x + row, a program a row of x."""
    index = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    inside = offsets < columns
    value = tl.load(x + index * columns + offsets, mask=inside) + tl.load(row + offsets, mask=inside)
    tl.store(out + index * columns + offsets, value, mask=inside)


@triton.jit
def gram(x, out, N: tl.constexpr, D: tl.constexpr):
    rows, columns = tl.arange(0, N), tl.arange(0, D)
    tile = tl.load(x + rows[:, None] * D + columns[None, :])
    tl.store(out + rows[:, None] * N + rows[None, :], tl.dot(tile, tl.trans(tile), input_precision="ieee"))


@triton.jit
def described_copy(x, out, rows, BLOCK: tl.constexpr, D: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [rows, D], [D, 1], [BLOCK, D])
    target = tl.make_tensor_descriptor(out, [rows, D], [D, 1], [BLOCK, D])
    start = tl.program_id(0) * BLOCK
    target.store([start, 0], source.load([start, 0]))


@triton.jit
def count_up(counter, N: tl.constexpr):
    tl.atomic_add(counter + tl.arange(0, N), 1, mask=tl.arange(0, N) < 3)


def test_masked_lanes_are_not_counted():
    x, row = torch.randn(5, 13), torch.randn(13)
    out = torch.empty_like(x)
    with count_traffic() as traffic:
        add_rows[(5,)](x, row, out, 5, 13, BLOCK=16)
    torch.testing.assert_close(out, x + row)
    assert traffic.launches == 1 and traffic.per_kernel["add_rows"].programs == 5
    assert traffic.bytes_loaded == 2 * 5 * 13 * 4 and traffic.bytes_stored == 5 * 13 * 4
    assert traffic.bytes == 3 * 5 * 13 * 4
    assert traffic.unique_bytes_loaded == (5 + 1) * 13 * 4 and traffic.unique_bytes_stored == 5 * 13 * 4
    assert traffic.dot_flops == 0 and not traffic.torch_ops


@pytest.mark.parametrize("dtype, itemsize", [(torch.float32, 4), (torch.float16, 2)])
def test_dot_flops_and_kernels_apart(dtype, itemsize):
    x, row = torch.randn(16, 32, dtype=dtype), torch.randn(32, dtype=dtype)
    out = torch.empty(16, 16)
    with count_traffic() as traffic:
        gram[(1,)](x, out, N=16, D=32)
        gram[(1,)](x, out, N=16, D=32)
        add_rows[(16,)](x, row, torch.empty_like(x), 16, 32, BLOCK=32)
    assert traffic.dot_flops == 2 * (2 * 16 * 16 * 32)
    assert traffic.per_kernel["gram"].dot_shapes == {(16, 16, 32): 2}
    assert traffic.launches == 3 and traffic.per_kernel["gram"].launches == 2
    assert traffic.per_kernel["gram"].bytes_loaded == 2 * 16 * 32 * itemsize
    assert traffic.per_kernel["gram"].unique_bytes_loaded == 16 * 32 * itemsize
    assert traffic.per_kernel["add_rows"].dot_flops == 0


def test_descriptor_accesses_stop_at_the_edge():
    x = torch.randn(7, 16)
    out = torch.empty_like(x)
    with count_traffic() as traffic:
        described_copy[(2,)](x, out, 7, BLOCK=4, D=16)
    torch.testing.assert_close(out, x)
    assert traffic.bytes_loaded == traffic.bytes_stored == 7 * 16 * 4


def test_atomics_load_and_store():
    counter = torch.zeros(4, dtype=torch.int32)
    with count_traffic() as traffic:
        count_up[(2,)](counter, N=4)
    assert counter.tolist() == [2, 2, 2, 0]
    assert traffic.bytes_loaded == traffic.bytes_stored == 2 * 3 * 4


def test_torch_operations_are_counted_without_views_and_allocations():
    x = torch.randn(4, 6, requires_grad=True)
    with count_traffic() as traffic:
        view = x.view(6, 4).transpose(0, 1)[1:]
        torch.empty_like(view)
        (view * 2).sum().backward()
    assert traffic.torch_ops["aten::mul"] == 2 and traffic.torch_ops["aten::sum"] == 1
    assert "aten::transpose" not in traffic.torch_ops and "aten::empty_like" not in traffic.torch_ops
    assert traffic.device_ops == traffic.torch_ops.total() and traffic.syncs == 0


def test_operations_and_launches_inside_custom_operators_are_counted():
    library = torch.library.Library("traffic_test", "DEF")
    library.define("shift(Tensor x, Tensor row) -> Tensor")

    def shift(x, row):
        out = torch.zeros_like(x)
        add_rows[(x.shape[0],)](x, row, out, *x.shape, BLOCK=8)
        return out

    library.impl("shift", shift, "CPU")
    with count_traffic() as traffic:
        out = torch.ops.traffic_test.shift(torch.ones(3, 5), torch.ones(5))
    assert out.eq(2).all()
    assert traffic.launches == 1 and traffic.torch_ops == {"aten::ones": 2, "aten::zeros_like": 1}
    assert traffic.device_ops == 4


def test_syncs_are_counted():
    with count_traffic() as traffic:
        torch.ones(3).sum().item()
    assert traffic.syncs == 1


def test_nothing_is_counted_after_the_block():
    x = torch.randn(2, 8)
    with count_traffic() as traffic:
        pass
    add_rows[(2,)](x, x[0], torch.empty_like(x), 2, 8, BLOCK=8)
    assert traffic.launches == 0 and not traffic.torch_ops
