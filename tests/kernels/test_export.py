"""The operators in `torch.compile` with Inductor and in `torch.export`, at batch sizes that change."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export

from dclr.kernels import decouple, decoupled_pool, info_nce, topk_similarity


class Module(torch.nn.Module):
    """`function` as a module, which is what `export` takes."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def contrast(query, key, positive, exclude):
    return (info_nce(query, key, positive=positive, exclude=exclude),)


def contrast_explicit(query, key, positive, weight):
    return (info_nce(query, key, positive=positive, weight=weight),)


def search(query, queue):
    return topk_similarity(query, queue, 3)


def rows(*shape):
    return torch.randn(*shape, requires_grad=True)


# Function, its inputs at a batch size, and whether it has gradients.
CASES = {
    "info_nce": (contrast, lambda m: (rows(m, 5), rows(m, 5), torch.arange(m).roll(1), torch.arange(m)), True),
    "explicit": (contrast_explicit, lambda m: (rows(m, 5), rows(m, 5), rows(m, 2, 5), torch.rand(m, 2)), True),
    "topk_similarity": (search, lambda m: (torch.randn(m, 5), torch.randn(40, 5)), False),
    "decouple": (decouple, lambda m: (torch.rand(m, 3, 6, 11, 13), torch.ones(m, dtype=torch.int64)), False),
    "decoupled_pool": (decoupled_pool, lambda m: tuple(rows(m, 6, 2, 3, 3) for _ in range(3)), True),
}


def gradients(outputs, inputs):
    learned = [value for value in inputs if value.requires_grad]
    total = sum(value.square().sum() for value in outputs if value.requires_grad)
    return torch.autograd.grad(total, learned, allow_unused=True)


@pytest.mark.parametrize("case", CASES)
def test_inductor_compiles_once_for_all_batch_sizes(case):
    torch._dynamo.reset()
    function, inputs_of, differentiable = CASES[case]
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(function, fullgraph=True, backend=counter, dynamic=True)
    compilations = []
    for batch in (4, 7, 12):
        inputs = inputs_of(batch)
        outputs, expected = compiled(*inputs), function(*inputs)
        torch.testing.assert_close(tuple(outputs), tuple(expected))
        if differentiable:
            torch.testing.assert_close(gradients(outputs, inputs), gradients(expected, inputs))
        compilations.append(counter.frame_count)
    assert compilations[0] == compilations[-1] > 0


@pytest.mark.parametrize("case", CASES)
def test_export_with_a_free_batch_size(case):
    function, inputs_of, _ = CASES[case]
    batch = Dim("batch", min=2)
    inputs = tuple(value.detach() for value in inputs_of(6))
    free = tuple({0: batch} if value.shape[0] == 6 else None for value in inputs)
    exported = export(Module(function), inputs, dynamic_shapes=(free,)).module()
    for batch in (6, 9):
        inputs = tuple(value.detach() for value in inputs_of(batch))
        torch.testing.assert_close(tuple(exported(*inputs)), tuple(function(*inputs)))
