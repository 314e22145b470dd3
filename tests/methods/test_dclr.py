"""A whole DCLR step on small clips: terms, switches, schedule, gradients, two processes."""

import copy
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from dclr.augment import AugmentConfig, Draw, Streams
from dclr.data.clips import Batch
from dclr.methods import DCLR, DCLRConfig, DCLRRelease, DCLRReleaseConfig, SimCLR, SimCLRConfig, build_method
from dclr.methods.balance import by_progress
from dclr.methods.contrast import Term
from dclr.methods.dclr import AlignmentConfig, LossWeights, RefineConfig
from dclr.methods.packing import packed_losses
from dclr.methods.search import SearchConfig
from dclr.models import accelerate, build_encoder
from dclr.models.separate_norm import separate_statistics

FRAMES, SIZE = 4, 16
PLAIN = AugmentConfig(flip=0, grayscale=0, jitter=0, blur=0)


class TinyEncoder(nn.Module):
    feature_dim = 6

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 6, 3, stride=(1, 4, 4), padding=1)
        self.norm = nn.BatchNorm3d(6)

    def forward(self, x):
        return self.norm(self.conv(x)).relu()


def batch_of(n, views=2, seed=0, first_id=0):
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(256, (views, n, FRAMES + 1, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    return Batch(clips, torch.arange(first_id, first_id + n), torch.arange(n) % 2)


def draw_of(seed=0, rank=0, world=1):
    return Draw(torch.Generator().manual_seed(seed), rank, world)


def build(config=None, augment=PLAIN, seed=0):
    torch.manual_seed(seed)
    return build_method(config or DCLRConfig(hidden=8, dim=4), TinyEncoder(), augment)


def total(method, output):
    assert set(output.losses) == set(method.loss_weights)
    return sum(weight * output.losses[name] for name, weight in method.loss_weights.items())


def test_full_objective_reaches_every_parameter():
    method = build()
    method.start_epoch(10)
    output = method(batch_of(4), draw_of())
    assert set(output.losses) == {"vs", "vd", "sd", "ac"}
    assert method.loss_weights == {"vs": 1, "vd": 1, "sd": -1, "ac": 0.5}
    total(method, output).backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert {name.split(".")[1] for name, _ in method.heads.named_parameters(prefix="heads")} == {"vs", "vd", "s", "d"}


def test_one_head_has_the_papers_size():
    method = build(DCLRConfig())
    head = method.heads["vs"]
    assert sum(p.numel() for p in head.parameters()) == 6 * 512 + 512 + 512 * 128 + 128


@pytest.mark.parametrize("same_view", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("heads", ["separate", "shared"])
@pytest.mark.parametrize("bn", ["mixed", "per_modality"])
@pytest.mark.parametrize("denominator", ["others", "literal", "all", "joint"])
def test_switches_train(same_view, symmetric, heads, bn, denominator):
    config = DCLRConfig(
        losses=LossWeights(1, 1, 1, 1), same_view=same_view, symmetric=symmetric, heads=heads, bn=bn,
        denominator=denominator, hidden=8, dim=4,
    )  # fmt: skip
    method = build(config)
    method.start_epoch(10)
    loss = total(method, method(batch_of(3), draw_of()))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize("static_once", [False, True])
@pytest.mark.parametrize("losses", [LossWeights(0, 1, 1, 0), LossWeights(0, 1, 0, 0), LossWeights(0, 0, 1, 0)])
def test_per_modality_statistics_are_those_of_separate_passes(losses, static_once):
    """Features of one pass, and its gradients; the running statistics are the clip's."""
    config = DCLRConfig(hidden=8, dim=4, losses=losses, search=SearchConfig(on=()), alignment=AlignmentConfig(0))
    torch.manual_seed(0)
    method = build_method(config, build_encoder("r2plus1d_tiny", widths=(5, 6, 7, 9)), PLAIN)
    alone = copy.deepcopy(method.encoder).double()
    separate_statistics(alone, 1)
    accelerate(method, static_once=static_once, fold=static_once).double()
    method.start_epoch(0)
    streams = Streams(*(clip.double() for clip in method.augment.streams(batch_of(3).clips, draw_of())))
    features = method._encode(streams)
    encoders = {name: copy.deepcopy(alone) for name in features}
    expected = {name: encoders[name](clip) for name, clip in zip("vsd", streams) if name in features}
    torch.testing.assert_close(features, expected)
    for outputs in (features, expected):
        sum((outputs[name] * "_vsd".index(name)).square().sum() for name in outputs).backward()
    for one, *others in zip(method.encoder.parameters(), *(encoder.parameters() for encoder in encoders.values())):
        torch.testing.assert_close(one.grad, sum(other.grad for other in others))
    torch.testing.assert_close(dict(method.encoder.named_buffers()), dict(encoders["v"].named_buffers()))


def test_alignment_gradient_reaches_the_clip_only():
    """L_ac leaves s and d alone: its gradient with BatchNorm in evaluation mode equals that of the clip's branch."""
    method = build(DCLRConfig(hidden=8, dim=4, losses=LossWeights(0, 1, 1, 1)))
    method.eval()
    batch = batch_of(3)
    streams = method.augment.streams(batch.clips, draw_of())
    features = {name: method.encode(clip).requires_grad_() for name, clip in zip("vsd", streams)}
    for value in features.values():
        value.retain_grad()
    _, alignment = method._pool(features)
    alignment.backward()
    assert features["v"].grad.abs().sum() > 0
    assert all(features[name].grad is None or not features[name].grad.any() for name in "sd")


def test_balance_keeps_values_and_moves_gradient_to_the_term_behind():
    first, second = torch.tensor(1.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    losses = by_progress({"vs": first * 6, "vd": second * 2}, {"vs": 7.0, "vd": 6.0})
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx({"vs": 6, "vd": 2})
    sum(losses.values()).backward()
    # 1 / 1 and 1 / 16 over their mean of 17 / 32.
    assert (first.grad.item(), second.grad.item()) == pytest.approx((6 * 32 / 17, 2 * 2 / 17))


def test_balance_of_a_term_at_chance():
    """Has all of the gradient, but a share that is not zero."""
    first, second = torch.tensor(7.0, requires_grad=True), torch.tensor(5.0, requires_grad=True)
    sum(by_progress({"vs": first, "vd": second}, {"vs": 6.0, "vd": 6.0}).values()).backward()
    assert first.grad > 1.9 and 0 < second.grad < 0.01


def test_balance_is_the_gradient_of_the_harmonic_mean_of_progress():
    """Of 1 / (c - L_vs) + 1 / (c - L_vd), but for its length."""
    method = build(DCLRConfig(hidden=8, dim=4, losses=LossWeights(0, 1, 1, 0), search=SearchConfig(on=())))
    chance = 2 * math.log(2 * 4 - 1)
    losses = method(batch_of(4), draw_of()).losses
    values = {name: losses[name] for name in ("vs", "vd")}
    shifted = {name: value - value.item() + chance - 0.5 - place for place, (name, value) in enumerate(values.items())}
    progress = by_progress(shifted, dict.fromkeys(shifted, chance))
    parameters = list(method.encoder.parameters())
    got = torch.autograd.grad(sum(progress.values()), parameters, retain_graph=True)
    inverse = sum(1 / (chance - value) for value in shifted.values())
    expected = torch.autograd.grad(inverse, parameters)
    length = got[0].norm() / expected[0].norm()
    for one, other in zip(got, expected):
        torch.testing.assert_close(one, length * other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("losses", [LossWeights(0, 0, 1, 1), LossWeights(0, 0, 0, 1)])
def test_balance_leaves_a_single_term_and_the_separation_alone(losses):
    plain, weighted = (
        build(DCLRConfig(hidden=8, dim=4, losses=losses, search=SearchConfig(on=()), balance=balance))
        for balance in ("none", "progress")
    )
    for method in (plain, weighted):
        total(method, method(batch_of(4), draw_of())).backward()
    for one, other in zip(plain.parameters(), weighted.parameters()):
        assert torch.equal(one.grad, other.grad)


def test_colours_are_shared_where_the_augmentation_says_so():
    augment = AugmentConfig(color_shared=True)
    assert build(augment=augment).augment.config.color_shared and augment == AugmentConfig(color_shared=True)


@pytest.mark.parametrize("width", ["dim", "hidden"])
def test_heads_have_a_width(width):
    with pytest.raises(ValueError, match=f"method.{width}: got 0, expected at least 1"):
        build(DCLRConfig(**{width: 0}))


def test_parts_start_at_their_epochs():
    config = DCLRConfig(hidden=8, dim=4, alignment=AlignmentConfig(start=1), refine=RefineConfig(start=2))
    method = build(config)
    for epoch in range(3):
        method.start_epoch(epoch)
        names = {"vs", "vd", "sd", "ac"} if epoch else {"vs", "vd", "sd"}
        assert set(method.loss_weights) == set(method(batch_of(3), draw_of()).losses) == names
        assert method.refine_difference == (epoch >= 2)


@pytest.mark.parametrize("bound", ["anchor", "batch"])
def test_the_separation_ends_at_chance(bound):
    """Beyond it there is no gradient; without a bound there is."""
    chance = 2 * math.log(2 * 3 - 1)
    s, d = torch.eye(6, 8), -torch.eye(6, 8)
    for one, alive in ((bound, False), ("none", True)):
        anchor = s.clone().requires_grad_()
        value = packed_losses([Term(anchor, d, True, one)], 0.1)
        value.sum().backward()
        assert bool(anchor.grad.any()) == alive
        assert (value.item() > chance + 1) == alive


def test_search_replaces_the_in_batch_term_once_the_queue_is_full():
    config = DCLRConfig(hidden=8, dim=4, search=SearchConfig(queue=8, start=1, refresh=1, k=3))
    method, plain = build(config), build(DCLRConfig(hidden=8, dim=4, search=SearchConfig(on=())))
    plain.load_state_dict({k: v for k, v in method.state_dict().items() if not k.startswith("search")})
    for one in (method, plain):
        one.start_epoch(0)
    values = [one(batch_of(4), draw_of()).losses["vd"] for one in (method, plain)]
    assert torch.equal(*values)
    method.after_step()
    assert method.search.queues["d"].size == 0
    plain.load_state_dict({k: v for k, v in method.state_dict().items() if not k.startswith("search")})
    for one in (method, plain):
        one.start_epoch(1)
    for step in range(3):
        batch = batch_of(4, seed=step, first_id=4 * step)
        outputs = [one(batch, draw_of(step)) for one in (method, plain)]
        assert torch.equal(outputs[0].losses["vd"], outputs[1].losses["vd"]) == (step < 2)
        assert method.search.queues["d"].size == min(8, 4 * step)
        method.after_step()
    assert outputs[0].statistics["search/vd_queue_fill"] == 1
    assert 0 <= outputs[0].statistics["search/vd_hit_rate"] <= 1
    total(method, outputs[0]).backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


def test_a_search_describes_differences_as_the_encoder_was_trained_on_them():
    """By their own batch statistics: the running ones, which evaluation has, are those of clips."""
    method = build(DCLRConfig(hidden=8, dim=4, search=SearchConfig(queue=8, start=0, refresh=5, k=3))).train()
    method.start_epoch(0)
    streams = method.augment.streams(batch_of(4).clips, draw_of())
    trained = method._encode(streams)["d"]
    torch.testing.assert_close(method.search.slow.encoder(streams.difference), trained)


@pytest.mark.parametrize("dist", ["prior", "mean"])
def test_the_own_positive_stays(dist):
    """Half of the term is that of the batch alone, half that across videos, which may also replace it."""
    search = SearchConfig(queue=8, start=0, refresh=5, k=3, dist=dist, keep_own=False)
    kept = replace(search, keep_own=True)
    values = {}
    for name, how in (("across", search), ("both", kept), ("own", SearchConfig(on=()))):
        method = build(DCLRConfig(hidden=8, dim=4, search=how))
        method.start_epoch(0)
        for step in range(3):
            values[name] = method(batch_of(4, seed=step, first_id=4 * step), draw_of(step)).losses["vd"]
            method.after_step()
    torch.testing.assert_close(values["both"], (values["own"] + values["across"]) / 2)


@pytest.mark.parametrize("keep_own", [True, False])
@pytest.mark.parametrize("negatives", ["queue", "batch"])
def test_a_step_by_the_equations_equals_one_by_the_kernel(negatives, keep_own):
    """Losses and gradients, with terms in the batch and across videos."""
    search = SearchConfig(on=("d",), queue=8, start=0, refresh=5, k=2, keep_own=keep_own, negatives=negatives)
    config = DCLRConfig(hidden=8, dim=4, losses=LossWeights(1, 1, 1, 1), search=search)
    packed, printed = build(config), build(replace(config, reference=True))
    for method in (packed, printed):
        method.start_epoch(0)
        for step in range(3):
            method.zero_grad()
            output = method(batch_of(4, seed=step, first_id=4 * step), draw_of(step))
            total(method, output).backward()
            method.after_step()
        assert output.statistics["search/vd_queue_fill"] == 1
    for one, other in zip(packed.parameters(), printed.parameters()):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("on", [("s",), ("s", "d")])
@pytest.mark.parametrize("feat", ["proj", "backbone"])
def test_search_on_other_modes(on, feat):
    config = DCLRConfig(hidden=8, dim=4, search=SearchConfig(on=on, queue=8, start=0, refresh=5, k=2, feat=feat))
    method = build(config)
    method.start_epoch(0)
    for step in range(3):
        output = method(batch_of(4, seed=step, first_id=4 * step), draw_of(step))
        method.after_step()
    assert {f"search/v{mode}_hit_rate" for mode in on} <= set(output.statistics)
    assert total(method, output).isfinite()


def test_state_dict_holds_queue_and_slow_encoder():
    config = DCLRConfig(hidden=8, dim=4, search=SearchConfig(queue=8, start=0, refresh=5, k=2))
    method, other = build(config), build(config, seed=1)
    method.start_epoch(0)
    method(batch_of(4), draw_of())
    method.after_step()
    other.load_state_dict(method.state_dict())
    other.start_epoch(0, resumed=True)
    for one in (method, other):
        one(batch_of(4, seed=1, first_id=4), draw_of(1))
        one.after_step()
    for name, value in method.search.state_dict().items():
        if isinstance(value, torch.Tensor) and "slow" not in name:
            assert torch.equal(value, other.search.state_dict()[name]), name


def test_simclr_equals_the_vanilla_term_of_dclr():
    simclr = build(SimCLRConfig(hidden=8, dim=4))
    assert isinstance(simclr, SimCLR)
    off = {"alignment": AlignmentConfig(0), "search": SearchConfig(on=()), "refine": RefineConfig(False, False)}
    dclr = build(DCLRConfig(hidden=8, dim=4, losses=LossWeights(1, 0, 0, 0), **off))
    assert isinstance(dclr, DCLR)
    dclr.load_state_dict({name.replace("head.", "heads.vv."): v for name, v in simclr.state_dict().items()})
    for one in (simclr, dclr):
        one.start_epoch(0)
    values = [one(batch_of(4), draw_of()).losses["vv"] for one in (simclr, dclr)]
    torch.testing.assert_close(*values)


def test_official_release_runs_end_to_end():
    config = DCLRReleaseConfig(hidden=8, dim=4, queue=10, k=3)
    method = build(config, AugmentConfig())
    assert isinstance(method, DCLRRelease)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    slow = [p.clone() for p in method.key.parameters()]
    for step in range(3):
        output = method(batch_of(4, views=config.views * config.crops, seed=step), draw_of(step))
        assert set(output.losses) == {"vv", "vs", "sv", "vd", "dv", "ac"}
        assert not output.losses["ac"].requires_grad
        total(method, output).backward()
        assert all(p.grad.isfinite().all() for p in method.query.parameters())
        optimizer.step()
        method.after_step()
    assert [queue.pointer for queue in method.queues.values()] == [2] * 5
    for old, new, fast in zip(slow, method.key.parameters(), method.query.parameters()):
        assert not torch.equal(old, new) or torch.equal(old, fast)


def test_official_release_in_its_own_order_of_operations():
    """A step from plain PyTorch: both views through the momentum encoder, then the queries, then the losses."""
    config = DCLRReleaseConfig(hidden=8, dim=4, queue=12, k=3, temperature=0.2)
    method = build(config, PLAIN)
    for parameter in method.key.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    method.eval()  # BatchNorm's statistics do not depend on who is encoded together
    batch = batch_of(3, views=4)
    streams = method.augment.streams(batch.clips[:2], draw_of(), batch.clips[2:])
    view_i, view_j = ([stream[rows] for stream in streams] for rows in (slice(3), slice(3, 6)))

    def project(branch, clips, masks):
        """As the release pools: the average of F A / mean(A)."""
        v, s, d = (branch.encoder(clip) for clip in clips)
        refined = [(v * a[:, None] / a.mean((1, 2, 3))[:, None, None, None, None]) for a in masks]
        pooled = dict(zip(("vv", "vs", "vd", "sv", "dv"), (v, *refined, s, d)))
        heads = {name: branch.heads[name](feature.mean((2, 3, 4))) for name, feature in pooled.items()}
        return {name: value / value.norm(dim=1, keepdim=True) for name, value in heads.items()}

    with torch.no_grad():
        maps = [[method.key.module.encoder(clip).abs().sum(1) for clip in view] for view in (view_i, view_j)]
        found = project(method.key.module, view_i, maps[0][1:])
        keys = project(method.key.module, view_j, maps[1][1:])
        queue = {name: method.queues[name].keys for name in keys}
        ranking = {name: (found[name] @ queue[name].T).softmax(1) for name in ("sv", "dv")}
        near = {name: value.topk(3).indices for name, value in ranking.items()}
        near_both = (ranking["sv"] + ranking["dv"]).topk(3).indices
    query = project(method.query, view_i, maps[0][1:])
    output = method(batch, draw_of())
    positives = {"vv": near_both, "vs": near["sv"], "sv": near["sv"], "vd": near["dv"], "dv": near["dv"]}
    for name, key in {"vv": "vv", "vs": "sv", "sv": "vs", "vd": "dv", "dv": "vd"}.items():
        logits = torch.cat([(query[name] * keys[key]).sum(1, keepdim=True), query[name] @ queue[key].T], 1) / 0.2
        share = logits.softmax(1)
        chosen = share[:, 0] + share[:, 1:].gather(1, positives[name]).sum(1)
        torch.testing.assert_close(output.losses[name], -chosen.log().mean())
    across = maps[0][0] - maps[1][1] - maps[1][2]
    torch.testing.assert_close(output.losses["ac"], across.square().mean())
    weights = [module.weight for module in method.query.heads.modules() if isinstance(module, nn.Linear)]
    assert all(0.005 < weight.std() < 0.015 for weight in weights)


def test_table_of_defaults():
    config = asdict(DCLRConfig())
    assert config["losses"] == {"vv": 0, "vs": 1, "vd": 1, "sd": 1}
    assert (config["temperature"], config["dim"], config["hidden"], config["denominator"]) == (0.07, 128, 512, "others")
    assert config["search"] == {
        "on": ("d",), "k": 5, "dist": "prior", "start": 10, "refresh": 10, "queue": 2048, "on_refresh": "flush",
        "exclude_same_video": True, "feat": "proj", "keep_own": True, "negatives": "queue",
    }  # fmt: skip
    assert config["alignment"] == {"lambda_": 0.5, "reduction": "mean", "start": 0}
    assert (config["sd_bound"], config["bn"], config["balance"]) == ("anchor", "per_modality", "progress")
    assert config["refine"] == {"s": True, "d": True, "start": 10}
