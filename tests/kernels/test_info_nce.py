"""InfoNCE against its formula with the whole matrix of similarities, in float64."""

import pytest
import torch

from dclr.kernels import info_nce
from dclr.kernels._common import INTERPRET
from dclr.kernels.info_nce import launch
from dclr.kernels.info_nce.reference import cross_video_reference

from .helpers import assert_close

# Groups, queries, keys, features: one of each, a row more than a tile, rows longer than a tile, many against few.
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 3), (1, 65, 33, 20), (1, 9, 40, 130), (1, 2, 700, 7), (1, 300, 1, 5)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unit(rows):
    norm = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(norm == 0, 1, norm)


def formula(query, key, positive, exclude, temperature):
    """Losses (G, M) for `positive` (G, M), or (G, M, K) for (G, M, K, D); `exclude` (G, M, E) or (G, M, K, E)."""
    rows, keys = query.shape[1], key.shape[1]
    score = unit(query) @ unit(key).mT / temperature
    indexed = not positive.is_floating_point()
    if indexed:
        own = score.gather(2, positive.long()[..., None])[..., None]  # (G, M, 1, 1)
        exclude = positive[..., None] if exclude is None else torch.cat([exclude, positive[..., None]], -1)
    else:
        own = (unit(query)[:, :, None] * unit(positive)).sum(-1)[..., None] / temperature
    positives = own.shape[2]
    kept = torch.ones(len(query), rows, positives, keys, dtype=torch.bool)
    if exclude is not None:
        exclude = (exclude if exclude.dim() == 4 else exclude[:, :, None]).expand(-1, -1, positives, -1)
        kept = (exclude.long()[..., None] != torch.arange(keys)).all(3)
    negative = score[:, :, None].masked_fill(~kept, -torch.inf)
    losses = torch.cat([own, negative], -1).logsumexp(-1) - own[..., 0]
    return losses[..., 0] if indexed else losses


def wide(*tensors):
    """float64 leaves of the same values."""
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def strided(rows, layout):
    """Leaves of the same values: transposed, or every other column of a larger tensor."""
    if layout == "transposed":
        rows = rows.transpose(-1, -2).contiguous().transpose(-1, -2)
    elif layout == "sliced":
        larger = torch.full((*rows.shape[:-1], 2 * rows.shape[-1]), torch.nan, dtype=rows.dtype)
        larger[..., ::2] = rows
        rows = larger[..., ::2]
    return rows.detach().requires_grad_()


def compare(losses, expected, leaves, wide_leaves, dtype, grad, temperature):
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=2e-5, atol=3e-6 / temperature)
    grads = torch.autograd.grad(losses, leaves, grad)
    wanted = torch.autograd.grad(expected, wide_leaves, grad.double())
    for actual, reference in zip(grads, wanted):
        assert actual.dtype == dtype
        assert_close(actual, reference, dtype, max(20, 1 / temperature) if dtype == torch.float32 else 4)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 10.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_index_positives(shape, dtype, temperature):
    groups, rows, keys, features = shape
    torch.manual_seed(rows)
    query = strided(torch.randn(groups, rows, features).to(dtype), "transposed")
    key = strided(torch.randn(groups, keys, features).to(dtype), "sliced")
    positive = torch.randint(keys, (groups, rows))
    exclude = torch.randint(-1, keys, (groups, rows, 3), dtype=torch.int32)
    exclude[..., 2] = exclude[..., 0]  # duplicates count once
    exclude[:, ::2, 1] = positive[:, ::2]  # a positive that is also excluded stays
    losses = info_nce(query, key, positive=positive, exclude=exclude, temperature=temperature, reduction="none")
    leaves = wide(query, key)
    expected = formula(*leaves, positive, exclude, temperature)
    compare(losses, expected, (query, key), leaves, dtype, torch.randn(groups, rows), temperature)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 10.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 2, 1), (2, 6, 3), (1, 70, 20), (1, 34, 130), (1, 230, 20)])
def test_query_that_is_the_key(shape, dtype, temperature):
    torch.manual_seed(0)
    rows = torch.randn(shape).to(dtype).requires_grad_()
    own = torch.arange(shape[1]).expand(shape[:2])
    partner = own.roll(shape[1] // 2, 1)
    losses = info_nce(rows, rows, positive=partner, exclude=own, temperature=temperature, reduction="none")
    leaves = wide(rows)
    expected = formula(leaves[0], leaves[0], partner, own[..., None], temperature)
    compare(losses, expected, (rows,), leaves, dtype, torch.randn(shape[:2]), temperature)


@pytest.mark.parametrize("coefficients", [launch.COEFFICIENTS, 5000], ids=["at once", "in slabs"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_long_rows(shared, dtype, coefficients, monkeypatch):
    """Rows of three blocks of columns, of more than one tile and group."""
    monkeypatch.setattr(launch, "COEFFICIENTS", coefficients)
    torch.manual_seed(0)
    query = torch.randn(2, 70, 300).to(dtype).requires_grad_()
    key = query if shared else torch.randn(2, 90, 300).to(dtype).requires_grad_()
    positive = torch.arange(70).expand(2, 70).roll(35, 1)
    losses = info_nce(query, key, positive=positive, temperature=0.1, reduction="none")
    leaves = wide(query) if shared else wide(query, key)
    expected = formula(leaves[0], leaves[-1], positive, None, 0.1)
    inputs = (query,) if shared else (query, key)
    compare(losses, expected, inputs, leaves, dtype, torch.randn(2, 70), 0.1)


@pytest.mark.parametrize("temperature", [0.01, 0.07])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tiles_with_and_without_marks(dtype, temperature):
    """Positives and excluded keys lie along the diagonal, and are in few of the tiles."""
    torch.manual_seed(0)
    query = torch.randn(1, 150, 20).to(dtype).requires_grad_()
    key = torch.randn(1, 230, 20).to(dtype).requires_grad_()
    own = torch.arange(150)[None]
    losses = info_nce(query, key, positive=own, exclude=own + 1, temperature=temperature, reduction="none")
    leaves = wide(query, key)
    expected = formula(*leaves, own, own[..., None] + 1, temperature)
    compare(losses, expected, (query, key), leaves, dtype, torch.randn(1, 150), temperature)


@pytest.mark.parametrize("temperature", [0.01, 0.07])
@pytest.mark.parametrize("shared", [False, True])
def test_many_excluded_rows(shared, temperature):
    torch.manual_seed(0)
    query = torch.randn(1, 20, 6, requires_grad=True)
    key = query if shared else torch.randn(1, 40, 6, requires_grad=True)
    positive, exclude = torch.randint(key.shape[1], (1, 20)), torch.randint(-1, key.shape[1], (1, 20, 13))
    losses = info_nce(query, key, positive=positive, exclude=exclude, temperature=temperature, reduction="none")
    leaves = wide(query) if shared else wide(query, key)
    expected = formula(leaves[0], leaves[-1], positive, exclude, temperature)
    inputs = (query,) if shared else (query, key)
    compare(losses, expected, inputs, leaves, torch.float32, torch.randn(1, 20), temperature)


@pytest.mark.parametrize("exclude_per", ["none", "query", "positive"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape, positives", [((1, 1, 1, 2), 1), ((2, 5, 7, 3), 3), ((1, 18, 70, 40), 2)])
def test_explicit_positives(shape, positives, dtype, exclude_per):
    groups, rows, keys, features = shape
    torch.manual_seed(rows)
    query = strided(torch.randn(groups, rows, features).to(dtype), "sliced")
    key = torch.randn(groups, keys, features).to(dtype).requires_grad_()
    positive = strided(torch.randn(groups, rows, positives, features).to(dtype), "transposed")
    sizes = {"none": None, "query": (groups, rows, 2), "positive": (groups, rows, positives, 2)}[exclude_per]
    exclude = None if sizes is None else torch.randint(-1, keys, sizes)
    weight = torch.rand(groups, rows, positives)
    options = {"positive": positive, "exclude": exclude, "temperature": 0.1, "reduction": "none"}
    leaves = wide(query, key, positive)
    each = formula(*leaves, exclude, 0.1)
    grad = torch.randn(groups, rows)
    losses = info_nce(query, key, weight=weight, **options)
    compare(losses, (each * weight).sum(2), (query, key, positive), leaves, dtype, grad, 0.1)
    torch.testing.assert_close(info_nce(query, key, **options).double(), each.mean(2), rtol=2e-5, atol=3e-5)


@pytest.mark.parametrize("block", [1024, 4], ids=["at once", "in parts"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["index", "weighted index", "explicit", "weighted explicit"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_and_scale(reduction, kind, dtype, block, monkeypatch):
    """With the gradient of one group 0, and another whose sign and size are not those of 1."""
    monkeypatch.setattr(launch, "BLOCK_LOSSES", block)
    query, key = (torch.randn(3, 9, 5).to(dtype).requires_grad_() for _ in range(2))
    inputs, positive = (query, key), torch.arange(9).expand(3, 9)
    if explicit := "explicit" in kind:
        positive = torch.randn(3, 9, 2, 5).to(dtype).requires_grad_()
        inputs += (positive,)
    weight = torch.rand(3, 9, 2) if explicit else torch.rand(3, 9)
    options = {"positive": positive, "weight": weight if "weighted" in kind else None, "temperature": 0.2}
    losses = info_nce(query, key, **options, reduction=reduction, scale=3)
    leaves = wide(*inputs)
    expected = formula(*leaves[:2], leaves[2] if explicit else positive, None, 0.2)
    expected = expected * (weight if "weighted" in kind else 0.5 if explicit else 1)
    expected = expected.sum(2) if explicit else expected
    expected = 3 * getattr(expected, reduction)(1)
    compare(losses, expected, inputs, leaves, dtype, torch.tensor([1.0, 0.0, -300.0]), 0.2)


@pytest.mark.parametrize("unused", ["weight", "gradient"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_losses_without_gradient_overflow_nothing(dtype, unused):
    """A sharp one of two nearly equal rows, in the tiles where a row is query and key at once."""
    rows = torch.randn(1, 6, 32)
    rows[:, 1] = rows[:, 0] + 1e-3 * torch.randn(32)
    rows = rows.to(dtype).requires_grad_()
    own, share = torch.arange(6)[None], torch.ones(1, 6)
    share[0, 0] = 0
    options = {"positive": own.roll(3, 1), "exclude": own[..., None], "temperature": 0.01}
    weight = share if unused == "weight" else None
    losses = info_nce(rows, rows, **options, weight=weight, reduction="none")
    leaves = wide(rows)
    expected = formula(*leaves, *leaves, options["positive"], options["exclude"], 0.01)
    grad = torch.ones(1, 6) if unused == "weight" else share
    compare(losses, expected * share if weight is not None else expected, [rows], leaves, dtype, grad, 0.01)


def test_reductions_take_expanded_gradients():
    query, key = (torch.randn(2, 9, 5).requires_grad_() for _ in range(2))
    leaves = wide(query, key)
    expected = formula(*leaves, torch.arange(9).expand(2, 9), None, 0.07)
    for reduction in ("mean", "sum"):
        grads = torch.autograd.grad(info_nce(query, key, reduction=reduction).sum(), (query, key))
        wanted = torch.autograd.grad(getattr(expected, reduction)(1).sum(), leaves, retain_graph=True)
        for actual, reference in zip(grads, wanted):
            assert_close(actual, reference, torch.float32, 100)


def test_without_groups_and_without_the_other_gradient():
    query, key = torch.randn(4, 3, requires_grad=True), torch.randn(6, 3)
    positive = torch.tensor([0, 3, 5, 5])
    loss = info_nce(query, key, positive=positive, exclude=torch.tensor([1, -1, 0, 5]))
    assert loss.shape == ()
    (grad,) = torch.autograd.grad(loss, query)
    leaves = wide(query, key)
    expected = formula(leaves[0][None], leaves[1][None], positive[None], torch.tensor([[[1], [-1], [0], [5]]]), 0.07)
    assert_close(grad, torch.autograd.grad(expected.mean(), leaves[0])[0], torch.float32, 100)
    assert torch.equal(
        info_nce(query, key.requires_grad_(), positive=positive, exclude=torch.tensor([1, -1, 0, 5])), loss
    )


def test_only_explicit_positives_get_a_gradient():
    query, key, positive = torch.randn(4, 3), torch.randn(6, 3), torch.randn(4, 2, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(info_nce(query, key, positive=positive), positive)
    leaf = positive.detach().double().requires_grad_()
    expected = formula(query.double()[None], key.double()[None], leaf[None], None, 0.07).mean()
    assert_close(grad, torch.autograd.grad(expected, leaf)[0], torch.float32, 100)


@pytest.mark.parametrize("dtype, scale", [(torch.float32, 1e-30), (torch.float32, 1e30), (torch.bfloat16, 1e30),
                                          (torch.float16, 1e-5), (torch.float16, 1e4)])  # fmt: skip
def test_norms_do_not_matter(dtype, scale):
    torch.manual_seed(0)
    query, key = ((torch.randn(1, 8, 16) * scale).to(dtype).requires_grad_() for _ in range(2))
    losses = info_nce(query, key, reduction="none")
    leaves = wide(query, key)
    expected = formula(*leaves, torch.arange(8)[None], None, 0.07)
    torch.testing.assert_close(losses.double(), expected, rtol=2e-5, atol=5e-5)
    if dtype != torch.float16:  # whose gradients are beyond its range
        grads = torch.autograd.grad(losses.sum(), (query, key))
        for actual, reference in zip(grads, torch.autograd.grad(expected.sum(), leaves)):
            assert_close(actual.double() * scale, reference * scale, dtype, 20)


def test_no_keys_and_no_queries():
    query, positive = torch.randn(3, 4, requires_grad=True), torch.randn(3, 2, 4)
    loss = info_nce(query, torch.empty(0, 4), positive=positive)
    loss.backward()
    assert loss == 0 and not query.grad.any()
    empty = torch.empty(0, 4, requires_grad=True)
    key = torch.randn(5, 4, requires_grad=True)
    loss = info_nce(empty, key, positive=torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and empty.grad.shape == (0, 4) and not key.grad.any()


def test_zero_rows():
    query, key = torch.randn(3, 4), torch.randn(3, 4)
    query[0], key[1] = 0, 0
    query.requires_grad_(), key.requires_grad_()
    losses = info_nce(query, key, temperature=1.0, reduction="none")
    assert losses[0].item() == pytest.approx(torch.tensor(3.0).log().item())
    losses.sum().backward()
    assert not query.grad[0].any() and not key.grad[1].any() and query.grad[1:].any() and query.grad.isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_reaches_no_other(bad):
    torch.manual_seed(0)
    query, key = torch.randn(5, 4), torch.randn(5, 4)
    query[2, 1] = bad
    query.requires_grad_(), key.requires_grad_()
    losses = info_nce(query, key, reduction="none")
    assert losses.isnan().tolist() == [False, False, True, False, False]
    grads = torch.autograd.grad(losses[[0, 1, 3, 4]].sum(), query)
    assert grads[0][[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_query_without_gradient_gives_nothing_to_others(bad, dtype):
    """Neither to the keys nor to its positive, be that one of them or not."""
    query = torch.randn(5, 4).to(dtype)
    key, apart = (torch.randn(5, 4).to(dtype).requires_grad_() for _ in range(2))
    query[2, 1] = bad
    kept = torch.tensor([0, 1, 3, 4])
    for positive in (torch.arange(5), apart[:, None]):
        losses = info_nce(query, key, positive=positive, reduction="none")
        found = torch.autograd.grad(losses[kept].sum(), (key, apart), materialize_grads=True)
        leaves = wide(query[kept], key, apart)
        positive = kept[None] if positive.dim() == 1 else leaves[2][kept][None, :, None]
        expected = formula(leaves[0][None], leaves[1][None], positive, None, 0.07).sum()
        wanted = torch.autograd.grad(expected, leaves[1:], materialize_grads=True)
        for grad, reference in zip(found, wanted):
            assert_close(grad, reference, dtype, 100 if dtype == torch.float32 else 4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_that_is_not_finite_reaches_its_own_query_alone(dtype, weighted, bad):
    query, key = torch.randn(4, 8).to(dtype).requires_grad_(), torch.randn(4, 8).to(dtype)
    weight = torch.ones(4) if weighted else None
    losses = info_nce(query, key, weight=weight, reduction="none")
    (grad,) = torch.autograd.grad(losses, query, torch.tensor([1, bad, 1, 0.5]))
    leaves = wide(query, key)
    expected = formula(leaves[0][None], leaves[1][None], torch.arange(4)[None], None, 0.07)[0]
    (wanted,) = torch.autograd.grad(expected, leaves[0], torch.tensor([1, 0, 1, 0.5]).double())
    kept = torch.tensor([0, 2, 3])
    assert_close(grad[kept], wanted[kept], dtype, 100 if dtype == torch.float32 else 4)


def test_small_losses_keep_their_digits():
    """The positive has nearly all of the sum: its loss and its gradient are differences that cancel."""
    query = torch.tensor([[1.0, 0.1, 0.0]], requires_grad=True)
    key = torch.tensor([[1.0, 0.0, 0.0], [0.05, -0.6, 1.0]], requires_grad=True)
    leaves = wide(query, key)
    positive = torch.tensor([0])
    loss = info_nce(query, key, positive=positive, temperature=0.05)
    expected = formula(leaves[0][None], leaves[1][None], positive[None], None, 0.05).sum()
    assert 0 < expected < 1e-7
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)
    for grad, wanted in zip(torch.autograd.grad(loss, (query, key)), torch.autograd.grad(expected, leaves)):
        torch.testing.assert_close(grad.double(), wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.skipif(INTERPRET, reason="the kernels round the products of 16-bit operands too")
def test_gradients_of_query_and_key_are_rounded_as_one():
    """Where one tensor is both, its gradient has one rounding, also where the two parts cancel."""
    torch.manual_seed(0)
    rows = torch.randn(64, 32).bfloat16().requires_grad_()
    own = torch.arange(64)
    (grad,) = torch.autograd.grad(info_nce(rows, rows, positive=own.roll(32), exclude=own), rows)
    (leaf,) = wide(rows)
    expected = formula(leaf[None], leaf[None], own.roll(32)[None], own[None, :, None], 0.07).mean()
    (wanted,) = torch.autograd.grad(expected, leaf)
    error = (grad.double() - wanted).abs()
    assert (error <= 1.01 * 2**-8 * wanted.abs() + 1e-5 * wanted.abs().max()).all()


def test_addresses_past_two_to_the_31():
    """The second row and the second group start past element 2^31; untouched pages cost nothing."""
    stride = 2**31 + 64
    shape, strides = (2, 2, 8), (2 * stride, stride, 1)
    storage = torch.empty(3 * stride + 8, dtype=torch.float16)
    query = storage.as_strided(shape, strides).copy_(torch.randn(shape)).requires_grad_()
    key = torch.randn(2, 3, 8).half().requires_grad_()
    positive = torch.tensor([[2, 0], [1, 1]])
    losses = info_nce(query, key, positive=positive, reduction="none")
    leaves = wide(query, key)
    expected = formula(*leaves, positive, None, 0.07)
    compare(losses, expected, (query, key), leaves, torch.float16, torch.ones(2, 2), 0.07)


def test_eq_10_is_explicit_positives():
    """As the paper has it: of each entry found, the clip with its difference and its clip with the difference."""
    clip, difference = torch.randn(2, 4, 5, dtype=torch.float64)
    found_clip, found_difference = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    weight, key = torch.rand(4, 3, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    exclude = torch.randint(-1, 8, (4, 3, 2))
    entry, entry_exclude = torch.randn(8, 5, dtype=torch.float64), torch.randint(-1, 8, (4, 3, 2))
    found = found_clip, found_difference, weight
    expected = cross_video_reference(clip, difference, *found, key, exclude, entry, entry_exclude, 0.1)
    options = {"temperature": 0.1, "reduction": "sum", "scale": 1 / 4}
    to_found = info_nce(clip, entry, positive=found_difference, exclude=entry_exclude, weight=weight, **options)
    from_found = info_nce(
        found_clip.flatten(0, 1), key, positive=difference.repeat_interleave(3, 0)[:, None],
        exclude=exclude.flatten(0, 1), weight=weight.view(-1, 1), **options,
    )  # fmt: skip
    torch.testing.assert_close(to_found + from_found, expected)
