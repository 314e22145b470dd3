"""The kernels of `decouple` compile for every target, as launched, with the widest accesses that a layout has."""

import pytest
import torch

from dclr.kernels import decouple
from dclr.kernels.decouple import kernel

from .aot import TARGETS, access_bits, check_report, compile_case, launches_on
from .test_decouple import FORMATS, MEAN, STD, lay_out

PLANAR, LAST = FORMATS
FULL, ODD = (2, 3, 17, 112, 112), (2, 3, 17, 15, 17)

# Layout of the clip, format of the results, mirrored or not.
LAYOUTS = [
    ("decoded", PLANAR, True),
    ("planar", PLANAR, True),
    ("planar", PLANAR, False),
    ("decoded", LAST, True),
    ("decoded", LAST, False),
    ("planar", LAST, True),
]

# Dtype of the clip and of the results.
DTYPES = [(dtype, dtype) for dtype in (torch.bfloat16, torch.float32)]
MIXED = [(torch.float16, torch.float16), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
BYTES = [(torch.uint8, torch.bfloat16), (torch.uint8, torch.float32)]


def cases(*groups):
    """Dtypes x layouts, of groups (dtypes, how many of the layouts)."""
    return [(*dtypes, *layout) for group, count in groups for dtypes in group for layout in LAYOUTS[:count]]


@pytest.fixture
def compiled():
    """Reports of what a function would have launched, after the checks that each passes."""

    def reports(target, function):
        found = [compile_case(case, target) for case in launches_on(target, function)]
        for report in found:
            check_report(report, target)
        return found

    return reports


def split(shape, layout, dtype, into, memory_format, flipped, plain=False):
    clip = lay_out(torch.zeros(shape, dtype=dtype), layout)
    flip = torch.zeros(shape[0], dtype=torch.bool) if flipped else None
    normal = {} if plain else {"mean": MEAN[:3], "std": STD[:3]}
    clip.requires_grad_(dtype != torch.uint8)
    index = torch.zeros(shape[0], dtype=torch.int64)
    return clip, decouple(clip, index, flip=flip, dtype=into, memory_format=memory_format, **normal)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "dtype, into, layout, memory_format, flipped",
    cases((BYTES, 6), (DTYPES, 6), (MIXED, 2), ([(torch.uint8, torch.float16)], 1)),
    ids=str,
)
def test_forward(dtype, into, layout, memory_format, flipped, target, compiled):
    (report,) = compiled(target, lambda: split(FULL, layout, dtype, into, memory_format, flipped))
    assert set(access_bits(report.asm, "store")) == {128}
    # Channels that are last change their layout once, before the walk through time.
    assert report.shared_bytes == 0 if memory_format == PLANAR else report.shared_bytes <= 8192
    in_runs = layout == "planar" if memory_format == PLANAR else layout == "decoded" and not flipped
    if in_runs and dtype.itemsize >= into.itemsize:
        assert access_bits(report.asm, "load")[128] >= 2
    elif in_runs:  # a thread reads the run that it writes
        assert access_bits(report.asm, "load")[128 * dtype.itemsize // into.itemsize] >= 2


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype, into, layout, memory_format, flipped", cases((DTYPES, 6), (MIXED, 2)), ids=str)
def test_backward(dtype, into, layout, memory_format, flipped, target, compiled):
    def step():
        clip, results = split(FULL, layout, dtype, into, memory_format, flipped)
        torch.autograd.grad(results, clip, [torch.zeros_like(part) for part in results])

    _, report = compiled(target, step)
    assert set(access_bits(report.asm, "store")) == {128}
    in_order = layout == ("planar" if memory_format == PLANAR else "decoded")
    if in_order and (layout == "planar" or not flipped):
        assert access_bits(report.asm, "load")[min(128, 128 * into.itemsize // dtype.itemsize)] >= 3


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype, into", [BYTES[0], DTYPES[1]], ids=str)
def test_odd_sizes_absent_gradients_and_no_normalisation(dtype, into, memory_format, target, compiled):
    def step():
        clip, results = split(ODD, "cropped", dtype, into, memory_format, True, plain=True)
        if clip.requires_grad:
            torch.autograd.grad(results.static, clip, torch.ones_like(results.static[:1]).expand_as(results.static))

    assert len(compiled(target, step)) == (1 if dtype == torch.uint8 else 2)


@pytest.mark.parametrize("target", TARGETS)
def test_strides_past_32_bits(target, compiled):
    far = 2**31 + 2**20
    clip = torch.empty(1, dtype=torch.float16, device="meta").as_strided((2, 3, 3, 4, 8), (far, far, 32, 8, 1))
    outs = tuple(torch.empty(2, 3, 2, 4, 8) for _ in range(3))
    index = torch.zeros(2, dtype=torch.int64)
    compiled(target, lambda: kernel.launch_forward(clip, index, None, None, None, torch.float32, False, *outs))
    grads, options = (clip[:, :, :2],) * 3, (clip.shape, torch.float32, False)
    compiled(target, lambda: kernel.launch_backward(*grads, index, None, None, *options, torch.empty(2, 3, 3, 4, 8)))


def test_sizes_do_not_recompile():
    def step():
        for batch, frames, side in ((1, 2, 16), (2, 17, 112), (3, 9, 128)):
            shape = batch, 3, frames, side, side
            clip, results = split(shape, "decoded", torch.float32, torch.bfloat16, PLANAR, True)
            torch.autograd.grad(results.rgb, clip, torch.zeros_like(results.rgb))

    cases = launches_on("sm_90", step)
    assert len(cases) == 6
    assert cases[0::2] == [cases[0]] * 3 and cases[1::2] == [cases[1]] * 3
