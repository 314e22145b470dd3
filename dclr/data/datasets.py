"""Datasets as lists of video files: UCF-101, HMDB-51, Kinetics-400, Diving-48 (V2) and plain folders.

Split files are read in the form in which each dataset is distributed. A video is found whatever its suffix, so
a transcoded copy in the same layout works as the original does.
"""

import difflib
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dclr.data import lists
from dclr.data.lists import DatasetError

SUBSET_FOLDERS = {
    "train": ("train", "train_256", "videos_train", "training"),
    "test": ("test", "val", "val_256", "videos_val", "validate", "validation"),
}
SPLIT_FOLDERS = (
    "",
    "annotations",
    "splits",
    "ucfTrainTestlist",
    "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist",
    "testTrainMulti_7030_splits",
    "test_train_splits",
    "test_train_splits/testTrainMulti_7030_splits",
)
VIDEO_SUFFIXES = frozenset([".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"])


@dataclass(frozen=True)
class VideoDataset:
    """N videos: `paths` (N), `labels` (N, index into `classes`, -1 unknown), and the `missing` that were left out."""

    name: str
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    missing: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def digest(self) -> str:
        """Names the videos in their order, by paths below their common folder, and their labels: 64 hex digits.

        The same wherever the folder lies; another for other, renamed, relabelled or reordered videos.
        """
        folders = {os.path.dirname(path) for path in self.paths}
        common = os.path.commonpath([os.path.abspath(folder) for folder in folders or ("",)])
        below = {folder: os.path.relpath(folder, common) for folder in folders}
        total = hashlib.sha256()
        for path, label in zip(self.paths, self.labels):
            folder, name = os.path.split(path)
            # A zero byte ends each part: no path holds one.
            total.update(b"%s\0%d\0" % (os.fsencode(os.path.join(below[folder], name)), label))
        for name in self.classes:
            total.update(name.encode(errors="surrogateescape") + b"\0")
        return total.hexdigest()


@dataclass(frozen=True)
class Request:
    """What `load_dataset` was asked for."""

    name: str
    root: Path
    split: int
    subset: str
    allow_missing: bool
    annotations: Path | None
    label: str | None
    where: str | None


def load_dataset(
    name: str,
    root: str | os.PathLike,
    *,
    split: int = 1,
    subset: str = "train",
    allow_missing: bool = False,
    annotations: str | os.PathLike | None = None,
    label: str | None = None,
    where: str | None = None,
) -> VideoDataset:
    """The videos of one subset, "train" or "test", of a dataset in `DATASETS`.

    root: the folder of the videos, or one above it.
    split: 1 to 3, UCF-101 and HMDB-51 only.
    annotations: the split file or its folder, where it does not lie beside the videos.
    label, where: `folder` only. The column of the list that holds the labels (default "label" if there is one),
        and the rows to take, as "column=value" or several joined by commas; default "split=<subset>" where
        there is a column `split`, else every row.
    allow_missing: leave out the videos that are not there and name them in `missing`.

    Raises `DatasetError`.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DatasetError(f"unknown dataset {name!r}{hint} (there are {', '.join(DATASETS)})")
    if subset not in SUBSET_FOLDERS:
        raise DatasetError(f'{name}: subset must be "train" or "test", got {subset!r}')
    if split not in ((1, 2, 3) if name in ("ucf101", "hmdb51") else (1,)):
        raise DatasetError(f"{name}: there is no split {split}")
    if name != "folder" and (label or where):
        raise DatasetError(f"{name}: label and where apply to the dataset 'folder' only")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DatasetError(f"{name}: there is no folder {root}")
    annotations = None if annotations is None else Path(annotations).expanduser()
    request = Request(name, root, split, subset, allow_missing, annotations, label, where)
    return DATASETS[name](request)


def ucf101(request: Request) -> VideoDataset:
    """UCF-101: `UCF-101/<Class>/v_*.avi`, `classInd.txt`, `trainlist0N.txt`, `testlist0N.txt`."""
    folders = _descend(request.root, ("UCF-101", "UCF101", "ucf101", "videos"))
    listing = _split_file(request, folders, f"{request.subset}list{request.split:02d}.txt")
    index = _split_file(request, folders, "classInd.txt")
    classes = tuple(name for _, name in lists.fields(index, 2))
    names = [line.split()[0] for line in lists.lines(listing)]
    labels, _ = lists.encode([os.path.dirname(name) for name in names], listing, classes)
    return _collect(request, folders[-1], [[name] for name in names], labels, classes)


def hmdb51(request: Request) -> VideoDataset:
    """HMDB-51: `<class>/*.avi` and `<class>_test_splitN.txt`, whose marks are 1 train, 2 test, 0 neither."""
    folders = _descend(request.root, ("hmdb51_org", "hmdb51", "HMDB51", "HMDB-51", "videos", "Videos"))
    ending = f"_test_split{request.split}.txt"
    first = _split_file(request, folders, f"*{ending}")
    listings = sorted(first.parent.glob(f"*{ending}"))
    classes = tuple(listing.name.removesuffix(ending) for listing in listings)
    mark = {"train": "1", "test": "2"}[request.subset]
    names, labels = [], []
    for label, listing in enumerate(listings):
        chosen = [name for name, use in lists.fields(listing, 2) if use == mark]
        names += [[f"{classes[label]}/{name}"] for name in chosen]
        labels += [label] * len(chosen)
    return _collect(request, folders[-1], names, labels, classes)


def diving48(request: Request) -> VideoDataset:
    """Diving-48: `rgb/<vid_name>.mp4`, `Diving48_V2_{train,test}.json`, and `Diving48_vocab.json` where present."""
    folders = _descend(request.root, ("Diving48", "diving48", "rgb", "videos"))
    listing = _split_file(request, folders, f"Diving48_V2_{request.subset}.json")
    entries = lists.read_json(listing)
    for entry in entries:
        lists.require(entry, ("vid_name", "label"), listing)
    vocabulary = listing.with_name("Diving48_vocab.json")
    classes = tuple(str(number) for number in range(48))
    if vocabulary.is_file():
        classes = tuple("_".join(words) for words in lists.read_json(vocabulary))
    names = [[entry["vid_name"]] for entry in entries]
    return _collect(request, folders[-1], names, [entry["label"] for entry in entries], classes)


def kinetics400(request: Request) -> VideoDataset:
    """Kinetics-400 by its official csv (label, youtube_id, time_start, time_end, split), or a list `path label`.

    "test" is the validation set, the one with public labels. Videos lie in `<subset>/<class>/`, `<subset>/`,
    `<class>/` or the root, class names with blanks or underscores, as `<id>_<start>_<end>` (six digits each, or
    plain) or `<id>`.
    """
    folders = _descend(request.root, ("kinetics400", "kinetics-400", "k400", "videos"))
    stems = {"train": ("train",), "test": ("val", "validate", "validation")}[request.subset]
    listing = _split_file(request, folders, *(f"{stem}.csv" for stem in stems))
    rows = lists.read(listing)
    official = "youtube_id" in rows[0]
    lists.require(rows[0], ("label", "time_start", "time_end") if official else ("label",), listing)
    root = folders[-1]
    inside = [name for name in SUBSET_FOLDERS[request.subset] if (root / name).is_dir()]
    label_map = listing.with_name("label_map.txt")
    classes = tuple(lists.lines(label_map)) if label_map.is_file() else None
    labels, classes = lists.encode([row["label"] for row in rows], listing, classes)
    if official:
        names = [_kinetics_names(row, inside) for row in rows]
    else:
        names = [[row["path"], *(f"{name}/{row['path']}" for name in inside)] for row in rows]
    return _collect(request, root, names, labels, classes)


def _kinetics_names(row: dict[str, str], inside: list[str]) -> list[str]:
    start, end = int(float(row["time_start"])), int(float(row["time_end"]))
    identifier = row["youtube_id"]
    stems = f"{identifier}_{start:06d}_{end:06d}", f"{identifier}_{start}_{end}", identifier
    label_folders = dict.fromkeys((row["label"], row["label"].replace(" ", "_"), ""))
    return [os.path.join(subset, label, stem) for subset in (*inside, "") for label in label_folders for stem in stems]


def folder(request: Request) -> VideoDataset:
    """Any videos: a csv or text list of paths and labels, or one folder a class, below `train` and `test` if split.

    The list is `annotations`, or `<subset>.csv`, `<subset>.txt`, `manifest.csv`, `annotations.csv` or `labels.csv`
    in the root. A folder that is not split has "train" only.
    """
    names = (
        f"{request.subset}.csv",
        f"{request.subset}.txt",
        "manifest.csv",
        "annotations.csv",
        "labels.csv",
    )
    present = [request.root / name for name in names if (request.root / name).is_file()]
    if request.annotations is not None:
        return _listed(request, _split_file(request, [request.root], *names))
    if present:
        return _listed(request, present[0])
    if request.label or request.where:
        raise DatasetError(
            f"folder: label and where choose from the columns of a list of videos, but {request.root} "
            f"has none of {', '.join(names)}; name one with annotations"
        )
    return _class_folders(request)


def _listed(request: Request, listing: Path) -> VideoDataset:
    rows = lists.read(listing)
    columns = rows[0].keys()
    label = request.label or "label"
    if request.label:
        lists.require(rows[0], (label,), listing)
    # Classes come from every row, so that train and test number them alike.
    labels, classes = lists.encode([row.get(label, "") for row in rows], listing)
    where = request.where or (f"split={request.subset}" if "split" in columns else "")
    chosen = lists.select(rows, where, listing)
    if not chosen:
        raise DatasetError(f"folder: no row of {listing} has {where or 'a video'}")
    # A path may be meant from the root or from where the list lies.
    names = [[rows[i]["path"], os.path.abspath(listing.parent / rows[i]["path"])] for i in chosen]
    return _collect(request, request.root, names, [labels[i] for i in chosen], classes)


def _class_folders(request: Request) -> VideoDataset:
    split = {name for names in SUBSET_FOLDERS.values() for name in names}
    halves = [request.root / name for name in sorted(split) if (request.root / name).is_dir()]
    mine = [half for half in halves if half.name in SUBSET_FOLDERS[request.subset]]
    if not mine and (halves or request.subset == "test"):
        raise DatasetError(
            f"folder: {request.root} has no {request.subset} videos; looked for a folder "
            f"{', '.join(SUBSET_FOLDERS[request.subset])}, or a list with a column 'split' (annotations)"
        )
    found = {half: _class_names(half) for half in halves or [request.root]}
    classes = tuple(sorted(set().union(*found.values())))
    paths, labels = [], []
    for base in mine or [request.root]:
        for label, name in enumerate(classes) if classes else [(-1, "")]:
            videos = sorted(str(path) for path in (base / name).rglob("*") if _is_video(path.name))
            paths += videos
            labels += [label] * len(videos)
    if not paths:
        raise DatasetError(f"folder: no video ({', '.join(sorted(VIDEO_SUFFIXES))}) under {request.root}")
    return VideoDataset(request.name, tuple(paths), tuple(labels), classes)


def _class_names(base: Path) -> set[str]:
    return {child.name for child in base.iterdir() if child.is_dir() and not child.name.startswith(".")}


DATASETS: dict[str, Callable[[Request], VideoDataset]] = {
    "ucf101": ucf101,
    "hmdb51": hmdb51,
    "kinetics400": kinetics400,
    "diving48": diving48,
    "folder": folder,
}


def _descend(root: Path, names: Iterable[str]) -> list[Path]:
    """`root` and the folders below it that lead to the videos, each of one of the `names`."""
    folders = [root]
    while below := [folders[-1] / name for name in names if (folders[-1] / name).is_dir()]:
        folders.append(below[0])
    return folders


def _split_file(request: Request, folders: list[Path], *names: str) -> Path:
    """The first file of one of the `names` (or patterns): in `annotations` if given, else beside the videos."""
    given = request.annotations
    if given is None:
        folders = [*reversed(folders), request.root.parent]
    else:
        given = given if given.exists() else request.root / given
        if given.is_file() and (request.name == "folder" or any(given.match(name) for name in names)):
            return given
        # A file of another subset stands for its folder.
        folders = [given.parent if given.is_file() else given]
    for base in folders:
        for below in SPLIT_FOLDERS:
            for name in names:
                found = sorted((base / below).glob(name))
                if found:
                    return found[0]
    if given is not None and given.is_file() and request.name in ("kinetics400", "diving48"):
        return given
    raise DatasetError(
        f"{request.name}: no split file {' or '.join(names)}; looked in {', '.join(map(str, folders))} and "
        f"their folders {', '.join(SPLIT_FOLDERS[1:])}; name its place with annotations"
    )


def _collect(
    request: Request, root: Path, names: list[list[str]], labels: list[int], classes: tuple[str, ...]
) -> VideoDataset:
    """Finds every video under one of its possible names below `root`."""
    shelf = _Shelf()
    found = [next(filter(None, (shelf.find(os.path.join(root, name)) for name in row)), None) for row in names]
    missing = tuple(row[0] for row, path in zip(names, found) if path is None)
    if missing and (not request.allow_missing or len(missing) == len(names)):
        more = ", ..." if len(missing) > 3 else ""
        raise DatasetError(
            f"{request.name}: {len(missing)} of {len(names)} {request.subset} videos are not under {root}: "
            f"{', '.join(missing[:3])}{more}" + ("" if request.allow_missing else " (see allow_missing)")
        )
    kept = [(path, label) for path, label in zip(found, labels) if path is not None]
    paths, labels = zip(*kept) if kept else ((), ())
    return VideoDataset(request.name, paths, labels, classes, missing)


class _Shelf:
    """Finds videos by path, whatever the suffix, reading each folder once (a look per file is slow on a network)."""

    def __init__(self) -> None:
        self.folders: dict[str, dict[str, str]] = {}

    def find(self, path: str) -> str | None:
        folder, name = os.path.split(path)
        if folder not in self.folders:
            entries = os.scandir(folder) if os.path.isdir(folder) else ()
            files = [entry.name for entry in entries if not entry.is_dir()]
            self.folders[folder] = {_stem(file): file for file in sorted(files) if _is_video(file)}
            self.folders[folder] |= {file: file for file in files}
        file = self.folders[folder].get(name) or self.folders[folder].get(_stem(name))
        return file and os.path.join(folder, file)


def _is_video(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _stem(name: str) -> str:
    return os.path.splitext(name)[0] if _is_video(name) else name
