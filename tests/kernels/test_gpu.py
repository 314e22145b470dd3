"""The public functions on a GPU: against float64 on the CPU, in CUDA graphs, compiled, without waiting, past 2^31.

`scripts/gpu_check.sh` runs the tests of values under compute-sanitizer too.
"""

import functools

import pytest
import torch

from dclr.kernels import (
    Ranges,
    activation_alignment,
    activation_map,
    augment_clip,
    crop_resize_yuv,
    decouple,
    decoupled_pool,
    info_nce,
    info_nce_ranges,
    merge_foreground,
    motion_map,
    topk_similarity,
    weighted_pool,
)
from dclr.kernels._common import INTERPRET

from .helpers import LAYOUTS, assert_close, compare, gradients, lay_out
from .test_augment import arguments
from .test_crop_resize import assert_rounded, formula, make_crops
from .test_foreground import draw, expected_merge, expected_motion, make_clip

pytestmark = pytest.mark.skipif(INTERPRET or not torch.cuda.is_available(), reason="needs a GPU and compiled kernels")

GPU = torch.device("cuda")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAPS = [(3, 7, 2, 3, 5), (2, 130, 2, 7, 7)]
LARGE = 2**31
MEAN, STD = (0.43, 0.39, 0.37), (0.23, 0.22, 0.21)


def normal(*shape, dtype=torch.float32, layout="contiguous", seed=0):
    """A leaf on the GPU; rows (..., D) can be "transposed" as feature maps can."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(GPU, dtype)
    if len(shape) == 5:
        x = lay_out(x, layout)
    elif layout == "transposed":
        x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    return x.requires_grad_()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_of_decouple(dtype, layout, memory_format):
    for shape in [(3, 3, 4, 3, 5), (2, 3, 17, 16, 24)]:
        clip = normal(*shape, dtype=dtype, layout=layout)
        index, flip = torch.arange(shape[0]) % (shape[2] - 1), torch.arange(shape[0]) % 2 == 0

        def split(clip, index=index, flip=flip):
            where = {"static_index": index.to(clip.device), "flip": flip.to(clip.device)}
            return decouple(clip, **where, mean=MEAN, std=STD, memory_format=memory_format)

        compare(split, [clip], sizes=(4, 100), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("decoded", [True, False])
def test_values_of_decouple_from_bytes(decoded, dtype):
    clip = torch.randint(256, (3, 5, 16, 24, 3) if decoded else (3, 3, 5, 16, 24), dtype=torch.uint8, device=GPU)
    clip = clip.permute(0, 4, 1, 2, 3) if decoded else clip
    index, flip = torch.tensor([0, 3, 1], device=GPU), torch.tensor([True, False, True], device=GPU)
    results = decouple(clip, index, flip=flip, mean=MEAN, std=STD, dtype=dtype)
    expected = decouple(clip.cpu().double() / 255, index.cpu(), flip=flip.cpu(), mean=MEAN, std=STD)
    for actual, reference in zip(results, expected, strict=True):
        assert_close(actual.cpu(), reference, dtype, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size, blur_size", [(23, 1), (23, 5), (90, 11)])
def test_values_of_augment_clip(size, blur_size, dtype):
    """The blur works in float16, to within 1 / 255."""
    clip = torch.randint(256, (5, 4, size, 24, 3), dtype=torch.uint8, device=GPU).permute(0, 4, 1, 2, 3)
    color, index, static_color, flip = arguments((5, 4, size, 24))
    rows = {"static_index": index, "static_color": static_color, "flip": flip}
    options = {"mean": MEAN, "std": STD, "blur_size": blur_size}
    on_gpu = {name: value.to(GPU) for name, value in rows.items()}
    results = augment_clip(clip, color.to(GPU), **on_gpu, **options, dtype=dtype)
    expected = augment_clip(clip.cpu().double() / 255, color, **rows, **options, dtype=torch.float64)
    for actual, reference in zip(results, expected, strict=True):
        error = 2e-2 if dtype == torch.bfloat16 else (1 / 255 if blur_size > 1 else 2e-3) / min(STD)
        torch.testing.assert_close(actual.cpu().double(), reference, rtol=1e-2, atol=error)


@pytest.mark.parametrize("size", [1, 7, 33, 112])
def test_values_of_crop_resize_yuv(size):
    planes, geometry, matrix = make_crops()
    actual = crop_resize_yuv(planes.to(GPU), geometry.to(GPU), matrix.to(GPU), 2, size)
    # A GPU's division errs by 2 units in the last place.
    assert_rounded(actual.cpu(), formula(planes, geometry, matrix, 2, size), 2e-3)


@pytest.mark.parametrize("flipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, *DTYPES], ids=str)
def test_values_of_motion_map_and_merge_foreground(dtype, flipped):
    shape = (4, 3, 17, 33, 24)
    clip = make_clip(shape, dtype)
    background, weight, flip = draw(shape, count=3, flipped=flipped)
    on_gpu = clip.to(GPU), None if flip is None else flip.to(GPU)
    for actual, right in zip(motion_map(on_gpu[0], flip=on_gpu[1]), expected_motion(clip, flip), strict=True):
        torch.testing.assert_close(actual.cpu().double(), right, rtol=0, atol=1e-6)
    merged = merge_foreground(on_gpu[0], background.to(GPU), weight.to(GPU), flip=on_gpu[1])
    right = expected_merge(clip, background, weight, flip)
    assert torch.equal(merged.cpu(), (255 * right).round().to(dtype) if dtype == torch.uint8 else right.to(dtype))
    background, weight, _ = draw(shape, count=3, soft=True, flipped=flipped)
    blended = merge_foreground(on_gpu[0], background.to(GPU), weight.to(GPU), flip=on_gpu[1], dtype=torch.float32)
    right = expected_merge(clip, background, weight, flip)
    torch.testing.assert_close(blended.cpu().double(), right, rtol=1e-6, atol=2.0**-22)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", MAPS, ids=str)
def test_values_of_maps_and_pools(shape, dtype, layout):
    maps = [normal(*shape, dtype=dtype, layout=layout, seed=seed) for seed in range(3)]
    compare(activation_map, maps[:1])
    compare(lambda *maps: activation_alignment(*maps, reduction="none"), maps)
    activation = activation_map(maps[1]).detach().to(dtype).requires_grad_()
    compare(weighted_pool, [maps[0], activation], sizes=(100, 1000))
    compare(decoupled_pool, maps, sizes=(100, 1000))


@pytest.mark.parametrize("temperature", [0.01, 0.1, 10.0])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups, rows, count, features", [(2, 70, 33, 20), (1, 130, 300, 128), (1, 9, 5, 257)])
def test_values_of_info_nce(groups, rows, count, features, dtype, layout, temperature):
    query = normal(groups, rows, features, dtype=dtype, layout=layout)
    key = normal(groups, count, features, dtype=dtype, layout=layout, seed=1)
    explicit = normal(groups, rows, 2, features, dtype=dtype, seed=2)
    index = torch.arange(rows).expand(groups, rows) % count
    exclude = torch.stack([(index + 1) % count, torch.full_like(index, -1)], -1)

    def losses(query, key, **rows):
        rows = {name: value.to(query.device) for name, value in rows.items()}
        return info_nce(query, key, **rows, temperature=temperature, reduction="none")

    own = torch.arange(rows).expand(groups, rows)
    bounds = {"sizes": (1, max(400, 1 / temperature)), "error": 3e-6 / temperature}
    compare(lambda query, key: losses(query, key, positive=index, exclude=exclude), [query, key], **bounds)
    compare(lambda query: losses(query, query, positive=own.roll(1, 1), exclude=own[..., None]), [query], **bounds)
    leaves = [query, key, explicit]
    compare(lambda query, key, positive: losses(query, key, positive=positive, exclude=exclude), leaves, **bounds)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "queries, keys, features, temperature", [(5, 9, 3, 0.07), (70, 200, 128, 0.07), (33, 40, 130, 0.01)]
)
def test_values_of_info_nce_ranges(queries, keys, features, temperature, dtype):
    """Two groups of one loss over the same keys, one of them with constants for positives."""
    learned = queries + keys
    rows = normal(learned + queries, features, dtype=dtype)
    positive = torch.stack([queries + torch.arange(queries) % keys, learned + torch.arange(queries)])
    given = {"rows": len(rows), "keys": keys, "learned": learned, "bound": (2 / temperature,)}
    where = Ranges.of((0, 1), (queries, queries), positive, loss=(0, 0), **given)
    exclude = (torch.arange(queries)[:, None] + torch.tensor([1, 2])) % keys
    weight = torch.linspace(0.5, 1, 2 * queries).view(2, queries)

    def losses(rows):
        given = {"exclude": exclude.expand(2, -1, -1).to(rows.device), "weight": weight.to(rows.device)}
        return info_nce_ranges(rows, where.to(rows.device), **given, temperature=temperature, scale=1 / queries)

    compare(losses, [rows], sizes=(1, max(400, 1 / temperature)), error=3e-6 / temperature)


def test_values_of_info_nce_in_tf32():
    leaves = [normal(200, 128, seed=seed) for seed in range(2)]
    wide = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    (loss,), grads = gradients(functools.partial(info_nce, temperature=0.5, allow_tf32=True), leaves)
    (expected,), wanted = gradients(functools.partial(info_nce, temperature=0.5), wide)
    torch.testing.assert_close(loss.detach().cpu().double(), expected.detach(), rtol=2e-3, atol=2e-3)
    for actual, reference in zip(grads, wanted, strict=True):
        torch.testing.assert_close(actual.cpu().double(), reference, rtol=0, atol=5e-3 * reference.abs().max().item())


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, length, features, k", [(3, 37, 7, 5), (130, 2000, 128, 5), (2, 600, 200, 64)])
def test_values_of_topk(rows, length, features, k, dtype, layout):
    query, queue = normal(rows, features, dtype=dtype), normal(length, features, dtype=dtype, layout=layout, seed=1)
    ids = torch.arange(rows, device=GPU), torch.arange(length, device=GPU) % (rows + 1)
    size = torch.tensor(length - 1, device=GPU)
    values, indices = topk_similarity(query, queue, k, size=size, query_id=ids[0], queue_id=ids[1])
    units = [torch.nn.functional.normalize(x.detach().double(), dim=1) for x in (query, queue)]
    similarity = (units[0] @ units[1].T).masked_fill(ids[0][:, None] == ids[1], -torch.inf)[:, :-1]
    expected = similarity.topk(k).values
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(similarity.gather(1, indices), expected, rtol=1e-5, atol=1e-5)


def test_values_of_topk_with_ties_and_nan():
    queue = normal(1, 20).detach().expand(700, 20).clone()
    queue[:5] = torch.nan
    values, indices = topk_similarity(queue[10:12], queue, 3)
    assert indices.tolist() == [[5, 6, 7]] * 2 and values.isfinite().all()
    assert topk_similarity(queue[:1], queue, 2).values.isnan().all()


def step(clip, index, maps, rows, queue):
    """Every public function once, as in a training step: a loss and what the search found."""
    parts = decouple(clip, index, mean=MEAN, std=STD)
    pooled = decoupled_pool(*maps)
    loss = sum(result.float().square().mean() for result in (*parts, *pooled))
    loss = loss + activation_alignment(*maps) + weighted_pool(maps[0], activation_map(maps[1])).square().mean()
    own = torch.arange(len(rows), device=rows.device)
    clips = clip.detach()
    without_gradient = (*augmented(clips, index), cropped(clips, index), merged(clips, index))
    loss = loss + sum(part.float().square().mean() for part in without_gradient)
    loss = loss + info_nce(rows, rows, positive=own.roll(len(rows) // 2), exclude=own, temperature=0.1)
    loss = loss + info_nce_ranges(rows[:12], halves(), temperature=0.1).sum()
    return loss, topk_similarity(rows, queue, 5)


@torch.compiler.assume_constant_result
def halves():
    """Of twelve rows the first against the others, and the other way round."""
    return new_halves()


@functools.lru_cache
def new_halves():
    return Ranges.of((0, 6), (6, 0), torch.arange(12).roll(6).view(2, 6), rows=12, keys=6).to(GPU)


def augmented(clip, index):
    """Gray and blurred."""
    color = torch.ones(len(clip), 6, device=clip.device)
    return augment_clip(clip, color, static_index=index, blur_size=3)


def merged(clip, index):
    """On each other's backgrounds, where little moves."""
    motion = motion_map(clip).motion
    return merge_foreground(clip, index, (motion > motion.mean()).float())


def cropped(clip, index):
    """The clips' elements taken for the planes of small boxes, one for each clip."""
    planes = clip.float().abs().mul(50).to(torch.uint8).flatten()
    zero = torch.zeros_like(index)
    geometry = torch.stack([100 * index, zero + 7, zero + 9, zero, zero + 1], 1)
    matrix = torch.full((len(clip), 3, 4), 0.3, device=clip.device)
    return crop_resize_yuv(planes, geometry, matrix, 2, 5).float() / 255


def step_inputs(batch=8, seed=0):
    clip = normal(batch, 3, 5, 16, 16, dtype=torch.bfloat16, seed=seed)
    maps = [normal(batch, 64, 2, 4, 4, dtype=torch.bfloat16, seed=seed + i) for i in range(3)]
    rows = normal(2 * batch, 32, dtype=torch.bfloat16, seed=seed)
    queue = normal(256, 32, dtype=torch.bfloat16, seed=seed + 1).detach()
    return clip, torch.arange(batch, device=GPU) % 4, maps, rows, queue


def whole_step(function, clip, index, maps, rows, queue):
    """Loss, values, indices, and the gradient to every leaf."""
    loss, found = function(clip, index, maps, rows, queue)
    return [loss.detach(), *found, *torch.autograd.grad(loss, [clip, *maps, rows])]


def test_graph_replays_with_new_inputs():
    inputs, others = step_inputs(), step_inputs(seed=10)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(3):
            whole_step(step, *inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = whole_step(step, *inputs)
    with torch.no_grad():
        for mine, other in zip([inputs[0], *inputs[2], *inputs[3:]], [others[0], *others[2], *others[3:]]):
            mine.copy_(other)
    graph.replay()
    for actual, expected in zip(captured, whole_step(step, *others), strict=True):
        assert torch.equal(actual, expected)


def test_graph_with_a_size_that_changes():
    query, queue, size = normal(4, 16).detach(), normal(100, 16, seed=1).detach(), torch.tensor(100, device=GPU)
    topk_similarity(query, queue, 5, size=size)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values, indices = topk_similarity(query, queue, 5, size=size)
    for length in (7, 50, 2):
        size.fill_(length)
        graph.replay()
        expected = topk_similarity(query, queue, 5, size=length)
        assert torch.equal(values, expected.values) and torch.equal(indices, expected.indices)


def test_compiled_is_one_graph():
    compiled = torch.compile(step, fullgraph=True)
    for batch in (8, 6, 10):
        inputs = step_inputs(batch)
        for actual, expected in zip(whole_step(compiled, *inputs), whole_step(step, *inputs), strict=True):
            bound = {"rtol": 1e-5, "atol": 1e-5} if expected.dtype == torch.float32 else {}
            torch.testing.assert_close(actual, expected, **bound)


def test_a_step_never_waits_for_the_device():
    inputs = step_inputs()
    whole_step(step, *inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        whole_step(step, *inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def needs_memory(gigabytes):
    """Skips where the card has too little memory for tensors past 2^31 elements."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    if free < gigabytes * 2**30:
        pytest.skip(f"needs {gigabytes} GiB of free GPU memory, {free / 2**30:.0f} are")


def last_alone(function, leaves, dtype):
    """Results and gradients of the last sample of a large batch equal those of that sample alone."""
    results, grads = gradients_of_last(function, leaves)
    expected, wanted = gradients_of_last(function, [leaf.detach()[-1:].clone().requires_grad_() for leaf in leaves])
    for actual, reference in zip([*results, *grads], [*expected, *wanted], strict=True):
        assert_close(actual.cpu(), reference.cpu().double(), dtype, 4)


def gradients_of_last(function, leaves):
    """Of the squares of the last sample's results; every other sample gets zero gradients."""
    results = function(*leaves)
    results = [result[-1:] for result in ([results] if isinstance(results, torch.Tensor) else results)]
    loss = sum(result.float().square().sum() for result in results)
    grads = torch.autograd.grad(loss, leaves)
    return [result.detach() for result in results], [grad[-1:].clone() for grad in grads]


def large(*shape):
    return torch.randn(shape, device=GPU, dtype=torch.float16).requires_grad_()


def test_past_two_to_the_31_decouple():
    needs_memory(40)
    clip = large(LARGE // (3 * 16 * 112 * 112) + 9, 3, 17, 112, 112)
    index, flip = torch.full((len(clip),), 5, device=GPU), torch.ones(len(clip), dtype=torch.bool, device=GPU)
    last_alone(lambda clip: decouple(clip, index[-len(clip) :], flip=flip[-len(clip) :]), [clip], torch.float16)


@pytest.mark.parametrize("function, count", [(activation_map, 1), (decoupled_pool, 3)])
def test_past_two_to_the_31_maps(function, count):
    needs_memory(48)
    last_alone(function, [large(LARGE // (512 * 98) + 9, 512, 2, 7, 7) for _ in range(count)], torch.float16)


def test_past_two_to_the_31_info_nce():
    needs_memory(60)
    query, key = large(LARGE // 128 + 9, 128), normal(8, 128, dtype=torch.float16).detach()
    index = torch.arange(len(query), device=GPU) % 8
    own = [query]
    last_alone(lambda q: info_nce(q, key, positive=index[-len(q) :], reduction="none"), own, torch.float16)


def test_past_two_to_the_31_topk():
    needs_memory(12)
    queue = large(LARGE // 128 + 9, 128).detach()
    wanted = torch.tensor([len(queue) - 1, 0, len(queue) - 9, 12345], device=GPU)
    values, indices = topk_similarity(queue[wanted], queue, 2)
    assert torch.equal(indices[:, 0], wanted)
    torch.testing.assert_close(values[:, 0], torch.ones(4, device=GPU), rtol=1e-3, atol=0)
