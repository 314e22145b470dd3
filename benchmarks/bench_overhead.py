"""What a call costs the host: each operator on inputs so small that its kernels cost next to nothing.

The reference is the plain PyTorch form that the operator itself runs on a CPU, called directly: there, the difference
is what checks, dispatch and autograd add. On a GPU it is the column `host` that counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dclr.kernels import decouple, decoupled_pool, info_nce, topk_similarity
from dclr.kernels.decouple.reference import decouple_reference
from dclr.kernels.info_nce.reference import info_nce_gradient_reference, info_nce_reference
from dclr.kernels.pooling.reference import decoupled_pool_reference
from dclr.kernels.topk.reference import topk_similarity_reference

from .harness import OURS, REFERENCE, Problem, with_gradients

NAMES = ["decouple", "info_nce", "info_nce-backward", "decoupled_pool", "topk_similarity"]
SIZES = {"tiny": NAMES, "cpu": NAMES, "cuda": NAMES}
TEMPERATURE = 0.1


def test_overhead(size, device, bench):
    bench(problem(size, device))


def problem(name: str, device: torch.device) -> Problem:
    torch.manual_seed(0)
    ours, reference, inputs = VARIANTS[name](device)

    def expected() -> tuple[Tensor, ...]:
        return reference(*(value.double() if value.is_floating_point() else value for value in inputs))

    return Problem(
        name=f"overhead of {name}",
        dtype=torch.float32,
        device=device,
        expected=expected,
        variants={REFERENCE: lambda: reference(*inputs), OURS: lambda: ours(*inputs)},
        bytes=sum(value.numel() * value.element_size() for value in inputs),
    )


def of_decouple(device: torch.device):
    clip, index = torch.rand(2, 3, 3, 4, 4, device=device), torch.tensor([0, 1], device=device)
    zero, one = torch.zeros(3, device=device), torch.ones(3, device=device)
    return decouple, lambda clip, index: decouple_reference(clip, index, None, zero, one, clip.dtype), (clip, index)


def of_info_nce(device: torch.device):
    query, key = torch.randn(2, 4, 8, device=device)
    rows = torch.arange(4, device=device)

    def ours(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        return (info_nce(query, key, positive=rows, temperature=TEMPERATURE),)

    def reference(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        return (info_nce_reference(query, key, key[rows], rows[:, None], TEMPERATURE).mean(),)

    return ours, reference, (query, key)


def of_info_nce_backward(device: torch.device):
    losses, reference_losses, inputs = of_info_nce(device)
    rows = torch.arange(4, device=device)

    def ours(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        leaves = query.detach().requires_grad_(), key.detach().requires_grad_()
        return with_gradients(lambda *leaves: losses(*leaves)[0], *leaves)()

    def reference(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        grad = query.new_full((4,), 1 / 4)
        to_query, to_key, to_positive = info_nce_gradient_reference(
            grad, query, key, key[rows], rows[:, None], TEMPERATURE
        )
        return (*reference_losses(query, key), to_query, to_key + to_positive)

    return ours, reference, inputs


def of_decoupled_pool(device: torch.device):
    return decoupled_pool, decoupled_pool_reference, tuple(torch.randn(3, 2, 4, 1, 2, 2, device=device))


def of_topk_similarity(device: torch.device):
    def ours(query: Tensor, queue: Tensor) -> tuple[Tensor, ...]:
        return topk_similarity(query, queue, 2)

    def reference(query: Tensor, queue: Tensor) -> tuple[Tensor, ...]:
        return topk_similarity_reference(query, queue, 2, len(queue), None, None, None)

    return ours, reference, (torch.randn(3, 8, device=device), torch.randn(5, 8, device=device))


VARIANTS = dict(zip(NAMES, (of_decouple, of_info_nce, of_info_nce_backward, of_decoupled_pool, of_topk_similarity)))
