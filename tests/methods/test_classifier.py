"""The classifier against cross-entropy in float64, and what it draws."""

import copy

import pytest
import torch

from dclr.augment import AugmentConfig, Draw
from dclr.data import Batch
from dclr.methods import Classifier, ClassifierConfig
from dclr.models import build_encoder

PLAIN = AugmentConfig(flip=0, grayscale=0, jitter=0, blur=0)


def build(**options):
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(**{"classes": 3, **options}), build_encoder("r2plus1d_tiny"), PLAIN)


def batch(videos=4):
    clips = torch.randint(256, (1, videos, 5, 16, 16, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Batch(clips, torch.arange(videos), torch.arange(videos) % 3)


def draw():
    return Draw(torch.Generator().manual_seed(2))


def test_loss_and_accuracy_are_those_of_the_first_frames_in_float64():
    method, given = build(dropout=0.0), batch()
    output = method(given, draw())
    clip = given.clips[0, :, :4].permute(0, 4, 1, 2, 3).double() / 255
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1, 1) for values in (PLAIN.mean, PLAIN.std))
    wide = copy.deepcopy(method).double()
    logits = wide.encoder((clip - mean) / std).mean((2, 3, 4)) @ wide.layer.weight.T + wide.layer.bias
    chosen = logits.log_softmax(1)[torch.arange(4), given.label]
    torch.testing.assert_close(output.losses["cross_entropy"].double(), -chosen.mean(), rtol=1e-4, atol=1e-5)
    assert output.statistics["top1"].item() == 100 * (logits.argmax(1) == given.label).double().mean().item()


def test_gradients_reach_encoder_and_classifier():
    method = build()
    method(batch(), draw()).backward(method.loss_weights)
    assert all(parameter.grad.abs().sum() > 0 for parameter in (method.layer.weight, method.layer.bias))
    assert all(parameter.grad is not None for parameter in method.encoder.parameters())


def test_dropout_is_of_the_training_only():
    method = build(dropout=0.9)
    torch.manual_seed(0)
    losses = {method(batch(), draw()).losses["cross_entropy"].item() for _ in range(5)}
    assert len(losses) == 5
    method.eval()
    assert len({method(batch(), draw()).losses["cross_entropy"].item() for _ in range(3)}) == 1


def test_the_classifier_starts_small():
    layer = build(classes=400).layer
    assert abs(layer.weight.std().item() - 0.01) < 1e-3 and layer.bias.abs().max() == 0


@pytest.mark.parametrize(
    "options, message",
    [({"classes": 0}, "method.classes: got 0"), ({"dropout": 1.0}, "method.dropout: got 1.0, expected a share")],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
