"""DualVar: its three losses by hand, shuffled segments, both forms and all modes, training, two processes."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch.nn.functional import normalize

from dclr.augment import AugmentConfig
from dclr.methods import DualVar, DualVarConfig
from dclr.methods.dualvar import (
    clip_contrast,
    draw_order,
    realign,
    shuffle_rank,
    shuffle_segments,
    temporal_coherent_contrast,
    temporal_coherent_queue_contrast,
)

from .fixtures import V
from .test_dclr import batch_of, build, draw_of
from .test_moco import assert_state_round_trip, assert_trains_and_resumes, assert_two_processes_equal_one, step

SMALL = DualVarConfig(hidden=8, dim=4, segment_dim=3, queue=10)
MOCO = dataclasses.replace(SMALL, form="moco", sr_clip=None)
VIEWS = 4
LOSSES = {"clip": {"clip"}, "clip-sr": {"clip", "sr"}, "clip-sr-tc": {"clip", "sr", "tc"}}
MODES = list(itertools.product(("simclr", "moco"), LOSSES))


def units(*rows):
    return normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


def random_units(*shape, seed=0):
    return normalize(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


# Losses

Q = units((1, 0), (0, 1))[None]
MISORDERED = units((3, 4), (4, 3))[None]
# Two videos; clip 0 of each, then clip 1 of each.
SEGMENTS = units(((1, 0), (0, 1)), ((0, 1), (1, 1)), ((3, 4), (4, 3)), ((3, 4), (0, 1)))


@pytest.mark.parametrize(
    ("realigned", "bound", "expected"),
    [(MISORDERED, 5.0, 3.260755), (MISORDERED, None, 3.809263), (MISORDERED.flip(1), 5.0, 0.819063)],
)
def test_shuffle_rank_of_the_worked_example(realigned, bound, expected):
    assert shuffle_rank(Q, realigned, 0.05, bound).item() == pytest.approx(expected, abs=1e-6)


def test_shuffle_rank_against_loops():
    reference, realigned = random_units(4, 3, 5), random_units(4, 3, 5, seed=1)
    for bound in (None, 2.0):
        terms = []
        for q, p in zip(reference, realigned):
            rows = [*q, *p]
            for r, k in itertools.product(range(6), range(6)):
                counterpart = (r + 3) % 6
                if k not in (r, counterpart):
                    gap = (rows[r] @ rows[k] - rows[r] @ rows[counterpart]).item() / 0.3
                    terms.append(math.log1p(math.exp(gap if bound is None else min(gap, bound))))
        assert len(terms) == 4 * 6 * 4
        expected = sum(terms) / len(terms)
        assert shuffle_rank(reference, realigned, 0.3, bound).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shuffle_rank_of_orthonormal_segments(dtype):
    value = shuffle_rank(Q.to(dtype), Q.to(dtype), 0.05, 5.0).item()
    assert value == pytest.approx(math.log1p(math.exp(-1 / 0.05)), rel=1e-5)
    assert value == pytest.approx(2.061e-9, rel=1e-3)


def test_a_gap_beyond_the_bound_has_no_gradient():
    """Segments in each other's place: every gap is at its largest, 1."""
    for bound, moves in ((5.0, False), (None, True)):
        realigned = Q.flip(1).clone().requires_grad_()
        shuffle_rank(Q, realigned, 0.05, bound).backward()
        assert bool(realigned.grad.any()) == moves


def test_shuffle_rank_has_gradient_to_both():
    sides = [random_units(2, 2, 3, seed=seed).requires_grad_() for seed in range(2)]
    assert torch.autograd.gradcheck(lambda q, p: shuffle_rank(q, p, 0.5), sides)


@pytest.mark.parametrize(("tau", "expected"), [(0.07, 1.050254), (0.5, 1.029127)])
def test_temporal_coherent_contrast_of_the_worked_example(tau, expected):
    assert temporal_coherent_contrast(SEGMENTS, tau).item() == pytest.approx(expected, abs=1e-6)


def similarity(a, b):
    """Mean inner product of all pairs of segments."""
    return sum((x @ y).item() for x in a for y in b) / (len(a) * len(b))


def nce(positive, others, tau):
    return math.log(sum(math.exp(value / tau) for value in (positive, *others))) - positive / tau


def test_similarity_of_the_worked_example():
    expected = [
        [0.5, 0.603553, 0.7, 0.6],
        [0.603553, 0.853553, 0.844975, 0.874264],
        [0.7, 0.844975, 0.98, 0.84],
        [0.6, 0.874264, 0.84, 0.9],
    ]
    assert [[similarity(a, b) for b in SEGMENTS] for a in SEGMENTS] == [
        pytest.approx(row, abs=1e-6) for row in expected
    ]
    mean = SEGMENTS.mean(1)
    torch.testing.assert_close(mean @ mean.T, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_temporal_coherent_contrast_against_loops():
    segments, n = random_units(10, 3, 4), 5
    rows = []
    for r, own in enumerate(segments):
        other = (r + n) % (2 * n)
        others = [similarity(own, segments[k]) for k in range(2 * n) if k not in (r, other)]
        rows.append(nce(similarity(own, segments[other]), others, 0.2))
    assert temporal_coherent_contrast(segments, 0.2).item() == pytest.approx(sum(rows) / len(rows), abs=1e-12)


def test_temporal_coherent_queue_contrast_against_loops():
    segments, keys, queue = (random_units(b, 3, 4, seed=b) for b in (5, 6, 7))
    keys = keys[:5]
    rows = [nce(similarity(q, k), [similarity(q, entry) for entry in queue], 0.2) for q, k in zip(segments, keys)]
    value = temporal_coherent_queue_contrast(segments, keys.mean(1), queue.mean(1), 0.2)
    assert value.item() == pytest.approx(sum(rows) / len(rows), abs=1e-12)


def test_clip_contrast_of_the_worked_example():
    assert clip_contrast(V, 0.5).item() == pytest.approx(0.642893, abs=1e-6)


def test_one_video_has_no_negatives():
    segments = random_units(2, 2, 3).requires_grad_()
    value = temporal_coherent_contrast(segments, 0.07)
    value.backward()
    assert value.item() == 0 and not segments.grad.any()


def test_losses_ignore_autocast():
    segments = random_units(4, 2, 8).float()
    values = []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            mean = segments.mean(1)
            values.append(
                (
                    temporal_coherent_contrast(segments, 0.07),
                    temporal_coherent_queue_contrast(segments, mean, mean, 0.07),
                    shuffle_rank(segments, segments.flip(1), 0.05, 5.0),
                    clip_contrast(segments[:, 0], 0.07),
                )
            )
    assert all(value.dtype == torch.float32 for value in values[1])
    assert all(map(torch.equal, *values))


# Segments


def test_uniform_orders_are_all_alike_and_non_identity_ones_but_one():
    orders = draw_order(draw_of(), 6000, 3)
    kinds, counts = orders.unique(dim=0, return_counts=True)
    assert [tuple(kind) for kind in kinds.tolist()] == list(itertools.permutations(range(3)))
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # the 0.1% quantile with 5 degrees of freedom
    kinds, counts = draw_order(draw_of(), 5000, 3, "non_identity").unique(dim=0, return_counts=True)
    assert [tuple(kind) for kind in kinds.tolist()] == list(itertools.permutations(range(3)))[1:]
    assert ((counts - 1000) ** 2 / 1000).sum() < 18.5
    assert draw_order(draw_of(), 9, 2, "non_identity").tolist() == [[1, 0]] * 9


def test_orders_are_those_of_the_global_batch():
    whole = draw_order(draw_of(), 6, 4)
    parts = [draw_order(draw_of(0, rank, 2), 3, 4) for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole)


def test_shuffled_segments():
    clip = torch.arange(2 * 3 * 6).view(2, 3, 6, 1, 1).float()
    shuffled = shuffle_segments(clip, torch.tensor([[2, 0, 1], [0, 1, 2]]))
    assert torch.equal(shuffled[0], clip[0][:, [4, 5, 0, 1, 2, 3]])
    assert torch.equal(shuffled[1], clip[1])


def test_realigned_embeddings():
    embedded = torch.tensor([[[1.0, 2], [3, 4]]])
    assert torch.equal(realign(embedded, torch.tensor([[1, 0]])), embedded.flip(1))


@pytest.mark.parametrize("segments", [2, 3, 4])
def test_realigning_undoes_shuffling(segments):
    """With an encoder that returns each slot's mean."""

    def encode(clip_bcthw):
        return clip_bcthw.unflatten(2, (segments, -1)).mean((3, 4, 5)).transpose(1, 2)

    clip = torch.randn(16, 3, 12, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = draw_order(draw_of(), 16, segments)
    slots = encode(shuffle_segments(clip, order))
    torch.testing.assert_close(realign(slots, order), encode(clip))
    assert not torch.allclose(slots, encode(clip))


# The method


@pytest.mark.parametrize(("form", "mode"), MODES)
def test_every_form_and_mode_reaches_every_parameter(form, mode):
    config = dataclasses.replace(SMALL, form=form, mode=mode)
    method = build(config)
    assert isinstance(method, DualVar) and config.crops == (1 if mode == "clip" else 2)
    before = [parameter.clone() for parameter in method.parameters() if parameter.requires_grad]
    losses = step(method, views=2 * config.crops, rate=1.0)
    assert set(losses) == LOSSES[mode] == set(method.loss_weights)
    assert set(method.loss_weights.values()) == {1.0}
    assert all(value.isfinite() and value.dtype == torch.float32 and value.dim() == 0 for value in losses.values())
    after = [parameter for parameter in method.parameters() if parameter.requires_grad]
    changed = [not torch.equal(*pair) for pair in zip(before, after)]
    assert sum(changed) >= len(changed) - 1  # a bias before BatchNorm has no effect
    assert {name for name, _ in method.named_children() if "queue" in name} == ({"queues"} if form == "moco" else set())


@pytest.mark.parametrize("config", [SMALL, MOCO], ids=["simclr", "moco"])
def test_trains_under_autocast(config):
    method = build(config)
    with torch.autocast("cpu", torch.bfloat16):
        losses = step(method, views=VIEWS)
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())


def parts_of(method, batch):
    """Pooled features and segments of clips 0 and 1 and 2 and of the shuffled clip 2, all in evaluation mode."""
    draw = draw_of()
    clips = method._clips(batch.clips, draw)
    order = draw_order(draw, len(clips[0]), method.config.segments)
    clips.append(shuffle_segments(clips[2], order))
    pooled = [method.encoder(clip).mean((2, 3, 4)) for clip in clips]
    segments = [normalize(method.heads["segment"](value).unflatten(1, (2, 3)), dim=2) for value in pooled]
    return clips, pooled, segments, order


def test_losses_of_the_in_batch_form():
    method, batch = build(SMALL).eval(), batch_of(4, VIEWS)
    _, pooled, segments, order = parts_of(method, batch)
    losses = method(batch, draw_of()).losses
    torch.testing.assert_close(losses["clip"], clip_contrast(method.heads["clip"](torch.cat(pooled[:2])), 0.07))
    torch.testing.assert_close(losses["tc"], temporal_coherent_contrast(torch.cat(segments[:2]), 0.07))
    realigned = torch.stack([row[permutation.argsort()] for row, permutation in zip(segments[3], order)])
    assert not torch.allclose(realigned, segments[3])
    both = [shuffle_rank(segments[clip], realigned, 0.05, 5.0) for clip in (0, 2)]
    assert not torch.allclose(*both)
    torch.testing.assert_close(losses["sr"], sum(both) / 2)


def test_losses_of_the_queue_form():
    method, batch = build(MOCO).eval(), batch_of(4, VIEWS, seed=1)
    step(method, views=VIEWS, rate=5.0)
    clips, pooled, segments, order = parts_of(method, batch)
    slow = method.key_encoder.module(clips[1]).mean((2, 3, 4))
    queues = {name: queue.keys.clone() for name, queue in method.queues.items()}
    heads = method.key_heads.module
    key = normalize(heads["clip"](slow), dim=1)
    mean = normalize(heads["segment"](slow).unflatten(1, (2, 3)), dim=2).mean(1)
    losses = method(batch, draw_of()).losses
    query = normalize(method.heads["clip"](pooled[0]), dim=1)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queues["clip"].T], dim=1) / 0.07
    torch.testing.assert_close(losses["clip"], (logits.logsumexp(1) - logits[:, 0]).mean())
    expected = temporal_coherent_queue_contrast(segments[0], mean, queues["segment"], 0.07)
    torch.testing.assert_close(losses["tc"], expected)
    realigned = realign(segments[3], order)
    both = [shuffle_rank(segments[clip], realigned, 0.05) for clip in (0, 2)]
    torch.testing.assert_close(losses["sr"], sum(both) / 2)
    method.after_step()
    for name, value in (("clip", key), ("segment", mean)):
        torch.testing.assert_close(method.queues[name].keys[4:8], value)
        assert torch.equal(method.queues[name].keys[:4], queues[name][:4])


def test_momentum_encoder_follows():
    method = build(dataclasses.replace(MOCO, momentum=0.9))
    names = ("encoder", "heads")
    old = [[p.clone() for p in method.get_submodule(f"key_{name}").parameters()] for name in names]
    step(method, views=VIEWS, rate=5.0)
    for name, before in zip(names, old):
        new = method.get_submodule(f"key_{name}").parameters()
        for parameter, previous, fast in zip(new, before, method.get_submodule(name).parameters()):
            torch.testing.assert_close(parameter, 0.9 * previous + 0.1 * fast)
            assert not parameter.requires_grad


def test_clip_2_shows_the_frames_of_clip_0_from_its_own_crop():
    method, batch = build(dataclasses.replace(SMALL, reverse=0)), batch_of(3, VIEWS)
    clips = method._clips(batch.clips, draw_of())
    for clip, view in zip(clips, (0, 1, 2), strict=True):
        raw = batch.clips[view, :, :-1].permute(0, 4, 1, 2, 3).float() / 255
        mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (AugmentConfig().mean, AugmentConfig().std))
        torch.testing.assert_close(clip, (raw - mean) / std)


def test_all_clips_of_a_video_run_the_same_way():
    forwards, backwards, mixed = (build(dataclasses.replace(SMALL, reverse=p)) for p in (0.0, 1.0, 0.5))
    batch = batch_of(16, VIEWS)
    ahead, back, both = (method._clips(batch.clips, draw_of()) for method in (forwards, backwards, mixed))
    reversed_batch = batch._replace(clips=batch.clips.flip(2))
    torch.testing.assert_close(back, forwards._clips(reversed_batch.clips, draw_of()))
    turned = [(one == other).flatten(1).all(1) for one, other in zip(both, back)]
    assert 0 < turned[0].sum() < 16
    assert torch.equal(turned[0], turned[1]) and torch.equal(turned[0], turned[2])
    for clip, front, is_back in zip(both, ahead, turned):
        assert torch.equal(clip[~is_back], front[~is_back])


def test_crop_only_spares_clip_0_alone():
    strong = AugmentConfig(flip=0, grayscale=0, jitter=1, brightness=0.9, blur=1)
    sparing, never = (build(dataclasses.replace(SMALL, crop_only=p), strong) for p in (1.0, 0.0))
    plain = build(dataclasses.replace(SMALL, crop_only=0))
    batch = batch_of(4, VIEWS)
    got, full, raw = (method._clips(batch.clips, draw_of()) for method in (sparing, never, plain))
    assert torch.equal(got[0], raw[0]) and not torch.equal(full[0], raw[0])
    assert torch.equal(got[1], full[1]) and torch.equal(got[2], full[2])
    assert not torch.equal(got[2], raw[2])


def test_frames_that_do_not_divide_into_segments():
    method = build(dataclasses.replace(SMALL, segments=3))
    with pytest.raises(ValueError, match=r"method\.segments: got 3, expected a divisor of the 4 frames of a clip"):
        method(batch_of(2, VIEWS), draw_of())
    build(dataclasses.replace(SMALL, segments=3, mode="clip"))(batch_of(2), draw_of())


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": 0.0}, {"tc_temperature": -1.0}, {"sr_temperature": 0.0}, {"sr_clip": 0.0},
        {"segments": 1}, {"segments": 9}, {"segment_dim": 0}, {"momentum": 1.5}, {"reverse": -0.1},
        {"crop_only": 2.0}, {"queue": 0},
    ],
)  # fmt: skip
def test_bad_configuration(bad):
    with pytest.raises(ValueError, match=rf"method\.{next(iter(bad))}: got"):
        DualVarConfig(**bad)


def test_queue_shorter_than_a_batch():
    build(MOCO).check(global_batch=10, steps_per_epoch=1)
    build(SMALL).check(global_batch=11, steps_per_epoch=1)
    with pytest.raises(ValueError, match=r"method\.queue: got 10, expected at least the 11 keys"):
        build(MOCO).check(global_batch=11, steps_per_epoch=1)


def test_state_dict_holds_queue_pointers_and_momentum_encoder():
    assert_state_round_trip(MOCO, VIEWS, ["queues.clip", "queues.segment"])


@pytest.mark.parametrize("config", [SMALL, MOCO], ids=["simclr", "moco"])
def test_trains_and_resumes(config, tmp_path):
    state = assert_trains_and_resumes(config, tmp_path)
    if config.form == "moco":
        assert state["queues.segment._extra_state"] == {"pointer": (4 * 4) % 10}


@pytest.mark.parametrize("config", [SMALL, MOCO], ids=["simclr", "moco"])
def test_two_processes_equal_one(config, tmp_path):
    assert_two_processes_equal_one(config, VIEWS, tmp_path)
