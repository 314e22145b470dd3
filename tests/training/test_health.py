"""Whether a run learns: measures against float64 by the definition, and each warning once."""

import math
import re

import numpy as np
import pytest
import torch

from dclr.training.health import Watch, effective_rank, spread


@pytest.mark.parametrize("shape", [(2, 3), (7, 5), (33, 129), (128, 16)])
def test_measures_by_their_definition(shape):
    x = np.random.default_rng(0).normal(size=shape) * np.linspace(0.1, 3, shape[1]) + 1
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    share = values / values.sum()
    rank = math.exp(-sum(p * math.log(p) for p in share if p > 0))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert effective_rank(torch.from_numpy(x).float()).item() == pytest.approx(rank, rel=1e-3)
    assert spread(torch.from_numpy(x).float()).item() == pytest.approx(unit.std(0).mean() * shape[1] ** 0.5, rel=1e-4)


def test_features_that_are_all_alike():
    alike = torch.ones(6, 4)
    assert effective_rank(alike) == 1 and spread(alike) == 0
    spread_out = torch.eye(4)[torch.arange(64) % 4]
    assert effective_rank(spread_out).item() == pytest.approx(3, rel=1e-4)


GOOD = {
    "loss/vd": 5.0, "loss/sd": 9.0, "similarity/vd_positive": 0.5, "similarity/vd_negative": 0.4,
    "similarity/sd_positive": 0.1, "similarity/sd_negative": 0.1, "features/rank": 20.0, "features/std": 0.5,
    "gradient_norm": 1.0, "similarity/alone_positive": 0.0,
}  # fmt: skip
BAD = {
    "similarity/vd_positive": (0.405, "loss/vd tells nothing apart: .* positives was 0.405, and that of its .* 0.400"),
    "loss/sd": (56.6, "loss/sd has left its bound: 56.6, where 9.7"),
    "features/rank": (1.2, "the features have collapsed: effective rank 1.2, standard deviation 0.500"),
    "features/std": (0.01, "the features have collapsed: effective rank 20.0, standard deviation 0.010"),
    "gradient_norm": (150.0, "the gradient's norm rose to 150, from 1 in the median before"),
}  # fmt: skip


def after(watch, *lines):
    for line in lines:
        watch.add(line)
    return watch.end_epoch()


@pytest.mark.parametrize("name", BAD)
def test_each_warning_is_given_once(name):
    value, message = BAD[name]
    watch = Watch({"vd": 9.7, "sd": 9.7}, frozenset({"sd"}))
    assert after(watch, *10 * [GOOD]) == []
    (warning,) = after(watch, *3 * [GOOD | {name: value}])
    assert re.match(message, warning), warning
    assert after(watch, *3 * [GOOD | {name: value}]) == []


def test_one_good_line_is_enough_for_a_term():
    watch = Watch({}, frozenset({"sd"}))
    assert after(watch, GOOD | {"similarity/vd_positive": 0.4}, GOOD) == [], "it has told some apart in the epoch"
