"""The pooling kernels and the head compile for every target, the head with 128-bit accesses."""

import pytest
import torch

from dclr.kernels import decoupled_pool, weighted_pool

from .aot import SHARED_LIMITS, TARGETS, access_bits, check_report, compile_case, launches_on, loop_instructions
from .test_activation_aot import MAPS, SOME, compiled, features, only_width

HEAD = [
    (torch.bfloat16, "contiguous"),
    (torch.bfloat16, "aligned"),
    (torch.bfloat16, "channels_last"),
    (torch.bfloat16, "odd"),
    (torch.float32, "contiguous"),
    (torch.float32, "channels_last"),
    (torch.float16, "channels_last"),
]


def check_widths(report, target, dtype, layout, kind):
    """128 bits where the layout allows; a row of 98 elements allows two of them at a time."""
    if layout in ("aligned", "channels_last"):
        only_width(report, target, kind)
    elif layout == "contiguous" and target.startswith("sm"):
        assert access_bits(report.asm, kind)[16 * dtype.itemsize]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype, layout", HEAD)
def test_head(dtype, layout, target):
    """A program for each of many samples."""
    x = features(layout, dtype, batch=128)
    (report,) = compiled(target, decoupled_pool, x, x, x)
    check_widths(report, target, dtype, layout, "load")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype, layout", [HEAD[0], HEAD[5]])
def test_head_in_phases(dtype, layout, target):
    """Masks, pools and alignment of samples too few to fill a device."""
    x = features(layout, dtype)
    assert len(compiled(target, decoupled_pool, x, x, x)) == 3


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_instructions_of_the_head_keep_up_with_its_bytes(layout):
    """A multiprocessor of an H200 gets 18.6 bytes in a cycle, in which its schedulers issue four instructions.

    The loop over RGB, with three pools instead of one, is the longest of the three.
    """
    shape, memory_format = (1024, 512, 2, 7, 7), MAPS[layout][2]
    maps = [torch.empty(shape, dtype=torch.bfloat16, memory_format=memory_format) for _ in range(3)]
    case, *_ = launches_on("sm_90", lambda: decoupled_pool(*maps))
    assert case.name == "_head_kernel" and case.constexprs["BLOCK_C"] == 64
    report = compile_case(case, "sm_90")
    check_report(report, "sm_90")
    assert 2 * 32 * case.num_warps * report.registers <= 65_536 and 2 * report.shared_bytes <= SHARED_LIMITS["sm_90"]
    instructions = loop_instructions(case, "sm_90")
    assert instructions * case.num_warps / 4 <= 64 * 98 * 2 / 18.6


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype, layout", HEAD)
def test_head_backward(dtype, layout, target):
    x = features(layout, dtype)
    grad = None if layout == "odd" else torch.empty(x.shape[:2])
    arguments = x, torch.empty(4, 3, *x.shape[2:]), *[grad] * 5, torch.empty(4)
    (report,) = compiled(target, torch.ops.dclr.decoupled_pool_backward, *arguments)
    check_widths(report, target, dtype, layout, "store")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype, layout", SOME)
def test_weighted_pool(dtype, layout, target):
    x = features(layout, dtype)
    assert len(compiled(target, weighted_pool, x, torch.empty(4, *x.shape[2:]))) == 1


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype, layout", SOME)
def test_weighted_pool_backward(dtype, layout, target):
    x = features(layout, dtype)
    pooled = torch.empty(x.shape[:2])
    arguments = pooled, x, torch.empty(4, *x.shape[2:]), pooled
    (report,) = compiled(target, torch.ops.dclr.weighted_pool_backward, *arguments)
    if layout == "channels_last":
        assert access_bits(report.asm, "store")[128]
