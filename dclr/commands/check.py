"""`dclr check`: whether a dataset is whole, and what is known of each."""

from __future__ import annotations

import json
import os
import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch.utils.data import Dataset

from dclr.config import DataConfig
from dclr.data.container import VideoError
from dclr.data.datasets import DATASETS, DatasetError, dataset_spec, load_all
from dclr.data.folders import walk_videos
from dclr.data.index import FrameIndex
from dclr.data.loader import as_ready
from dclr.files import write_or_explain

SHOWN = 3


@dataclass
class CheckConfig:
    """The videos to check: those that pretraining with the same `data` flags reads, and those of the other subsets."""

    data: DataConfig = field(default_factory=DataConfig)
    """The videos, and the length of a clip, which a video should have."""
    read: bool = True
    """Read each video through, unless that was done before, to count its frames; else only see whether it is there."""
    output: str | None = None
    """File for all that was found, as JSON; the terminal shows the first few of each kind."""


@dataclass
class Part:
    """One subset of one split: how many videos its list names, the official number if there is one, and the classes."""

    split: int
    subset: str
    listed: int
    official: int | None
    missing: list[str]
    classes: int
    chosen: str


@dataclass
class Check:
    """What `check` found.

    parts: the subsets that could be loaded. failed: why others could not, which is a fault of a dataset with lists.
    notes: what was left out, in words. extra: videos below the root that no subset has.
    frames: path -> number of frames. unreadable: path -> reason. short: paths of videos shorter than a clip.
    """

    parts: list[Part] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    frames: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    short: list[str] = field(default_factory=list)


def check(config: CheckConfig) -> Check | None:
    """Compare the folder of a dataset with its lists and their official counts, and read its videos through.

    Prints what it finds. Without a root it prints what each dataset is and where it comes from.

    Raises:
        DatasetError: at the end, where videos are missing or unreadable, a list does not have the official count, or
            a split file is not there; or at once where nothing can be loaded.
    """
    data = config.data
    if not data.root:
        print("\n".join(_entry(name) for name in DATASETS))
        return None
    print(_entry(data.dataset))
    found, paths = _parts(data)
    found.extra = _extra(data.root, paths, found.notes)
    if config.read:
        _read(found, sorted(paths), data.workers)
        span = 1 + data.frames * data.stride
        found.short = [path for path, frames in found.frames.items() if frames < span]
    # Names of files need not be text.
    print("\n".join(_lines(found, data)).encode(errors="backslashreplace").decode())
    if config.output:
        text = json.dumps({"dataset": data.dataset, "root": data.root, **asdict(found)}, indent=1)
        write_or_explain(Path(config.output).expanduser(), text.encode(errors="backslashreplace"))
    faults = _faults(found)
    if faults:
        raise DatasetError(f"{data.dataset}: {', '.join(faults)}")
    return found


def _entry(name: str) -> str:
    spec = dataset_spec(name)
    return f"{name}: {spec.title}\n  videos: {spec.videos_from}\n  lists:  {spec.lists_from}"


def _parts(data: DataConfig) -> tuple[Check, set[str]]:
    """Every subset of every split, and the paths of all their videos."""
    spec = dataset_spec(data.dataset)
    options = {"annotations": data.annotations, "label": data.label, "where": data.where}
    loaded, errors = load_all(data.dataset, data.root, **options)
    found = Check()
    by_part: dict[tuple[int, str], set[str]] = {}
    for (split, subset), videos in loaded.items():
        by_part[split, subset] = set(map(os.path.abspath, videos.paths))
        listed, official = len(videos) + len(videos.missing), spec.counts.get((split, subset))
        missing = list(videos.missing)
        found.parts.append(Part(split, subset, listed, official, missing, len(videos.classes), videos.split))
        # The first note names the missing, which have a line of their own.
        found.notes += videos.notes[bool(videos.missing) :]
    # Videos of one's own need not be split.
    (found.notes if spec.is_own else found.failed).extend(map(str, errors))
    for split in range(1, spec.splits + 1):
        both = by_part.get((split, "train"), set()) & by_part.get((split, "test"), set())
        found.notes += [f"split {split}: {len(both):,} videos are in train and in test"] if both else []
    return found, set().union(*by_part.values())


def _extra(root: str, paths: set[str], notes: list[str]) -> list[str]:
    """The videos below the root that are not among the paths."""
    passed: Counter[str] = Counter()
    extra = sorted(set(walk_videos(os.path.abspath(Path(root).expanduser()), passed)) - paths)
    # Class folders have told so themselves.
    if not any("passed over" in note for note in notes):
        notes += [f"passed over {count} {what}" for what, count in passed.items() if count]
    return extra


class _Counting(Dataset):
    """Item i is the number of frames of video i, or the reason why it cannot be read.

    What the index knows of a video that has not changed since is believed; what is learned is kept there.
    """

    def __init__(self, paths: list[str]):
        self.paths, self.index = paths, FrameIndex(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, int | str]:
        try:
            return index, self.index.known(self.paths[index]).count
        except VideoError as error:
            return index, error.reason


def _read(found: Check, paths: list[str], workers: int) -> None:
    """Count the frames of every video."""
    with as_ready(_Counting(paths), workers, "check") as bar:
        results = dict(bar)
    for index, path in enumerate(paths):
        (found.frames if isinstance(results[index], int) else found.unreadable)[path] = results[index]


def _lines(found: Check, data: DataConfig) -> list[str]:
    """What was found, a line each."""
    lines = ["split  subset   listed  official    there  missing  classes"]
    for part in found.parts:
        official = "" if part.official is None else f"{part.official:,}"
        there = f"{part.listed - len(part.missing):,}"
        lines.append(
            f"{part.split:5}  {part.subset:6} {part.listed:8,}  {official:>8} {there:>8} {len(part.missing):8,} "
            f"{part.classes:8,}  {part.chosen}"
        )
    kinds = {
        "missing": list(dict.fromkeys(name for part in found.parts for name in part.missing)),
        "extra, in no subset": found.extra,
        "unreadable": [f"{path}: {reason}" for path, reason in found.unreadable.items()],
        f"shorter than a clip of {1 + data.frames * data.stride} frames, which loops them": [
            f"{path} ({found.frames[path]})" for path in found.short
        ],
    }
    lines += [f"{len(items):,} {kind}: {_few(items)}" for kind, items in kinds.items() if items]
    if found.frames:
        counts = sorted(found.frames.values())
        lines.append(f"frames: {counts[0]:,} to {counts[-1]:,}, median {statistics.median(counts):,g}")
    return [*lines, *dict.fromkeys(found.notes), *found.failed]


def _few(items: list[str]) -> str:
    return ", ".join(items[:SHOWN]) + (", ..." if len(items) > SHOWN else "")


def _faults(found: Check) -> list[str]:
    missing = {name for part in found.parts for name in part.missing}
    wrong = [part for part in found.parts if part.official not in (None, part.listed)]
    counts = {
        "videos missing": len(missing),
        "videos unreadable": len(found.unreadable),
        "lists without the official number of videos": len(wrong),
        "subsets that cannot be loaded": len(found.failed),
    }
    return [f"{count:,} {what}" for what, count in counts.items() if count]
