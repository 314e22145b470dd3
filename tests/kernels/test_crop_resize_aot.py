"""The kernel of `crop_resize_yuv` compiles for every target, as launched, without spills."""

import pytest

from dclr.kernels import crop_resize_yuv

from .aot import TARGETS, access_bits, check_report, compile_case, launches_on
from .test_crop_resize import make_crops


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [112, 7])
def test_crops(size, target):
    [case] = launches_on(target, lambda: crop_resize_yuv(*make_crops(), 2, size))
    report = compile_case(case, target)
    check_report(report, target)
    # Of each pair of pixels two bytes and their chroma: no access is wider, and the results are written in bytes.
    assert set(access_bits(report.asm, "store")) == {8}


def test_sizes_do_not_recompile():
    def step():
        for frames, size, count in ((1, 16, 1), (17, 112, 4), (9, 129, 8)):
            boxes = [(20, 30, 0, 1), (1, 1, 0, 0), (33, 20, 1, 0), (8, 8, 0, 0)] * 2
            crop_resize_yuv(*make_crops(boxes[:count], frames), frames, size)

    cases = launches_on("sm_90", step)
    assert cases == [cases[0]] * 3
