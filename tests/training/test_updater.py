"""A step compiled against the same one uncompiled; what a step must not do on a GPU."""

import copy
import functools
import traceback
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from dclr.augment import AugmentConfig, Draw
from dclr.config import ConfigError, OptimConfig, TrainConfig
from dclr.data import Batch
from dclr.methods import DCLRConfig, DualVarConfig, FAMEConfig, MoCoConfig, SimCLRConfig, build_method
from dclr.methods.search import SearchConfig
from dclr.models import build_encoder
from dclr.training.replay import recorded_requests
from dclr.training.updater import Updater

VIDEOS, FRAMES, SIZE = 4, 4, 24
SMALL = {"hidden": 8, "dim": 4}
METHODS = {
    "simclr": SimCLRConfig(**SMALL),
    "moco": MoCoConfig(**SMALL, queue=16),
    "fame": FAMEConfig(**SMALL, queue=16),
    "dualvar": DualVarConfig(**SMALL, segment_dim=4),
    "dclr": DCLRConfig(**SMALL, search=SearchConfig(on=())),
    "dclr_search": DCLRConfig(**SMALL, search=SearchConfig(k=2, queue=2 * VIDEOS)),
}
CPU = torch.device("cpu")


class SmallEncoder(nn.Sequential):
    feature_dim = 6

    def __init__(self):
        super().__init__(nn.Conv3d(3, 6, 3, stride=2, bias=False), nn.BatchNorm3d(6), nn.ReLU())


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def quick_compiler(monkeypatch):
    """The same graphs and autograd, run without code generation."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


def build(name, encoder=None, augment=None):
    torch.manual_seed(0)
    return build_method(METHODS[name], encoder or SmallEncoder(), augment or AugmentConfig())


def batch(seed, views=2, device=CPU):
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(256, (views, VIDEOS, FRAMES + 1, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    video = torch.arange(VIDEOS)
    return Batch(*(tensor.to(device) for tensor in (clips, VIDEOS * seed + video, video % 2)))


def draw(seed):
    return Draw(torch.Generator().manual_seed(seed))


def updater_of(method, device=CPU, **train):
    updater = Updater(method, TrainConfig(precision="fp32", **train), OptimConfig(), device)
    updater.start_epoch(METHODS["dclr_search"].search.start, resumed=True)  # the queue is kept
    return updater


def fill_the_search(updater, views):
    for seed in (8, 9):
        updater.add_gradients(batch(seed, views), draw(seed))
        updater.step(0.0)


def compare(compiled, eager, views=2, steps=3, tolerance=1e-5):
    """Losses and gradients of several steps of each."""
    for seed in range(steps):
        results = [updater.add_gradients(batch(seed, views), draw(seed)) for updater in (compiled, eager)]
        (got, loss), (expected, expected_loss) = results
        torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(got.losses, expected.losses, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(got.statistics, expected.statistics, rtol=tolerance, atol=tolerance)
        gradients = [dict(updater.method.named_parameters()) for updater in (compiled, eager)]
        for name, parameter in gradients[1].items():
            assert (parameter.grad is None) == (gradients[0][name].grad is None), name
            if parameter.grad is not None:
                torch.testing.assert_close(gradients[0][name].grad, parameter.grad, rtol=tolerance, atol=tolerance)
        for updater in (compiled, eager):
            updater.step(0.01)


@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_step_is_one_graph_for_all_steps(name, quick_compiler):
    """From decoded clips to losses; equal to the eager step, which draws the same numbers."""
    method, views = build(name), 2 * METHODS[name].crops
    if name == "dclr_search":
        fill_the_search(updater_of(method), views)
    eager, compiled = updater_of(copy.deepcopy(method)), updater_of(method, compile="default")
    compare(compiled, eager, views)
    assert name != "dclr_search" or compiled.method.search.ready("d")
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_the_whole_encoder_with_its_rewrites_is_in_the_graph(quick_compiler):
    method = build("dclr_search", build_encoder("r2plus1d_tiny", widths=(4, 5, 6, 7)))
    fill_the_search(updater_of(method), 2)
    rewrites = {"fold": True, "pad": True, "static_once": True}
    eager = updater_of(copy.deepcopy(method), **rewrites)
    compare(updater_of(method, compile="default", **rewrites), eager, steps=1)
    assert counters["stats"]["unique_graphs"] == 1


def test_generated_code_computes_the_same():
    plain = AugmentConfig(grayscale=0, jitter=0, blur=0)
    method = build("simclr", augment=plain)
    compare(updater_of(copy.deepcopy(method), compile="default"), updater_of(method), steps=2, tolerance=1e-4)


def test_finding_the_random_numbers_changes_nothing():
    method = build("moco")
    before = copy.deepcopy(method.state_dict())
    state = torch.get_rng_state()
    assert len(recorded_requests(method, batch(0))) > 5
    assert torch.equal(torch.get_rng_state(), state)
    assert not method._pending
    for name, value in method.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_cuda_graphs_do_not_accumulate():
    with pytest.raises(ConfigError, match=r"train\.accumulate: got 2, expected 1 with train\.compile reduce-overhead"):
        TrainConfig(batch=4, accumulate=2, compile="reduce-overhead")


@pytest.mark.parametrize("norm, expected", [(30.0, 10.0), (7.0, 7.0)])
def test_long_gradients_are_clipped(norm, expected):
    """Over all parameters, those without a gradient aside."""
    optim = OptimConfig(lr=1.0, momentum=0, weight_decay=0, clip=10)
    updater = Updater(build("simclr"), TrainConfig(precision="fp32"), optim, CPU)
    updater.start_epoch(0)
    weight = updater.method.encoder[0].weight
    before, direction = weight.detach().clone(), torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    weight.grad = norm * direction / direction.norm()
    updater.step(1.0)
    torch.testing.assert_close((before - weight).norm().item(), expected, rtol=1e-4, atol=0)


class HostReads(TorchDispatchMode):
    """Notes the operations whose result the host needs, and on a GPU waits for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        callers = {folder for frame in traceback.extract_stack() for folder in Path(frame.filename).parent.parts}
        # The kernels check the range of indices, on CPUs alone.
        if function._opname in ("_local_scalar_dense", "nonzero", "equal", "_unique2") and "kernels" not in callers:
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_reads_no_value(name):
    """Not even on a CPU; kornia's blur, which checks its sigma, excepted: GPUs run a kernel in its place."""
    updater = updater_of(build(name, augment=AugmentConfig(blur=0)))
    for seed in range(3):  # with search, the queue is full in the last one
        clips, numbers = batch(seed, 2 * METHODS[name].crops), draw(seed)
        with HostReads() as reads:
            updater.add_gradients(clips, numbers)
            updater.step(0.01)
        assert reads.found == []


def test_reads_are_noted():
    with HostReads() as reads:
        torch.ones(2).nonzero().sum().item()
    assert reads.found == ["aten.nonzero.default", "aten._local_scalar_dense.default"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", [None, "default", "reduce-overhead"])
@pytest.mark.parametrize("name", METHODS)
def test_the_host_never_waits_in_a_step(name, mode):
    device, views = torch.device("cuda"), 2 * METHODS[name].crops
    updater = updater_of(build(name), device, compile=mode)
    batches = [batch(seed, views, device) for seed in range(6)]
    for seed, clips in enumerate(batches):
        # The first steps make tables, compile and capture; with search, the queue is full after two.
        torch.cuda.set_sync_debug_mode("error" if seed > 4 else "default")
        try:
            updater.add_gradients(clips, draw(seed))
            updater.step(0.01)
        finally:
            torch.cuda.set_sync_debug_mode("default")
