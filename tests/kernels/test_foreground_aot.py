"""The kernels of `motion_map` and `merge_foreground` compile for every target, as launched, without spills."""

import sys

import pytest
import torch

from dclr.kernels import merge_foreground, motion_map

from .aot import TARGETS, access_bits, check_report, compile_case, launches_on
from .test_decouple import lay_out

foreground = sys.modules["dclr.kernels.foreground"]
FULL, ODD = (2, 3, 17, 112, 112), (2, 3, 3, 5, 7)

# Dtype of the clip and of the merged clip.
DTYPES = [
    (torch.uint8, torch.uint8),
    (torch.uint8, torch.float32),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16),
]


def both(shape, dtype, into, flipped=True, layout="decoded"):
    batch, _, _, height, width = shape
    clip = lay_out(torch.zeros(shape, dtype=dtype), layout)
    flip = torch.zeros(batch, dtype=torch.bool) if flipped else None
    motion_map(clip, flip=flip)
    background, weight = torch.zeros(batch, dtype=torch.int64), torch.zeros(batch, height, width)
    merge_foreground(clip, background, weight, flip=flip, dtype=into)


def reports(cases, target):
    """Of both kernels, after the checks that they pass."""
    assert [case.name for case in cases] == ["motion_kernel", "merge_kernel"]
    found = [compile_case(case, target) for case in cases]
    for report in found:
        check_report(report, target)
        assert report.shared_bytes <= 8192
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype, into", DTYPES, ids=str)
def test_decoded_clips(dtype, into, target):
    motion, merge = reports(launches_on(target, lambda: both(FULL, dtype, into)), target)
    assert set(access_bits(motion.asm, "store")) == {32}
    # A warp or wave fills sectors, as neighbouring threads write neighbouring elements.
    assert set(access_bits(merge.asm, "store")) == {8 * into.itemsize}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype, into", DTYPES[:2], ids=str)
def test_odd_sizes_without_a_flip(dtype, into, target):
    reports(launches_on(target, lambda: both(ODD, dtype, into, flipped=False, layout="cropped")), target)


@pytest.mark.parametrize("target", TARGETS)
def test_strides_past_32_bits(target):
    far = 2**31 + 2**20
    clip = torch.empty(1, dtype=torch.float16, device="meta").as_strided((2, 3, 3, 4, 8), (far, far, 32, 8, 1))
    background, weight, out = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4, 8), torch.empty(2, 3, 3, 4, 8)

    def launch():
        foreground._launch_pixels("motion", clip, None, weight, out)
        foreground._launch_pixels("merge", clip, background, weight, None, out, 2, 2, BLEND=True)

    reports(launches_on(target, launch), target)


def test_sizes_do_not_recompile():
    def step():
        for batch, frames, side in ((1, 1, 16), (2, 17, 112), (3, 9, 128)):
            both((batch, 3, frames, side, side), torch.uint8, torch.uint8)

    cases = launches_on("sm_90", step)
    assert len(cases) == 6
    assert cases[0::2] == [cases[0]] * 3 and cases[1::2] == [cases[1]] * 3
