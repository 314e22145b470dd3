import sys

import pytest
import torch

from dclr.kernels import topk_similarity
from dclr.kernels.topk import MAX_K

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cosine(query, queue):
    """(M, L) float64."""
    query, queue = query.double(), queue.double()
    norms = query.norm(dim=1)[:, None] * queue.norm(dim=1)[None]
    return torch.where(norms == 0, 0, query @ queue.T / norms)


def nearest(similarity, k, allowed):
    """Row by row: numbers, then NaN, ties to the lower index; cosines within 1e-6 are ties."""
    values = torch.full((len(similarity), k), -torch.inf, dtype=torch.float64)
    indices = torch.full((len(similarity), k), -1)
    for i, row in enumerate(similarity.tolist()):
        found = [j for j in range(len(row)) if allowed[i, j]]
        found.sort(key=lambda j: (row[j] != row[j], -round(row[j], 6) if row[j] == row[j] else 0, j))
        for place, j in enumerate(found[:k]):
            values[i, place], indices[i, place] = row[j], j
    return values, indices


def check(query, queue, k, allowed=None, **options):
    values, indices = topk_similarity(query, queue, k, **options)
    assert values.dtype == torch.float32 and indices.dtype == torch.int64
    similarity = cosine(query, queue)
    expected = nearest(similarity, k, torch.ones_like(similarity) if allowed is None else allowed)
    assert torch.equal(indices, expected[1])
    torch.testing.assert_close(values.double(), expected[0], rtol=1e-6, atol=1e-6, equal_nan=True)


def directions(rows, features, dtype=torch.float32, seed=0):
    """Rows of -1, 0 and 1 times a power of two: many ties, all of them exact up to eight features."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(-1, 2, (rows, features), generator=generator)
    return (signs * 2.0 ** torch.randint(-3, 4, (rows, 1), generator=generator)).to(dtype)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("rows, length, k", [(1, 1, 1), (3, 7, 7), (2, 33, 5), (5, 252, 17), (66, 507, 2)])
def test_ties_go_to_the_lower_index(rows, length, k, features, dtype):
    check(directions(rows, features, dtype), directions(length, features, dtype, seed=1), k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "rows, length, features, k",
    [(1, 129, 1, 3), (2, 300, 127, 5), (3, 70, 2048, 4), (130, 200, 33, 3), (2, 600, 128, 64), (1, 64, 5, 64)],
)
def test_random_rows(rows, length, features, k, dtype):
    query, queue = normal(rows, features, dtype=dtype), normal(length, features, dtype=dtype, seed=1)
    values, indices = topk_similarity(query, queue, k)
    similarity = cosine(query, queue)
    expected = similarity.sort(dim=1, descending=True).values[:, :k]
    torch.testing.assert_close(values.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(similarity.gather(1, indices), expected, rtol=1e-6, atol=1e-6)
    assert all(len(set(row)) == k for row in indices.tolist())
    assert (values.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("k", [1, 2, 3, 8, 31, MAX_K])
def test_copies_of_one_row_come_in_order(k):
    """In tiles and in parts of the queue that differ."""
    queue = normal(1, 20).expand(700, 20)
    values, indices = topk_similarity(normal(2, 20, seed=1), queue, k)
    assert indices.tolist() == [list(range(k))] * 2
    assert (values == values[:, :1]).all()


@pytest.mark.parametrize("ascending", [False, True])
def test_sorted_queue(ascending):
    """Every entry of a rising queue beats all before it."""
    angles = torch.linspace(3, 0, 300) if ascending else torch.linspace(0, 3, 300)
    queue = torch.stack([angles.cos(), angles.sin()], 1)
    check(torch.tensor([[1.0, 0]]), queue, 20)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["transposed", "cropped", "reversed axes", "expanded"])
def test_strides(layout, dtype):
    query, queue = directions(5, 8, dtype), directions(150, 8, dtype, seed=1)
    if layout == "transposed":
        queue = queue.T.contiguous().T
    elif layout == "cropped":
        query, queue = (torch.nn.functional.pad(rows, (1, 2, 3, 4), value=torch.nan) for rows in (query, queue))
        query, queue = query[3:-4, 1:-2], queue[3:-4, 1:-2]
    elif layout == "reversed axes":
        query, queue = query.T.contiguous().T[::2], queue.repeat_interleave(2, 0)[::2]
    else:
        query = query[:1].expand(5, 8)
    check(query, queue, 6)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 150])
def test_size(size):
    query, queue = directions(3, 6), directions(150, 6, seed=1)
    queue[size:] = torch.nan
    allowed = (torch.arange(150) < size).expand(3, 150)
    check(query, queue, 5, allowed, size=size)
    check(query, queue, 5, allowed, size=torch.tensor(size))


def test_size_tensor_outside_the_queue():
    query, queue = directions(3, 6), directions(50, 6, seed=1)
    check(query, queue, 5, size=torch.tensor(1000))
    check(query, queue, 5, torch.zeros(3, 50), size=torch.tensor(-7))


@pytest.fixture(params=[1, 2, 100])
def parts_of_tiles(request, monkeypatch):
    """Many parts, of few tiles; or one of more than there are."""
    module = sys.modules["dclr.kernels.topk.launch"]
    monkeypatch.setattr(module, "tiles_of_part", lambda *arguments: request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0, 3, 70, 331, 500])
def test_parts(size, dtype, parts_of_tiles):
    """With ties across parts, NaN and zero rows, parts without entries, and ids."""
    query, queue = directions(7, 6, dtype), directions(500, 6, dtype, seed=1)
    queue[1::7], query[3], query[4] = torch.nan, 0, torch.nan
    query_id, queue_id = torch.arange(7) % 3, torch.arange(500) % 3
    allowed = (torch.arange(500) < size) & (query_id[:, None] != queue_id[None])
    check(query, queue, 5, allowed, size=torch.tensor(size), query_id=query_id, queue_id=queue_id)
    check(query, queue, 5, allowed, size=size, query_id=query_id, queue_id=queue_id)


@pytest.mark.parametrize("ascending", [False, True])
def test_sorted_queue_in_parts(ascending, parts_of_tiles):
    """All that is nearest is in one tile of the first part, or of the last."""
    test_sorted_queue(ascending)


def test_ids_that_are_alike_in_one_half():
    """They are the same video only if both halves of 32 bits are equal."""
    query, queue = directions(5, 6), directions(150, 6, seed=1)
    query_id = torch.tensor([1, 1 + 2**32, 2**40, 0, -1])
    queue_id = torch.tensor([1, 1 + 2**32, 2**40, 0, 2**32 - 1, -1]).repeat(25)
    allowed = query_id[:, None] != queue_id[None]
    check(query, queue, 60, allowed, query_id=query_id, queue_id=queue_id)
    # Short ids in the queue, long ones among the queries.
    queue_id = queue_id % 2**31
    check(query, queue, 60, query_id[:, None] != queue_id[None], query_id=query_id, queue_id=queue_id)


def test_many_parts_are_few_enough_to_choose_from():
    """Whatever the length, parts and the tiles that are looked at stay what one program can hold."""
    module = sys.modules["dclr.kernels.topk.launch"]
    for tiles in (1, 7, 1 << 14, 1 << 19, 1 << 25):
        for k, width in ((1, 1), (5, 8), (64, 64)):
            for blocks in (1, 4, 100):
                part_tiles = module.tiles_of_part(torch.device("cpu"), 264, blocks, tiles, k)
                assert 1 <= -(-tiles // part_tiles) <= module.MOST
                assert part_tiles * width <= module.MOST or part_tiles == -(-tiles // module.MOST)


@pytest.mark.parametrize("videos", [1, 2, 40])
def test_entries_of_the_same_video_are_left_out(videos):
    generator = torch.Generator().manual_seed(0)
    query, queue = directions(7, 6), directions(150, 6, seed=1)
    query_id = torch.randint(videos, (14,), generator=generator)[::2] * 2**40
    queue_id = torch.randint(videos, (150,), generator=generator) * 2**40
    allowed = (torch.arange(150) < 100) & (query_id[:, None] != queue_id[None])
    check(query, queue, 60, allowed, size=100, query_id=query_id, queue_id=queue_id)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite(bad, dtype):
    """Such a row of the queue comes last, after all numbers; such a query has NaN alone; no other is touched."""
    query, queue = directions(4, 6, dtype), directions(70, 6, dtype, seed=1)
    queue[3, 5] = queue[66] = bad
    queue[5] = 0
    query[2, 0] = query[3] = bad
    check(query, queue, 64)
    allowed = torch.ones(4, 70)
    allowed[:, 5:] = 0
    check(query, queue, 10, allowed, size=5)
    assert topk_similarity(query, queue, 3).indices[2].tolist() == [0, 1, 2]


def test_zero_rows():
    query, queue = torch.zeros(2, 6), directions(70, 6)
    query[1, 0] = 1
    queue[::2] = 0
    queue[1::2] = -queue[1::2].abs()
    queue[1::2, 0] = -1
    check(query, queue, 40)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [6, 200])
def test_tiny_and_huge_rows(features, dtype):
    """The cosine has no scale, whatever the other rows of the tile have."""
    query, queue = normal(4, features), normal(100, features, seed=1)
    far = 12 if dtype == torch.float16 else 100
    query *= 2.0 ** torch.tensor([0, far, -far, 3])[:, None]
    queue *= 2.0 ** torch.linspace(-far, far, 100).round()[:, None]
    query, queue = query.to(dtype), queue.to(dtype)
    values, indices = topk_similarity(query, queue, 5)
    expected = cosine(query, queue).sort(dim=1, descending=True)
    torch.testing.assert_close(values.double(), expected.values[:, :5], rtol=1e-5, atol=1e-6)
    assert torch.equal(indices, expected.indices[:, :5])


def test_small_elements_beside_large_ones():
    query, queue = normal(3, 128).half(), normal(90, 128, seed=1).half()
    query[:, :2] *= 200
    queue[:, :2] = 0
    values, _ = topk_similarity(query, queue, 4)
    expected = cosine(query, queue).sort(dim=1, descending=True).values[:, :4]
    torch.testing.assert_close(values.double(), expected, rtol=2e-6, atol=1e-7)


def test_float64():
    query, queue = directions(3, 6).double(), directions(50, 6, seed=1).double()
    check(query, queue, 5)


def test_no_queries():
    values, indices = topk_similarity(torch.empty(0, 4), torch.ones(9, 4), 3)
    assert values.shape == indices.shape == (0, 3)


def test_many_queries():
    """More blocks of queries than parts, and of more results than the smallest block."""
    query, queue = normal(3000, 4), normal(9, 4, seed=1)
    values, indices = topk_similarity(query, queue, 2)
    expected = cosine(query, queue).sort(dim=1, descending=True)
    torch.testing.assert_close(values.double(), expected.values[:, :2], rtol=1e-6, atol=1e-6)
    assert (indices == expected.indices[:, :2]).float().mean() > 0.999


def test_offsets_past_32_bits():
    """Rows that start past element 2^31; untouched pages cost nothing."""
    values = directions(3, 4, torch.float16, seed=2)
    memory = torch.empty(2 * 2**31 + 2**21, dtype=torch.float16)
    far = memory.as_strided((3, 4), (2**31, 1)).copy_(values)
    check(directions(2, 4, torch.float16), far, 3)
    check(far, directions(9, 4, torch.float16), 3)
    wide = memory.as_strided((4, 3), (1, 2**31)).copy_(directions(4, 3, torch.float16))
    check(directions(2, 3, torch.float16), wide, 3)


def test_inputs_that_need_gradients():
    query, queue = directions(3, 6).requires_grad_(), directions(50, 6, seed=1).requires_grad_()
    values, _ = topk_similarity(query, queue, 4)
    assert not values.requires_grad
    check(query.detach(), queue.detach(), 4)


def test_autocast_keeps_float32():
    query, queue = normal(3, 6), normal(50, 6, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        values = topk_similarity(query, queue, 4).values
    assert torch.equal(values, topk_similarity(query, queue, 4).values)


def test_opcheck():
    query, queue = normal(3, 6).requires_grad_(), normal(50, 6, seed=1)
    ids = torch.arange(3), torch.arange(50)
    for size, own in ((None, (None, None)), (torch.tensor(20), ids)):
        torch.library.opcheck(torch.ops.dclr.topk_similarity.default, (query, queue, 4, 30, size, *own))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic):
    def search(query, queue, size):
        values, indices = topk_similarity(query * 2, queue, 4, size=size)
        return values + 1, indices

    compiled = torch.compile(search, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows, length, size in [(3, 50, 20), (5, 60, 21), (4, 40, torch.tensor(9))]:
        query, queue = normal(rows, 6).requires_grad_(), normal(length, 6, seed=1)
        for actual, expected in zip(compiled(query, queue, size), search(query, queue, size)):
            assert torch.equal(actual, expected)


def test_changing_sizes_do_not_recompile():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(topk_similarity, fullgraph=True, backend=counter, dynamic=True)
    query, queue = normal(3, 6), normal(50, 6, seed=1)
    for size in (20, 21, 35, 50):
        assert torch.equal(compiled(query, queue, 4, size=size)[1], topk_similarity(query, queue, 4, size=size)[1])
    assert counter.frame_count == 1


def bad_arguments():
    rows, ids = torch.ones(5, 3), torch.zeros(5, dtype=torch.int64)
    yield (rows[0], rows, 1), {}, ValueError, "query"
    yield (rows, rows[0], 1), {}, ValueError, "queue"
    yield (rows.int(), rows, 1), {}, TypeError, "query"
    yield (rows, rows.half(), 1), {}, TypeError, "queue"
    yield (rows, rows[:, :2], 1), {}, ValueError, "queue"
    yield (rows, rows.to("meta"), 1), {}, ValueError, "queue on meta"
    yield (rows, rows, 6), {}, ValueError, "k: got 6"
    yield (rows, torch.ones(100, 3), 65), {}, ValueError, "k: got 65"
    yield (rows, rows, 0), {}, ValueError, "k: got 0"
    yield (rows, rows, 1.0), {}, TypeError, "k: got 1.0"
    yield (rows, rows, 1), {"size": -1}, ValueError, "size"
    yield (rows, rows, 1), {"size": 6}, ValueError, "size"
    yield (rows, rows, 1), {"size": torch.tensor(3.0)}, TypeError, "size"
    yield (rows, rows, 1), {"size": torch.tensor([3])}, ValueError, "size"
    yield (rows, rows, 1), {"size": torch.tensor(3, device="meta")}, ValueError, "size on meta"
    yield (rows, rows, 1), {"query_id": ids}, ValueError, "queue_id"
    yield (rows, rows, 1), {"query_id": ids, "queue_id": ids[:3]}, ValueError, "queue_id"
    yield (rows, rows, 1), {"query_id": ids.int(), "queue_id": ids}, TypeError, "query_id"


@pytest.mark.parametrize("arguments, options, error, name", list(bad_arguments()))
def test_bad_arguments(arguments, options, error, name):
    with pytest.raises(error, match=name):
        topk_similarity(*arguments, **options)
