"""InfoNCE among ranges of rows against the formula of `info_nce`, group by group, in float64."""

import pytest
import torch

from dclr.kernels import Ranges, info_nce_ranges
from dclr.kernels.info_nce import launch

from .test_info_nce import DTYPES, compare, formula, strided

KEYS = 7
# Groups of three queries of 23 rows, the last six of which are constants: queries among the keys, two groups of the
# same queries, queries that are constants, positives among the keys and among the constants.
QUERY, KEY = (0, 4, 4, 18), (1, 8, 10, 9)
POSITIVE = torch.tensor([[1, 7, 3], [17, 18, 22], [16, 19, 10], [9, 9, 15]])


def where(loss=None, bound=None):
    return Ranges.of(QUERY, KEY, POSITIVE, rows=23, keys=KEYS, learned=17, loss=loss, bound=bound)


def expected_losses(rows, exclude, weight, temperature, scale, bound=torch.inf):
    """Sums (G,), from `rows` (R, D) in float64; a query counts for `bound` at most."""
    rows = torch.cat([rows[:17], rows[17:].detach()])
    losses = []
    for g, (query, key) in enumerate(zip(QUERY, KEY)):
        own = torch.where((POSITIVE[g] >= key) & (POSITIVE[g] < key + KEYS), POSITIVE[g] - key, -1)[:, None]
        left_out = own if exclude is None else torch.cat([exclude[g], own], 1)
        positive = rows[POSITIVE[g]][None, :, None]
        loss = formula(
            rows[query : query + 3][None], rows[key : key + KEYS][None], positive, left_out[None], temperature
        )
        losses.append((loss[0, :, 0].clamp(max=bound) * (1 if weight is None else weight[g])).sum())
    return torch.stack(losses) * scale


def some_exclude():
    return torch.randint(-1, KEYS, (4, 3, 2))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.01, 0.07, 10.0])
@pytest.mark.parametrize("features", [3, 20, 130])
def test_formula(features, temperature, dtype, layout):
    rows = strided(torch.randn(23, features).to(dtype), layout)
    wide = rows.detach().double().requires_grad_()
    exclude, weight = some_exclude(), torch.rand(4, 3)
    losses = info_nce_ranges(rows, where(), exclude=exclude, weight=weight, temperature=temperature, scale=0.5)
    expected = expected_losses(wide, exclude, weight.double(), temperature, 0.5)
    compare(losses, expected, [rows], [wide], dtype, torch.rand(4), temperature)


@pytest.mark.parametrize("block", [1024, 4], ids=["at once", "in parts"])
@pytest.mark.parametrize("loss", [(0, 0, 1, 1), (0, 1, 1, 1), (0, 0, 0, 0)], ids=str)
def test_groups_of_one_loss(loss, block, monkeypatch):
    monkeypatch.setattr(launch, "BLOCK_LOSSES", block)
    rows, weight = torch.randn(23, 20, requires_grad=True), torch.rand(4, 3)
    wide = rows.detach().double().requires_grad_()
    losses = info_nce_ranges(rows, where(loss), weight=weight)
    groups = expected_losses(wide, None, weight.double(), 0.07, 1)
    expected = groups.new_zeros(max(loss) + 1).index_add(0, torch.tensor(loss), groups)
    compare(losses, expected, [rows], [wide], torch.float32, torch.rand(max(loss) + 1), 0.07)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bound", [0.5, 3.0])
def test_bounded_losses(bound, dtype):
    """A query beyond the bound counts for it and gives no gradient; a loss without one is as it was."""
    rows, weight = torch.randn(23, 20).to(dtype).requires_grad_(), torch.rand(4, 3)
    wide = rows.detach().double().requires_grad_()
    losses = info_nce_ranges(rows, where((0, 0, 1, 1), (bound, torch.inf)), weight=weight, scale=0.5)
    ended, free = (expected_losses(wide, None, weight.double(), 0.07, 0.5, end) for end in (bound, torch.inf))
    assert (ended[:2] < free[:2]).any()
    expected = torch.stack([ended[:2].sum(), free[2:].sum()])
    compare(losses, expected, [rows], [wide], dtype, torch.tensor([1.0, -0.5]), 0.07)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_rows_than_a_tile(dtype):
    """Ranges that begin within a block of rows and end in another."""
    rows = torch.randn(300, 24).to(dtype).requires_grad_()
    wide = rows.detach().double().requires_grad_()
    positive = torch.stack([torch.randint(90, 200, (75,)), torch.randint(250, 300, (75,))])
    losses = info_nce_ranges(rows, Ranges.of((5, 130), (90, 90), positive, rows=300, keys=110, learned=250))
    constants = torch.cat([wide[:250], wide[250:].detach()])
    key = constants[90:200][None]
    expected = torch.stack([
        formula(constants[5:80][None], key, positive[:1] - 90, None, 0.07).sum(),
        formula(constants[130:205][None], key, constants[positive[1]][None, :, None], None, 0.07).sum(),
    ])  # fmt: skip
    compare(losses, expected, [rows], [wide], dtype, torch.tensor([1.0, -0.5]), 0.07)


def test_zero_rows():
    """A zero row is a neighbour of nobody, and gets no gradient."""
    rows = torch.randn(23, 5)
    rows[2] = 0
    rows.requires_grad_()
    losses = info_nce_ranges(rows, where())
    torch.testing.assert_close(
        losses.double(), expected_losses(rows.double(), None, None, 0.07, 1), rtol=2e-5, atol=1e-4
    )
    (grad,) = torch.autograd.grad(losses.sum(), rows)
    assert grad.isfinite().all() and grad[:2].any() and not grad[2].any() and not grad[17:].any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_query_that_is_not_finite_spoils_its_own_loss_alone(bad):
    rows = torch.randn(23, 5)
    rows[20] = bad  # of the last group, and a constant
    rows.requires_grad_()
    losses = info_nce_ranges(rows, where())
    assert losses[:3].isfinite().all() and losses[3].isnan()
    (grad,) = torch.autograd.grad(losses[:3].sum(), rows)
    assert not grad[17:].any() and grad[:9].isfinite().all()


def test_expanded_gradients():
    rows = torch.randn(23, 5, requires_grad=True)
    (summed,) = torch.autograd.grad(info_nce_ranges(rows, where()).sum(), rows)
    (given,) = torch.autograd.grad(info_nce_ranges(rows, where()), rows, torch.ones(4))
    assert torch.equal(summed, given)


def test_no_groups_and_no_features():
    rows = torch.randn(3, 2, requires_grad=True)
    losses = info_nce_ranges(rows, Ranges.of((), (), torch.zeros(0, 4, dtype=torch.int64), rows=3, keys=2))
    assert losses.shape == (0,)
    assert not torch.autograd.grad(losses.sum(), rows)[0].any()
    empty = torch.zeros(23, 0, requires_grad=True)
    torch.testing.assert_close(info_nce_ranges(empty, where()), torch.tensor([7.0, 8, 8, 7]).log() * 3, atol=2, rtol=0)


def test_gradcheck():
    rows = torch.randn(17, 3, dtype=torch.float64, requires_grad=True)
    stored, exclude, weight = torch.randn(6, 3, dtype=torch.float64), some_exclude(), torch.rand(4, 3)

    def losses(rows):
        rows = torch.cat([rows, stored])
        return info_nce_ranges(rows, where(), exclude=exclude, weight=weight, temperature=0.5)

    assert torch.autograd.gradcheck(losses, rows)


@pytest.mark.parametrize("given", [False, True])
def test_opcheck(given):
    rows, table = torch.randn(1, 23, 4), where((0, 0, 1, 2), (2.0, 1.0, torch.inf) if given else None)
    exclude, weight = (some_exclude(), torch.rand(4, 3)) if given else (None, None)
    forward, backward = torch.ops.dclr.info_nce.default, torch.ops.dclr.info_nce_backward.default
    ranges = table.first, table.column, table.loss, table.begin, table.bound, [KEYS, 17, 6]
    rest, options = (None, table.positive, None, exclude, weight, *ranges), (0.1, 2.0, 1, True, False)
    torch.library.opcheck(forward, (rows.clone().requires_grad_(), *rest, *options))
    loss, *workspace = forward(rows, *rest, *options)
    torch.library.opcheck(backward, (torch.rand_like(loss), rows, *rest, *options, *workspace, True, False))


def test_compiles_into_one_graph():
    rows, given = torch.randn(23, 5, requires_grad=True), where()
    compiled = torch.compile(info_nce_ranges, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(info_nce_ranges(rows, given).sum(), rows)
    (got,) = torch.autograd.grad(compiled(rows, given).sum(), rows)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Ranges.of((0,), (0, 1), torch.zeros(1, 2, dtype=torch.int64), rows=4, keys=2),
            "key: got 2 first rows",
        ),
        (lambda: Ranges.of((3,), (0,), torch.zeros(1, 2, dtype=torch.int64), rows=4, keys=2), r"query: got \[3\]"),
        (lambda: Ranges.of((0,), (-1,), torch.zeros(1, 2, dtype=torch.int64), rows=4, keys=2), r"key: got \[-1\]"),
        (lambda: Ranges.of((0,), (0,), torch.zeros(2, dtype=torch.int64), rows=4, keys=2), "positive: got"),
        (lambda: Ranges.of((0,), (0,), torch.zeros(1, 2), rows=4, keys=2), "positive: got torch.float32"),
        (lambda: Ranges.of((0,), (0,), torch.full((1, 2), 4), rows=4, keys=2), r"positive: got \[4, 4\]"),
        (lambda: Ranges.of((0,), (0,), torch.tensor([[1, 3]]), rows=4, keys=2), r"positive: got \[3\], expected keys"),
        (lambda: Ranges.of((0,), (0,), torch.tensor([[1, 3]]), rows=4, keys=2, learned=5), "learned: got 5"),
        (lambda: where((0, 0, 2, 2)), r"loss: got \[0, 0, 2, 2\]"),
        (lambda: where((0, 1, 0, 1)), "loss: got"),
        (lambda: where((0, 1)), "loss: got"),
        (lambda: where((0, 0, 1, 1), (1.0,)), r"bound: got \[1.0\], expected a number for each of 2 losses"),
        (lambda: info_nce_ranges(torch.zeros(22, 3), where()), r"rows: got \(22, 3\), expected \(23, D\)"),
        (lambda: info_nce_ranges(torch.zeros(23, 3).long(), where()), "rows: got torch.int64"),
        (lambda: info_nce_ranges(torch.zeros(23, 3), where(), temperature=0), "temperature: got 0"),
        (lambda: info_nce_ranges(torch.zeros(23, 3), where(), weight=torch.zeros(4)), "weight: got"),
        (lambda: info_nce_ranges(torch.zeros(23, 3), where(), exclude=POSITIVE), "exclude: got"),
        (
            lambda: info_nce_ranges(torch.zeros(23, 3), where(), exclude=torch.full((4, 3, 1), KEYS)),
            "exclude: got values in",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
