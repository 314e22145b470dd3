"""Settings that a small set of videos cannot have, made as large as it can."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dclr.config import ConfigError, PretrainConfig
from dclr.distributed import world


def fitted(config: PretrainConfig, videos: int) -> tuple[PretrainConfig, list[str]]:
    """The configuration for a set of so many videos, and what was changed, a line each.

    Args:
        config: left as it is.

    Raises:
        ConfigError: the set is one video, or too small for any batch.
    """
    if videos < 2:
        raise ConfigError(f"data: got {videos} video, expected two or more: a clip is told from those of other videos")
    changes = []
    train = config.train
    if train.batch > videos:
        parts = train.accumulate * world()
        batch = videos // parts * parts
        if not batch:
            raise ConfigError(
                f"train.batch: expected at least {parts} videos, one for each part, but there are {videos}"
            )
        changes.append(f"train.batch {train.batch} -> {batch}, of {videos} videos")
        train = replace(train, batch=batch)
    batch = train.batch // train.accumulate
    method, resized = _fitted_search(config.method, videos // batch // train.accumulate * train.batch, train.batch)
    return replace(config, train=train, method=method), changes + resized


def _fitted_search(method: Any, entries: int, batch: int) -> tuple[Any, list[str]]:
    """The method, with a search queue that the `entries` of each epoch fill before it is flushed.

    A queue of one epoch's entries is full for all but the first epoch between two refreshes of the slow encoder. It
    holds two batches at least, for the negatives.
    """
    search = getattr(method, "search", None)
    if search is None or not search.on or search.on_refresh != "flush":
        return method, []
    least = max(search.k, 2 * batch if search.negatives == "queue" else 0)
    refresh = max(search.refresh, least // max(1, entries) + 1)
    queue = max(search.queue, least)
    if refresh * entries <= queue:
        queue = max(least, min(entries, refresh * entries // 2))
    if (queue, refresh) == (search.queue, search.refresh):
        return method, []
    reason = f"an epoch brings {entries} entries"
    pairs = {"queue": (search.queue, queue), "refresh": (search.refresh, refresh)}
    lines = [f"method.search.{name} {old} -> {new}, as {reason}" for name, (old, new) in pairs.items() if old != new]
    return replace(method, search=replace(search, queue=queue, refresh=refresh)), lines
