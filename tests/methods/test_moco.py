"""MoCo: the loss by hand, the queue and the momentum encoder, training and resuming, two processes."""

import dataclasses

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.functional import normalize

from dclr.augment import AugmentConfig
from dclr.commands.pretrain import pretrain
from dclr.config import OptimConfig, TrainConfig
from dclr.data.clips import Batch
from dclr.data.synth import SynthConfig, synthesize
from dclr.distributed import gather_rows
from dclr.kernels import info_nce
from dclr.methods import MoCo, MoCoConfig, build_method
from dclr.methods.momentum import queue_contrast, queue_similarities
from dclr.presets.demo import demo_vanilla
from dclr.training import load_checkpoint, read_metrics

from .fixtures import S, V
from .test_dclr import TinyEncoder, batch_of, build, draw_of

SMALL = MoCoConfig(hidden=8, dim=4, queue=10)
STEPS, VIDEOS = 3, 4


def step(method, number=0, videos=VIDEOS, views=2, rate=0.1):
    """One step of plain gradient descent; returns the losses."""
    output = method(batch_of(videos, views, seed=number, first_id=videos * number), draw_of(number))
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    loss = sum(weight * output.losses[name] for name, weight in method.loss_weights.items())
    with torch.no_grad():
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.sub_(rate * gradient)
    method.after_step()
    return output.losses


@pytest.mark.parametrize("loss", ["info_nce", "queue_contrast"])
def test_worked_example(loss):
    query, key, queue = V[:1], V[2:3], torch.stack([V[1], V[3], S[1]])
    if loss == "info_nce":
        value = info_nce(query, queue, positive=key[:, None], temperature=0.07)
    else:
        value = queue_contrast(query, key, queue, 0.07)
    assert value.item() == pytest.approx(1.726121, abs=1e-6)


def test_queue_contrast_against_logits():
    torch.manual_seed(0)
    query, key = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    queue = torch.randn(7, 3, dtype=torch.float64)
    loss = queue_contrast(query, key, queue, 0.2)
    q, k, negative = (normalize(value, dim=1) for value in (query, key, queue))
    logits = torch.cat([(q * k.detach()).sum(1, keepdim=True), q @ negative.T], dim=1) / 0.2
    expected = (logits.logsumexp(1) - logits[:, 0]).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*torch.autograd.grad(loss, query), *torch.autograd.grad(expected, query))
    assert not queue_contrast(query.detach(), key, queue, 0.2).requires_grad
    positive, mean = queue_similarities(query, key, negative)
    torch.testing.assert_close(positive, (q * k).sum(1).mean())
    torch.testing.assert_close(mean, (q @ negative.T).mean())


@pytest.mark.parametrize("symmetric", [False, True])
def test_loss_of_a_step(symmetric):
    """Queries by the encoder, keys by the momentum encoder, negatives from the queue: written out."""
    method = build(dataclasses.replace(SMALL, symmetric=symmetric)).eval()
    assert isinstance(method, MoCo)
    step(method, rate=5.0)
    batch = batch_of(VIDEOS, seed=1)
    views = method.augment.rgb(batch.clips, draw_of()).chunk(2)
    query = [normalize(method.head(method.encoder(clip).mean((2, 3, 4))), dim=1) for clip in views]
    key = [normalize(method.key_head.module(method.key_encoder.module(clip).mean((2, 3, 4))), dim=1) for clip in views]
    assert not torch.allclose(query[1], key[1], atol=1e-3)
    losses = []
    for q, k in [(query[0], key[1]), (query[1], key[0])][: 1 + symmetric]:
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ method.queue.keys.T], dim=1) / 0.07
        losses.append((logits.logsumexp(1) - logits[:, 0]).mean())
    torch.testing.assert_close(method(batch, draw_of()).losses["vv"], sum(losses) / len(losses))
    method.after_step()
    rows = torch.arange(len(losses) * VIDEOS) + len(losses) * VIDEOS  # after those of the first step
    newest = method.queue.keys[rows % 10]
    torch.testing.assert_close(newest, torch.cat([key[1], key[0]][: len(losses)]))


def test_keys_wait_for_the_end_of_the_step():
    """Neither direction sees a key of its own step, and parts of an accumulated step see none of each other's."""
    method = build(dataclasses.replace(SMALL, symmetric=True, queue=20))
    before = method.queue.keys.clone()
    for part in range(2):
        method(batch_of(VIDEOS, seed=part), draw_of(part))
        assert torch.equal(method.queue.keys, before) and method.queue.pointer == 0
    method.after_step()
    assert method.queue.pointer == 16
    assert torch.equal(method.queue.keys[16:], before[16:])
    assert not (method.queue.keys[:16] == before[:16]).all(1).any()


def test_trains_under_autocast():
    method = build(dataclasses.replace(SMALL, symmetric=True))
    with torch.autocast("cpu", torch.bfloat16):
        loss = step(method)["vv"]
    assert loss.dtype == method.queue.keys.dtype == torch.float32 and loss.isfinite()
    torch.testing.assert_close(method.queue.keys.norm(dim=1), torch.ones(10))


def test_queue_that_is_no_multiple_of_the_batch_wraps():
    method, pointers = build(SMALL), []
    for number in range(3):
        step(method, number)
        pointers.append(method.queue.pointer)
    assert pointers == [4, 8, 2]


def test_momentum_encoder_follows_and_has_no_gradient():
    method = build(dataclasses.replace(SMALL, momentum=0.9, center=True))
    old = [parameter.clone() for parameter in (*method.key_encoder.parameters(), *method.key_head.parameters())]
    step(method, rate=5.0)
    new = [*method.key_encoder.parameters(), *method.key_head.parameters()]
    fast = [*method.encoder.parameters(), *method.head.parameters()]
    assert not any(parameter.requires_grad for parameter in new)
    moved = 0
    for before, after, source in zip(old, new, fast):
        torch.testing.assert_close(after, 0.9 * before + 0.1 * source)
        moved += not torch.equal(before, after)
    assert moved >= 5
    slow, encoder = method.key_encoder.module.norm, method.encoder.norm
    assert slow.running_mean.any() and not torch.allclose(slow.running_mean, encoder.running_mean)


def test_momentum_one_never_moves():
    method = build(dataclasses.replace(SMALL, momentum=1.0))
    old = [parameter.clone() for parameter in method.key_encoder.parameters()]
    step(method, rate=5.0)
    assert all(torch.equal(*pair) for pair in zip(old, method.key_encoder.parameters()))


@pytest.mark.parametrize("key_bn", ["shuffle", "sync", "plain"])
def test_alone_every_key_bn_is_the_same(key_bn):
    one, plain = (build(dataclasses.replace(SMALL, key_bn=name)) for name in (key_bn, "plain"))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in one.modules()) == (key_bn == "sync")
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in one.encoder.modules())
    assert torch.equal(step(one)["vv"], step(plain)["vv"])


def test_queue_shorter_than_a_step():
    build(SMALL).check(global_batch=10, steps_per_epoch=1)
    with pytest.raises(ValueError, match=r"method\.queue: got 10, expected at least the 11 keys of one step"):
        build(SMALL).check(global_batch=11, steps_per_epoch=1)
    with pytest.raises(ValueError, match=r"method\.queue: got 10, expected at least the 12 keys"):
        build(dataclasses.replace(SMALL, symmetric=True)).check(global_batch=6, steps_per_epoch=1)


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"momentum": 1.5}, {"momentum": -0.1}, {"queue": 0}])
def test_bad_configuration(bad):
    with pytest.raises(ValueError, match=rf"method\.{next(iter(bad))}: got"):
        MoCoConfig(**bad)


def assert_state_round_trip(config, views, queues):
    """Another method with the state goes on as the first; `queues` are its queues' names."""
    method, other = build(config), build(config, seed=1)
    for number in range(STEPS):
        step(method, number, views=views)
    other.load_state_dict(method.state_dict())
    for name in queues:
        assert other.get_submodule(name).pointer == method.get_submodule(name).pointer == 2
    for one in (method, other):
        one.last = step(one, STEPS, views=views)
    assert method.last.keys() == other.last.keys()
    assert all(torch.equal(value, other.last[name]) for name, value in method.last.items())
    for name, value in method.state_dict().items():
        other_value = other.state_dict()[name]
        assert torch.equal(value, other_value) if isinstance(value, torch.Tensor) else value == other_value, name


def test_state_dict_holds_queue_pointer_and_momentum_encoder():
    assert_state_round_trip(SMALL, 2, ["queue"])


def assert_trains_and_resumes(config, folder):
    """Two epochs of two steps on generated videos equal one epoch, a fresh start from its checkpoint, and another."""
    synthesize(str(folder / "videos"), SynthConfig(train=8, test=1, frames=12))

    def run(output, epochs, resume=False):
        preset = demo_vanilla()
        train = TrainConfig(epochs=epochs, batch=4, log_every=1, device="cpu", tensorboard=False)
        data = dataclasses.replace(preset.data, root=str(folder / "videos"))
        optim = OptimConfig(lr=0.1, schedule="constant")
        return pretrain(
            dataclasses.replace(
                preset, output=str(folder / output), train=train, data=data, optim=optim, method=config
            ),
            resume,
        )  # fmt: skip

    whole = run("whole", 2)
    run("parts", 1)
    parts = run("parts", 2, resume=True)
    lines = [line for line in read_metrics(whole) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert len({line["loss"] for line in lines}) == 4
    state, resumed = (load_checkpoint(path)["method"] for path in (whole, parts))
    assert state.keys() == resumed.keys()
    for name, value in state.items():
        assert torch.equal(value, resumed[name]) if isinstance(value, torch.Tensor) else value == resumed[name], name
    return state


def test_trains_and_resumes(tmp_path):
    state = assert_trains_and_resumes(dataclasses.replace(SMALL, symmetric=True), tmp_path)
    assert state["queue._extra_state"] == {"pointer": (4 * 8) % 10}


# Two processes


def train(config, views, rank=0, world=1):
    """Losses of each step, gradients of the last as DistributedDataParallel averages them, and the buffers."""
    torch.manual_seed(0)
    # BatchNorm by running statistics: without SyncBN ranks would differ by theirs.
    method = build_method(config, TinyEncoder(), AugmentConfig()).eval()
    losses, own = [], VIDEOS // world
    for number in range(STEPS):
        whole = batch_of(VIDEOS, views, seed=number, first_id=VIDEOS * number)
        rows = slice(rank * own, (rank + 1) * own)
        batch = Batch(whole.clips[:, rows], whole.video_id[rows], whole.label[rows])
        output = method(batch, draw_of(number, rank, world))
        method.zero_grad()
        sum(output.losses.values()).backward()
        method.after_step()
        values = torch.stack([output.losses[name].detach() for name in sorted(output.losses)])
        losses.append(gather_rows(values[None]).mean(0))
    gradients = [parameter.grad for parameter in method.parameters() if parameter.requires_grad]
    if world > 1:
        for gradient in gradients:
            dist.all_reduce(gradient)
    return torch.stack(losses), [gradient / world for gradient in gradients], list(method.buffers())


def _train(rank, folder, *arguments):
    in_group(rank, folder, lambda: train(*arguments, rank, 2))


def in_group(rank, folder, function):
    """Save what the function returns as process `rank` of two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    torch.save(function(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def of_two_processes(target, folder, *arguments):
    """What `target(rank, folder, *arguments)` saved, of both."""
    mp.start_processes(target, (folder, *arguments), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def assert_two_processes_equal_one(config, views, folder):
    expected = train(config, views)
    assert len(expected[1]) > 0 and len(expected[2]) > 0
    for result in of_two_processes(_train, folder, config, views):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("key_bn", "symmetric"), [("shuffle", True), ("plain", False)])
def test_two_processes_equal_one(key_bn, symmetric, tmp_path):
    assert_two_processes_equal_one(dataclasses.replace(SMALL, key_bn=key_bn, symmetric=symmetric), 2, tmp_path)


def _key_statistics(rank, folder):
    def run():
        means = {}
        for key_bn in ("shuffle", "plain"):
            method = build(dataclasses.replace(SMALL, key_bn=key_bn))
            whole, rows = batch_of(VIDEOS), slice(2 * rank, 2 * rank + 2)
            method(Batch(whole.clips[:, rows], whole.video_id[rows], whole.label[rows]), draw_of(0, rank, 2))
            means[key_bn] = method.key_encoder.module.norm.running_mean
        return means

    in_group(rank, folder, run)


def test_which_videos_a_process_normalises_together(tmp_path):
    """Those of a permutation of the global batch, or its own."""
    draw = draw_of()
    clips = build(SMALL).augment.rgb(batch_of(VIDEOS).clips, draw)[VIDEOS:]
    orders = {"shuffle": torch.randperm(VIDEOS, generator=draw.generator), "plain": torch.arange(VIDEOS)}
    assert set(orders["shuffle"][:2].tolist()) not in ({0, 1}, {2, 3})
    for rank, found in enumerate(of_two_processes(_key_statistics, tmp_path)):
        for key_bn, order in orders.items():
            encoder = build(SMALL).encoder
            encoder(clips[order[2 * rank : 2 * rank + 2]])
            torch.testing.assert_close(found[key_bn], encoder.norm.running_mean)
