"""What is known of a dataset, and one query for its videos: where its lists and its videos are looked for."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path

from dclr.data.folders import FolderIndex, is_system, near_name, near_path
from dclr.data.lists import DatasetError
from dclr.data.video_dataset import VideoDataset

# Folders of lists, below or beside the videos.
LIST_FOLDERS = ("", "annotations", "splits", "labels")


@dataclass(frozen=True)
class DatasetSpec:
    """All that is known of a dataset.

    title: what it is, in words.
    load: gives the videos of a query.
    lists: subset -> patterns of its split file, {split} being the number; the first that is there counts.
    videos_from, lists_from: where the videos and the lists come from.
    other_lists: patterns of further files that belong to the lists.
    folders: names of folders that lead from the root to the videos.
    list_folders: names of folders that hold the lists, besides the common ones.
    splits: how many official splits there are.
    counts: (split, subset) -> how many videos the official list has.
    any_list_name: whether `annotations` may be a file of any name.
    is_own: whether these are one's own videos: `label` and `where` choose from the columns of a list, if there is one,
        and a subset may be lacking.
    """

    title: str
    load: Callable[["DatasetQuery"], VideoDataset]
    lists: Mapping[str, Sequence[str]]
    videos_from: str
    lists_from: str
    other_lists: Sequence[str] = ()
    folders: Sequence[str] = ()
    list_folders: Sequence[str] = ()
    splits: int = 1
    counts: Mapping[tuple[int, str], int] = field(default_factory=dict)
    any_list_name: bool = False
    is_own: bool = False

    def parts(self) -> Iterator[tuple[int, str]]:
        """Every split and subset."""
        return product(range(1, self.splits + 1), self.lists)

    def list_patterns(self) -> list[str]:
        """Patterns of all files that belong to the lists, of every split and subset."""
        names = [*self.other_lists, *(name for names in self.lists.values() for name in names)]
        return list(dict.fromkeys(re.sub(r"\{split.*?\}", "*", name) for name in names))

    def all_list_folders(self) -> tuple[str, ...]:
        """Where lists are looked for, below the videos or beside them; "" is the folder itself."""
        return (*LIST_FOLDERS, *self.list_folders)


@dataclass(frozen=True)
class DatasetQuery:
    """What `load_dataset` was asked for."""

    name: str
    spec: DatasetSpec
    root: Path
    split: int
    subset: str
    allow_missing: bool
    annotations: Path | None
    label: str | None
    where: str | None
    holdout: float | None
    seed: int

    def folders(self) -> list[Path]:
        """The root and the folders below it that lead to the videos."""
        folders = [self.root]
        while below := [folders[-1] / name for name in self.spec.folders if (folders[-1] / name).is_dir()]:
            folders.append(below[0])
        return folders

    def split_file(self, *names: str) -> Path:
        """The first file of one of the names or patterns (default: of the subset), in `annotations` or by the videos.

        Raises `DatasetError` where there is none.
        """
        names = names or tuple(name.format(split=self.split) for name in self.spec.lists[self.subset])
        given = self.given()
        if given and given.is_file() and any(_matches(given.name, name) for name in names):
            return given
        # A file of another subset stands for its folder.
        bases = [given.parent if given.is_file() else given] if given else self.list_bases()
        for base, below, name in product(bases, self.spec.all_list_folders(), names):
            if found := files_like(base / below, name):
                return found[0]
        if given and given.is_file() and self.spec.any_list_name:
            return given
        raise DatasetError(
            f"{self.name}: no split file {' or '.join(names)}; looked in {', '.join(map(str, bases))} and their "
            f"folders {', '.join(self.spec.all_list_folders()[1:])}; name its place with annotations. It comes from "
            f"{self.spec.lists_from}"
        )

    def list_bases(self) -> list[Path]:
        """The folders by which lists are looked for where `annotations` names none."""
        return [*reversed(self.folders()), self.root.parent]

    def given(self) -> Path | None:
        """The file or folder that `annotations` names, from here or from the root, if it names one."""
        if self.annotations is None:
            return None
        for path in (self.annotations, self.root / self.annotations):
            if path.exists():
                return path
        near = near_name(str(self.annotations.parent), self.annotations.name)
        near = near or near_name(str(self.root), str(self.annotations))
        raise DatasetError(
            f"{self.name}: annotations: there is no file or folder {self.annotations}"
            + (f", nor {self.root / self.annotations}" if not self.annotations.is_absolute() else "")
            + (f"; did you mean {near}?" if near else "")
        )

    def collect(
        self,
        root: Path,
        wanted: Iterable[Iterable[str]],
        labels: Sequence[int],
        classes: tuple[str, ...],
        split: str,
    ) -> VideoDataset:
        """Finds every video below `root` under one of its possible names, the first of which stands in messages.

        Raises `DatasetError` where no video is wanted, videos are missing, or one is named twice with two labels.
        """
        index = FolderIndex()
        numbers: dict[str, int] = {}
        paths: list[str] = []
        kept, missing, again = [], [], []
        for names, label in zip(wanted, labels):
            name, path = _first_found(index, root, names)
            if path is None:
                missing.append(name)
                continue
            number = numbers.setdefault(os.path.abspath(path), len(paths))
            if number == len(paths):
                paths.append(path)
                kept.append(label)
            elif kept[number] == label:
                again.append(name)
            else:
                both = " and ".join(repr(classes[n]) if n >= 0 else "none" for n in (kept[number], label))
                raise DatasetError(f"{self.name}: {path} is named twice, with the labels {both}; expected one a video")
        if not labels:
            raise DatasetError(f"{self.name}: {split}: its list names no video")
        self._check_missing(missing, len(labels), root)
        notes = [
            f"{self.name}: {verb} {len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for verb, names, what in (
                ("going on without", missing, f"{self.subset} videos that are not there"),
                ("counted once", again, "videos that the list names again"),
            )
            if names
        ]
        return VideoDataset(self.name, tuple(paths), tuple(kept), classes, tuple(missing), split, tuple(notes))

    def _check_missing(self, missing: list[str], total: int, root: Path) -> None:
        if not missing or (self.allow_missing and len(missing) < total):
            return
        near = near_path(str(root), missing[0])
        raise DatasetError(
            f"{self.name}: {len(missing)} of {total} {self.subset} videos are not under {root}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
            + (f"; did you mean {near}?" if near else "")
            + ("" if self.allow_missing else " (see allow_missing)")
        )


def files_like(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder whose names match, whatever their case, in order; none where there is no folder."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [folder / name for name in names if _matches(name, pattern) and (folder / name).is_file()]


def _matches(name: str, pattern: str) -> bool:
    return not is_system(name) and fnmatchcase(name.lower(), pattern.lower())


def _first_found(index: FolderIndex, root: Path, names: Iterable[str]) -> tuple[str, str | None]:
    """The first of the names, and the path of the first under which there is a video."""
    first = None
    for name in names:
        first = name if first is None else first
        if path := index.find(os.path.join(root, name)):
            return first, path
    return first or "", None
