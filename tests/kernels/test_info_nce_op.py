"""InfoNCE as an operator: gradients, compilers, argument checks; its values are in `test_info_nce.py`."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from dclr.kernels import info_nce


def test_gradcheck():
    query, key = (torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    explicit = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    exclude = torch.tensor([[[0], [2], [-1], [3]]])
    rows = torch.tensor([[1, 0, 3, 2]])
    for losses in (
        lambda: info_nce(query, key, positive=rows, exclude=exclude, temperature=0.5, reduction="none"),
        lambda: info_nce(query, query, positive=rows, exclude=exclude, temperature=0.5, reduction="none"),
        lambda: info_nce(query, key, positive=explicit, exclude=exclude, temperature=0.5, reduction="none"),
    ):
        assert torch.autograd.gradcheck(lambda *_, losses=losses: losses(), (query, key, explicit))


def test_opcheck():
    query, key = (torch.randn(2, 4, 3, requires_grad=True) for _ in range(2))
    rows = torch.randint(4, (2, 4))
    exclude = torch.randint(-1, 4, (2, 4, 2))
    positive = torch.randn(2, 4, 3, requires_grad=True)
    forward, backward = torch.ops.dclr.info_nce.default, torch.ops.dclr.info_nce_backward.default
    for inputs, count, total in (
        ((query, key, rows, None, exclude, None), 1, False),
        ((query, None, rows, None, None, None), 4, True),
        ((query, key, None, positive, exclude, None), 8, True),
        ((query, key, None, positive, exclude, torch.rand(2, 4)), 1, True),
    ):
        inputs, options = (*inputs, None, None, None, None, None, []), (0.1, 2.0, count, total, False)
        torch.library.opcheck(forward, (*inputs, *options))
        plain = [value.detach() if isinstance(value, torch.Tensor) else value for value in inputs]
        loss, *workspace = forward(*plain, *options)
        torch.library.opcheck(
            backward, (torch.rand_like(loss), *plain, *options, *workspace, True, inputs[1] is not None)
        )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(dynamic):
    def losses(query, key, positive, exclude):
        own = info_nce(query, query, positive=positive, exclude=exclude)
        return own + info_nce(query, key, positive=positive)

    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (4, 7):
        query, key = (torch.randn(rows, 5, requires_grad=True) for _ in range(2))
        own = torch.arange(rows)
        arguments = query, key, own.roll(1), own
        expected = torch.autograd.grad(losses(*arguments), (query, key))
        torch.testing.assert_close(torch.autograd.grad(compiled(*arguments), (query, key)), expected)


def test_autocast_and_repeats_give_the_same():
    query, key = torch.randn(33, 20), torch.randn(33, 20)
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(query, key)
    assert loss.dtype == torch.float32 and torch.equal(loss, info_nce(query, key))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: info_nce(x, x, temperature=0), "temperature: got 0"),
        (lambda x: info_nce(x, x[:2]), "positive: got None"),
        (lambda x: info_nce(x, x[:, :2]), "key: got"),
        (lambda x: info_nce(x[0], x), "query: got"),
        (lambda x: info_nce(x, x, positive=torch.tensor([0, 1, 3])), "positive: got values in"),
        (lambda x: info_nce(x, x, positive=torch.tensor([0, 1])), "positive: got"),
        (lambda x: info_nce(x, x, positive=torch.tensor([0, 1, 2]).short()), "positive: got torch.int16"),
        (lambda x: info_nce(x, x, positive=x[:, None, :2]), "positive: got"),
        (lambda x: info_nce(x, x, exclude=torch.tensor([0, 1, -2])), "exclude: got values in"),
        (lambda x: info_nce(x, x, exclude=torch.zeros(3, 1, 1, dtype=torch.int64)), "exclude: got"),
        (lambda x: info_nce(x, x, weight=x), "weight: got"),
        (lambda x: info_nce(x, x, positive=x[:, None], weight=x), "weight: got"),
        (lambda x: info_nce(x, x, reduction="max"), "reduction: got max"),
        (lambda x: info_nce(x, x.double()), "key: got torch.float64"),
        (lambda x: info_nce(x.long(), x), "query: got torch.int64"),
        (lambda x: info_nce(x, x.to("meta")), "key on meta"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(torch.eye(3))


def test_changing_batch_sizes_do_not_recompile():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(info_nce, fullgraph=True, backend=counter, dynamic=True)
    counts = []
    for rows in (3, 6, 17):
        query, key = torch.randn(rows, 5, requires_grad=True), torch.randn(rows, 5)
        torch.testing.assert_close(compiled(query, key), info_nce(query, key))
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1]
