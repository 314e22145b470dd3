"""What the loss of a DCLR step asks of the device, forward and backward: at the paper's batch, that is its cost.

From the projections of one process to their gradients, the weighted sum for the log included. Counted are launches of
Triton kernels, which are recorded instead of run, and PyTorch operations, all but views and allocations. Encoder,
pooling, heads, the search (which rows it excludes included) and the similarities in the log are no part of it, nor are
the checks of index arguments, which only tensors on the CPU get.
"""

import importlib

import pytest
import torch

from benchmarks.traffic import TorchOps, Traffic
from dclr.methods.base import Output
from dclr.methods.contrast import CrossTerm, Term
from dclr.methods.packing import packed_losses
from dclr.methods.search import non_negative_rows
from tests.kernels.aot import answering, recorded_launches

N, DIM, K, TAU = 40, 128, 5, 0.07
WEIGHTS = {"vs": 1.0, "vd": 1.0, "sd": -1.0}


@pytest.fixture
def device_operations(monkeypatch):
    """Takes a function from projections to losses; returns the operations of its second step, by name."""
    op = importlib.import_module("dclr.kernels.info_nce")
    monkeypatch.setattr(op, "check_rows", lambda *args, **kwargs: None)

    def count(losses):
        projected = {name: torch.randn(2 * N, DIM, requires_grad=True) for name in ("vs", "vd", "s", "d")}

        def step():
            for leaf in projected.values():
                leaf.grad = None
            Output(losses(**projected), {}).backward(WEIGHTS)

        with answering(runs_triton=True), recorded_launches() as cases:
            step()  # makes what is kept from step to step
            del cases[:]
            with TorchOps(traffic := Traffic()):
                step()
        return [case.name for case in cases] + list(traffic.torch_ops.elements())

    return count


def in_batch(vs, vd, s, d):
    values = packed_losses([Term(vs, s), Term(vd, d), Term(s, d, same_view=True)], TAU)
    return dict(zip(WEIGHTS, values.unbind()))


def test_in_batch_terms(device_operations):
    """All rows in one tensor, three kernels; the stack of the gradients, three kernels; the log."""
    operations = device_operations(in_batch)
    assert sum(name.endswith("_kernel") for name in operations) == 6
    assert len(operations) <= 10, operations


def test_with_a_cross_video_term(device_operations):
    """With Eq. 10 instead of L_VD: the same, and one tensor of weights and one of excluded rows."""
    video_id = torch.arange(N)
    rgb, mode = (torch.randn(N, K, DIM) for _ in range(2))
    weight, exclude = torch.rand(N, K), non_negative_rows(torch.randint(N, (N, K)), video_id, 0)
    entries, entry_exclude = torch.randn(2 * N, DIM), torch.randint(2 * N, exclude.shape)

    def losses(vs, vd, s, d):
        crossing = CrossTerm(vd, d, rgb, mode, weight, exclude, entries, entry_exclude)
        static, apart, difference = packed_losses(
            [Term(vs, s), Term(s, d, same_view=True, bound="anchor")], TAU, crossing=[crossing]
        ).unbind()
        return {"vs": static, "vd": difference, "sd": apart}

    operations = device_operations(losses)
    assert sum(name.endswith("_kernel") for name in operations) == 6
    assert len(operations) <= 12, operations


def test_with_a_bounded_term(device_operations):
    """L_SD, of which each anchor ends at chance, costs nothing more."""

    def losses(vs, vd, s, d):
        bounded = Term(s, d, same_view=True, bound="anchor")
        return dict(zip(WEIGHTS, packed_losses([Term(vs, s), Term(vd, d), bounded], TAU).unbind()))

    operations = device_operations(losses)
    assert len(operations) <= 10, operations
