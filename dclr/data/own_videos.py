"""Videos of one's own: a list of paths and labels, or a folder a class, with or without a split."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from dclr.data.folders import VIDEO_FORMATS, has_video_suffix, is_system, walk_videos
from dclr.data.labels import encode_labels
from dclr.data.lists import LABEL_NAMES, SPLIT_NAMES, DatasetError, Table, read_table
from dclr.data.query import DatasetQuery, files_like
from dclr.data.video_dataset import VideoDataset, hold_out

# What the parts of a split are called: in columns, and as names of folders and lists.
SUBSET_WORDS = {
    "train": ("train", "training", "train_256", "videos_train"),
    "val": ("val", "valid", "validate", "validation", "dev", "val_256", "videos_val"),
    "test": ("test", "testing", "test_256", "videos_test"),
}
GENERAL_LISTS = ("manifest", "annotations", "labels")


def own_videos(query: DatasetQuery) -> VideoDataset:
    """The videos of a list, or of folders where there is none."""
    listing = _listing(query)
    if listing is not None:
        return _listed(query, listing)
    if query.label or query.where:
        raise DatasetError(
            f"{query.name}: label and where choose from the columns of a list of videos, but {query.root} has none of "
            f"{', '.join(_list_names(query.subset))} (csv, tsv or txt); name one with annotations"
        )
    return _in_folders(query)


def subset_of(word: str) -> str | None:
    """ "train", "val" or "test" for a word that stands for it."""
    return next((subset for subset, words in SUBSET_WORDS.items() if word.lower() in words), None)


def _with_stand_in(subset: str) -> tuple[str, ...]:
    """Where nothing is for testing, what is for validation is tested."""
    return ("test", "val") if subset == "test" else (subset,)


# Lists


def _list_names(subset: str) -> tuple[str, ...]:
    return (*(word for part in _with_stand_in(subset) for word in SUBSET_WORDS[part]), *GENERAL_LISTS)


def _listing(query: DatasetQuery) -> Path | None:
    """The list of the subset: one of its name, or one for all subsets."""
    given = query.given()
    names = _list_names(query.subset)
    if given is not None and given.is_file():
        of_other_subset = subset_of(given.stem) not in (None, query.subset)
        return (of_other_subset and _first_list(given.parent, filter(subset_of, names))) or given
    found = _first_list(given or query.root, names)
    if given is not None and found is None:
        raise DatasetError(f"{query.name}: annotations: {given} has no list {', '.join(names)} (csv, tsv or txt)")
    return found


def _first_list(folder: Path, names: Iterable[str]) -> Path | None:
    lists = _lists_in(folder)
    return next((lists[name] for name in names if name in lists), None)


def _lists_in(folder: Path) -> dict[str, Path]:
    """The lists of a folder by their names without suffix. A text file has to be named for a subset."""
    files = [path for suffix in ("csv", "tsv", "txt") for path in files_like(folder, f"*.{suffix}")]
    lists = [path for path in files if path.suffix.lower() != ".txt" or subset_of(path.stem)]
    return {path.stem.lower(): path for path in reversed(lists)}


def _tables(listing: Path) -> list[Table]:
    """The list, and those of the other subsets where it is named for one: their classes are numbered together."""
    beside = []
    if subset_of(listing.stem):
        others = files_like(listing.parent, f"*{listing.suffix}")
        beside = [path for path in others if subset_of(path.stem) not in (None, subset_of(listing.stem))]
    return [read_table(path) for path in (listing, *beside)]


def _listed(query: DatasetQuery, listing: Path) -> VideoDataset:
    tables = _tables(listing)
    table = tables[0]
    labels, classes = _labels(query, tables)
    rows, words = _rows(query, table)
    if not rows:
        raise DatasetError(f"{query.name}: no row of {listing} has {words or 'a subset val'}")
    paths = table.paths
    blank = next((row for row in rows if not paths[row]), None)
    if blank is not None:
        raise DatasetError(f"{table.place(blank)}: has no path")
    split = f"rows of {listing.name} with {words}" if words else f"all rows of {listing.name}"
    wanted = (_meanings(paths[row], query.root, listing) for row in rows)
    videos = query.collect(query.root, wanted, [labels[row] for row in rows], classes, split)
    others = [column for column, cells in table.columns.items() if cells is not paths]
    if others and not query.label and table.known(LABEL_NAMES) is None:
        note = f"{query.name}: {listing} has no column of labels that is known by its name (label may be one of "
        videos = replace(videos, notes=(*videos.notes, f"{note}{', '.join(others)})"))
    return _held_out(query, videos) if not words and len(tables) == 1 else videos


def _labels(query: DatasetQuery, tables: list[Table]) -> tuple[list[int], tuple[str, ...]]:
    """Labels of the first table, and the classes of all rows of all tables, whichever the query takes."""
    columns = [table.known(LABEL_NAMES) for table in tables]
    if query.label:
        columns = [query.label for _ in tables]
    values = [table[column] if column else [""] * len(table) for table, column in zip(tables, columns)]

    def place(row: int) -> str:
        for table, column in zip(tables, columns):
            if row < len(table):
                return table.place(row, column)
            row -= len(table)
        raise IndexError(row)

    labels, classes = encode_labels([value for cells in values for value in cells], place)
    return labels[: len(tables[0])], classes


def _rows(query: DatasetQuery, table: Table) -> tuple[list[int], str]:
    """The rows of the subset, and what chose them; "" for all rows, where nothing does."""
    if query.where:
        return table.where(query.where), query.where
    subsets = SUBSET_WORDS.keys()
    for column in filter(None, (table.known([name]) for name in SPLIT_NAMES)):
        meant = {value: subset_of(value) for value in set(table[column])}
        if subsets & set(meant.values()):
            subset = next((part for part in _with_stand_in(query.subset) if part in meant.values()), query.subset)
            chosen = [row for row, value in enumerate(table[column]) if meant[value] == subset]
            return chosen, f"{column}={subset}"
    named = subset_of(table.source.stem) == query.subset
    return [] if query.subset == "val" and not named else list(range(len(table))), ""


def _meanings(path: str, root: Path, listing: Path) -> Iterator[str]:
    """A path may be meant from the root or from where the list lies."""
    yield path
    if listing.parent != root:
        yield os.path.abspath(listing.parent / path)


# Folders


def _in_folders(query: DatasetQuery) -> VideoDataset:
    split = split_folders(query.root)
    mine = next((split[part] for part in _with_stand_in(query.subset) if part in split), None)
    if mine is None and (split or query.subset == "val" or (query.subset == "test" and not query.holdout)):
        words = [word for part in _with_stand_in(query.subset) for word in SUBSET_WORDS[part]]
        raise DatasetError(
            f"{query.name}: {query.root} has no {query.subset} videos: no folder {', '.join(words)}, no list with a "
            "column 'split' (annotations)"
            + ("" if split else "; evaluations then test a share of each class (holdout)")
        )
    bases = [folder for folders in split.values() for folder in folders] or [query.root]
    passed: dict[Path, Counter[str]] = {base: Counter() for base in bases}
    found = {base: [(_class_of(path, base), path) for path in walk_videos(base, passed[base])] for base in bases}
    classes = tuple(sorted({folder.name for base in bases for folder in class_folders(base, found[base])}))
    taken = mine or bases
    labelled = [item for base in taken for item in sorted(found[base])]
    skipped = sum((passed[base] for base in taken), Counter())
    if not labelled:
        raise DatasetError(
            f"{query.name}: no video ({VIDEO_FORMATS}) under {', '.join(map(str, taken))}"
            f"{_in_words(skipped, '; there are ')}"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    videos = VideoDataset(
        query.name,
        tuple(path for _, path in labelled),
        tuple(numbers.get(name, -1) for name, _ in labelled),
        classes,
        split=f"folder {', '.join(folder.name for folder in taken)}" if split else "all videos of the folder",
    )
    notes = [*_notes(videos, skipped), *_left_beside(query.root, split)]
    videos = replace(videos, notes=tuple(f"{query.name}: {note}" for note in notes))
    return videos if split else _held_out(query, videos)


def split_folders(root: Path) -> dict[str, list[Path]]:
    """The folders of each subset, if there are. Of one subset alone, beside folders of other videos, it is a class."""
    children = _folders_in(root)
    split: dict[str, list[Path]] = {}
    for child in children:
        if subset := subset_of(child.name):
            split.setdefault(subset, []).append(child)
    return {} if len(split) == 1 and any(map(_holds_video, _others(children))) else split


def class_folders(base: Path, videos: list[tuple[str, str]] | None = None) -> list[Path]:
    """The folders that are classes: those with videos below them and, where there are such, empty ones.

    A folder that holds other things, such as the output of a run, is none. videos: (class, path) where known.
    """
    children = _folders_in(base)
    known = None if videos is None else {name for name, _ in videos}
    holding = [child for child in children if (_holds_video(child) if known is None else child.name in known)]
    empty = [child for child in children if not os.listdir(child)]
    return sorted([*holding, *empty]) if holding else []


def all_class_folders(root: Path) -> list[Path]:
    """The class folders of a folder of videos, of all subsets."""
    bases = [folder for folders in split_folders(root).values() for folder in folders] or [root]
    return [folder for base in bases for folder in class_folders(base)]


def _folders_in(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not is_system(child.name))


def _others(folders: list[Path]) -> list[Path]:
    return [folder for folder in folders if not subset_of(folder.name)]


def _holds_video(folder: Path) -> bool:
    return next(walk_videos(folder, Counter()), None) is not None


def _class_of(path: str, base: Path) -> str:
    """The folder below `base` that the video lies in, "" where it is `base` itself."""
    first, _, rest = path[len(os.path.join(base, "")) :].partition(os.sep)
    return first if rest else ""


def _notes(videos: VideoDataset, passed: Counter[str]) -> list[str]:
    notes = []
    unlabelled = videos.labels.count(-1)
    if unlabelled and videos.classes:
        notes.append(f"{unlabelled} videos lie in no class folder and have no label")
    if passed.total():
        notes.append(f"passed over{_in_words(passed)}")
    used = set(videos.labels)
    empty = [name for number, name in enumerate(videos.classes) if number not in used]
    if empty:
        notes.append(f"{len(empty)} classes have no video in {videos.split}: {', '.join(empty[:3])}")
    return notes


def _in_words(passed: Counter[str], start: str = " ") -> str:
    seen = [f"{count} {what}" for what, count in passed.items() if count]
    return start + ", ".join(seen) if seen else ""


def _left_beside(root: Path, split: dict[str, list[Path]]) -> list[str]:
    """A note on the videos outside of the folders of a split."""
    if not split:
        return []
    loose = [child for child in root.iterdir() if has_video_suffix(child.name) and not is_system(child.name)]
    count = sum(child.is_file() for child in loose)
    count += sum(1 for folder in _others(_folders_in(root)) for _ in walk_videos(folder, Counter()))
    where = ", ".join(folder.name for folders in split.values() for folder in folders)
    return [f"{count} videos outside of the folders {where} are left out"] if count else []


def _held_out(query: DatasetQuery, videos: VideoDataset) -> VideoDataset:
    return hold_out(videos, query.subset, query.holdout, query.seed) if query.holdout else videos
