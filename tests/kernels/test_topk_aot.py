"""The top-K kernels compile for every target, as launched, with wgmma where there is one."""

import pytest
import torch
import triton

from dclr.kernels import topk_similarity

from .aot import SHARED_LIMITS, TARGETS, check_report, compile_case, launches_on, loop_instructions

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


# Stack bytes a thread of the choice among tiles for more than 16 with ids, of 16-bit rows.
STACK = {"sm_80": 16 if triton.__version__.startswith("3.6.") else 8}


def launches(target, dtype, rows, features, k, transposed=False, masked=False, length=16384):
    """Both kernels, as launched."""
    query, queue = torch.empty(rows, features, dtype=dtype), torch.empty(length, features, dtype=dtype)
    if transposed:
        queue = torch.empty(features, length, dtype=dtype).T
    options = {}
    if masked:
        ids = torch.zeros(length, dtype=torch.int64)
        options = {"size": torch.tensor(5), "query_id": torch.zeros(rows, dtype=torch.int64), "queue_id": ids}
    cases = launches_on(target, lambda: topk_similarity(query, queue, k, **options))
    assert [case.name for case in cases] == ["maxima_kernel", "choose_kernel"]
    return cases


def reports(target, dtype, rows, features, k, *options, **others):
    cases = launches(target, dtype, rows, features, k, *options, **others)
    both = [compile_case(case, target) for case in cases]
    for report in both:
        known = STACK.get(target, 0) if k > 16 and dtype != torch.float32 else 0
        check_report(report, target, spill_bytes=known)
    return both


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("rows", [64, 512])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows(dtype, rows, target):
    maxima, _ = reports(target, dtype, rows, 128, 5)
    if target == "sm_90" and dtype != torch.float32:
        assert "wgmma.mma_async" in maxima.asm
    if target.startswith("sm"):
        assert "cp.async" in maxima.asm  # the queue's next tile is on its way


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "features, k, transposed, masked",
    [
        (128, 64, True, True),
        (128, 64, False, False),
        (128, 16, False, False),
        (128, 16, False, True),
        (128, 1, True, False),
        (2048, 5, False, False),
        (2048, 64, True, True),
        (127, 5, False, False),
        (1, 5, False, False),
    ],
)
def test_layouts(features, k, transposed, masked, dtype, target):
    maxima, _ = reports(target, dtype, 512, features, k, transposed, masked)
    if target == "sm_90" and dtype != torch.float32 and features >= 16:
        assert "wgmma.mma_async" in maxima.asm


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("k", [5, 64])
def test_long_queue(k, target):
    reports(target, torch.bfloat16, 512, 128, k, masked=True, length=1 << 20)


@pytest.mark.parametrize("masked, most", [(False, 1.35), (True, 2.6)])
def test_instructions_of_a_tile_keep_up_with_its_products(masked, most):
    """128 x 64 products of 128 features take 512 cycles of a multiprocessor of sm_90; without ids, two blocks share
    one."""
    case, _ = launches("sm_90", torch.bfloat16, 512, 128, 5, masked=masked, length=1 << 20)
    assert (case.constexprs["BLOCK_M"], case.constexprs["BLOCK_L"]) == (128, 64)
    assert loop_instructions(case, "sm_90") * case.num_warps / 4 <= most * 512
    report = compile_case(case, "sm_90")
    if not masked:
        assert 2 * 32 * case.num_warps * report.registers <= 65_536
        assert 2 * report.shared_bytes <= SHARED_LIMITS["sm_90"]
