import pytest
import torch

from dclr.kernels.activation import activation_alignment, activation_alignment_reference, activation_map

from .helpers import LAYOUTS, SHAPES, assert_close, far_apart, feature_maps, widened

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def min_max(activation):
    """(B, P) of (B, ...), each sample scaled to [0, 1]; 0 for a constant map."""
    flat = activation.reshape(len(activation), -1)
    low, high = flat.min(1, keepdim=True).values, flat.max(1, keepdim=True).values
    return (flat - low).div(torch.where(high > low, high - low, 1)) * (high > low)


def alignment_formula(rgb, static, difference):
    rgb_map, target = (torch.einsum("bcthw->bthw", maps.abs()) for maps in (rgb, torch.cat([static, difference], 1)))
    return (min_max(rgb_map) - min_max(target)).abs().mean(1)


def alignment_gradient(rgb, static, difference, grad):
    """Written out by hand: quotient rule, with ties sharing the minimum's and the maximum's part."""
    out = torch.zeros_like(rgb)
    for b in range(len(rgb)):
        activation, target = rgb[b].abs().sum(0).flatten(), (static[b].abs() + difference[b].abs()).sum(0).flatten()
        low, high = activation.min(), activation.max()
        if low == high:
            continue
        scaled, goal = (activation - low) / (high - low), min_max(target[None])[0]
        by_scaled = torch.sign(scaled - goal) * grad[b] / len(scaled)
        by_map = by_scaled / (high - low)
        at_low, at_high = activation == low, activation == high
        by_map[at_low] += (by_scaled * (scaled - 1)).sum() / (high - low) / at_low.sum()
        by_map[at_high] -= (by_scaled * scaled).sum() / (high - low) / at_high.sum()
        out[b] = by_map.view(rgb.shape[2:]) * torch.sign(rgb[b])
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_map_and_its_gradient(shape, dtype, layout):
    (features,) = feature_maps(shape, dtype, layout, count=1)
    activation = activation_map(features)
    assert activation.dtype == torch.float32
    expected = features.detach().double().abs().sum(1)
    assert_close(activation.detach(), expected, torch.float32, shape[1])
    grad = torch.randn(expected.shape)
    activation.backward(grad)
    assert features.grad.dtype == dtype
    assert_close(features.grad, grad.double().unsqueeze(1) * features.detach().double().sign(), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_alignment_and_its_gradient(shape, dtype, layout):
    maps = feature_maps(shape, dtype, layout, seed=1)
    wide = [features.detach().double() for features in maps]
    alignment = activation_alignment(*maps, reduction="none")
    assert alignment.dtype == torch.float32
    assert_close(alignment.detach(), alignment_formula(*wide), torch.float32, 100)
    grad = torch.randn(len(alignment))
    alignment.backward(grad)
    assert_close(maps[0].grad, alignment_gradient(*wide, grad.double()), dtype, 100 if dtype == torch.float32 else 1)
    assert maps[1].grad is None and maps[2].grad is None


def test_large_maps():
    maps = feature_maps((1, 2, 8, 28, 28))
    wide = widened(maps)
    alignment, expected = activation_alignment(*maps), alignment_formula(*wide).mean()
    assert_close(alignment.detach(), expected.detach(), torch.float32, 100)
    alignment.backward()
    assert_close(maps[0].grad, alignment_gradient(*wide, torch.ones(1)).detach(), torch.float32, 1000)


def test_fixture():
    """Small integers worked out by hand."""
    rgb = torch.tensor([[1.0, 2, 3, 4], [-1, 0, 2, -3]]).view(1, 2, 1, 2, 2)
    static = torch.tensor([[4.0, 0, 0, 1], [0, 1, 1, 0]]).view(1, 2, 1, 2, 2)
    difference = torch.tensor([[0.0, 1, 5, 2], [1, 1, 0, 1]]).view(1, 2, 1, 2, 2)
    for features, expected in ((rgb, [2, 2, 5, 7]), (static, [4, 1, 1, 1]), (difference, [1, 2, 5, 3])):
        assert activation_map(features).flatten().tolist() == expected
    assert activation_alignment(rgb, static, difference).item() == pytest.approx(0.433333, abs=1e-6)
    rgb = torch.tensor([2, 2.5, 5, 7]).view(1, 1, 1, 2, 2).requires_grad_()
    target = torch.tensor([5.0, 3, 6, 4]).view(1, 1, 1, 2, 2)
    alignment = activation_alignment(rgb, target, torch.zeros_like(target))
    alignment.backward()
    assert alignment.item() == pytest.approx(0.458333, abs=1e-6)
    assert rgb.grad.flatten().tolist() == pytest.approx([-0.025, 0.05, -0.05, 0.025], abs=1e-6)


def test_ties_share_the_gradient():
    rgb = torch.tensor([1.0, 1, 2, 4, 4, 4]).view(1, 1, 1, 2, 3).requires_grad_()
    static = torch.tensor([0.0, 3, 3, 1, 2, 0]).view(1, 1, 1, 2, 3)
    activation_alignment(rgb, static, static).backward()
    wide = rgb.detach().double().requires_grad_()
    activation_alignment_reference(wide, static.double(), static.double())[0].sum().backward()
    assert_close(rgb.grad, wide.grad, torch.float32, 10)
    assert_close(rgb.grad, alignment_gradient(wide.detach(), static, static, torch.ones(1)), torch.float32, 10)


def test_aligned_up_to_scale_and_shift():
    static, difference = torch.rand(2, 3, 2, 4, 4), torch.rand(2, 3, 2, 4, 4)
    target = activation_map(static) + activation_map(difference)
    assert activation_alignment((3 * target + 2).unsqueeze(1).expand(2, 3, 2, 4, 4), static, difference) < 1e-6


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_map(value):
    rgb = torch.full((2, 3, 2, 3, 3), value, requires_grad=True)
    static = torch.rand(2, 3, 2, 3, 3)
    alignment = activation_alignment(rgb, static, static, reduction="none")
    alignment.sum().backward()
    assert_close(alignment.detach(), min_max(static.double().sum(1)).mean(1), torch.float32, 10)
    assert rgb.grad.abs().max() == 0
    rgb, constant = torch.rand(2, 3, 2, 3, 3), torch.full((2, 3, 2, 3, 3), value)
    alignment = activation_alignment(rgb, constant, constant, reduction="none")
    assert_close(alignment, min_max(rgb.double().sum(1)).mean(1), torch.float32, 10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", range(3))
def test_non_finite_sample_stays_alone(bad, which):
    maps = feature_maps((3, 4, 2, 3, 3))
    clean = activation_alignment(*maps, reduction="none")
    clean.sum().backward()
    clean_grad, maps[0].grad = maps[0].grad, None
    with torch.no_grad():
        maps[which][1, 2, 1, 0, 2] = bad
    alignment = activation_alignment(*maps, reduction="none")
    alignment.sum().backward()
    assert alignment.isnan().tolist() == [False, True, False]
    for sample in (0, 2):
        assert alignment[sample] == clean[sample] and torch.equal(maps[0].grad[sample], clean_grad[sample])
    activation = activation_map(maps[which])
    assert activation.isfinite().flatten(1).all(1).tolist() == [True, False, True]


def test_reductions_and_empty_batch():
    maps = feature_maps((3, 2, 1, 2, 2))
    per_sample = activation_alignment(*maps, reduction="none")
    assert per_sample.shape == (3,)
    torch.testing.assert_close(activation_alignment(*maps), per_sample.mean())
    torch.testing.assert_close(activation_alignment(*maps, reduction="sum"), per_sample.sum())
    empty = feature_maps((0, 2, 1, 2, 2))
    assert activation_alignment(*empty, reduction="none").shape == (0,)
    assert activation_alignment(*empty).item() == activation_alignment(*empty, reduction="sum").item() == 0
    activation_alignment(*empty).backward()
    assert empty[0].grad.shape == empty[0].shape
    assert activation_map(empty[0]).shape == (0, 1, 2, 2)


def test_expanded_gradients():
    (features,) = feature_maps((2, 3, 2, 2, 2), count=1)
    activation_map(features).sum().backward()
    assert torch.equal(features.grad, features.detach().sign())


def test_gradcheck():
    maps = feature_maps((2, 3, 2, 2, 2), torch.float64)
    assert torch.autograd.gradcheck(activation_map, maps[:1])
    assert torch.autograd.gradcheck(lambda rgb: activation_alignment(rgb, *maps[1:], reduction="none"), maps[:1])
    assert activation_alignment(*maps).dtype == activation_map(maps[0]).dtype == torch.float64


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped"])
def test_opcheck(layout):
    maps = feature_maps((2, 3, 2, 2, 2), layout=layout)
    torch.library.opcheck(torch.ops.dclr.activation_map.default, (maps[0],))
    torch.library.opcheck(torch.ops.dclr.activation_alignment.default, maps)
    torch.library.opcheck(torch.ops.dclr.activation_map_backward.default, (torch.rand(2, 2, 2, 2), maps[0].detach()))


def loss(rgb, static, difference):
    return activation_alignment(rgb, static, difference) + activation_map(rgb).square().mean()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic):
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in ((2, 3, 2, 2, 2), (4, 5, 2, 3, 2)):
        maps = feature_maps(shape)
        expected = torch.autograd.grad(loss(*maps), maps[0])
        torch.testing.assert_close(torch.autograd.grad(compiled(*maps), maps[0]), expected)


def test_autocast_keeps_float32():
    maps = feature_maps((2, 3, 2, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        alignment = activation_alignment(*maps)
    assert alignment.dtype == torch.float32 and alignment == activation_alignment(*maps)


def test_offsets_past_32_bits():
    features = far_apart((2, 2, 1, 2, 2)).requires_grad_()
    activation = activation_map(features)
    assert torch.equal(activation, features.detach().float().abs().sum(1))
    activation.sum().backward()
    assert torch.equal(features.grad, features.detach().sign())


def bad_arguments():
    good = torch.rand(2, 3, 2, 2, 2)
    yield (good[0], good, good), {}, ValueError, "rgb"
    yield (good, good[:, :2], good), {}, ValueError, "static"
    yield (good, good, good[:1]), {}, ValueError, "difference"
    yield (good, good.half(), good), {}, TypeError, "static"
    yield (good.int(), good, good), {}, TypeError, "rgb"
    yield (good, good, good.to("meta")), {}, ValueError, "difference"
    yield (good[..., :0], good, good), {}, ValueError, "rgb"
    yield (good, good, good), {"reduction": "max"}, ValueError, "reduction"
    yield (None, good, good), {}, TypeError, "rgb"


@pytest.mark.parametrize("maps, options, error, name", list(bad_arguments()))
def test_bad_arguments(maps, options, error, name):
    with pytest.raises(error, match=name):
        activation_alignment(*maps, **options)
