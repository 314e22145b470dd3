"""The activation kernels compile for every target, from the arguments of a real launch."""

import pytest
import torch

from dclr.kernels import activation, feature_maps

from .aot import TARGETS, Case, access_bits, answering, check_report, compile_case, launches_on

NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}

# Name -> channels, map and memory format.
MAPS = {
    "contiguous": (512, (2, 7, 7), torch.contiguous_format),
    "aligned": (512, (2, 8, 8), torch.contiguous_format),
    "channels_last": (512, (2, 7, 7), torch.channels_last_3d),
    "odd": (33, (3, 5, 1), torch.contiguous_format),
}


def features(layout, dtype):
    channels, shape, memory_format = MAPS[layout]
    return torch.empty((4, channels, *shape), dtype=dtype).contiguous(memory_format=memory_format).flatten(2)


def strided(name, tensor, axes="bcp"):
    """A tensor argument and its strides, as the kernels name them."""
    strides = tensor.stride() if tensor is not None else (0,) * len(axes)
    return {f"{name}_ptr": tensor, **{f"{name}_stride_{axis}": stride for axis, stride in zip(axes, strides)}}


def launch_case(kernel, arguments, constants):
    """The specialisation that Triton makes of these arguments: types, the value 1 and multiples of 16."""
    signature, constexprs, attrs = {}, dict(constants), {}
    options = {name: constexprs.pop(name) for name in ("num_warps", "maxnreg") if name in constexprs}
    for name, value in arguments.items():
        if value is None or (isinstance(value, int) and value == 1):
            constexprs[name] = value
            continue
        signature[name] = NAMES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
        if isinstance(value, torch.Tensor) or value % 16 == 0:
            attrs[name] = 16
    return Case(kernel.__name__, kernel, signature, constexprs, attrs=attrs, **options)


def constants(kind, target, *maps):
    with answering(device_class=target):
        return feature_maps.map_tile(kind, *maps)


def compiled(kernel, arguments, constants, target):
    """The report, after the checks that every kernel passes."""
    report = compile_case(launch_case(kernel, arguments, constants), target)
    check_report(report, target, spill_bytes=0)
    return report


def only_width(report, target, kind):
    """Every global access of `kind` has 128 bits."""
    if target.startswith("sm"):
        assert set(access_bits(report.asm, kind)) == {128}
    assert access_bits(report.asm, kind)[128]


SOME = [(torch.bfloat16, "contiguous"), (torch.float32, "channels_last"), (torch.float16, "channels_last")]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype, layout", SOME)
def test_map(dtype, layout, target):
    x = features(layout, dtype)
    _, channels, positions = x.shape
    out = {"map_ptr": torch.empty(4, positions), "map_stride_b": positions, "C": channels, "P": positions}
    report = compiled(activation._map_kernel, strided("x", x) | out, constants("read", target, x), target)
    if layout == "channels_last":
        only_width(report, target, "load")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype, layout", SOME)
def test_map_backward(dtype, layout, target):
    x = features(layout, dtype)
    _, channels, positions = x.shape
    arguments = strided("grad", torch.empty(4, positions), "bp") | strided("x", x) | strided("out", x)
    arguments |= {"C": channels, "P": positions}
    report = compiled(activation._map_backward_kernel, arguments, constants("write", target, x), target)
    if layout == "channels_last":
        only_width(report, target, "store")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("positions", [1, 98, 1000, 50_000])
def test_align(positions, target):
    """Whole maps of any size, tile by tile."""
    maps, alignment, slope = torch.empty(4, 2, 3, positions), torch.empty(4), torch.empty(4, positions)
    (case,) = launches_on(target, lambda: activation.launch_align(maps, alignment, slope))
    check_report(compile_case(case, target), target)
