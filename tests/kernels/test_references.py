"""decouple, info_nce and topk_similarity against formulas written out by hand in float64, and their argument checks."""

import pytest
import torch

from dclr.kernels import decouple, info_nce, topk_similarity

SIZES = [1, 2, 3, 7, 33]


def cosine(a, b):
    a, b = a.double(), b.double()
    norms = a.norm(dim=-1)[:, None] * b.norm(dim=-1)[None]
    return torch.where(norms > 0, a @ b.T / norms.clamp(min=1e-300), 0)


def nce(query, key, positive, exclude, temperature):
    """Row by row, as the formula reads; `positive` (M,) and `exclude` a list of sets."""
    scaled = cosine(query, key) / temperature
    losses = []
    for i, row in enumerate(scaled):
        kept = [j for j in range(len(row)) if j == positive[i] or j not in exclude[i]]
        losses.append(row[kept].logsumexp(0) - row[positive[i]])
    return torch.stack(losses)


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("temperature", [0.01, 0.07, 10.0])
def test_info_nce_by_index(rows, temperature):
    generator = torch.Generator().manual_seed(rows)
    query, key = torch.randn(rows, 5, generator=generator), torch.randn(rows + 2, 5, generator=generator)
    positive = torch.randint(rows + 2, (rows,), generator=generator)
    exclude = torch.randint(-1, rows + 2, (rows, 3), generator=generator)
    exclude[:, 2] = exclude[:, 0]  # duplicates count once
    expected = nce(query, key, positive.tolist(), [set(row) for row in exclude.tolist()], temperature)
    got = info_nce(query, key, positive=positive, exclude=exclude, temperature=temperature, reduction="none")
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-4)
    for reduction in ("mean", "sum"):
        one = info_nce(query, key, positive=positive, exclude=exclude, temperature=temperature, reduction=reduction)
        torch.testing.assert_close(one.double(), getattr(expected, reduction)(), rtol=1e-5, atol=1e-3)


def test_info_nce_explicit_positives():
    torch.manual_seed(0)
    query, key, positive = torch.randn(4, 3), torch.randn(6, 3), torch.randn(4, 2, 3)
    exclude = torch.randint(-1, 6, (4, 2, 3))
    weight = torch.rand(4, 2)
    expected = torch.zeros(4, dtype=torch.float64)
    for i in range(4):
        for k in range(2):
            kept = [j for j in range(6) if j not in exclude[i, k].tolist()]
            own = cosine(query[i : i + 1], positive[i, k : k + 1])[0]
            logits = torch.cat([own, cosine(query[i : i + 1], key[kept])[0]]) / 0.1
            expected[i] += weight[i, k] * (logits.logsumexp(0) - logits[0])
    options = {"positive": positive, "exclude": exclude, "temperature": 0.1, "reduction": "none"}
    torch.testing.assert_close(info_nce(query, key, weight=weight, **options).double(), expected, rtol=1e-5, atol=1e-5)
    even = info_nce(query, key, weight=torch.full((4, 2), 0.5), **options)
    torch.testing.assert_close(info_nce(query, key, **options), even)


def test_info_nce_groups_equal_single_losses():
    torch.manual_seed(0)
    query, key = torch.randn(3, 4, 5), torch.randn(3, 6, 5)
    positive, exclude = torch.randint(6, (3, 4)), torch.randint(-1, 6, (3, 4, 2))
    together = info_nce(query, key, positive=positive, exclude=exclude)
    alone = [info_nce(query[g], key[g], positive=positive[g], exclude=exclude[g]) for g in range(3)]
    torch.testing.assert_close(together, torch.stack(alone))


def test_info_nce_gradients():
    torch.manual_seed(0)
    query, key = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    explicit = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, k: info_nce(q, k, reduction="none", temperature=0.5), (query, key))
    assert torch.autograd.gradcheck(lambda q, k, p: info_nce(q, k, positive=p), (query, key, explicit))


def test_info_nce_zero_row_empty_batch_and_nan_row():
    query = torch.tensor([[0.0, 0], [1, 0], [torch.nan, 1]], requires_grad=True)
    key = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    loss = info_nce(query, key, temperature=1.0, reduction="none")
    assert loss[0].item() == pytest.approx(torch.tensor(3.0).log().item())  # every cosine is 0
    assert loss[1].isfinite() and loss[2].isnan()
    loss[:2].sum().backward()
    assert not query.grad[0].any() and query.grad[1].any()
    empty = torch.empty(0, 2)
    assert info_nce(empty, empty) == 0 and info_nce(empty, empty, reduction="none").shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_info_nce_low_precision(dtype):
    torch.manual_seed(0)
    query, key = torch.randn(7, 33).to(dtype).requires_grad_(), torch.randn(7, 33).to(dtype)
    loss = info_nce(query, key, temperature=0.5, reduction="none")
    expected = nce(query.detach(), key, list(range(7)), [set()] * 7, 0.5)
    torch.testing.assert_close(loss.double(), expected, rtol=1.6e-2, atol=1e-2)
    loss.sum().backward()
    assert query.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("decoded", [True, False])
def test_decouple(dtype, decoded):
    torch.manual_seed(0)
    raw = torch.randint(256, (3, 5, 7, 6, 3) if decoded else (3, 3, 5, 7, 6), dtype=torch.uint8)
    clip = (raw.permute(0, 4, 1, 2, 3) if decoded else raw).to(dtype)
    scaled = clip.double() / 255 if dtype == torch.uint8 else clip.double()
    flip, index = torch.tensor([True, False, True]), torch.tensor([0, 3, 2])
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    expected = torch.stack([one.flip(-1) if mirrored else one for one, mirrored in zip(scaled, flip)])
    shape = (1, 3, 1, 1, 1)
    rgb = (expected[:, :, :-1] - mean.view(shape)) / std.view(shape)
    got = decouple(clip, index, flip=flip, mean=mean, std=std, memory_format=torch.channels_last_3d)
    tolerance = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(got.rgb.double(), rgb, **tolerance)
    torch.testing.assert_close(got.difference.double(), expected.diff(dim=2) / std.view(shape), **tolerance)
    for b, t in enumerate(index):
        torch.testing.assert_close(got.static[b].double(), rgb[b, :, t, None].expand(3, 4, 7, 6), **tolerance)
    assert all(part.is_contiguous(memory_format=torch.channels_last_3d) for part in got)


def test_decouple_of_the_worked_example():
    """x = 1, 3, 6, 10, 15: d = 2, 3, 4, 5, and s for t* = 2 is 6, 6, 6, 6."""
    clip = torch.tensor([1.0, 3, 6, 10, 15]).view(1, 1, 5, 1, 1)
    got = decouple(clip, torch.tensor([2]))
    assert got.difference.flatten().tolist() == [2, 3, 4, 5]
    assert got.static.flatten().tolist() == [6, 6, 6, 6]


def test_decouple_gradient():
    clip = torch.randn(2, 2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: decouple(x, torch.tensor([0, 2]), std=(0.5, 2.0)), (clip,))


@pytest.mark.parametrize("length", [1, 2, 7, 33, 252])
@pytest.mark.parametrize("transposed", [False, True])
def test_topk(length, transposed):
    generator = torch.Generator().manual_seed(length)
    query, queue = torch.randn(5, 6, generator=generator), torch.randn(length, 6, generator=generator)
    queue[length // 2 :] = queue[: length - length // 2].clone()  # ties
    buffer = queue.T.contiguous().T if transposed else queue
    k = min(4, length)
    values, indices = topk_similarity(query, buffer, k)
    expected = cosine(query, queue)
    for row in range(5):
        order = sorted(range(length), key=lambda j: (-round(expected[row, j].item(), 6), j))[:k]
        assert indices[row].tolist() == order
    torch.testing.assert_close(values.double(), expected.gather(1, indices), rtol=1e-5, atol=1e-6)


def test_topk_masks_size_and_nan():
    queue = torch.eye(4)
    query = torch.tensor([[4.0, 3, 2, 1], [1, torch.nan, 0, 0]])
    ids = {"query_id": torch.tensor([8, 9]), "queue_id": torch.tensor([8, 8, 7, 6])}
    values, indices = topk_similarity(
        query[:1], queue, 3, **{name: value[:1] if name == "query_id" else value for name, value in ids.items()}
    )
    assert indices.tolist() == [[2, 3, -1]] and values[0, 2] == -torch.inf
    assert topk_similarity(query[:1], queue, 3, size=torch.tensor(2)).indices.tolist() == [[0, 1, -1]]
    queue[0, 0] = torch.nan
    values, indices = topk_similarity(query[:1], queue, 4)
    assert indices.tolist() == [[1, 2, 3, 0]] and values[0, 3].isnan()
    assert topk_similarity(query[1:], torch.eye(4), 2).indices.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: info_nce(x, x, temperature=0), "temperature"),
        (lambda x: info_nce(x, x[:2]), "positive"),
        (lambda x: info_nce(x, x, positive=torch.tensor([0, 1, 3])), "positive"),
        (lambda x: info_nce(x, x, exclude=torch.tensor([0, 1, -2])), "exclude"),
        (lambda x: info_nce(x, x, reduction="max"), "reduction"),
        (lambda x: info_nce(x, x.double()), "key"),
        (lambda x: info_nce(x.long(), x), "query"),
        (lambda x: topk_similarity(x, x, 4), "k: got 4"),
        (lambda x: topk_similarity(x, x, 0), "k: got 0"),
        (lambda x: topk_similarity(x, x, 1, size=4), "size"),
        (lambda x: topk_similarity(x, x, 1, query_id=torch.zeros(3, dtype=torch.int64)), "queue_id"),
        (lambda x: decouple(x, torch.tensor([0])), "clip"),
        (lambda x: decouple(torch.zeros(1, 3, 2, 2, 2), torch.tensor([1])), "static_index"),
        (lambda x: decouple(torch.zeros(1, 3, 2, 2, 2), torch.tensor([0]), std=(1.0,)), "std"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(torch.eye(3))
