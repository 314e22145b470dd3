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
    """The warnings of an epoch in which these lines were written, ten steps apart."""
    start = watch.recent[-1][0] if watch.recent else 0
    for number, line in enumerate(lines, 1):
        watch.add(start + 10 * number, line)
    return watch.end_epoch()


@pytest.mark.parametrize("name", BAD)
def test_each_warning_is_given_once(name):
    value, message = BAD[name]
    watch = Watch({"vd": 9.7, "sd": 9.7}, frozenset({"sd"}))
    assert after(watch, *16 * [GOOD]) == []
    (warning,) = after(watch, *15 * [GOOD | {name: value}])
    assert re.match(message, warning), warning
    assert after(watch, *15 * [GOOD | {name: value}]) == []


@pytest.mark.parametrize("steps", [(2, 4, 6), range(10, 151, 10)])
def test_the_first_steps_are_a_term_s_to_find_its_way(steps):
    watch = Watch({}, frozenset({"sd"}))
    for step in steps:
        watch.add(step, GOOD | {"similarity/vd_positive": 0.4, "features/rank": 1.2})
        assert watch.end_epoch() == []


# What runs logged after 10, 20, ... 160 steps: positives' similarity less negatives', in thousandths.
LEARNED = {
    "L_VD alone, moving scenes":
        [-2, 3, 2, 8, 7, 24, 64, 148, 192, 318, 320, 402, 388, 374, 422, 537],
    "L_VD of VS + VD - SD, moving scenes":
        [-2, 8, 5, 3, 14, 12, 11, 25, 28, 82, 146, 174, 226, 276, 258, 251],
    "L_VD of VS + VD, interactions of two people":
        [3, 1, 5, 12, 8, 4, 12, 9, -5, 5, 4, 21, 20, 32, 40, 34],
    "L_VV, flying things":
        [-38, 4, 14, 22, 12, 43, -10, 45, 30, 15, 47, 24, 19, 13, 17, 76],
}  # fmt: skip
STUCK = {
    "L_VD plainly added to L_VS, moving scenes":
        [3, -2, 2, -1, 5, -3, 2, -5, 3, 2, 3, 12, 19, 14, 6, 14],
    "L_VS with L_SD unbounded, moving scenes":
        [-2, 1, 3, 4, -1, 4, -1, 0, 0, 1, 5, 5, 5, 6, 1, 7],
}  # fmt: skip
# The features' rank in runs that learned, of MoCo from step 310 on: it need not be high.
RANKS = {
    "VS + VD, interactions of two people":
        [10.6, 6.1, 5.3, 4.8, 4.2, 4.2, 3.7, 3.2, 4.5, 4.4, 4.9, 4.0, 4.1, 4.1, 3.6, 3.9],
    "MoCo, flying things":
        [2.6, 2.3, 2.5, 1.9, 2.6, 2.1, 2.2, 2.2, 2.9, 2.4, 2.6, 2.6, 2.4, 3.2, 2.5, 2.7],
}  # fmt: skip
# A gradient that grows as features do, and one that breaks out.
NORMS = {
    "VS + VD - SD": ([35.8, 14.1, 5.2, 4.0, 4.7, 6.3, 3.9, 8.4, 4.0, 8.8, 27.4, 9.1, 13.1], False),
    "L_SD unbounded": ([92.0, 125.3, 57.8, 160.9, 16.3, 25.3, 45.4, 126.2, 1.5, 3.3, 4722.4, 3.3, 8.9], True),
}


def warnings_of(lines):
    """What is said where the first ten lines are an epoch, and each after them is one."""
    watch = Watch({}, frozenset())
    return [text for line in (lines[:10], *([line] for line in lines[10:])) for text in after(watch, *line)]


@pytest.mark.parametrize("name", LEARNED | STUCK)
def test_terms_that_learned_are_told_from_those_that_did_not(name):
    gaps = (LEARNED | STUCK)[name]
    lines = [{"similarity/vd_positive": 0.3 + gap / 1000, "similarity/vd_negative": 0.3} for gap in gaps]
    assert [text[:27] for text in warnings_of(lines)] == ["loss/vd tells nothing apart"] * (name in STUCK)


@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
def test_features_of_few_directions_have_not_collapsed(ranks):
    assert warnings_of([{"features/rank": rank, "features/std": 0.5} for rank in ranks]) == []


@pytest.mark.parametrize("values, bad", NORMS.values(), ids=NORMS)
def test_a_gradient_that_breaks_out_is_told_from_one_that_grows(values, bad):
    assert ["norm rose" in text for text in warnings_of([{"gradient_norm": norm} for norm in values])] == [True] * bad
