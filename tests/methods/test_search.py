"""Cross-video search (DCLR Sec. 3.2, Eq. 9-10): the worked example, the queue's order, the slow encoder."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from dclr.methods.contrast import CrossTerm, Term, chance, cross_video_loss, reference_losses
from dclr.methods.packing import packed_losses
from dclr.methods.search import (
    CrossVideoSearch,
    Entries,
    SearchConfig,
    SearchQueue,
    SlowEncoder,
    non_negative_entries,
    non_negative_rows,
)

from .fixtures import TAU, D, V

CONFIG = SearchConfig(k=2, queue=4)
KEYS = normalize(torch.tensor([[3, 4, 0], [4, 3, 0], [0, 0, 1], [12, 5, 0]], dtype=torch.float32), dim=1)
P_RGB = torch.tensor([[1, 1], [2, 1], [0, 1], [1, 0]], dtype=torch.float32)
P_MODE = torch.tensor([[1, 3], [3, 1], [-1, 0], [0, 1]], dtype=torch.float32)
QUERY = torch.tensor([[1.0, 0, 0]])


def filled_queue():
    queue = SearchQueue(4, 3, 2)
    queue.enqueue(Entries(KEYS, P_RGB, P_MODE, torch.tensor([7, 8, 9, 5]), torch.tensor([0, 1, 2, 3])))
    return queue


def eq10(anchor, key, video_id, found, compute=reference_losses):
    """For view i of the videos of `anchor`, the first ones of the batch."""
    exclude = non_negative_rows(found.video_id, video_id, 0)
    projections = found.rgb_projection.double(), found.modality_projection.double()
    term = CrossTerm(anchor, key, *projections, found.weight.double(), exclude, key, exclude)
    return compute((), TAU, crossing=[term])[0]


def test_prior_of_the_worked_example():
    found = filled_queue().retrieve(QUERY, CONFIG, torch.tensor([5]))
    assert found.video_id.tolist() == [[8, 7]]
    assert found.label.tolist() == [[1, 0]]
    torch.testing.assert_close(found.weight, torch.tensor([[0.571429, 0.428571]]), atol=1e-6, rtol=0)


def test_prior_with_the_own_video():
    found = filled_queue().retrieve(QUERY, replace(CONFIG, exclude_same_video=False), torch.tensor([5]))
    assert found.video_id.tolist() == [[5, 8]]
    torch.testing.assert_close(found.weight, torch.tensor([[0.535714, 0.464286]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("compute", [reference_losses, packed_losses])
@pytest.mark.parametrize(
    ("config", "expected"),
    [(CONFIG, 0.258703), (replace(CONFIG, dist="uniform"), 0.270634), (replace(CONFIG, k=1), 0.187117)],
)
def test_eq10_of_the_worked_example(config, expected, compute):
    """Row 0 of the two-video example as query; the in-batch negatives are rows 1 and 3."""
    found = filled_queue().retrieve(QUERY, config, torch.tensor([5]))
    value = eq10(V[[0, 2]], D, torch.tensor([5, 6]), found, compute)
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_mean_of_the_retrieved():
    """One positive, of the unit projections' mean; none where nothing is found."""
    found = filled_queue().retrieve(QUERY, replace(CONFIG, dist="mean"), torch.tensor([5]))
    assert found.video_id.tolist() == [[8, 7]] and found.weight.tolist() == [[1.0]]
    for got, stored in ((found.rgb_projection, P_RGB), (found.modality_projection, P_MODE)):
        torch.testing.assert_close(got, normalize(stored[:2].float(), dim=-1).mean(0)[None, None])
    empty = SearchQueue(4, 3, 2).retrieve(QUERY, replace(CONFIG, dist="mean"), torch.tensor([5]))
    assert empty.weight.tolist() == [[0.0]] and not empty.rgb_projection.any()


@pytest.mark.parametrize("compute", [reference_losses, packed_losses])
def test_rows_of_the_retrieved_video_are_no_negatives(compute):
    """With entry 8's video in the batch too, its rows leave the denominator of its own positive only."""
    found = filled_queue().retrieve(QUERY, CONFIG, torch.tensor([5]))
    torch.manual_seed(0)
    key, rgb = torch.randn(6, 2, dtype=torch.float64), V[[0, 2]]
    ids = torch.tensor([5, 6, 8])
    assert non_negative_rows(found.video_id, ids, 0).tolist() == [[[0, 3, 2, 5], [0, 3, -1, -1]]]
    got = eq10(rgb, key, ids, found, compute)
    expected = 0.0
    unit = lambda x: normalize(x, dim=-1)  # noqa: E731
    for entry, weight in enumerate(found.weight[0]):
        negative = [row for row in range(6) if ids[row % 3] not in (5, found.video_id[0, entry])]
        for anchor, positive in (
            (rgb[0], found.modality_projection[0, entry].double()),
            (found.rgb_projection[0, entry].double(), key[0]),
        ):
            logits = unit(torch.stack([positive, *key[negative]])) @ unit(anchor) / TAU
            expected += weight * (logits.logsumexp(0) - logits[0])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("denominator", ["others", "literal", "all", "joint"])
def test_in_batch_terms_in_the_same_launch(denominator):
    """Two terms of each kind, with as many and with other numbers of entries, together as each by its equation."""
    torch.manual_seed(0)
    n = 3
    v, s, d = (torch.randn(2 * n, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    terms = [Term(v, s), Term(s, d, same_view=True)]
    crossing = []
    for key, entries in ((d, 2), (s, 4)):
        stored = (torch.randn(n, entries, 5, dtype=torch.float64) for _ in range(2))
        exclude = non_negative_rows(torch.randint(n, (n, entries)), torch.arange(n), 0)
        entry, entry_exclude = torch.randn(2 * n, 5, dtype=torch.float64), torch.randint(-1, 2 * n, exclude.shape)
        weight = torch.rand(n, entries, dtype=torch.float64)
        crossing.append(CrossTerm(v, key, *stored, weight, exclude, entry, entry_exclude))
    together = packed_losses(terms, TAU, denominator, crossing)
    alone = reference_losses(terms, TAU, denominator, crossing)
    torch.testing.assert_close(alone[2], cross_video_loss(crossing[0], TAU))
    torch.testing.assert_close(together, alone)
    weight = torch.tensor([1.0, -1, 2, 0.5], dtype=torch.float64)
    got, expected = (torch.autograd.grad(weight @ losses, (v, s, d)) for losses in (together, alone))
    torch.testing.assert_close(got, expected)


def test_own_and_retrieved_videos_are_no_negatives_among_the_entries():
    entries = torch.tensor([5, 8, 3, 5, 7, 5])
    rows = non_negative_entries(torch.tensor([[8, 7], [-1, 4]]), torch.tensor([5, 3]), entries)
    assert rows.shape == (2, 2, 6) and torch.equal(rows[:, 0], rows[:, 1])
    assert [set(row.tolist()) - {-1} for row in rows[:, 0]] == [{0, 5, 1, 4}, {2}]


def test_entries_of_every_age():
    queue, ids = SearchQueue(11, 1, 1), torch.arange(11)
    queue.enqueue(Entries(ids[:, None].float(), ids[:, None].float(), ids[:, None].float(), ids, ids))
    key, video = queue.spread(4)
    assert video.tolist() == [0, 2, 4, 6] and torch.equal(key[:, 0], video.float())


@pytest.mark.parametrize("negatives", ["queue", "batch"])
def test_a_retrieved_difference_is_not_known_by_its_age(negatives):
    """What is retrieved is wrong here, so that nothing can be learned from it. Yet from the batch's d it can be told by
    one more feature, positive in every v and negative in every new d, which turns v against its own motion."""
    torch.manual_seed(0)
    n, motion = 16, normalize(torch.randn(16, 8, dtype=torch.float64), dim=1)
    video, own = torch.arange(n), torch.arange(n)[:, None]
    exclude, entry_exclude = non_negative_rows(own + n, video, 0), torch.stack([own, own + n], 2)

    def aged(age):
        return torch.cat([motion.repeat(2, 1), torch.full((2 * n, 1), age, dtype=torch.float64)], 1)

    def loss(age):
        found, weight = aged(0.0)[:n, None].roll(3, 0), torch.ones(n, 1, dtype=torch.float64)
        stored = (aged(0.0), entry_exclude) if negatives == "queue" else (aged(-age), exclude)
        return cross_video_loss(CrossTerm(aged(age), aged(-age), found, found, weight, exclude, *stored), 0.2)

    lowest = min(loss(age) for age in (0.0, 0.5, 1.0, 2.0))
    assert (lowest < 0.8 * chance(n)) == (negatives == "batch")


def test_negative_similarity_has_no_weight():
    queue = SearchQueue(2, 2, 2)
    angle = torch.tensor([0.2, -0.1]).acos()
    key = torch.stack([angle.cos(), angle.sin()], dim=1)
    queue.enqueue(Entries(key, P_RGB[:2], P_MODE[:2], torch.tensor([1, 2]), torch.tensor([0, 0])))
    found = queue.retrieve(torch.tensor([[1.0, 0]]), SearchConfig(k=2, queue=2), torch.tensor([5]))
    torch.testing.assert_close(found.weight, torch.tensor([[1.0, 0.0]]))


def test_copies_of_the_query_weigh_the_same():
    queue = SearchQueue(8, 3, 2)
    queue.enqueue(Entries(QUERY.expand(8, 3), torch.ones(8, 2), torch.ones(8, 2), torch.arange(8), torch.arange(8)))
    found = queue.retrieve(QUERY, SearchConfig(k=5, queue=8), torch.tensor([2]))
    assert found.video_id.tolist() == [[0, 1, 3, 4, 5]]
    torch.testing.assert_close(found.weight, torch.full((1, 5), 0.2))


def test_too_few_entries_leave_no_weight_behind():
    queue = SearchQueue(4, 3, 2)
    queue.enqueue(Entries(KEYS[:2], P_RGB[:2], P_MODE[:2], torch.tensor([7, 5]), torch.tensor([0, 0])))
    found = queue.retrieve(QUERY, replace(CONFIG, k=3), torch.tensor([5]))
    assert found.video_id.tolist() == [[7, -1, -1]]
    assert found.weight.tolist() == [[1, 0, 0]]


def test_queue_wraps_first_in_first_out():
    queue, pointers = SearchQueue(8, 1, 1), []
    for batch in range(4):
        ids = torch.arange(3) + 3 * batch
        value = ids[:, None].float()
        queue.enqueue(Entries(value, value, value, ids, ids))
        pointers.append(queue.pointer)
    assert pointers == [3, 6, 1, 4]
    assert queue.video_id.tolist() == [8, 9, 10, 11, 4, 5, 6, 7]
    assert queue.full
    restored = SearchQueue(8, 1, 1)
    restored.load_state_dict(queue.state_dict())
    assert (restored.pointer, restored.size) == (4, 8)


def test_batch_longer_than_the_queue_keeps_the_last():
    queue = SearchQueue(2, 1, 1)
    ids = torch.arange(5)
    queue.enqueue(Entries(ids[:, None].float(), torch.zeros(5, 1), torch.zeros(5, 1), ids, ids))
    assert sorted(queue.video_id.tolist()) == [3, 4]


def encoder_and_heads():
    encoder = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    return encoder, nn.ModuleDict({"d": nn.Linear(4, 2)})


def test_slow_encoder_moves_only_at_refresh():
    torch.manual_seed(0)
    encoder, heads = encoder_and_heads()
    search = CrossVideoSearch(SearchConfig(queue=4, k=2, start=4, refresh=2), encoder, heads, {"d": "d"}, 4, 2)
    search.train()
    assert not any(module.training for module in search.slow.modules())
    assert not any(parameter.requires_grad for parameter in search.parameters())
    for epoch in range(7):
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(1)
        before = encoder.state_dict()
        search.start_epoch(epoch, encoder, heads)
        same = all(torch.equal(value, before[name]) for name, value in search.slow.encoder.state_dict().items())
        assert same == (epoch in (4, 6)), epoch
        assert search.filling == (epoch >= 4)
        assert not search.ready("d")


def test_flush_or_keep_at_refresh():
    encoder, heads = encoder_and_heads()
    for on_refresh, size in (("flush", 0), ("keep", 4)):
        config = SearchConfig(queue=4, start=0, refresh=2, on_refresh=on_refresh, k=2)
        search = CrossVideoSearch(config, encoder, heads, {"d": "d"}, 4, 2)
        search.start_epoch(0, encoder, heads)
        search.queues["d"] = SearchQueue(4, 2, 2)
        search.enqueue("d", Entries(torch.ones(4, 2), P_RGB, P_MODE, torch.arange(4), torch.arange(4)))
        assert search.ready("d")
        search.start_epoch(1, encoder, heads)
        assert search.ready("d")
        search.start_epoch(2, encoder, heads)
        assert search.queues["d"].size == size


def test_queue_that_can_never_fill():
    encoder, heads = encoder_and_heads()
    search = CrossVideoSearch(SearchConfig(queue=2048, refresh=10), encoder, heads, {"d": "d"}, 4, 2)
    search.check(global_batch=64, steps_per_epoch=149)
    with pytest.raises(ValueError, match=r"2048 entries can never fill .* 1600"):
        search.check(global_batch=16, steps_per_epoch=10)
    with pytest.raises(ValueError, match=r"search.queue: got 2048, expected at least 2050, twice the batch"):
        search.check(global_batch=1025, steps_per_epoch=10)


@pytest.mark.parametrize("bad", [{"k": 0}, {"queue": 0}, {"refresh": 0}, {"k": 5, "queue": 4}, {"k": 65}])
def test_bad_configuration(bad):
    with pytest.raises(ValueError, match=r"search\."):
        SearchConfig(**bad)


def test_slow_encoder_goes_by_the_statistics_of_what_it_sees():
    """In training; in evaluation by their average. A refresh takes the encoder's, which are those of clips."""
    encoder, heads = encoder_and_heads()
    encoder(torch.randn(8, 3, 2, 4, 4))
    slow, clip = SlowEncoder(encoder, heads, separate=True).train(), 3 * torch.randn(8, 3, 2, 4, 4) + 1
    described = slow(clip, None)
    torch.testing.assert_close(described, nn.BatchNorm3d(4)(encoder[0](clip)).mean((2, 3, 4)))
    assert not slow.heads.training and not slow.encoder.training
    for _ in range(100):
        slow(clip, None)
    torch.testing.assert_close(slow.eval()(clip, None), described, rtol=0, atol=2e-2)
    slow.refresh(encoder, heads)
    assert torch.equal(slow.encoder[1].running_mean, encoder[1].running_mean)


def test_slow_encoder_has_no_gradient():
    encoder, heads = encoder_and_heads()
    slow = SlowEncoder(encoder, heads)
    assert not slow(torch.randn(2, 3, 1, 2, 2), "d").requires_grad
