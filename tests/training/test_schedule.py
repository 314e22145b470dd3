"""Learning rates against numbers worked out by hand."""

import pytest
from torch import nn

from dclr.config import OptimConfig
from dclr.presets import PRESETS
from dclr.training.schedule import base_rate, build_optimizer, learning_rate


@pytest.mark.parametrize(
    ("epochs", "epoch", "expected"),
    [(200, 0, 0.01), (200, 119, 0.01), (200, 120, 1e-3), (200, 159, 1e-3), (200, 160, 1e-4), (200, 199, 1e-4),
     (100, 59, 0.01), (100, 60, 1e-3), (100, 80, 1e-4), (5, 2, 0.01), (5, 3, 1e-3), (5, 4, 1e-4)],
)  # fmt: skip
def test_recipe_of_the_paper(epochs, epoch, expected):
    for step in (0, 148):
        assert learning_rate(OptimConfig(), 64, epochs, epoch, step, 149) == pytest.approx(expected)


def test_the_rate_grows_with_the_batch_where_that_is_asked_for():
    """Else `optim.lr` is the rate, whatever the batch: DCLR's readme says `-b 40 --lr 0.01`."""
    assert learning_rate(OptimConfig(), 40, 10, 0, 0, 5) == 0.01
    assert learning_rate(OptimConfig(scale_lr=True), 512, 10, 0, 0, 5) == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("preset", "batch", "rate"),
    [("dclr_ucf101", 64, 0.01), ("T4.4", 64, 0.01), ("moco_ucf101", 64, 0.01), ("fame_ucf101", 64, 0.01),
     ("dualvar_ucf101", 64, 0.003)],
)  # fmt: skip
def test_presets_train_at_the_published_rates(preset, batch, rate):
    config = PRESETS[preset]()
    assert (config.train.batch, base_rate(config.optim, config.train.batch)) == (batch, rate)


def test_cosine_and_warmup():
    config = OptimConfig(schedule="cosine", warmup=4, lr=1.0)
    rates = [learning_rate(config, 64, 2, *divmod(step, 5), 5) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5])


@pytest.mark.parametrize("step", [0, 50, 99])
@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.01), (50, 0.00853553), (100, 0.005), (199, 6.16838e-07)])
def test_cosine_falls_from_epoch_to_epoch(epoch, expected, step):
    assert learning_rate(OptimConfig(schedule="cosine"), 64, 200, epoch, step, 100) == pytest.approx(expected)


def test_optimizer_leaves_frozen_parameters_out():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    for name in ("sgd", "adamw"):
        (group,) = build_optimizer(OptimConfig(name, weight_decay=0.3), module).param_groups
        assert len(group["params"]) == 1 and group["weight_decay"] == 0.3
