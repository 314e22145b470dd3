"""What the loss of a DCLR step asks of the device, forward and backward: at the paper's batch, that is its cost.

From the projections of one process to their gradients, the weighted sum for the log included. Counted are launches of
Triton kernels, which are recorded instead of run, and PyTorch operations, all but views and allocations. Encoder,
pooling, heads, top-K search and the similarities in the log are no part of it, nor are the checks of index arguments,
which only tensors on the CPU get.
"""

import importlib

import pytest
import torch

from benchmarks.traffic import TorchOps, Traffic
from dclr.methods.base import Output
from dclr.methods.contrast import Term, contrast
from dclr.methods.search import Retrieved, cross_video_loss, left_out
from tests.kernels.aot import recorded_launches

N, DIM, K, TAU = 40, 128, 5, 0.07
WEIGHTS = {"vs": 1.0, "vd": 1.0, "sd": -1.0}


@pytest.fixture
def device_operations(monkeypatch):
    """Takes a function from projections to losses; returns the operations of its second step, by name."""
    op, launch = (importlib.import_module(f"dclr.kernels.{name}") for name in ("info_nce", "_nce_launch"))
    for module in (op, launch):
        monkeypatch.setattr(module, "runs_triton", lambda tensor: True)
    monkeypatch.setattr(op, "_check_rows", lambda *args, **kwargs: None)

    def count(losses):
        projected = {name: torch.randn(2 * N, DIM, requires_grad=True) for name in ("vs", "vd", "s", "d")}

        def step():
            for leaf in projected.values():
                leaf.grad = None
            Output(losses(**projected), {}).backward(WEIGHTS)

        with recorded_launches() as cases:
            step()  # makes what is kept from step to step
            del cases[:]
            with TorchOps(traffic := Traffic()):
                step()
        return [case.name for case in cases] + list(traffic.torch_ops.elements())

    return count


def in_batch(vs, vd, s, d):
    values = contrast([Term(vs, s), Term(vd, d), Term(s, d, same_view=True)], TAU)
    return dict(zip(WEIGHTS, values.unbind()))


def test_in_batch_terms(device_operations):
    """Stacks of anchors and of keys, three kernels; two kernels, the sums over the uses of s and of d."""
    operations = device_operations(in_batch)
    assert len(operations) <= 12, operations


def test_cross_video_term(device_operations):
    """With Eq. 10 instead of L_VD, which has a launch of its own: its queries are others, and more."""
    video_id = torch.arange(N)
    entries = (torch.randn(N, K, DIM) for _ in range(2))
    found = Retrieved(*entries, torch.randint(N, (N, K)), torch.zeros(N, K), torch.rand(N, K))
    exclude = left_out(found.video_id, video_id, 0)

    def losses(vs, vd, s, d):
        static, apart = contrast([Term(vs, s), Term(s, d, same_view=True)], TAU).unbind()
        return {"vs": static, "vd": cross_video_loss(vd[:N], d, 0, exclude, found, TAU), "sd": apart}

    operations = device_operations(losses)
    assert sum(name.endswith("_kernel") for name in operations) == 10
    assert len(operations) <= 26, operations
