"""The InfoNCE kernels compile for every target, as launched for all kinds of queries, keys and positives."""

import re

import pytest
import torch
import triton

from dclr.kernels import Ranges, info_nce, info_nce_ranges
from dclr.kernels.info_nce.forward import MANY_EXCLUDED

from .aot import SHARED_LIMITS, TARGETS, access_bits, check_report, compile_case, launches_on, loop_instructions

KERNELS = ("prepare_kernel", "forward_kernel", "losses_kernel", "slopes_kernel", "gradient_kernel", "finish_kernel")
# Stack bytes a thread, nearly all outside the loops over tiles: of the gradients of ranges with four exclusions, and
# what Triton 3.6 needs. The wide tiles of sm_90 were faster by a sixth on a card than those that need no stack.
STACK = {"sm_80": 16, "sm_90": 600}
# Since one path serves ranges too, these need more; to be won back.
STACK_OF = {("sm_80", torch.float32, "ranges"): 40}
if triton.__version__.startswith("3.6."):
    STACK |= {"sm_90": 720, "sm_100": 328, "gfx942": 84}
KINDS = ("two views", "query and key", "explicit", "ranges")


def launches(target, dtype, kind, temperature=0.07, dim=128):
    """Name -> case of the kernels of a loss and its gradients."""
    if kind == "ranges":
        rows = torch.empty(900, dim, dtype=dtype, requires_grad=True)
        where = Ranges.of((0, 128), (0, 256), torch.full((2, 128), 300), rows=900, keys=512, loss=(0, 0), bound=(9.0,))
        exclude, weight = torch.zeros(2, 128, 4, dtype=torch.int64), torch.zeros(2, 128)
        given = {"exclude": exclude, "weight": weight, "temperature": temperature}
        cases = launches_on(target, lambda: info_nce_ranges(rows, where, **given).sum().backward())
        return {case.name: case for case in cases}
    query = torch.empty(2, 256, dim, dtype=dtype, requires_grad=True)
    key = query if kind == "two views" else torch.empty(2, 512, dim, dtype=dtype, requires_grad=True)
    positive = torch.zeros(2, 256, dtype=torch.int64)
    exclude = positive
    if kind == "explicit":
        positive = torch.empty(2, 256, 3, dim, dtype=dtype, requires_grad=True)
        exclude = torch.zeros(2, 256, 3, 2, dtype=torch.int64)
    given = {"positive": positive, "exclude": exclude, "temperature": temperature}
    cases = launches_on(target, lambda: info_nce(query, key, **given).sum().backward())
    return {case.name: case for case in cases}


def check(cases, target, only=None, stack=0):
    reports = {name: compile_case(cases[name], target) for name in only or cases}
    for report in reports.values():
        check_report(report, target, spill_bytes=max(stack, STACK.get(target, 0)))
    return reports


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_all_kernels(dtype, kind, target):
    cases = launches(target, dtype, kind)
    assert tuple(cases) == KERNELS
    reports = check(cases, target, stack=STACK_OF.get((target, dtype, kind), 0))
    if target == "sm_90" and dtype == torch.bfloat16:
        for name in ("forward_kernel", "gradient_kernel"):
            assert re.search("wgmma", reports[name].asm), f"no wgmma in {name}"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dim, temperature", [(128, 0.01), (20, 0.07), (2048, 0.07)])
def test_sharp_short_and_long_rows(dim, temperature, target):
    cases = launches(target, torch.float16, "two views", temperature, dim)
    check(cases, target, ("forward_kernel", "gradient_kernel", *(["product_kernel"] if dim > 128 else [])))


def test_rows_are_read_and_written_16_bytes_at_a_time():
    """By the kernels that go through rows as they are given, where these are contiguous."""
    cases = launches("sm_90", torch.bfloat16, "query and key")
    for name in ("prepare_kernel", "finish_kernel"):
        asm = compile_case(cases[name], "sm_90").asm
        loads, stores = access_bits(asm, "load"), access_bits(asm, "store")
        assert loads[128] and stores[128] and not loads.keys() & {8, 16} and not stores.keys() & {8, 16}


@pytest.mark.parametrize("entries", [8, 9, 64])
def test_many_excluded_rows_are_a_loop(entries):
    """Of any number: no kernel for each, no longer code and no more registers with it."""
    rows, exclude = torch.empty(256, 128, dtype=torch.bfloat16), torch.zeros(256, entries, dtype=torch.int64)
    cases = launches_on("sm_90", lambda: info_nce(rows, rows, exclude=exclude))
    (forward,) = (case for case in cases if case.name == "forward_kernel")
    assert forward.constexprs["E"] == min(entries, MANY_EXCLUDED)
    if entries != MANY_EXCLUDED:
        check_report(compile_case(forward, "sm_90"), "sm_90", spill_bytes=48)


# A tile of 128 x 128 scores of 128 features takes 1,024 cycles of a multiprocessor's matrix units at best, once forward
# and twice backward, and its exponentials 1,024 of another unit.
CYCLES = {"forward_kernel": 1024, "gradient_kernel": 2048}


@pytest.mark.parametrize("name", CYCLES)
def test_instructions_of_a_tile_keep_up_with_its_products(name):
    """And two blocks share a multiprocessor of sm_90, so that they run beside the products of each other."""
    case = launches("sm_90", torch.bfloat16, "two views")[name]
    tile = case.constexprs["BLOCK_A"] * case.constexprs["BLOCK_B"]
    issued = loop_instructions(case, "sm_90") * case.num_warps / 4
    assert issued * 128 * 128 / tile <= 1.1 * CYCLES[name]
    report = compile_case(case, "sm_90")
    assert 2 * 32 * case.num_warps * report.registers <= 65_536 and 2 * report.shared_bytes <= SHARED_LIMITS["sm_90"]
