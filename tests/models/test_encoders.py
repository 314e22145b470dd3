"""Encoders: parameters and maps of the literature, torchvision's keys, the arithmetic of the small one."""

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, conv3d, relu

from dclr.models import ENCODERS, ProjectionHead, build_encoder
from dclr.models.i3d import _same_padding
from dclr.models.r2plus1d import Conv2Plus1d, mid_channels
from dclr.models.s3d import SelfGating

# name: parameters, map of a 16x112x112 clip
KNOWN = {
    "r2plus1d_vcop": (14_365_303, (512, 2, 7, 7)),
    "r2plus1d_tv1111": (12_487_005, (512, 2, 7, 7)),
    "r2plus1d_18": (31_300_125, (512, 2, 7, 7)),
    "r2plus1d_tiny": (654_454, (96, 2, 7, 7)),
    "r2plus1d_micro": (228_692, (64, 4, 14, 14)),
    "r3d_18": (33_166_272, (512, 2, 7, 7)),
    "r3d_vcop": (14_361_792, (512, 2, 7, 7)),
    "r3d18_hara": (33_203_904, (512, 2, 4, 4)),
    "mc3_18": (11_490_240, (512, 16, 7, 7)),
    "r2d3d18": (5_210_176, (256, 16, 4, 4)),
    "c3d": (27_661_440, (512, 2, 7, 7)),
    "s3d": (7_910_048, (1024, 2, 3, 3)),
    "s3dg": (9_098_000, (1024, 2, 3, 3)),
    "i3d": (12_287_264, (1024, 2, 4, 4)),
    "vit_small": (21_879_936, (384, 8, 7, 7)),
    "vit_base": (86_227_200, (768, 8, 7, 7)),
    "vit_tiny": (75_024, (48, 8, 14, 14)),
}


def meta_encoder(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_encoder(name)


def test_every_encoder_is_known():
    assert set(ENCODERS) == set(KNOWN)


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_map_and_feature_dim(name):
    parameters, shape = KNOWN[name]
    encoder = meta_encoder(name)
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert encoder(torch.empty(2, 3, 16, 112, 112, device="meta")).shape == (2, *shape)
    assert encoder.feature_dim == shape[0]


@pytest.mark.parametrize("size", [(8, 32, 32), (9, 33, 47), (17, 127, 65)])
@pytest.mark.parametrize("name", KNOWN)
def test_any_size_and_every_parameter_has_a_gradient(name, size):
    encoder = meta_encoder(name)
    features = encoder(torch.empty(2, 3, *size, device="meta"))
    assert features.shape[:2] == (2, encoder.feature_dim) and features.numel() > 0
    features.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 7)])
@pytest.mark.parametrize("name", ["r2plus1d_vcop", "r2plus1d_18", "r3d_18", "mc3_18"])
def test_residual_encoders_take_the_smallest_clips(name, size):
    assert meta_encoder(name).eval()(torch.empty(1, 3, *size, device="meta")).numel() > 0


def test_i3d_map_at_224():
    assert meta_encoder("i3d")(torch.empty(1, 3, 16, 224, 224, device="meta")).shape == (1, 1024, 2, 7, 7)


def norm_keys(name: str) -> list[str]:
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return [f"{name}.{key}" for key in ("weight", "bias", *buffers)]


def torchvision_keys(name: str) -> list[str]:
    """Keys of torchvision's video ResNets with two blocks a stage, without `fc.*`, in their order."""

    def conv(prefix: str) -> list[str]:
        if name != "r2plus1d_18":
            return [f"{prefix}.weight"]
        return [f"{prefix}.0.weight", *norm_keys(f"{prefix}.1"), f"{prefix}.3.weight"]

    keys = ["stem.0.weight", *norm_keys("stem.1")]
    if name == "r2plus1d_18":
        keys += ["stem.3.weight", *norm_keys("stem.4")]
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            prefix = f"layer{stage}.{block}"
            for part in ("conv1", "conv2"):
                keys += [*conv(f"{prefix}.{part}.0"), *norm_keys(f"{prefix}.{part}.1")]
            if stage > 1 and block == 0:
                keys += [f"{prefix}.downsample.0.weight", *norm_keys(f"{prefix}.downsample.1")]
    return keys


@pytest.mark.parametrize(
    "name, stem, temporal, downsample_stride",
    [
        ("r2plus1d_18", (45, 3, 1, 7, 7), 3, (2, 2, 2)),
        ("r3d_18", (64, 3, 3, 7, 7), 3, (2, 2, 2)),
        ("mc3_18", (64, 3, 3, 7, 7), 1, (1, 2, 2)),
    ],
)
def test_torchvision_structure(name, stem, temporal, downsample_stride):
    encoder = meta_encoder(name)
    state = encoder.state_dict()
    assert list(state) == torchvision_keys(name)
    assert state["stem.0.weight"].shape == stem
    assert encoder.layer2[0].downsample[0].stride == downsample_stride
    if name == "r2plus1d_18":
        # Both units of a block have the mid-channels of its first.
        assert state["layer2.0.conv1.0.0.weight"].shape == (230, 64, 1, 3, 3)
        assert state["layer2.0.conv2.0.0.weight"].shape == (230, 128, 1, 3, 3)
        assert state["layer2.1.conv2.0.3.weight"].shape == (128, 288, 3, 1, 1)
    else:
        assert state["layer2.1.conv1.0.weight"].shape == (128, 128, temporal, 3, 3)


@pytest.mark.parametrize(
    "channels, width, kernel, expected",
    [
        (3, 64, (3, 7, 7), 83),
        (64, 64, (3, 3, 3), 144),
        (64, 128, (3, 3, 3), 230),
        (128, 128, (3, 3, 3), 288),
        (128, 256, (3, 3, 3), 460),
        (256, 256, (3, 3, 3), 576),
        (256, 512, (3, 3, 3), 921),
        (512, 512, (3, 3, 3), 1152),
        (256, 512, (1, 1, 1), 170),
    ],
)
def test_mid_channels(channels, width, kernel, expected):
    assert mid_channels(channels, width, kernel) == expected


def randomize_norms(module: nn.Module) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm3d):
            for values in (norm.weight, norm.bias, norm.running_mean):
                nn.init.normal_(values)
            nn.init.uniform_(norm.running_var, 0.5, 2)


def test_tiny_equals_its_definition():
    """VCOP's R(2+1)D written out: unit, norm, ReLU, unit, norm, factorised skip, ReLU."""
    torch.manual_seed(0)
    encoder = build_encoder("r2plus1d_tiny", widths=(4, 6, 7, 9)).double().eval()
    randomize_norms(encoder)
    state = encoder.state_dict()

    def norm(x, name):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    def unit(x, name, stride=1, stride_t=None):
        spatial, temporal = state[f"{name}.0.weight"], state[f"{name}.3.weight"]
        pad_s, pad_t = spatial.shape[-1] // 2, temporal.shape[2] // 2
        x = conv3d(x, spatial, stride=(1, stride, stride), padding=(0, pad_s, pad_s))
        x = relu(norm(x, f"{name}.1"))
        return conv3d(x, temporal, stride=(stride_t or stride, 1, 1), padding=(pad_t, 0, 0))

    clip = torch.randn(2, 3, 5, 18, 23, dtype=torch.float64)
    x = relu(norm(unit(clip, "stem.0", stride=2, stride_t=1), "stem.1"))
    for stage in (1, 2, 3, 4):
        name, stride = f"layer{stage}.0", 1 if stage == 1 else 2
        y = relu(norm(unit(x, f"{name}.conv1.0", stride), f"{name}.conv1.1"))
        y = norm(unit(y, f"{name}.conv2.0"), f"{name}.conv2.1")
        skip = x
        if stage > 1:
            skip = norm(unit(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        x = relu(y + skip)
    assert x.shape == (2, 9, 1, 2, 2) and encoder.feature_dim == 9
    torch.testing.assert_close(encoder(clip), x, rtol=1e-10, atol=1e-12)


def test_unit_of_a_wide_kernel_and_stride():
    unit = Conv2Plus1d(3, 8, (3, 7, 7), (2, 2, 2))
    assert unit(torch.randn(1, 3, 7, 15, 16)).shape == (1, 8, 4, 8, 8)
    assert all(module.bias is None for module in unit if isinstance(module, nn.Conv3d))


@pytest.mark.parametrize("kernel, stride, before, after", [(7, 2, 2, 3), (3, 2, 0, 1), (3, 1, 1, 1)])
def test_same_padding_is_tensorflows(kernel, stride, before, after):
    padded = _same_padding((1, kernel, 1), (1, stride, 1))(torch.ones(1, 1, 2, 5, 3))
    rows = padded[0, 0, 0, :, 0]
    assert padded.shape == (1, 1, 2, before + 5 + after, 3)
    assert rows.tolist() == [0.0] * before + [1.0] * 5 + [0.0] * after


def test_self_gating():
    torch.manual_seed(0)
    gate, x = SelfGating(3), torch.randn(2, 3, 2, 4, 5)
    weight = torch.sigmoid(x.mean((2, 3, 4)) @ gate.linear.weight.T + gate.linear.bias)
    torch.testing.assert_close(gate(x), torch.einsum("bcthw,bc->bcthw", x, weight))


def test_r2d3d_sees_each_frame_by_itself():
    torch.manual_seed(0)
    encoder = build_encoder("r2d3d18").eval()
    clip = torch.randn(1, 3, 3, 16, 16)
    features = encoder(clip)
    torch.testing.assert_close(features[:, :, 1:2], encoder(clip[:, :, 1:2]), rtol=1e-4, atol=1e-5)
    assert features.min() < 0


def test_initialisation():
    torch.manual_seed(0)
    wide = build_encoder("r2plus1d_tv1111").layer4[0].conv1[0][0].weight.detach()
    assert wide.std() == pytest.approx((2 / (wide.shape[0] * 9)) ** 0.5, rel=0.01)
    assert build_encoder("s3d").conv_2c[0].weight.detach().std() == pytest.approx(0.01, rel=0.02)


def test_head():
    head = ProjectionHead(512, 512, 128)
    assert sum(p.numel() for p in head.parameters()) == 328_320
    x = torch.randn(5, 512)
    expected = relu(x @ head[0].weight.T + head[0].bias) @ head[2].weight.T + head[2].bias
    torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-5)


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match=r"'r2plus1d_vcp'.*did you mean 'r2plus1d_vcop'"):
        build_encoder("r2plus1d_vcp")
    with pytest.raises(ValueError, match=r"'c3d' has no option 'widths'"):
        build_encoder("c3d", widths=(1, 2, 3, 4))
    with pytest.raises(ValueError, match=r"widths must be 4 numbers of channels.*\(16, 32\)"):
        build_encoder("r2plus1d_tiny", widths=(16, 32))
