"""No operator has a second derivative; asking for one is an error at the first backward pass, not a wrong result."""

import pytest
import torch

from dclr.kernels import (
    Ranges,
    activation_alignment,
    activation_map,
    decouple,
    decoupled_pool,
    info_nce,
    info_nce_ranges,
    weighted_pool,
)

WHERE = Ranges.of((0,), (0,), torch.tensor([[1, 0]]), rows=2, keys=2)
# Each from leaves of shape (2, 3, 2, 2, 2), of which rows are made where it takes some.
OPS = {
    "info_nce": lambda x: info_nce(x.flatten(1), x.flatten(1)),
    "info_nce_ranges": lambda x: info_nce_ranges(x.flatten(1), WHERE),
    "activation_map": activation_map,
    "activation_alignment": lambda x: activation_alignment(x, x, x),
    "weighted_pool": lambda x: weighted_pool(x, torch.ones(2, 2, 2, 2)),
    "decoupled_pool": lambda x: decoupled_pool(x, x, x).rgb,
    "decouple": lambda x: decouple(x, torch.zeros(2, dtype=torch.int64)).rgb,
}


@pytest.mark.parametrize("name", OPS)
def test_second_derivative_is_an_error(name):
    x = torch.randn(2, 3, 2, 2, 2, requires_grad=True)
    result = OPS[name](x).square().sum()
    with pytest.raises(RuntimeError, match="got create_graph=True, expected no second derivative"):
        torch.autograd.grad(result, x, create_graph=True)
    torch.autograd.grad(OPS[name](x).square().sum(), x)
