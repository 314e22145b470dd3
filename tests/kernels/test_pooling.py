import pytest
import torch

from dclr.kernels.activation import activation_alignment, activation_map
from dclr.kernels.pooling import DecoupledPool, decoupled_pool, weighted_pool

from .helpers import LAYOUTS, SHAPES, assert_close, far_apart, feature_maps, lay_out, widened
from .test_activation import alignment_formula, alignment_gradient

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pool_formula(features, activation):
    """Weighted mean over positions with every weight 1 where the activation sums to 0."""
    total = activation.sum((1, 2, 3))
    weights = torch.where(total[:, None, None, None] == 0, 1, activation)
    return torch.einsum("bcthw,bthw->bc", features, weights) / weights.sum((1, 2, 3))[:, None]


def head_formula(rgb, static, difference):
    static_map, difference_map = static.detach().abs().sum(1), difference.detach().abs().sum(1)
    average = [features.flatten(2).mean(2) for features in (rgb, static, difference)]
    by_maps = [pool_formula(rgb, activation) for activation in (static_map, difference_map)]
    return DecoupledPool(
        average[0], *by_maps, *average[1:], alignment_formula(rgb, static.detach(), difference.detach())
    )


def head_gradients(maps, grads):
    """Of `head_formula`, by autograd but for the alignment, whose gradient at ties is written out by hand."""
    results = head_formula(*maps)
    pools = torch.autograd.grad(results[:5], maps, grads[:5])
    return pools[0] + alignment_gradient(*(features.detach() for features in maps), grads[5]), *pools[1:]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_weighted_pool_and_its_gradients(shape, dtype, layout):
    (features,) = feature_maps(shape, dtype, layout, count=1)
    activation = torch.rand(shape[0], 1, *shape[2:], dtype=torch.float64)
    activation[0] = 0
    activation = lay_out(activation.to(dtype), layout).squeeze(1).requires_grad_()
    pooled = weighted_pool(features, activation)
    assert pooled.dtype == torch.float32
    wide = widened((features, activation))
    expected = pool_formula(*wide)
    assert_close(pooled.detach(), expected.detach(), torch.float32, 100)
    grad = torch.randn(expected.shape)
    pooled.backward(grad)
    expected.backward(grad.double())
    for actual, reference in zip((features, activation), wide):
        assert actual.grad.dtype == dtype
        assert_close(actual.grad, reference.grad, dtype, 100 if dtype == torch.float32 else 4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_head_and_its_gradients(shape, dtype, layout):
    maps = feature_maps(shape, dtype, layout)
    results, expected = decoupled_pool(*maps), head_formula(*widened(maps))
    for name, actual, reference in zip(results._fields, results, expected):
        assert actual.dtype == torch.float32 and actual.shape == reference.shape, name
        assert_close(actual.detach(), reference.detach(), torch.float32, 100)
    grads = [torch.randn(reference.shape) for reference in expected]
    torch.autograd.backward(results, grads)
    wide = head_gradients(widened(maps), [grad.double() for grad in grads])
    for features, reference in zip(maps, wide):
        assert features.grad.dtype == dtype
        assert_close(features.grad, reference, dtype, 100 if dtype == torch.float32 else 1)


@pytest.mark.parametrize("shape", [(1, 2, 8, 28, 28), (2, 3, 2, 14, 14), (1, 70, 2, 8, 9), (130, 33, 1, 2, 2)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_tiles_chunks_and_whole_samples(shape, layout):
    """Maps of several tiles, channels of several chunks, and a batch that fills the device."""
    maps = feature_maps(shape, layout=layout)
    results, expected = decoupled_pool(*maps), head_formula(*widened(maps))
    for actual, reference in zip(results, expected):
        assert_close(actual.detach(), reference.detach(), torch.float32, 1000)
    grads = [torch.randn(reference.shape) for reference in expected]
    torch.autograd.backward(results, grads)
    wide = head_gradients(widened(maps), [grad.double() for grad in grads])
    for features, reference in zip(maps, wide):
        assert_close(features.grad, reference, torch.float32, 1000)


def test_mixed_layouts():
    maps = [lay_out(features.detach(), layout) for features, layout in zip(feature_maps((2, 8, 2, 4, 4)), LAYOUTS)]
    for actual, reference in zip(decoupled_pool(*maps), head_formula(*widened(maps))):
        assert_close(actual, reference.detach(), torch.float32, 100)


def test_agrees_with_the_single_functions():
    maps = feature_maps((2, 9, 2, 3, 4))
    pooled = decoupled_pool(*maps)
    torch.testing.assert_close(pooled.rgb_static, weighted_pool(maps[0], activation_map(maps[1])))
    torch.testing.assert_close(pooled.rgb_difference, weighted_pool(maps[0], activation_map(maps[2])))
    torch.testing.assert_close(pooled.alignment, activation_alignment(*maps, reduction="none"))


def test_fixture():
    """Small integers worked out by hand."""
    rgb = torch.tensor([[1.0, 2, 3, 4], [-1, 0, 2, -3]]).view(1, 2, 1, 2, 2)
    static = torch.tensor([[4.0, 0, 0, 1], [0, 1, 1, 0]]).view(1, 2, 1, 2, 2)
    difference = torch.tensor([[0.0, 1, 5, 2], [1, 1, 0, 1]]).view(1, 2, 1, 2, 2)
    pooled = decoupled_pool(rgb, static, difference)
    assert pooled.rgb.flatten().tolist() == [2.5, -0.5]
    assert pooled.rgb_static.flatten().tolist() == pytest.approx([1.857143, -0.714286], abs=1e-6)
    assert pooled.rgb_difference.flatten().tolist() == pytest.approx([2.909091, 0], abs=1e-6)
    assert pooled.static.flatten().tolist() == [1.25, 0.5]
    assert pooled.difference.flatten().tolist() == [2, 0.75]
    assert pooled.alignment.item() == pytest.approx(0.433333, abs=1e-6)


def test_constant_scaled_and_one_hot_activation():
    (features,) = feature_maps((2, 5, 2, 3, 3), count=1)
    average = features.detach().mean((2, 3, 4))
    activation = torch.rand(2, 2, 3, 3)
    torch.testing.assert_close(weighted_pool(features, torch.full_like(activation, 7)), average)
    torch.testing.assert_close(weighted_pool(features, 5 * activation), weighted_pool(features, activation))
    one_hot = torch.zeros_like(activation)
    one_hot[:, 1, 2, 0] = 3
    torch.testing.assert_close(weighted_pool(features, one_hot), features[:, :, 1, 2, 0])


def test_zero_maps_pool_uniformly():
    rgb, static, difference = feature_maps((2, 5, 2, 3, 3))
    with torch.no_grad():
        static[0] = difference[1] = 0
    pooled = decoupled_pool(rgb, static, difference)
    torch.testing.assert_close(pooled.rgb_static[0], pooled.rgb[0])
    torch.testing.assert_close(pooled.rgb_difference[1], pooled.rgb[1])
    activation = torch.zeros(2, 2, 3, 3, requires_grad=True)
    weighted_pool(rgb, activation).sum().backward()
    assert activation.grad.abs().max() == 0
    torch.testing.assert_close(rgb.grad, torch.full_like(rgb, 1 / 18))


@pytest.mark.parametrize("field", range(6))
def test_each_result_alone(field):
    """Absent gradients count as zero, and the masks are detached."""
    maps = feature_maps((2, 5, 2, 3, 3))
    decoupled_pool(*maps)[field].sum().backward()
    grads = [torch.zeros(2, 5, dtype=torch.float64)] * 5 + [torch.zeros(2, dtype=torch.float64)]
    grads[field] = torch.ones_like(grads[field])
    for features, reference in zip(maps, head_gradients(widened(maps), grads)):
        assert_close(features.grad, reference, torch.float32, 100)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", range(3))
def test_non_finite_sample_stays_alone(bad, which):
    maps = feature_maps((3, 4, 2, 3, 3))
    clean = decoupled_pool(*maps)
    with torch.no_grad():
        maps[which][1, 2, 1, 0, 2] = bad
    results = decoupled_pool(*maps)
    assert results.alignment.isnan().tolist() == [False, True, False]
    affected = ("rgb", "rgb_static", "rgb_difference"), ("static", "rgb_static"), ("difference", "rgb_difference")
    for name, actual, expected in zip(results._fields, results, clean):
        assert torch.equal(actual[::2], expected[::2])
        if name != "alignment":
            assert actual[1].isfinite().all() == (name not in affected[which])
    sum(result.sum() for result in results).backward()
    assert all(features.grad[::2].isfinite().all() for features in maps)
    (features,), activation = feature_maps((3, 4, 2, 3, 3), count=1), torch.rand(3, 2, 3, 3)
    activation[1, 0, 1, 1] = bad
    assert weighted_pool(features, activation).isfinite().all(1).tolist() == [True, False, True]


def test_empty_batch():
    maps = feature_maps((0, 5, 2, 3, 3))
    results = decoupled_pool(*maps)
    assert [result.shape for result in results] == [(0, 5)] * 5 + [(0,)]
    sum(result.sum() for result in results).backward()
    assert all(features.grad.shape == features.shape for features in maps)
    activation = torch.rand(0, 2, 3, 3, requires_grad=True)
    weighted_pool(maps[0], activation).sum().backward()
    assert activation.grad.shape == activation.shape


def test_expanded_and_transposed_gradients():
    maps = feature_maps((2, 3, 2, 2, 2))
    pooled = decoupled_pool(*maps)
    grad = torch.randn(3, 2).t()
    torch.autograd.backward(pooled[:5], [grad, torch.ones(1, 1).expand(2, 3), grad, torch.ones(3).expand(2, 3), grad])
    wide = [grad.double(), torch.ones(2, 3).double(), grad.double(), torch.ones(2, 3).double(), grad.double()]
    for features, reference in zip(maps, head_gradients(widened(maps), [*wide, torch.zeros(2).double()])):
        assert_close(features.grad, reference, torch.float32, 10)
    features, activation = maps[0].detach().requires_grad_(), torch.rand(2, 2, 2, 2)
    weighted_pool(features, activation).sum().backward()
    weights = activation / activation.sum((1, 2, 3), keepdim=True)
    torch.testing.assert_close(features.grad, weights.unsqueeze(1).expand(features.shape))


def test_activation_may_have_another_dtype():
    (features,) = feature_maps((2, 3, 2, 2, 2), torch.bfloat16, count=1)
    activation = torch.rand(2, 2, 2, 2, requires_grad=True)
    pooled = weighted_pool(features, activation)
    assert_close(pooled.detach(), pool_formula(*widened((features, activation))).detach(), torch.float32, 10)
    pooled.sum().backward()
    assert features.grad.dtype == torch.bfloat16 and activation.grad.dtype == torch.float32
    assert weighted_pool(features, activation.double()).dtype == torch.float64


def test_repeats_bit_for_bit():
    maps = feature_maps((3, 40, 2, 7, 7))
    first, second = decoupled_pool(*maps), decoupled_pool(*maps)
    assert all(map(torch.equal, first, second))


def test_gradcheck():
    maps = feature_maps((2, 3, 2, 2, 2), torch.float64)
    activation = torch.rand(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(weighted_pool, (maps[0], activation))
    masks = [features.detach() for features in maps[1:]]
    assert torch.autograd.gradcheck(lambda rgb: decoupled_pool(rgb, *masks), maps[:1])
    averages = decoupled_pool(*maps)
    assert all(result.dtype == torch.float64 for result in averages)
    assert torch.autograd.gradcheck(lambda *masks: decoupled_pool(maps[0].detach(), *masks)[3:5], maps[1:])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped"])
def test_opcheck(layout):
    maps = feature_maps((2, 3, 2, 2, 2), layout=layout)
    activation = torch.rand(2, 2, 2, 2, requires_grad=True)
    torch.library.opcheck(torch.ops.dclr.decoupled_pool.default, maps)
    torch.library.opcheck(torch.ops.dclr.weighted_pool.default, (maps[0], activation))
    plain, grad = [features.detach() for features in maps], torch.rand(2, 3)
    grads = grad, None, grad, None, grad, torch.rand(2)
    torch.library.opcheck(torch.ops.dclr.decoupled_pool_backward.default, (plain[0], torch.rand(2, 3, 2, 2, 2), *grads))
    arguments = grad, plain[0], activation.detach(), torch.rand(2, 3)
    torch.library.opcheck(torch.ops.dclr.weighted_pool_backward.default, arguments)


def loss(rgb, static, difference):
    pooled = decoupled_pool(rgb, static, difference)
    again = weighted_pool(rgb, activation_map(static).detach())
    return sum(result.square().sum() for result in pooled) + again.sum()


INDUCTOR = pytest.param(
    "inductor",
    False,
    marks=pytest.mark.skipif(
        " " in torch.__file__, reason="Inductor cannot link against a torch at a path with a space"
    ),
)


@pytest.mark.parametrize("backend, dynamic", [("aot_eager", False), ("aot_eager", True), INDUCTOR])
def test_compiled(backend, dynamic):
    compiled = torch.compile(loss, fullgraph=True, backend=backend, dynamic=dynamic)
    for shape in [(2, 3, 2, 2, 2), (4, 5, 2, 3, 2)][: 1 if backend == "inductor" else 2]:
        maps = feature_maps(shape)
        expected = torch.autograd.grad(loss(*maps), maps)
        torch.testing.assert_close(torch.autograd.grad(compiled(*maps), maps), expected)


def test_autocast_keeps_float32():
    maps = feature_maps((2, 3, 2, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        pooled = decoupled_pool(*maps)
    for actual, expected in zip(pooled, decoupled_pool(*maps)):
        assert torch.equal(actual, expected)


def test_offsets_past_32_bits():
    maps = [far_apart((2, 2, 1, 2, 2)).requires_grad_() for _ in range(3)]
    results = decoupled_pool(*maps)
    for actual, reference in zip(results, head_formula(*widened(maps))):
        assert_close(actual.detach(), reference.detach(), torch.float32, 10)
    grads = [torch.randn(result.shape) for result in results]
    torch.autograd.backward(results, grads)
    for features, reference in zip(maps, head_gradients(widened(maps), [grad.double() for grad in grads])):
        assert_close(features.grad, reference, torch.float16, 4)
    activation = torch.rand(2, 1, 2, 2)
    pooled = weighted_pool(maps[0], activation)
    assert_close(pooled.detach(), pool_formula(maps[0].detach().double(), activation.double()), torch.float32, 10)


def bad_arguments():
    good, activation = torch.rand(2, 3, 2, 2, 2), torch.rand(2, 2, 2, 2)
    yield weighted_pool, (good[0], activation), ValueError, "features"
    yield weighted_pool, (good, activation[:, :1]), ValueError, "activation"
    yield weighted_pool, (good, good), ValueError, "activation"
    yield weighted_pool, (good, activation.int()), TypeError, "activation"
    yield weighted_pool, (good, activation.to("meta")), ValueError, "activation"
    yield weighted_pool, (good, None), TypeError, "activation"
    yield decoupled_pool, (good[0], good, good), ValueError, "rgb"
    yield decoupled_pool, (good, good[:, :2], good), ValueError, "static"
    yield decoupled_pool, (good, good, good.bfloat16()), TypeError, "difference"
    yield decoupled_pool, (good[:, :0], good, good), ValueError, "rgb"
    yield decoupled_pool, (good, good.to("meta"), good), ValueError, "static"


@pytest.mark.parametrize("function, arguments, error, name", list(bad_arguments()))
def test_bad_arguments(function, arguments, error, name):
    with pytest.raises(error, match=name):
        function(*arguments)
