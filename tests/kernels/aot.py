"""Compile Triton kernels ahead of time, for targets that need not be present, and read what came out.

    case = Case("copy", copy_kernel, {"x": "*fp32", "y": "*fp32", "n": "i32"}, {"BLOCK": 1024}, num_warps=4)
    report = compile_case(case, "sm_90")
    check_report(report, "sm_90", contains="st.global")

    with recorded_launches() as cases:  # of a function that launches kernels: they do not run
        info_nce(query, key)

Registers and stack come from the binary: `cuobjdump` for NVIDIA, the code object's metadata for AMD.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# Bytes of shared memory that one block can have.
SHARED_LIMITS = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}


@dataclass(frozen=True)
class Case:
    """One specialisation of a kernel.

    `signature` types the run-time arguments (`"*bf16"`, `"i32"`, `"fp32"`); every other parameter stands in
    `constexprs`, where an argument that is absent at launch is None. `attrs` maps an argument to the divisor that a
    launch would find in its value (16 is the only one Triton knows); None gives it to every pointer, as PyTorch's
    allocator does. For AMD every pointer is one into less than 2 GiB, as nearly all are.
    """

    name: str
    kernel: JITFunction
    signature: dict[str, str]
    constexprs: dict[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    attrs: dict[str, int] | None = None
    maxnreg: int | None = None


@dataclass(frozen=True)
class Report:
    """What one compilation needs. `spill_bytes` is the stack frame per thread, where the register allocator spills.

    On AMD, `registers` counts vector registers (AGPRs included), `spill_bytes` 4 bytes for each spilled one and
    `local_bytes` the private segment. Scalar registers spill to lanes of vector ones, not to memory.
    """

    registers: int
    spill_bytes: int
    local_bytes: int
    shared_bytes: int
    asm: str


POINTERS = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.uint8: "*u8", torch.bool: "*i1", torch.int64: "*i64", torch.int32: "*i32",
}  # fmt: skip


@contextmanager
def recorded_launches() -> Iterator[list[Case]]:
    """The specialisations of the launches in the block, which compile and run nothing."""
    cases: list[Case] = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in kwargs}
        cases.append(launch_case(kernel, {**dict(zip(kernel.arg_names, args)), **kwargs}, **options))

    with patch.object(JITFunction, "run", record):
        yield cases


@contextmanager
def answering(**answers: Any) -> Iterator[None]:
    """Functions that `dclr.kernels._common` shares, by name, give these answers in all of `dclr.kernels`."""
    modules = [module for name, module in sys.modules.items() if name.startswith("dclr.kernels")]
    with ExitStack() as patched:
        for module, (name, answer) in itertools.product(modules, answers.items()):
            if hasattr(module, name):
                patched.enter_context(patch.object(module, name, lambda _, answer=answer: answer))
        yield


def launches_on(target: str, function: Callable[[], Any]) -> list[Case]:
    """What a function would launch on a target."""
    with answering(device_class=target, runs_triton=True), recorded_launches() as cases:
        function()
    return cases


def launch_case(kernel: JITFunction, arguments: dict[str, Any], **options: int) -> Case:
    """The specialisation that Triton makes of a launch: types, absent arguments, the value 1, multiples of 16."""
    signature, constexprs, attrs = {}, {}, {}
    for param in kernel.params:
        value = arguments[param.name]
        special = not param.do_not_specialize
        if param.is_constexpr or value is None or (type(value) is int and value == 1 and special):
            constexprs[param.name] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[param.name] = POINTERS[value.dtype]
        elif isinstance(value, TensorDescriptor):
            signature[param.name] = f"tensordesc<{POINTERS[value.base.dtype][1:]}{value.block_shape}>"
        else:
            signature[param.name] = "fp32" if isinstance(value, float) else "i32" if abs(value) < 2**31 else "i64"
        if special and (isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)):
            attrs[param.name] = 16
    return Case(kernel.__name__, kernel, signature, constexprs, attrs=attrs, **options)


def compile_case(case: Case, target: str) -> Report:
    """Compile `case` for one of `TARGETS`; no such device and no driver are needed. Triton's cache is used.

    Raises `ValueError` for parameters that neither `signature` nor `constexprs` has, for unknown ones and targets, and
    `TypeError` where the kernel is an interpreted one.
    """
    if target not in TARGETS:
        raise ValueError(f"target: got {target!r}, expected one of {', '.join(TARGETS)}")
    compiled = triton.compile(_source(case, target), target=TARGETS[target], options=_options(case))
    if TARGETS[target].backend == "hip":
        return _amd_report(compiled.asm["amdgcn"], compiled.metadata.shared)
    return _nvidia_report(compiled.asm["cubin"], compiled.metadata.shared, compiled.asm["ptx"])


def check_report(report: Report, target: str, *, contains: str | tuple[str, ...] = (), spill_bytes: int = 0) -> None:
    """Assert that nothing was spilled (beyond `spill_bytes`), that no local memory is used, that a block of the target
    has the shared memory, and that each regular expression of `contains` is found in the assembly."""
    assert report.spill_bytes <= spill_bytes, f"{target}: {report.spill_bytes} bytes of spills per thread"
    assert report.local_bytes <= spill_bytes, f"{target}: {report.local_bytes} bytes of local memory per thread"
    limit = SHARED_LIMITS[target]
    assert report.shared_bytes <= limit, f"{target}: {report.shared_bytes} bytes of shared memory, a block has {limit}"
    for pattern in (contains,) if isinstance(contains, str) else contains:
        assert re.search(pattern, report.asm), f"{target}: no {pattern!r} in the assembly"


def access_bits(asm: str, kind: str) -> Counter[int]:
    """Width in bits -> number of global-memory instructions of `kind` ("load" or "store"), of PTX or of amdgcn."""
    widths: Counter[int] = Counter()
    if ".amdgcn_target" in asm:
        for words in re.findall(rf"\b(?:global|flat|buffer)_{kind}_(\w+)", asm):
            lanes = re.search(r"dwordx(\d)", words)
            widths[32 * int(lanes[1]) if lanes else 32 if "dword" in words else 16 if "short" in words else 8] += 1
        return widths
    mnemonic = {"load": "ld", "store": "st"}[kind]
    instruction = rf"(?<!\w){mnemonic}\.global[.\w:]*?(?:\.v(\d))?\.[busf](\d+)\b"
    for lanes, bits in re.findall(instruction, asm):
        widths[int(lanes or 1) * int(bits)] += 1
    for size in re.findall(r"cp\.async\.c[ag]\.shared\.global[.\w:]* \[[^]]*\], \[[^]]*\], (0x\w+|\d+)", asm):
        widths[8 * int(size, 0)] += kind == "load"
    return +widths


def loop_instructions(case: Case, target: str) -> int:
    """Instructions of a warp on the shortest way through the innermost loop with a matrix product, on NVIDIA.

    That is the way through a tile where nothing is special. A multiprocessor issues four in a cycle.
    """
    compiled = triton.compile(_source(case, target), target=TARGETS[target], options=_options(case))
    text = _cuobjdump(compiled.asm["cubin"], "--dump-sass")
    code = {int(place, 16): words for place, words in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", text, re.M)}
    places = list(code)
    jumps = {}
    for place, words in code.items():
        jump = re.match(r"(@!?U?P\d+ )?BRA(?:\.\w+)* (!?U?P\d+, )?0x([0-9a-f]+)", words)
        if jump:
            jumps[place] = int(jump[3], 16), bool(jump[1] or jump[2])
    loops = [(to, place) for place, (to, _) in jumps.items() if to < place]
    products = [place for place, words in code.items() if "MMA" in words]
    with_products = [loop for loop in loops if any(loop[0] <= place <= loop[1] for place in products)]
    # Parts of a loop that are put behind it jump back into it, which looks like a loop but has no way round.
    ways = (_shortest_way(places, jumps, *loop) for loop in sorted(with_products, key=lambda loop: loop[1] - loop[0]))
    return next(way for way in ways if way is not None)


def _shortest_way(places: list[int], jumps: dict[int, tuple[int, bool]], first: int, last: int) -> int | None:
    """Instructions from `first` to `last`; None where no way leads there in between."""
    body = [place for place in places if first <= place <= last]
    shortest = {last: 1}
    for place, following in reversed(list(itertools.pairwise(body))):
        to, conditional = jumps.get(place, (following, False))
        found = [shortest[way] for way in ({to, following} if conditional else {to}) if way in shortest]
        if found:
            shortest[place] = 1 + min(found)
    return shortest.get(first)


def _source(case: Case, target: str) -> ASTSource:
    kernel = case.kernel
    if not isinstance(kernel, JITFunction):
        raise TypeError(
            f"{case.name}: got {type(kernel).__name__}, expected a `triton.jit` function; unset TRITON_INTERPRET"
        )
    given = {**case.constexprs, **case.signature}
    wrong = set(given) ^ set(kernel.arg_names)
    if wrong or len(given) != len(case.constexprs) + len(case.signature):
        missing = sorted(wrong - set(given)) or "none"
        twice = sorted(set(case.constexprs) & set(case.signature)) or "none"
        unknown = sorted(wrong & set(given)) or "none"
        raise ValueError(f"{case.name}: parameters missing: {missing}, given twice: {twice}, unknown: {unknown}")
    signature = {name: case.signature.get(name, "constexpr") for name in kernel.arg_names}
    divisors = case.attrs
    if divisors is None:
        divisors = {name: 16 for name, kind in case.signature.items() if kind.startswith("*")}
    attrs = {(kernel.arg_names.index(name),): [["tt.divisibility", divisor]] for name, divisor in divisors.items()}
    if TARGETS[target].backend == "hip":
        for name, kind in case.signature.items():
            if kind.startswith("*"):
                attrs.setdefault((kernel.arg_names.index(name),), []).append(["tt.pointer_range", 32])
    return ASTSource(kernel, signature, constexprs=case.constexprs, attrs=attrs)


def _options(case: Case) -> dict[str, int]:
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    if case.maxnreg is not None:  # NVIDIA's alone
        options["maxnreg"] = case.maxnreg
    return options


def _cuobjdump(cubin: bytes, what: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, what, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _nvidia_report(cubin: bytes, shared_bytes: int, ptx: str) -> Report:
    usage = _cuobjdump(cubin, "--dump-resource-usage")
    registers, stack, local = (int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    return Report(registers, stack, local, shared_bytes, ptx)


def _amd_report(amdgcn: str, shared_bytes: int) -> Report:
    def count(name: str) -> int:
        found = re.search(rf"^\s*(?:- )?\.{name}:\s*(\d+)", amdgcn, re.MULTILINE)
        return int(found[1]) if found else 0

    spills, private = 4 * count("vgpr_spill_count"), count("private_segment_fixed_size")
    return Report(count("vgpr_count"), spills, private, shared_bytes, amdgcn)
