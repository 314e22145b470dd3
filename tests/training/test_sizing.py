"""Small sets of videos under the defaults: everything fits, and is said."""

import pytest

from dclr.config import ConfigError, PretrainConfig, TrainConfig
from dclr.methods import DCLRConfig, SimCLRConfig
from dclr.methods.search import SearchConfig
from dclr.training.progress import few_steps
from dclr.training.sizing import fitted


def config_of(batch=64, accumulate=1, **search):
    return PretrainConfig(
        train=TrainConfig(batch=batch, accumulate=accumulate), method=DCLRConfig(search=SearchConfig(**search))
    )


@pytest.mark.parametrize("videos", [2, 3, 5, 9, 63, 64, 65, 120, 300, 2047, 9537])
@pytest.mark.parametrize("refresh", [1, 10])
def test_any_set_can_be_trained_on(videos, refresh):
    """The search's own check passes, and the queue is full before it is flushed."""
    config, lines = fitted(config_of(refresh=refresh), videos)
    batch, search = config.train.batch, config.method.search
    steps = videos // batch
    assert steps and search.refresh * steps * batch > search.queue >= max(search.k, 2 * batch)
    assert len(lines) == sum([batch != 64, search.queue != 2048, search.refresh != refresh]) and all(
        " -> " in line for line in lines
    )


def test_what_fits_stays():
    config = config_of()
    assert fitted(config, 9537) == (config, [])
    kept = config_of(on_refresh="keep")
    assert fitted(kept, 64) == (kept, []), "it fills in time"
    plain = PretrainConfig(method=SimCLRConfig())
    assert fitted(plain, 64) == (plain, [])


def test_a_small_set_by_numbers():
    """120 videos in batches of 16: 112 entries an epoch."""
    config, lines = fitted(config_of(batch=16), 120)
    assert (config.train.batch, config.method.search.queue, config.method.search.refresh) == (16, 112, 10)
    assert lines == ["method.search.queue 2048 -> 112, as an epoch brings 112 entries"]
    config, lines = fitted(config_of(accumulate=4), 30)
    assert config.train.batch == 28 and lines[0] == "train.batch 64 -> 28, of 30 videos"


def test_too_few_for_the_parts():
    with pytest.raises(ConfigError, match="data: got 1 video, expected two or more"):
        fitted(config_of(), 1)
    with pytest.raises(ConfigError, match=r"train\.batch: expected at least 4 videos.*there are 3"):
        fitted(config_of(accumulate=4), 3)


def test_a_short_run_is_warned_of():
    """Two steps an epoch: 100 epochs are few, 150 are enough."""
    config = PretrainConfig(train=TrainConfig(epochs=100))
    assert few_steps(config, 2).startswith("few steps: 200 in all; ") and "--train.epochs 500 here" in few_steps(
        config, 2
    )
    assert few_steps(PretrainConfig(train=TrainConfig(epochs=150)), 2) == ""
