"""The activation kernels compile for every target, as launched."""

import pytest
import torch

from dclr.kernels import activation_map
from dclr.kernels.activation import launch_align

from .aot import TARGETS, access_bits, check_report, compile_case, launches_on

# Name -> channels, map and memory format.
MAPS = {
    "contiguous": (512, (2, 7, 7), torch.contiguous_format),
    "aligned": (512, (2, 8, 8), torch.contiguous_format),
    "channels_last": (512, (2, 7, 7), torch.channels_last_3d),
    "odd": (33, (3, 5, 1), torch.contiguous_format),
}


def features(layout, dtype, batch=4):
    channels, shape, memory_format = MAPS[layout]
    return torch.empty((batch, channels, *shape), dtype=dtype, memory_format=memory_format)


def compiled(target, function, *arguments):
    """Reports of what `function(*arguments)` launches, after the checks that every kernel passes."""
    reports = [compile_case(case, target) for case in launches_on(target, lambda: function(*arguments))]
    for report in reports:
        check_report(report, target)
    return reports


def only_width(report, target, kind):
    """Every global access of `kind` has 128 bits."""
    if target.startswith("sm"):
        assert set(access_bits(report.asm, kind)) == {128}
    assert access_bits(report.asm, kind)[128]


SOME = [(torch.bfloat16, "contiguous"), (torch.float32, "channels_last"), (torch.float16, "channels_last")]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype, layout", SOME)
def test_map(dtype, layout, target):
    (report,) = compiled(target, activation_map, features(layout, dtype))
    if layout == "channels_last":
        only_width(report, target, "load")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype, layout", SOME)
def test_map_backward(dtype, layout, target):
    x = features(layout, dtype)
    (report,) = compiled(target, torch.ops.dclr.activation_map_backward, torch.empty(4, *x.shape[2:]), x)
    if layout == "channels_last":
        only_width(report, target, "store")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("positions", [1, 98, 1000, 50_000])
def test_align(positions, target):
    """Whole maps of any size, tile by tile."""
    compiled(target, launch_align, torch.empty(4, 2, 3, positions), torch.empty(4), torch.empty(4, positions))
