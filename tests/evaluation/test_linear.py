"""Linear probe: separable and random features, seeds, averaging, and its SGD against one written out."""

import numpy as np
import pytest
import torch

from dclr.evaluation import Features, LinearConfig, linear_probe
from dclr.evaluation.linear import _first_of_each, _fit, _initial_layer, _inputs, video_scores


def separable(videos, seed, clips=4, dim=16, classes=5, noise=0.3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(videos) % classes
    features = torch.eye(dim)[labels][:, None] + noise * torch.randn(videos, clips, dim, generator=generator)
    return Features(features, labels)


def test_separable_features_are_learned():
    result = linear_probe(separable(100, 0), separable(50, 1)).figures
    assert result["top1"] > 98 and result["clip_top1"] > 90 and result["train_clip_top1"] > 90
    assert result["top1"] >= result["clip_top1"]


def test_random_labels_stay_at_chance():
    train, test = separable(200, 0), separable(400, 1)
    generator = torch.Generator().manual_seed(2)
    train, test = (
        features._replace(labels=torch.randint(5, features.labels.shape, generator=generator))
        for features in (train, test)
    )
    assert 10 < linear_probe(train, test).figures["top1"] < 30


def test_same_seed_same_figures_and_global_generator_untouched():
    # Noisy, so that figures of other seeds differ.
    train, test = separable(60, 0, noise=1.5), separable(211, 1, noise=1.5)
    state = torch.get_rng_state()
    first = linear_probe(train, test, seed=3).figures
    assert torch.equal(state, torch.get_rng_state())
    assert linear_probe(train, test, seed=3).figures == first
    assert linear_probe(train, test, seed=4).figures["clip_top1"] != first["clip_top1"]


def reference_layer(clips_vnd, labels, config, seed, classes):
    """The probe's weight and bias by SGD in NumPy, with the same initial weights and order of clips."""
    generator = torch.Generator().manual_seed(seed)
    x = clips_vnd.numpy().reshape(-1, clips_vnd.shape[2])
    y = np.repeat(labels.numpy(), clips_vnd.shape[1])
    weight = torch.empty(classes, x.shape[1]).normal_(std=0.01, generator=generator).double().numpy()
    bias = np.zeros(classes)
    velocity_w, velocity_b = np.zeros_like(weight), np.zeros_like(bias)
    for epoch in range(config.epochs):
        lr = config.lr * 0.1 ** sum(epoch >= milestone for milestone in config.milestones)
        order = torch.randperm(len(x), generator=generator).numpy()
        for start in range(0, len(x), config.batch):
            rows = order[start : start + config.batch]
            error = np.exp(x[rows] @ weight.T + bias)
            error /= error.sum(1, keepdims=True)
            error[np.arange(len(rows)), y[rows]] -= 1
            error /= len(rows)
            velocity_w = config.momentum * velocity_w + error.T @ x[rows] + config.weight_decay * weight
            velocity_b = config.momentum * velocity_b + error.sum(0) + config.weight_decay * bias
            weight, bias = weight - lr * velocity_w, bias - lr * velocity_b
    return weight, bias


CONFIGS = [LinearConfig(), LinearConfig(0.5, 0.8, 1e-3, 33, 5, (2,), l2=False)]


@pytest.mark.parametrize("config", CONFIGS)
def test_equals_sgd_written_out(config):
    train = separable(61, 0, noise=1.0)
    clips_vnd = _inputs(train, config, "cpu").double()
    generator = torch.Generator().manual_seed(7)
    layer = _initial_layer(16, 5, generator).double()
    _fit(layer, clips_vnd, train.labels, config, generator)
    weight, bias = reference_layer(clips_vnd, train.labels, config, seed=7, classes=5)
    np.testing.assert_allclose(layer.weight.detach().numpy(), weight, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(layer.bias.detach().numpy(), bias, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("config", CONFIGS)
def test_figures_are_those_of_the_layer(config):
    train, test = separable(61, 0, noise=1.0), separable(203, 1, noise=1.0)
    result = linear_probe(train, test, config, seed=7).figures
    x, y = (f.clips.double().numpy() for f in (train, test))
    if config.l2:
        x, y = (z / np.linalg.norm(z, axis=2, keepdims=True) for z in (x, y))
    weight, bias = reference_layer(torch.from_numpy(x), train.labels, config, seed=7, classes=5)
    logits, labels = y @ weight.T + bias, test.labels.numpy()
    # One clip in 812 may fall on the other side of a float32 boundary.
    assert result["top1"] == pytest.approx(100 * (logits.mean(1).argmax(1) == labels).mean(), abs=0.5)
    assert result["clip_top1"] == pytest.approx(100 * (logits.argmax(2) == labels[:, None]).mean(), abs=0.5)


def test_averages_of_logits_and_of_probabilities_differ():
    # One very sure clip outvotes two others by its logits, but not by its probability.
    logits = torch.tensor([[[9.0, 0.0], [0.0, 3.0], [0.0, 3.0]]])
    assert video_scores(logits, "logits").argmax(1).item() == 0
    assert video_scores(logits, "prob").argmax(1).item() == 1
    torch.testing.assert_close(video_scores(logits, "prob").sum(1), torch.ones(1))


def test_protocol_says_what_was_done():
    train, test = separable(20, 0, clips=3), separable(10, 1)
    config = LinearConfig(average="prob", epochs=2, milestones=())
    protocol = linear_probe(train, test, config, seed=5).figures["protocol"]
    assert "20 training videos x 3 clips" in protocol and "10 test videos" in protocol
    assert "lr 5 wd 0 m 0.9 batch 128, 2 epochs" in protocol and "seed 5" in protocol
    assert "mean softmax probabilities of 4 clips" in protocol and "l2-normalised" in protocol


def test_features_from_inference_are_not_changed():
    train, test = separable(20, 0), separable(10, 1)
    before = train.clips.clone()
    linear_probe(train, test)
    assert torch.equal(train.clips, before)


EMPTY = Features(torch.zeros(0, 4, 16), torch.zeros(0, dtype=torch.int64))
UNKNOWN = separable(5, 1)._replace(labels=torch.full((5,), -1))


@pytest.mark.parametrize(
    "train, test, options, message",
    [
        (separable(10, 0), separable(5, 1, dim=8), {}, "train has 16 features a clip, test 8"),
        (separable(10, 0)._replace(labels=torch.zeros(3)), separable(5, 1), {}, "train must have features"),
        (separable(10, 0), EMPTY, {}, "test must have features"),
        (separable(10, 0), UNKNOWN, {}, "5 of the 5 test videos have no label"),
        (separable(10, 0), separable(5, 1), {"classes": 3}, r"train labels .* in 0\.\.2, got 0\.\.4"),
        (separable(10, 0), separable(5, 1), {"config": LinearConfig(average="median")}, "'median'"),
    ],
)
def test_bad_input(train, test, options, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(train, test, **options)


def test_one_clip_of_each_video_in_an_epoch():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    for count in (1, 2, 4):
        chosen = _first_of_each(order, clips=4, count=count).tolist()
        expected, seen = [], []
        for clip in order.tolist():
            seen.append(clip // 4)
            if seen.count(clip // 4) <= count:
                expected.append(clip)
        assert chosen == expected
    train, test = separable(40, 0, noise=1.0), separable(30, 1)
    protocol = linear_probe(train, test, LinearConfig(clips=1)).figures["protocol"]
    assert "10 epochs of 1 random clips a video" in protocol
