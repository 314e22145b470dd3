"""Feature maps in awkward layouts, and comparison with a float64 result."""

from collections.abc import Callable

import torch

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1.3e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}

SHAPES = [(2, 1, 1, 1, 1), (3, 2, 2, 7, 7), (2, 3, 3, 5, 1), (2, 7, 1, 2, 3), (1, 33, 2, 7, 7), (2, 127, 3, 5, 1)]


def lay_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The values of `x` (B, C, T, H, W), but for "expanded", which repeats the first sample with stride 0."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "transposed":
        return x.transpose(2, 4).contiguous().transpose(2, 4)
    if layout == "cropped":
        batch, channels, frames, height, width = x.shape
        larger = x.new_full((batch, channels + 1, frames + 1, height + 2, width + 3), float("nan"))
        view = larger[:, 1:, 1:, 1:-1, 2:-1]
        return view.copy_(x)
    assert layout == "expanded"
    return x[:1].contiguous().expand(x.shape)


LAYOUTS = ("contiguous", "channels_last", "transposed", "cropped", "expanded")


def feature_maps(shape, dtype=torch.float32, layout="contiguous", count=3, seed=0) -> list[torch.Tensor]:
    """Leaves that need gradients, normal values with some exact zeros."""
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for _ in range(count):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        values[torch.rand(shape, generator=generator) < 0.1] = 0
        maps.append(lay_out(values.to(dtype), layout).requires_grad_())
    return maps


def widened(tensors) -> list[torch.Tensor]:
    """float64 leaves of the same values."""
    return [tensor.detach().double().contiguous().requires_grad_() for tensor in tensors]


def assert_close(actual, expected, dtype, size=1) -> None:
    """`actual` against a float64 `expected`, rounded to `dtype`; `size` is the number of terms in its sums."""
    rtol = TOLERANCES[dtype] * max(1, size**0.5)
    scale = expected.abs().amax().item() if expected.numel() else 0
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=rtol * max(scale, 1e-6), equal_nan=True)


def gradients(function, leaves, seed=0):
    """Results of `function(*leaves)` and the gradients of the leaves for fixed random ones of the results."""
    results = function(*leaves)
    results = (results,) if isinstance(results, torch.Tensor) else tuple(results)
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(result.shape, generator=generator).to(result.device, result.dtype) for result in results]
    return results, torch.autograd.grad(results, leaves, grads, allow_unused=True)


def compare(function, leaves, sizes=(100, 100), dtype=torch.float32, error=0.0):
    """Results (of `dtype`) and gradients against those of the same values in float64 on the CPU.

    `sizes`: terms in the sums of the results and of the gradients. `error` is allowed besides, where terms cancel.
    """
    wide = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    results, grads = gradients(function, leaves)
    expected, wanted = gradients(function, wide)
    for actual, reference in zip(results, expected, strict=True):
        assert actual.dtype == dtype
        actual, reference = actual.detach().cpu().double(), reference.detach()
        if error:
            torch.testing.assert_close(actual, reference, rtol=2e-5, atol=error)
        else:
            assert_close(actual, reference, dtype, sizes[0])
    for leaf, actual, reference in zip(leaves, grads, wanted, strict=True):
        assert (actual is None) == (reference is None)
        if actual is not None:
            assert actual.dtype == leaf.dtype
            assert_close(actual.cpu(), reference, leaf.dtype, sizes[1] if leaf.dtype == torch.float32 else 4)


def far_apart(shape) -> torch.Tensor:
    """float16 (B, C, T, H, W) whose second sample and channel start past element 2^31; untouched pages cost nothing."""
    _, _, _, height, width = shape
    strides = (2**31 + 2**20, 2**31, height * width, width, 1)
    size = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides))
    return torch.empty(size, dtype=torch.float16).as_strided(shape, strides).copy_(torch.randint(-8, 9, shape))


def size(*tensors: torch.Tensor) -> int:
    """Bytes of tensors, each element once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def compiled_for_all_sizes(function: Callable) -> tuple[Callable, list]:
    """`function` as one dynamic graph, and the list of the graphs that its calls take."""
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    return torch.compile(function, fullgraph=True, backend=backend, dynamic=True), graphs
