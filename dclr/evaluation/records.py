"""Records of evaluations: what metrics.jsonl gets, and what is printed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dclr.distributed import is_first
from dclr.evaluation.features import Features
from dclr.training import append_metrics

# With fewer, a figure moves by more than a percent where one video does.
FEW_TEST_VIDEOS = 100


def add_record(folder: Path, name: str, clip_protocol: str, record: dict[str, Any], *parts: Features) -> dict[str, Any]:
    """Print the record of an evaluation, and append it to the folder's metrics.jsonl; returns it, completed.

    Its protocol gets that of the clips in front, and the unreadable videos of `parts` are named.
    """
    unreadable = list(dict.fromkeys(str(failure) for part in parts for failure in part.failures))
    protocol = f"{clip_protocol}; {record['protocol']}"
    record = {"evaluation": name, **record, "protocol": protocol, "unreadable_videos": unreadable}
    if is_first():
        append_metrics(folder, record)
        print_record(record)
        tested = len(parts[-1].labels)  # parts are training and test videos, or those alone
        if tested < FEW_TEST_VIDEOS:
            print(f"only {tested} test videos: each counts for {100 / tested:.1f}%")
    return record


def add_summary(folder: Path, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Append and print the mean of records of several seeds or splits; a single one is its own summary.

    Returns:
        The first record with means in place of its figures, and their standard deviations under "spread".
    """
    first = records[0]
    if len(records) == 1:
        return first
    values = {key: [record[key] for record in records] for key, value in first.items() if isinstance(value, float)}
    over = {key: sorted({record[key] for record in records if key in record}) for key in ("split", "seed")}
    words = " and ".join(f"{key}s {', '.join(map(str, numbers))}" for key, numbers in over.items() if numbers)
    summary = {
        **{key: value for key, value in first.items() if key not in over},
        **{key: statistics.fmean(each) for key, each in values.items()},
        "spread": {key: statistics.stdev(each) for key, each in values.items()},
        **{f"{key}s": numbers for key, numbers in over.items() if numbers},
        "protocol": f"mean ± standard deviation over {words}; the first: {first['protocol']}",
    }
    append_metrics(folder, summary)
    print_record(summary)
    return summary


def print_record(record: dict[str, Any]) -> None:
    """Print a record: its figures, their protocol, the checkpoint, and what could not be read."""
    print(f"{record['evaluation']}: {'  '.join(figures_in_words(record, '%'))}")
    print(f"protocol: {record['protocol']}")
    length = "" if record["epoch"] is None else f", {record['epoch']} epochs"
    print(f"checkpoint: {record['checkpoint']}{length}, {record['encoder']}")
    for line in record.get("published", ()):
        print(line)
    if record["unreadable_videos"]:
        print(f"left out, unreadable: {'; '.join(record['unreadable_videos'])}")


def figures_in_words(record: Mapping[str, Any], unit: str = "") -> list[str]:
    """Each figure of a record in percent, with its spread over runs and with chance where the record has them."""
    spread, chance = record.get("spread", {}), record.get("chance", {})
    words = []
    for name, value in record.items():
        if isinstance(value, float):
            more = f" ± {spread[name]:.2f}" if name in spread else ""
            more += f" (chance {chance[name]:.2f}{unit})" if name in chance else ""
            words.append(f"{name} {value:.2f}{unit}{more}")
    return words
