"""Rewritten forward passes equal the plain encoder's: output, gradients, running statistics, state dict."""

import copy
import itertools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.functional import conv2d

from dclr.augment import AugmentConfig, Draw, Streams
from dclr.data.clips import Batch
from dclr.methods import DCLRConfig, build_method
from dclr.methods.search import SearchConfig
from dclr.models import ENCODERS, accelerate, build_encoder, rewrites
from dclr.models.r2plus1d import Conv2Plus1d
from dclr.models.resnet3d import VideoResNet, conv, conv_block, frame_block
from dclr.models.rewrites import FoldedConv3d, PaddedUnit
from dclr.models.static_once import MixedClips, StaticClips, StaticOnceResNet, _add, _window

SWITCHES = [{"fold": True}, {"pad": True}, {"fold": True, "pad": True}]
# Odd T, odd H and W, a batch of 1, fewer positions than a kernel.
SIZES = [(1, 9, 17, 23), (2, 16, 9, 16), (3, 1, 8, 7), (1, 2, 33, 8)]
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def tiny(train=True, seed=0):
    """Float64 `r2plus1d_tiny` of odd widths, with norms unlike the initial ones."""
    torch.manual_seed(seed)
    encoder = build_encoder("r2plus1d_tiny", widths=(5, 6, 7, 9)).double()
    return randomized(encoder).train(train)


def randomized(module):
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm3d):
            for values in (norm.weight, norm.bias, norm.running_mean):
                nn.init.normal_(values)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return module


def clips(*shape, seed=1):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def measured(encoder, *inputs):
    """Output, gradients of the inputs and the parameters, and buffers after one pass."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    features = encoder(*inputs)
    weight = clips(*features.shape, seed=2)
    (features * weight).sum().backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters()}
    return features, [x.grad for x in inputs], gradients, dict(encoder.named_buffers())


def assert_equal_passes(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("switches", SWITCHES)
def test_equal_to_the_plain_encoder(switches, size, train):
    plain = tiny(train)
    fast = accelerate(copy.deepcopy(plain), **switches)
    x = clips(size[0], 3, *size[1:])
    assert_equal_passes(measured(fast, x), measured(plain, x))


@pytest.mark.parametrize("name", ["r2plus1d_tv1111", "s3d"])
def test_other_encoders(name):
    torch.manual_seed(0)
    plain = randomized(build_encoder(name).double()).eval()
    fast = accelerate(copy.deepcopy(plain), fold=True, pad=True)
    folded = [m for m in fast.modules() if isinstance(m, FoldedConv3d)]
    padded = [m for m in fast.modules() if isinstance(m, PaddedUnit)]
    # S3D's widths are all multiples of 8; the stem and stages 2 to 4 of torchvision's style are not.
    assert len(folded) > 15 and len(padded) == (0 if name == "s3d" else 7)
    x = clips(2, 3, 9, 32, 33)
    assert_equal_passes(measured(fast, x), measured(plain, x))


def test_full_convolutions_are_left_alone():
    encoder = nn.Sequential(conv(3, 5, (3, 3, 3)), nn.BatchNorm3d(5), nn.ReLU(), nn.Conv3d(5, 4, (1, 3, 3), (2, 1, 1)))
    same = accelerate(copy.deepcopy(encoder), fold=True)
    assert [type(m) for m in same] == [type(m) for m in encoder]
    with torch.device("meta"):
        c3d = accelerate(build_encoder("c3d"), fold=True, pad=True, static_once=True)
    assert {type(m) for m in c3d} == {nn.Conv3d, nn.BatchNorm3d, nn.ReLU, nn.MaxPool3d}


@pytest.mark.parametrize("kernel, stride", [((1, 3, 3), (1, 2, 1)), ((3, 1, 1), (2, 1, 1)), ((1, 1, 1), (1, 2, 2))])
def test_folding_copies_nothing(kernel, stride, monkeypatch):
    """The 2D convolution reads the clip's own memory, and its output's memory is the result's."""
    seen = []

    def spy(x, *args):
        seen.extend([x, conv2d(x, *args)])
        return seen[1]

    monkeypatch.setattr(rewrites, "conv2d", spy)
    module = accelerate(nn.Sequential(conv(8, 16, kernel, stride)), fold=True)
    module = module.to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 8, 5, 6, 7).to(memory_format=torch.channels_last_3d)
    out = module(x)
    assert seen[0].data_ptr() == x.data_ptr() and seen[1].data_ptr() == out.data_ptr()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)


def test_bias_dilation_and_groups_fold():
    for options in (
        {"kernel_size": (1, 3, 3), "padding": (0, 2, 1), "dilation": (1, 2, 1)},
        {"kernel_size": (3, 1, 1), "padding": (2, 0, 0), "dilation": (2, 1, 1), "stride": (2, 1, 1)},
    ):
        plain = nn.Sequential(nn.Conv3d(4, 6, groups=2, **options)).double()
        fast = accelerate(copy.deepcopy(plain), fold=True)
        assert isinstance(fast[0], FoldedConv3d)
        x = clips(2, 4, 7, 5, 9)
        assert_equal_passes(measured(fast, x), measured(plain, x))


def test_padding_shows_multiples_of_eight_and_keeps_the_parameters():
    unit = accelerate(nn.Sequential(Conv2Plus1d(3, 6, mid=11)), pad=True)[0]
    widths = []
    unit[1].register_forward_hook(lambda module, args, out: widths.append((args[0].shape[1], out.shape[1])))
    unit(torch.randn(2, 3, 4, 5, 5))
    assert widths == [(16, 16)]
    assert unit[0].weight.shape[0] == unit[3].weight.shape[1] == unit[1].running_mean.shape[0] == 11
    assert unit[1].num_batches_tracked == 1


def test_state_dicts_load_both_ways():
    plain, fast = tiny(seed=0), accelerate(tiny(seed=1), fold=True, pad=True, static_once=True)
    assert list(fast.state_dict()) == list(plain.state_dict())
    fast.load_state_dict(plain.state_dict())
    x = clips(1, 3, 5, 16, 16)
    torch.testing.assert_close(fast.eval()(x), plain.eval()(x), **EXACT)
    other = tiny(seed=2)
    other.load_state_dict(fast.state_dict())
    torch.testing.assert_close(other.eval()(x), plain(x), **EXACT)


def test_copies_are_their_own():
    fast = accelerate(tiny(), fold=True, pad=True, static_once=True)
    x = clips(2, 3, 5, 16, 16)
    twin = copy.deepcopy(fast)
    before = {name: value.clone() for name, value in fast.state_dict().items()}
    nn.init.zeros_(next(twin.parameters()))
    twin(x).sum().backward()
    assert all(p.grad is None for p in fast.parameters())
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())


@pytest.mark.parametrize("switches", SWITCHES)
def test_autocast(switches):
    plain = tiny().float()
    fast = accelerate(copy.deepcopy(plain), **switches)
    x = clips(2, 3, 5, 16, 16).float()
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = fast(x), plain(x)
    assert got.dtype == expected.dtype == torch.bfloat16
    exact = copy.deepcopy(plain)(x)
    error, plain_error = ((features - exact).abs().mean() for features in (got, expected))
    assert error < 1.5 * plain_error


def test_sync_batch_norm_takes_padding():
    """The conversion replaces norms, and must find its units intact (its own forward pass needs a GPU)."""
    fast = accelerate(nn.SyncBatchNorm.convert_sync_batchnorm(tiny(train=False)), pad=True)
    x = clips(1, 3, 5, 16, 16)
    assert any(isinstance(m, PaddedUnit) and isinstance(m[1], nn.SyncBatchNorm) for m in fast.modules())
    torch.testing.assert_close(fast(x), tiny(train=False)(x), **EXACT)
    after = nn.SyncBatchNorm.convert_sync_batchnorm(accelerate(tiny(train=False), pad=True))
    torch.testing.assert_close(after(x), tiny(train=False)(x), **EXACT)


# moving clips, static clips, T, H, W
MIXED_SIZES = [
    (2, 1, 16, 16, 16),
    (1, 1, 9, 17, 23),
    (2, 3, 15, 9, 8),
    (1, 2, 1, 8, 8),
    (1, 1, 34, 8, 8),
    (1, 2, 6, 8, 9),
]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("size", MIXED_SIZES)
@pytest.mark.parametrize("switches", [{}, {"fold": True, "pad": True}])
def test_static_frame_equals_the_repeated_frame(switches, size, train):
    moving, still, *shape = size
    plain = tiny(train)
    fast = accelerate(copy.deepcopy(plain), static_once=True, **switches)
    x, frame = clips(moving, 3, *shape), clips(still, 3, 1, *shape[1:], seed=3)
    expected = measured_repeated(plain, x, frame)
    assert_equal_passes(measured(fast, x, frame), expected)


def measured_repeated(encoder, x, frame):
    """The plain encoder on one batch of the clips and of the frames, T times over."""
    wrapped = nn.Module()
    wrapped.encoder = encoder
    wrapped.forward = lambda x, frame: encoder(torch.cat([x, frame.expand(-1, -1, x.shape[2], -1, -1)]))
    features, inputs, gradients, buffers = measured(wrapped, x, frame)
    gradients, buffers = ({n.removeprefix("encoder."): v for n, v in d.items()} for d in (gradients, buffers))
    return features, inputs, gradients, buffers


@pytest.mark.parametrize("build", [conv_block, frame_block])
def test_static_frame_in_residual_encoders_of_plain_convolutions(build):
    """3x3x3 convolutions and strided 1x1x1 skips; a pool over space."""
    torch.manual_seed(0)
    pool = nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
    stem = nn.Sequential(conv(3, 4, (7, 7, 7), (1, 2, 2)), nn.BatchNorm3d(4), nn.ReLU(inplace=True), pool)
    plain = randomized(VideoResNet(stem, [build] * 4, (2, 1, 1, 1), (4, 5, 6, 7))).double()
    fast = accelerate(copy.deepcopy(plain), static_once=True)
    x, frame = clips(1, 3, 21, 16, 16), clips(1, 3, 1, 16, 16, seed=3)
    assert_equal_passes(measured(fast, x, frame), measured_repeated(plain, x, frame))


def test_static_frame_alone_is_an_ordinary_clip():
    plain = tiny()
    fast = accelerate(copy.deepcopy(plain), static_once=True)
    assert isinstance(fast, StaticOnceResNet)
    x = clips(2, 3, 5, 16, 16)
    assert_equal_passes(measured(fast, x), measured(plain, x))


def test_dclr_with_and_without():
    """Losses and gradients of the whole objective, s encoded once or T times."""
    generator = torch.Generator().manual_seed(0)
    decoded = torch.randint(256, (2, 3, 10, 24, 24, 3), generator=generator, dtype=torch.uint8)
    batch = Batch(decoded, torch.arange(3), torch.arange(3))
    torch.manual_seed(0)
    config = DCLRConfig(hidden=8, dim=4, search=SearchConfig(on=()))
    plain = build_method(config, build_encoder("r2plus1d_tiny", widths=(5, 6, 7, 9)), AugmentConfig())
    plain.start_epoch(10)
    streams = Streams(*(clip.double() for clip in plain.augment.streams(batch.clips, Draw(generator))))
    plain.augment.streams = lambda *args: streams
    plain.double()
    fast = accelerate(copy.deepcopy(plain), static_once=True)
    fast.start_epoch(10, resumed=True)
    outputs = [method(batch, Draw(generator)) for method in (plain, fast)]
    assert set(outputs[0].losses) == {"vs", "vd", "sd", "ac"}
    for name, loss in outputs[0].losses.items():
        torch.testing.assert_close(outputs[1].losses[name], loss, **EXACT)
    for output in outputs:
        sum(output.losses.values()).backward()
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, **EXACT)


def test_static_clips_have_one_frame():
    fast = accelerate(tiny(), static_once=True)
    with pytest.raises(ValueError, match="static_frame: got 4 frames a clip, expected 1"):
        fast(clips(1, 3, 4, 8, 8), clips(1, 3, 4, 8, 8))


def synchronized(rank, world):
    """Output, gradients and buffers of this process' half of the clips, norms synchronised."""
    encoder = accelerate(nn.SyncBatchNorm.convert_sync_batchnorm(tiny()), pad=True, static_once=True)
    x, frame = clips(4, 3, 9, 12, 12), clips(2, 3, 1, 12, 12, seed=3)
    own = (value.chunk(world)[rank] for value in (x, frame))
    features = encoder(*own)
    moving, still = features.split([4 // world, 2 // world])
    weight = clips(6, *features.shape[1:], seed=2)
    own_weight = torch.cat([part.chunk(world)[rank] for part in weight.split([4, 2])])
    (features * own_weight).sum().backward()
    return [moving.detach(), still.detach()], [p.grad for p in encoder.parameters()], list(encoder.buffers())


def _process(rank, store, result):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(synchronized(rank, 2), f"{result}{rank}.pt")
    dist.destroy_process_group()


def test_static_frames_on_two_processes_equal_one(tmp_path):
    mp.start_processes(_process, (tmp_path / "store", tmp_path / "result"), nprocs=2, start_method="spawn")
    features, gradients, buffers = synchronized(0, 1)
    halves = [torch.load(f"{tmp_path / 'result'}{rank}.pt") for rank in range(2)]
    assert_equal_passes([torch.cat(parts) for parts in zip(*(half[0] for half in halves))], features)
    assert_equal_passes([sum(parts) for parts in zip(*(half[1] for half in halves))], gradients)
    for half in halves:
        assert_equal_passes(half[2], buffers)


def test_static_convolutions_see_few_frames():
    """One frame in the stem's spatial convolution; the zeros reach one frame further with each temporal one."""
    fast = accelerate(tiny(), static_once=True)
    frames = []
    for module in fast.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(lambda module, args, out: frames.append(args[0].shape[2]))
    fast(clips(1, 3, 32, 16, 16), clips(1, 3, 1, 16, 16))
    # Spatial and temporal convolution of the stem, and of both units of the first stage.
    assert frames[1:12:2] == [1, 3, 3, 5, 5, 7]


def test_windows_of_every_kernel_and_stride():
    """Against a convolution of the written-out clip, wherever the repeated frames stand."""
    cases = itertools.product((1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (0, 1, 3), (1, 2, 5, 8, 9), (0, 2))
    for kernel, stride, padding, left, times, right in cases:
        still = StaticClips(clips(1, 1, left + 1 + right, 1, 1), left, times)
        full = still.written_out()
        if full.shape[2] + 2 * padding < kernel or padding > kernel // 2:
            continue
        weight = clips(1, 1, kernel, 1, 1, seed=4)
        frames, place, count = _window(still, kernel, stride, padding)
        out = StaticClips(nn.functional.conv3d(frames, weight, None, (stride, 1, 1), (padding, 0, 0)), place, count)
        expected = nn.functional.conv3d(full, weight, None, (stride, 1, 1), (padding, 0, 0))
        torch.testing.assert_close(out.written_out(), expected)


def test_sums_of_clips_repeated_at_different_places():
    moving = clips(1, 1, 8, 1, 1)
    for (p, r), (q, s) in itertools.product([(0, 8), (2, 4), (5, 3), (0, 1), (7, 1), (0, 3)], repeat=2):
        a, b = (
            StaticClips(clips(1, 1, 9 - times, 1, 1, seed=place), place, times) for place, times in ((p, r), (q, s))
        )
        total = _add(MixedClips(moving, a), MixedClips(moving, b)).static
        torch.testing.assert_close(total.written_out(), a.written_out() + b.written_out())


def test_every_encoder_takes_every_switch():
    for name in ENCODERS:
        with torch.device("meta"):
            encoder = accelerate(build_encoder(name), fold=True, pad=True, static_once=True)
            assert encoder(torch.empty(2, 3, 16, 64, 64)).shape[1] == encoder.feature_dim
            if isinstance(encoder, StaticOnceResNet):
                features = encoder(torch.empty(2, 3, 16, 64, 64), torch.empty(1, 3, 1, 64, 64))
                assert features.shape[:2] == (3, encoder.feature_dim)
