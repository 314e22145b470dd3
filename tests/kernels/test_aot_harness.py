"""The ahead-of-time harness: a clean kernel passes on every target, and each of its checks can fail."""

import pytest
import triton
import triton.language as tl

from .aot import SHARED_LIMITS, TARGETS, Case, access_bits, check_report, compile_case, loop_instructions


@triton.jit
def scale(x, y, factor, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + offsets, tl.load(x + offsets, mask=offsets < n) * factor, mask=offsets < n)


@triton.jit
def tile_sums(x, out, steps, BLOCK: tl.constexpr):
    rows = tl.arange(0, BLOCK)
    offsets = rows[:, None] * BLOCK + rows[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for step in range(steps):
        tile = tl.load(x + step.to(tl.int64) * BLOCK * BLOCK + offsets)
        total = tl.dot(tile, tile, total)
    tl.store(out + offsets, total)


@triton.jit
def recurrence(x, out, steps, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    state = tl.zeros((BLOCK,), tl.float32)
    for _ in range(steps):
        state = state * state + tl.load(x + offsets)
    tl.store(out + offsets, state)


SCALE = Case(
    "scale",
    scale,
    {"x": "*fp32", "y": "*fp32", "factor": "fp32", "n": "i32"},
    {"BLOCK": 1024},
    attrs={"x": 16, "y": 16, "n": 16},
)


def tile_sums_case(block, num_warps=8, num_stages=3):
    signature = {"x": "*bf16", "out": "*fp32", "steps": "i32"}
    return Case("tile_sums", tile_sums, signature, {"BLOCK": block}, num_warps, num_stages)


@pytest.mark.parametrize("target", TARGETS)
def test_clean_kernel_passes(target):
    report = compile_case(SCALE, target)
    check_report(report, target, contains="scale")
    assert 0 < report.registers < 64
    assert report.shared_bytes == 0
    assert set(access_bits(report.asm, "load")) == set(access_bits(report.asm, "store")) == {128}


@pytest.mark.parametrize("target", TARGETS)
def test_unaligned_size_has_no_wide_access(target):
    unaligned = Case("scale", scale, SCALE.signature, SCALE.constexprs, attrs={"x": 16, "y": 16})
    report = compile_case(unaligned, target)
    assert max(access_bits(report.asm, "load")) == max(access_bits(report.asm, "store")) == 32


@pytest.mark.parametrize(
    "target, instruction", [("sm_80", r"mma\.sync"), ("sm_90", "wgmma"), ("sm_100", r"tcgen05\.mma")]
)
def test_tensor_core_instruction_is_found(target, instruction):
    report = compile_case(tile_sums_case(64, num_warps=4), target)
    check_report(report, target, contains=instruction)
    with pytest.raises(AssertionError, match="no 'fp8'"):
        check_report(report, target, contains=(instruction, "fp8"))


@pytest.mark.parametrize("target", TARGETS)
def test_asynchronous_copies_count_as_loads(target):
    assert 128 in access_bits(compile_case(tile_sums_case(64), target).asm, "load")


@pytest.mark.parametrize("target, block", [("sm_90", 8192), ("gfx942", 32768)])
def test_spills_are_reported(target, block):
    """One warp cannot hold `block` numbers in its registers from one step to the next."""
    signature = {"x": "*fp32", "out": "*fp32", "steps": "i32"}
    report = compile_case(Case("recurrence", recurrence, signature, {"BLOCK": block}, num_warps=1), target)
    assert report.spill_bytes > 0
    with pytest.raises(AssertionError, match="bytes of spills per thread"):
        check_report(report, target)
    check_report(report, target, spill_bytes=max(report.spill_bytes, report.local_bytes))


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_too_much_shared_memory_is_reported(target):
    """Each of the pipeline's stages holds one 128 x 128 tile of 32 KiB."""
    report = compile_case(tile_sums_case(128, num_stages=9), target)
    assert report.shared_bytes > SHARED_LIMITS[target]
    with pytest.raises(AssertionError, match="bytes of shared memory, a block has"):
        check_report(report, target, spill_bytes=1 << 20)


def test_bad_cases_are_named():
    with pytest.raises(ValueError, match="sm_20"):
        compile_case(SCALE, "sm_20")
    with pytest.raises(ValueError, match=r"missing: \['BLOCK'\]"):
        compile_case(Case("scale", scale, SCALE.signature), "sm_90")
    with pytest.raises(ValueError, match=r"unknown: \['WIDTH'\]"):
        compile_case(Case("scale", scale, SCALE.signature, {"BLOCK": 64, "WIDTH": 3}), "sm_90")
    with pytest.raises(ValueError, match=r"given twice: \['n'\]"):
        compile_case(Case("scale", scale, SCALE.signature, {"BLOCK": 64, "n": 3}), "sm_90")
    with pytest.raises(TypeError, match="expected a `triton"):
        compile_case(Case("scale", scale.fn, SCALE.signature), "sm_90")


@triton.jit
def tile_exponentials(x, out, steps, at, ALWAYS: tl.constexpr):
    rows = tl.arange(0, 128)
    offsets = rows[:, None] * 128 + rows[None, :]
    total = tl.zeros((128, 128), tl.float32)
    for step in range(steps):
        tile = tl.load(x + step.to(tl.int64) * 128 * 128 + offsets)
        total = tl.dot(tile, tile, total)
        if ALWAYS or step == at:
            total = tl.exp2(total * 0.125)
    tl.store(out + offsets, total)


def test_instructions_of_a_loop_take_the_shortest_way():
    """A thread has 64 of the exponentials, each an instruction at least."""
    signature = {"x": "*bf16", "out": "*fp32", "steps": "i32", "at": "i32"}
    never, rarely, always = (
        loop_instructions(case, "sm_90")
        for case in (
            tile_sums_case(128),
            Case("rarely", tile_exponentials, signature, {"ALWAYS": False}, num_warps=8),
            Case("always", tile_exponentials, signature, {"ALWAYS": True}, num_warps=8),
        )
    )
    assert never <= rarely < never + 64 and always >= never + 64
