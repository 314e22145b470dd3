"""The pooling kernels and the head compile for every target, the head with 128-bit accesses."""

import pytest
import torch

from dclr.kernels import decoupled_pool
from dclr.kernels.pooling import decoupled, weighted

from .aot import (
    SHARED_LIMITS,
    TARGETS,
    access_bits,
    answering,
    check_report,
    compile_case,
    launches_on,
    loop_instructions,
)
from .test_activation_aot import MAPS, SOME, compiled, constants, features, only_width, strided

HEAD = [
    (torch.bfloat16, "contiguous"),
    (torch.bfloat16, "aligned"),
    (torch.bfloat16, "channels_last"),
    (torch.bfloat16, "odd"),
    (torch.float32, "contiguous"),
    (torch.float32, "channels_last"),
    (torch.float16, "channels_last"),
]


def sizes(x):
    return {"C": x.shape[1], "P": x.shape[2]}


def check_widths(report, target, dtype, layout, kind):
    """128 bits where the layout allows; a row of 98 elements allows two of them at a time."""
    if layout in ("aligned", "channels_last"):
        only_width(report, target, kind)
    elif layout == "contiguous" and target.startswith("sm"):
        assert access_bits(report.asm, kind)[16 * dtype.itemsize]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "dtype, layout, masks, rgb",
    [(*head, True, True) for head in HEAD]
    + [(*HEAD[0], True, False), (*HEAD[0], False, True), (*HEAD[5], True, False), (*HEAD[5], False, True)],
)
def test_head(dtype, layout, masks, rgb, target):
    x = features(layout, dtype)
    whole = masks and rgb
    wide = torch.empty(4, x.shape[1])
    arguments = strided("rgb", x) | strided("static", x) | strided("difference", x)
    for name in ("rgb_pool", "rgb_static", "rgb_difference", "static_pool", "difference_pool", "alignment", "saved"):
        arguments[f"{name}_ptr"] = wide
    arguments |= {"maps_ptr": None if whole else wide, **sizes(x), "chunk_size": 256, "chunks": 1 if whole else 2}
    with answering(device_class=target):
        options = decoupled.read_tile(x, x, x) | {"MASKS": masks, "RGB": rgb}
    report = compiled(decoupled._head_kernel, arguments, options, target)
    if whole:
        check_widths(report, target, dtype, layout, "load")


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
    grad = torch.empty(4, x.shape[1])
    arguments = strided("rgb", x) | {"saved_ptr": grad}
    arguments |= {f"to_{name}_ptr": x for name in ("rgb", "static", "difference")}
    arguments |= {f"out_stride_{axis}": stride for axis, stride in zip("bcp", x.stride())}
    for name in ("rgb", "rgb_static", "rgb_difference", "static", "difference"):
        arguments |= strided(f"{name}_grad", None if layout == "odd" else grad, "bc")
    arguments |= strided("alignment_grad", grad[:, 0].contiguous(), "b") | sizes(x)
    report = compiled(decoupled._head_backward_kernel, arguments, constants("write", target, x, x), target)
    check_widths(report, target, dtype, layout, "store")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype, layout", SOME)
def test_weighted_pool(dtype, layout, target):
    x, activation = features(layout, dtype), torch.empty(4, 98)
    arguments = strided("x", x) | strided("a", activation, "bp") | {"pooled_ptr": activation} | sizes(x)
    compiled(weighted._pool_kernel, arguments, constants("read", target, x), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype, layout", SOME)
def test_weighted_pool_backward(dtype, layout, target):
    x, activation, pooled = features(layout, dtype), torch.empty(4, 98), torch.empty(4, 512)
    arguments = strided("grad", pooled, "bc") | strided("x", x) | strided("a", activation, "bp") | strided("dx", x)
    arguments |= {"pooled_ptr": pooled, "da_ptr": activation, **sizes(x)}
    report = compiled(weighted._pool_backward_kernel, arguments, constants("read", target, x, x), target)
    if layout == "channels_last":
        assert access_bits(report.asm, "store")[128]
