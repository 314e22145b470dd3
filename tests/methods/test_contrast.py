"""DCLR Eq. 1-2 and 6-8 on the worked example, and the properties that the terms must have."""

import math

import pytest
import torch

from dclr.kernels import info_nce
from dclr.methods.contrast import Term, in_batch_loss, local_rows, reference_losses, similarities
from dclr.methods.packing import packed_losses

from .fixtures import TAU, D, S, V


def loss(anchor, key, same_view=False, denominator="others", compute=packed_losses):
    return compute([Term(anchor, key, same_view)], TAU, denominator).item()


@pytest.mark.parametrize("compute", [reference_losses, packed_losses])
@pytest.mark.parametrize(
    ("anchor", "key", "same_view", "denominator", "expected"),
    [
        (V, V, False, "others", 1.285786),
        (V, S, False, "others", 2.432496),
        (V, S, False, "literal", 2.432496),
        (V, S, False, "all", 3.527347),
        (V, S, False, "joint", 3.236249),
        (S, V, False, "others", 2.723202),
        (V, D, False, "others", 1.500142),
        (S, D, True, "others", 2.656320),
        (S, D, True, "literal", 2.944148),
        (V, S, True, "others", 2.436607),
        (V, S, True, "literal", 2.066811),
    ],
)
def test_worked_example(anchor, key, same_view, denominator, expected, compute):
    assert loss(anchor, key, same_view, denominator, compute) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("anchor", "key", "same_view", "expected"),
    [
        (V, V, False, (0.330678, 0.789319, 1.104964, 0.346610)),
        (V, S, False, (0.807866, 0.635353, 0.669817, 2.751956)),
        (V, D, False, (0.073630, 2.332407, 0.205030, 0.389218)),
        (S, D, True, (0.131916, 2.689901, 0.158416, 2.332407)),
    ],
)
def test_worked_example_by_row(anchor, key, same_view, expected):
    rows = local_rows(2, torch.device("cpu"))
    positive, exclude = (rows.same_view, rows.other_view) if same_view else (rows.other_view, rows.same_view)
    got = info_nce(anchor, key, positive=positive, exclude=exclude[:, None], temperature=TAU, reduction="none")
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("compute", [reference_losses, packed_losses])
def test_objective_of_the_worked_example(compute):
    terms = compute([Term(V, S), Term(V, D), Term(S, D, same_view=True)], TAU)
    assert (terms[0] + terms[1] - terms[2]).item() == pytest.approx(1.276318, abs=1e-6)


@pytest.mark.parametrize("bound", ["none", "anchor", "batch"])
@pytest.mark.parametrize("denominator", ["others", "literal", "all", "joint"])
def test_one_launch_equals_the_equations(denominator, bound):
    """Losses and gradients of three terms that share tensors."""
    torch.manual_seed(0)
    a, b, c = (torch.randn(14, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    terms = [Term(b, c, True, bound), Term(a, b), Term(a, c)]
    together = packed_losses(terms, 0.07, denominator)
    alone = torch.stack([in_batch_loss(term, 0.07, denominator) for term in terms])
    torch.testing.assert_close(together, alone)
    weight = torch.tensor([-1.0, 1, 2], dtype=torch.float64)
    got, expected = (torch.autograd.grad(weight @ losses, (a, b, c)) for losses in (together, alone))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equations_are_at_least_float32(dtype):
    term = Term(*(torch.randn(6, 4).to(dtype) for _ in range(2)))
    assert reference_losses([term], 0.07).dtype == torch.float32


@pytest.mark.parametrize("compute", [reference_losses, packed_losses])
def test_one_video_has_no_negatives(compute):
    anchor = torch.randn(2, 4, requires_grad=True)
    value = compute([Term(anchor, torch.randn(2, 4))], 0.07)
    value.sum().backward()
    assert value.item() == 0
    assert torch.equal(anchor.grad, torch.zeros(2, 4))


def test_rotation_and_scale_do_not_matter():
    torch.manual_seed(0)
    z = torch.randn(10, 6, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    scale = torch.rand(10, 1, dtype=torch.float64) + 0.1
    rotated = (z @ rotation) * scale
    assert loss(z, z) == pytest.approx(loss(rotated, rotated), abs=1e-9)


@pytest.mark.parametrize(("n", "bound"), [(40, 32.928137), (64, 33.407710)])
def test_bound_of_one_row(n, bound):
    """0 <= I <= log(1 + 2 (n - 1) exp(2 / tau)), reached where the positive is opposite and all others are equal."""
    key = torch.ones(2 * n, 1, dtype=torch.float64)
    key[0] = -1
    rows = local_rows(n, torch.device("cpu"))
    exclude = rows.other_view[:, None]
    value = info_nce(
        torch.ones_like(key), key, positive=rows.same_view, exclude=exclude, temperature=0.07, reduction="none"
    )
    assert value[0].item() == pytest.approx(math.log1p(2 * (n - 1) * math.exp(2 / 0.07)), abs=1e-9)
    assert value[0].item() == pytest.approx(bound, abs=1e-6)


def test_similarities_without_the_matrix():
    torch.manual_seed(0)
    anchor, key = torch.randn(8, 3), torch.randn(8, 3)
    cosine = torch.nn.functional.normalize(anchor, dim=1) @ torch.nn.functional.normalize(key, dim=1).T
    index = torch.arange(8)
    negatives = cosine[(index[:, None] - index) % 4 != 0]
    positive, negative = similarities(Term(anchor, key))
    torch.testing.assert_close(positive, cosine[index, (index + 4) % 8].mean())
    torch.testing.assert_close(negative, negatives.mean())
    assert similarities(Term(anchor, key, same_view=True))[0] == pytest.approx(
        cosine.diagonal().mean().item(), abs=1e-6
    )
