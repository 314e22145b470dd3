"""A whole DCLR step on small clips: terms, switches, schedule, gradients, two processes."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from dclr.augment import AugmentConfig, Draw
from dclr.data.clips import Batch
from dclr.methods import DCLR, DCLRConfig, DCLRRelease, DCLRReleaseConfig, SimCLR, SimCLRConfig, build_method
from dclr.methods.dclr import AlignmentConfig, LossStart, LossWeights, RefineConfig, balanced
from dclr.methods.search import SearchConfig

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


def test_per_modality_statistics_are_those_of_the_clip():
    """Running statistics after a step equal those of an encoder that saw v alone."""
    batch = batch_of(3)
    method, alone = (build(DCLRConfig(hidden=8, dim=4, bn="per_modality", center=True)) for _ in range(2))
    method(batch, draw_of())
    alone.encode(alone.augment.streams(batch.clips, draw_of()).rgb)
    torch.testing.assert_close(method.encoder.norm.running_mean, alone.encoder.norm.running_mean)
    torch.testing.assert_close(method.encoder.norm.running_var, alone.encoder.norm.running_var)
    assert method.encoder.norm.momentum == 0.1


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


def test_balance_keeps_values_and_moves_gradient_to_the_harder_term():
    first, second = torch.tensor(2.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    losses = balanced({"vs": first * 3, "vd": second * 2}, 2.0)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx({"vs": 6, "vd": 2})
    sum(losses.values()).backward()
    # 36 and 4 over their mean of 20.
    assert (first.grad.item(), second.grad.item()) == pytest.approx((3 * 1.8, 2 * 0.2))
    assert balanced({"vd": second * 0}, 3.0)["vd"] == 0


def test_balance_of_the_separation_alone():
    method = build(DCLRConfig(hidden=8, dim=4, losses=LossWeights(0, 0, 0, 1), balance=1, alignment=AlignmentConfig(0)))
    assert set(method(batch_of(3), draw_of()).losses) == {"sd"}


def test_colours_are_shared_where_the_augmentation_says_so():
    augment = AugmentConfig(color_shared=True)
    assert build(augment=augment).augment.config.color_shared and augment == AugmentConfig(color_shared=True)


@pytest.mark.parametrize("width", ["dim", "hidden"])
def test_heads_have_a_width(width):
    with pytest.raises(ValueError, match=f"method.{width}: got 0, expected at least 1"):
        build(DCLRConfig(**{width: 0}))


def test_balance_leaves_a_single_term_and_the_separation_alone():
    plain, weighted = (
        build(DCLRConfig(hidden=8, dim=4, loss_start=LossStart(vs=1), search=SearchConfig(on=()), balance=power))
        for power in (0, 3)
    )
    outputs = [method(batch_of(4), draw_of()) for method in (plain, weighted)]
    for method, output in zip((plain, weighted), outputs):
        total(method, output).backward()
    for one, other in zip(plain.parameters(), weighted.parameters()):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)


def test_terms_start_at_their_epochs():
    config = DCLRConfig(
        hidden=8, dim=4, losses=LossWeights(0, 1, 1, 1), loss_start=LossStart(vs=2, sd=3),
        alignment=AlignmentConfig(start=1), refine=RefineConfig(start=2),
    )  # fmt: skip
    method = build(config)
    expected = {0: {"vd"}, 1: {"vd", "ac"}, 2: {"vd", "vs", "ac"}, 3: {"vd", "vs", "sd", "ac"}}
    assert method.conditional
    for epoch, names in expected.items():
        method.start_epoch(epoch)
        assert set(method.loss_weights) == names
        assert set(method(batch_of(3), draw_of()).losses) == names
        assert method.refine_difference == (epoch >= 2)


def test_no_term_at_the_first_epoch_is_an_error():
    with pytest.raises(ValueError, match="loss_start"):
        build(DCLRConfig(losses=LossWeights(0, 0, 1, 0), loss_start=LossStart(vd=3)))


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


def test_a_step_by_the_equations_equals_one_by_the_kernel():
    """Losses and gradients, with terms in the batch and across videos."""
    search = SearchConfig(on=("d",), queue=4, start=0, refresh=5, k=2)
    config = DCLRConfig(hidden=8, dim=4, losses=LossWeights(1, 1, 1, 1), search=search)
    packed, printed = build(config), build(replace(config, reference=True))
    for method in (packed, printed):
        method.start_epoch(0)
        for step in range(2):
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
    config = DCLRConfig(hidden=8, dim=4, search=SearchConfig(on=on, queue=4, start=0, refresh=5, k=2, feat=feat))
    method = build(config)
    method.start_epoch(0)
    for step in range(2):
        output = method(batch_of(4, seed=step, first_id=4 * step), draw_of(step))
        method.after_step()
    assert {f"search/v{mode}_hit_rate" for mode in on} <= set(output.statistics)
    assert total(method, output).isfinite()


def test_state_dict_holds_queue_and_slow_encoder():
    config = DCLRConfig(hidden=8, dim=4, search=SearchConfig(queue=6, start=0, refresh=5, k=2))
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


def test_table_of_defaults():
    config = asdict(DCLRConfig())
    assert config["losses"] == {"vv": 0, "vs": 1, "vd": 1, "sd": 1}
    assert (config["temperature"], config["dim"], config["hidden"], config["denominator"]) == (0.07, 128, 512, "others")
    assert config["search"] == {
        "on": ("d",), "k": 5, "dist": "prior", "start": 10, "refresh": 10, "queue": 2048, "on_refresh": "flush",
        "exclude_same_video": True, "feat": "proj",
    }  # fmt: skip
    assert config["alignment"] == {"lambda_": 0.5, "reduction": "mean", "start": 0}
    assert config["refine"] == {"s": True, "d": True, "start": 10}
