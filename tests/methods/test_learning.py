"""That the objectives learn, and that the literal ones do not, in seconds each on rings.

Chance is 8.29 for each attracting term; a term that was learned is well below.
"""

import math
from dataclasses import replace
from statistics import mean

import pytest

from dclr.methods.dclr import AlignmentConfig, DCLRConfig, LossWeights, RefineConfig
from dclr.methods.search import SearchConfig
from dclr.presets import PRESETS

from .rings import figures, rings, train

BATCH = 32
CHANCE = 2 * math.log(2 * BATCH - 1)
SHORT = {"temperature": 0.1, "dim": 64, "hidden": 96, "center": True}
OFF = {"search": SearchConfig(on=()), "alignment": AlignmentConfig(0), "refine": RefineConfig(False, False)}


@pytest.fixture(scope="module")
def data():
    return rings(1024, seed=0)


def last(values):
    return mean(values[-16:])


def test_both_factors_are_learned(data):
    config = DCLRConfig(losses=LossWeights(sd=0), **OFF, **SHORT)
    method, losses = train(config, data, steps=256)
    assert last(losses["vs"]) < CHANCE - 1 and last(losses["vd"]) < CHANCE - 1
    found = figures(method.encoder, data, rings(200, seed=1))
    assert found["motion"] > 25 and found["scene"] > 50


def test_the_plain_sum_learns_one_factor_alone(data):
    """Why the terms are balanced."""
    config = DCLRConfig(losses=LossWeights(sd=0), balance="none", **OFF, **SHORT)
    _, losses = train(config, data, steps=192)
    assert last(losses["vs"]) < CHANCE - 2 and last(losses["vd"]) > CHANCE - 0.1


def test_the_separation_as_printed_destroys_what_it_is_added_to(data):
    """-L_SD without a bound: it grows far beyond chance, and the terms that it is added to end at chance."""
    config = DCLRConfig(sd_bound="none", **OFF, **SHORT)
    _, losses = train(config, data, steps=128)
    assert last(losses["sd"]) > 2 * CHANCE and last(losses["vs"]) + last(losses["vd"]) > 2 * CHANCE - 1


@pytest.mark.parametrize("preset", ["T4.6", "T4.10", "T7.2", "T5.3", "dclr_ucf101"])
def test_objectives_with_the_bounded_separation_learn(preset, data):
    """Search and refinement, where the preset has them, from the third epoch on."""
    method = PRESETS[preset]().method
    assert method.losses.sd
    search = replace(method.search, queue=256, start=2, refresh=2)
    config = replace(method, search=search, refine=replace(method.refine, start=2), **SHORT)
    _, losses = train(config, data, steps=128)
    assert last(losses["sd"]) <= CHANCE and last(losses["vs"]) < CHANCE - 0.5
    if "d" not in search.on:  # Eq. 10 takes longer than this
        assert last(losses["vd"]) < CHANCE - 0.5


@pytest.mark.parametrize("negatives", ["queue", "batch"])
def test_a_search_leaves_clips_beside_their_own_motion(negatives, data):
    """Started once the motion is known, with Eq. 10 in the place of L_VD. From differences of the batch, those of the
    queue are told by their age: clips turn against the differences of their own videos."""
    search = SearchConfig(queue=256, start=4, refresh=4, keep_own=False, negatives=negatives)
    config = DCLRConfig(losses=LossWeights(sd=0), **{**OFF, "search": search}, **SHORT)
    _, values = train(config, data, steps=256)
    if negatives == "queue":
        assert last(values["similarity/vd_positive"]) > 0.2 and last(values["vd"]) < CHANCE - 1
    else:
        assert last(values["similarity/vd_positive"]) < -0.2
