"""The kernels of `augment_clip` compile for every target, as launched, without spills."""

import pytest
import torch

from dclr.kernels import augment_clip

from .aot import TARGETS, access_bits, check_report, compile_case, launches_on
from .test_decouple import lay_out

FULL, ODD = (2, 3, 17, 112, 112), (2, 3, 3, 21, 23)

DTYPES = [
    (torch.uint8, torch.bfloat16),
    (torch.uint8, torch.float16),
    (torch.uint8, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.float32),
]


def augment(shape, dtype, into, size, still=True, flipped=True, layout="decoded"):
    clip, color = lay_out(torch.zeros(shape, dtype=dtype), layout), torch.zeros(shape[0], 6)
    index = torch.zeros(shape[0], dtype=torch.int64) if still else None
    flip = torch.zeros(shape[0], dtype=torch.bool) if flipped else None
    return augment_clip(clip, color, static_index=index, flip=flip, blur_size=size, dtype=into)


def reports(cases, target):
    """Of each kernel by name, after the checks that it passes."""
    found = {case.name: compile_case(case, target) for case in cases}
    for report in found.values():
        check_report(report, target)
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype, into", DTYPES, ids=str)
def test_streams(dtype, into, target):
    found = reports(launches_on(target, lambda: augment(FULL, dtype, into, 11)), target)
    assert list(found) == ["luma_kernel", "point_kernel", "blur_kernel"]
    dot = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "v_mfma"}[target]
    check_report(found["blur_kernel"], target, contains=dot)
    # A warp or wave fills sectors, as neighbouring threads write neighbouring elements.
    assert set(access_bits(found["point_kernel"].asm, "store")) == {8 * into.itemsize}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [1, 3])
def test_rgb_alone(size, target):
    found = reports(launches_on(target, lambda: augment(ODD, torch.uint8, torch.bfloat16, size, False, False)), target)
    assert len(found) == (2 if size == 1 else 3)


@pytest.mark.parametrize("target", TARGETS)
def test_planar_clips(target):
    cropped = {"flipped": False, "layout": "cropped"}
    reports(launches_on(target, lambda: augment(ODD, torch.float32, torch.bfloat16, 3, **cropped)), target)


def test_sizes_do_not_recompile():
    def step():
        for batch, frames, side in ((1, 2, 40), (2, 17, 112), (3, 9, 128)):
            augment((batch, 3, frames, side, side), torch.uint8, torch.bfloat16, 2 * (side // 20) + 1)

    cases = launches_on("sm_90", step)
    assert len(cases) == 9
    assert all(cases[kernel::3] == [cases[kernel]] * 3 for kernel in range(3))
