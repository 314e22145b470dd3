"""The videos of a dataset, and a hold-out of them for testing."""

import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass, replace

from dclr.data.lists import DatasetError


@dataclass(frozen=True)
class VideoDataset:
    """N videos.

    name: of the dataset.
    paths: (N), of the files.
    labels: (N), index into `classes`, -1 unknown.
    classes: names.
    missing: names of the videos that were left out because they are not there.
    split: which of the dataset's videos these are, in words.
    notes: what was left out or taken in another's place, in words, a line each.
    """

    name: str
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    missing: tuple[str, ...] = ()
    split: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def relative_paths(self) -> list[str]:
        """The paths below the folder that all videos have in common."""
        folders = {os.path.dirname(path) for path in self.paths}
        common = os.path.commonpath([os.path.abspath(folder) for folder in folders or ("",)])
        below = {folder: os.path.relpath(folder, common) for folder in folders}
        parts = map(os.path.split, self.paths)
        return [os.path.join(below[folder], name) for folder, name in parts]

    @property
    def digest(self) -> str:
        """Names the videos in their order, by paths below their common folder, and their labels: 64 hex digits.

        The same wherever the folder lies; another for other, renamed, relabelled or reordered videos.
        """
        total = hashlib.sha256()
        for path, label in zip(self.relative_paths(), self.labels):
            # A zero byte ends each part: no path holds one.
            total.update(b"%s\0%d\0" % (os.fsencode(path), label))
        for name in self.classes:
            total.update(name.encode(errors="surrogateescape") + b"\0")
        return total.hexdigest()


def hold_out(videos: VideoDataset, subset: str, share: float, seed: int) -> VideoDataset:
    """The training or the test part of videos that no one has split: `share` of each class is for testing.

    Of a class at least one video is for testing and at least one for training; a class's only video is for training.
    Which ones goes by a hash of the seed and each path below the common folder. So a video that is added or removed
    moves at most one other, and a copy of the folder is split alike. Videos that were cut from one recording may
    come to lie on both sides: such sets need a split of their own.
    """
    by_class = defaultdict(list)
    for index, path in enumerate(videos.relative_paths()):
        rank = hashlib.sha256(b"%d\0%s" % (seed, os.fsencode(path))).digest()
        by_class[videos.labels[index]].append((rank, index))
    test: set[int] = set()
    single = 0
    for ranked in by_class.values():
        count = min(max(round(share * len(ranked)), 1), len(ranked) - 1)
        test.update(index for _, index in sorted(ranked)[:count])
        single += len(ranked) == 1
    kept = [index for index in range(len(videos)) if (index in test) == (subset == "test")]
    if not kept:
        raise DatasetError(f"{videos.name}: a hold-out needs two videos of some class, got {len(videos)} videos")
    what = "each class's videos" if videos.classes else "the videos"
    note = f"{videos.name}: {single} classes have one video, which is for training"
    return replace(
        videos,
        paths=tuple(videos.paths[index] for index in kept),
        labels=tuple(videos.labels[index] for index in kept),
        split=f"{subset} part of a hold-out: {share:.4g} of {what} for testing, seed {seed}; {videos.split}",
        notes=(*videos.notes, note) if single else videos.notes,
    )
