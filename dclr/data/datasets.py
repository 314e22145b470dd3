"""The datasets, an entry each: UCF-101, HMDB-51, Kinetics, Diving-48 (V2), Something-Something V2, and any videos.

Split files are read in the form in which each dataset is distributed. A video is found whatever its suffix, so
a transcoded copy in the same layout works as the original does. To add a dataset, write its loader and its entry.
"""

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dclr.data import lists
from dclr.data.folders import near_name
from dclr.data.labels import encode_labels
from dclr.data.lists import DatasetError, Table
from dclr.data.own_videos import SUBSET_WORDS, own_videos
from dclr.data.query import DatasetQuery, DatasetSpec, files_like
from dclr.data.video_dataset import VideoDataset

KINETICS_PAGE = "https://github.com/cvdfoundation/kinetics-dataset"


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
    holdout: float | None = None,
    seed: int = 0,
) -> VideoDataset:
    """The videos of one subset, "train" or "test", of a dataset in `DATASETS`.

    root: the folder of the videos, or one above it.
    split: number of the official split, 1 to 3 of UCF-101 and HMDB-51.
    subset: of `folder` also "val"; where it has nothing for testing, "test" is what it has for validation.
    annotations: the split file or its folder, where it does not lie beside the videos.
    label, where: `folder` only. The column of the list that holds the labels (default: one named label, class or
        the like), and the rows to take, as "column=value" or several joined by commas; default "split=<subset>" where
        there is a column `split`, else every row.
    holdout: the share of each class that is for testing in a `folder` that says nothing of a split (see
        `hold_out`); without effect on those that do, and where `where` chooses. None: all its videos are for training.
    seed: of the hold-out.
    allow_missing: leave out the videos that are not there and name them in `missing`.

    `VideoDataset.split` says which videos these are, `notes` what was left out. Raises `DatasetError`.
    """
    spec = dataset_spec(name)
    if subset not in spec.lists:
        known = " or ".join(f'"{known}"' for known in spec.lists)
        raise DatasetError(f"{name}: subset must be {known}, got {subset!r}")
    if not 1 <= split <= spec.splits:
        raise DatasetError(f"{name}: there is no split {split}")
    if not spec.is_own and (label or where):
        raise DatasetError(f"{name}: label and where apply to the dataset 'folder' only")
    if holdout is not None and not 0 < holdout < 1:
        raise DatasetError(f"{name}: holdout must be a share between 0 and 1, got {holdout}")
    root = Path(root).expanduser()
    if not root.is_dir():
        near = near_name(str(root.parent), root.name)
        if near == root.name:
            raise DatasetError(f"{name}: {root} is a file, expected the folder of the videos")
        hint = f"; did you mean {root.parent / near}?" if near else ""
        raise DatasetError(f"{name}: there is no folder {root}{hint}")
    annotations = None if annotations is None else Path(annotations).expanduser()
    return spec.load(
        DatasetQuery(name, spec, root, split, subset, allow_missing, annotations, label, where, holdout, seed)
    )


def load_all(
    name: str, root: str | os.PathLike, **options: Any
) -> tuple[dict[tuple[int, str], VideoDataset], list[DatasetError]]:
    """Every subset of every split that can be loaded, by (split, subset), and why the others cannot.

    options: of `load_dataset`. Videos that are not there are left out. Raises `DatasetError` where nothing is there.
    """
    loaded, errors = {}, []
    for split, subset in dataset_spec(name).parts():
        try:
            loaded[split, subset] = load_dataset(name, root, split=split, subset=subset, allow_missing=True, **options)
        except DatasetError as error:
            errors.append((subset, error))
    if not loaded:
        raise errors[0][1]
    # Few have videos for validation as well, which is not worth a word.
    return loaded, [error for subset, error in errors if subset != "val"]


def dataset_spec(name: str) -> DatasetSpec:
    """The entry of a dataset. Raises `DatasetError` where there is none."""
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DatasetError(f"unknown dataset {name!r}{hint} (there are {', '.join(DATASETS)})")
    return DATASETS[name]


def ucf101(query: DatasetQuery) -> VideoDataset:
    """UCF-101: `UCF-101/<Class>/v_*.avi`, `classInd.txt`, `trainlist0N.txt`, `testlist0N.txt`."""
    listing = query.split_file()
    classes = tuple(name for _, name in lists.fields(query.split_file("classInd.txt"), 2))
    names = [line.split()[0] for line in lists.lines(listing)]
    labels, _ = encode_labels([os.path.dirname(name) for name in names], _row_of(listing), classes)
    return query.collect(
        query.folders()[-1], ([name] for name in names), labels, classes, f"split {query.split} {query.subset}"
    )


def hmdb51(query: DatasetQuery) -> VideoDataset:
    """HMDB-51: `<class>/*.avi` and `<class>_test_splitN.txt`, whose marks are 1 train, 2 test, 0 neither."""
    ending = f"_test_split{query.split}.txt"
    folder = query.split_file().parent
    listings = files_like(folder, f"*{ending}")
    classes = tuple(listing.name.removesuffix(ending) for listing in listings)
    mark = {"train": "1", "test": "2"}[query.subset]
    names, labels = [], []
    for label, listing in enumerate(listings):
        chosen = [name for name, use in lists.fields(listing, 2) if use == mark]
        names += [[f"{classes[label]}/{name}"] for name in chosen]
        labels += [label] * len(chosen)
    return query.collect(query.folders()[-1], names, labels, classes, f"split {query.split} {query.subset}")


def diving48(query: DatasetQuery) -> VideoDataset:
    """Diving-48: `rgb/<vid_name>.mp4`, `Diving48_V2_{train,test}.json`, and `Diving48_vocab.json` where present."""
    listing = query.split_file()
    entries = lists.read_records(listing, ("vid_name", "label"))
    vocabulary = listing.with_name("Diving48_vocab.json")
    classes = tuple(map(str, range(48)))
    if vocabulary.is_file():
        classes = tuple("_".join(map(str, words)) for words in lists.read_json(vocabulary, list))
    labels, _ = encode_labels([str(entry["label"]) for entry in entries], _row_of(listing, "entry"), classes)
    names = ([str(entry["vid_name"])] for entry in entries)
    return query.collect(query.folders()[-1], names, labels, classes, f"list {listing.name}")


def something_v2(query: DatasetQuery) -> VideoDataset:
    """Something-Something V2: `<id>.webm`, lists with `id` and `template`, and the numbers of the templates.

    A template's brackets are not in the labels: "Holding [something]" is "Holding something".
    """
    listing = query.split_file()
    entries = lists.read_records(listing, ("id", "template"))
    numbered = query.split_file(*query.spec.other_lists)
    numbers = lists.read_json(numbered, dict)
    try:
        classes = tuple(sorted(numbers, key=lambda name: int(numbers[name])))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{numbered}: expected a number for each class: {error}") from error
    templates = [str(entry["template"]).replace("[", "").replace("]", "") for entry in entries]
    labels, _ = encode_labels(templates, _row_of(listing, "entry"), classes)
    names = ([str(entry["id"])] for entry in entries)
    return query.collect(query.folders()[-1], names, labels, classes, f"list {listing.name}")


def kinetics(query: DatasetQuery) -> VideoDataset:
    """Kinetics by its official csv (label, youtube_id, time_start, time_end, split), or a list `path label`.

    "test" is the validation set, the one with public labels. Videos lie in `<subset>/<class>/`, `<subset>/`,
    `<class>/` or the root, class names with blanks or underscores, as `<id>_<start>_<end>` (six digits each, or
    plain) or `<id>`.
    """
    listing = query.split_file()
    table = lists.read_table(listing)
    root = query.folders()[-1]
    words = SUBSET_WORDS["train" if query.subset == "train" else "val"]
    subsets = [word for word in words if (root / word).is_dir()]
    maps = [listing.with_name(name) for name in query.spec.other_lists]
    classes = next((tuple(lists.lines(path)) for path in maps if path.is_file()), None)
    labels, classes = encode_labels(table["label"], partial(table.place, column="label"), classes)
    if "youtube_id" in table.columns:
        names = _kinetics_names(table, root, subsets)
    else:
        names = ([path, *(f"{subset}/{path}" for subset in subsets)] for path in table.paths)
    return query.collect(root, names, labels, classes, f"list {listing.name}")


def _kinetics_names(table: Table, root: Path, subsets: Sequence[str]) -> Iterator[Iterator[str]]:
    """The names that each row's video may have, in the folders that there are."""
    folders = {}
    for label in set(table["label"]):
        spellings = dict.fromkeys((label, label.replace(" ", "_"), ""))
        below = [os.path.join(subset, spelling) for subset in (*subsets, "") for spelling in spellings]
        folders[label] = [folder for folder in below if os.path.isdir(root / folder)]
    rows = zip(table["label"], table["youtube_id"], table["time_start"], table["time_end"])
    for number, (label, identifier, start, end) in enumerate(rows):
        start = _seconds(table, number, "time_start", start)
        end = _seconds(table, number, "time_end", end)
        stems = f"{identifier}_{start:06d}_{end:06d}", f"{identifier}_{start}_{end}", identifier
        yield (os.path.join(folder, stem) for folder in folders[label] for stem in stems)


def _seconds(table: Table, row: int, column: str, value: str) -> int:
    try:
        return int(float(value))
    except (ValueError, OverflowError):
        raise DatasetError(f"{table.place(row, column)}: got {value!r}, expected a number of seconds") from None


def _row_of(listing: Path, what: str = "row") -> Callable[[int], str]:
    """Where the rows of a list stand, for `encode_labels`."""
    return lambda row: f"{listing}, {what} {row + 1}"


def _kinetics_spec(classes: int, *folders: str) -> DatasetSpec:
    stems = {"train": ("train",), "test": ("val", "validate", "validation")}
    return DatasetSpec(
        title=f"Kinetics-{classes}: clips of ten seconds of {classes} human actions",
        load=kinetics,
        lists={
            subset: [name for stem in names for name in (f"{stem}.csv", f"{stem}.txt", f"kinetics*{classes}_{stem}*")]
            for subset, names in stems.items()
        },
        other_lists=[f"label_map_{classes}.txt", f"label_map_k{classes}.txt", "label_map.txt"],
        folders=(f"kinetics{classes}", f"kinetics-{classes}", f"kinetics_{classes}", f"k{classes}", *folders, "videos"),
        list_folders=(f"kinetics{classes}",),
        any_list_name=True,
        videos_from=KINETICS_PAGE,
        lists_from=f"{KINETICS_PAGE} (annotations/train.csv and val.csv)",
    )


DATASETS: dict[str, DatasetSpec] = {
    "ucf101": DatasetSpec(
        title="UCF-101: 13,320 clips of 101 human actions",
        load=ucf101,
        lists={"train": ["trainlist{split:02d}.txt"], "test": ["testlist{split:02d}.txt"]},
        other_lists=["classInd.txt"],
        folders=("UCF-101", "UCF101", "ucf101", "videos"),
        list_folders=("ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist"),
        splits=3,
        counts={
            (1, "train"): 9537,
            (1, "test"): 3783,
            (2, "train"): 9586,
            (2, "test"): 3734,
            (3, "train"): 9624,
            (3, "test"): 3696,
        },
        videos_from="https://www.crcv.ucf.edu/data/UCF101.php (UCF101.rar)",
        lists_from="https://www.crcv.ucf.edu/data/UCF101.php (UCF101TrainTestSplits-RecognitionTask.zip)",
    ),
    "hmdb51": DatasetSpec(
        title="HMDB-51: 6,766 clips of 51 human actions",
        load=hmdb51,
        lists=dict.fromkeys(("train", "test"), ("*_test_split{split}.txt",)),
        folders=("hmdb51_org", "hmdb51", "HMDB51", "HMDB-51", "videos", "Videos"),
        list_folders=(
            "testTrainMulti_7030_splits",
            "test_train_splits",
            "test_train_splits/testTrainMulti_7030_splits",
        ),
        splits=3,
        counts={(split, subset): count for split in (1, 2, 3) for subset, count in (("train", 3570), ("test", 1530))},
        videos_from="https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database (hmdb51_org.rar)",
        lists_from=(
            "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database (test_train_splits.rar)"
        ),
    ),
    "kinetics400": _kinetics_spec(400),
    "kinetics600": _kinetics_spec(600),
    "kinetics700": _kinetics_spec(700, "kinetics700_2020", "k700-2020", "700_2020"),
    "diving48": DatasetSpec(
        title="Diving-48 (V2): clips of 48 dive sequences",
        load=diving48,
        lists={subset: [f"Diving48_V2_{subset}.json"] for subset in ("train", "test")},
        other_lists=["Diving48_vocab.json"],
        folders=("Diving48", "diving48", "rgb", "videos"),
        counts={(1, "train"): 15027, (1, "test"): 1970},
        any_list_name=True,
        videos_from="http://www.svcl.ucsd.edu/projects/resound/dataset.html (Diving48_rgb.tar.gz)",
        lists_from="http://www.svcl.ucsd.edu/projects/resound/dataset.html (V2: the lists of October 2020)",
    ),
    "something_v2": DatasetSpec(
        title="Something-Something V2: clips of 174 actions with everyday objects; test is the validation set",
        load=something_v2,
        lists={
            "train": ["something-something-v2-train.json", "train.json"],
            "test": ["something-something-v2-validation.json", "validation.json"],
        },
        other_lists=["something-something-v2-labels.json", "labels.json"],
        folders=("something-something-v2", "20bn-something-something-v2", "sthv2", "ssv2", "videos"),
        list_folders=("something-something-v2-annotations",),
        counts={(1, "train"): 168913, (1, "test"): 24777},
        videos_from="https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
        lists_from="https://www.qualcomm.com/developer/software/something-something-v-2-dataset (labels)",
    ),
    "folder": DatasetSpec(
        title="any videos: a list of paths and labels (csv, tsv, txt), or a folder a class, also below train and test",
        load=own_videos,
        lists=dict.fromkeys(("train", "val", "test"), ("*.csv", "*.tsv", "*.txt")),
        any_list_name=True,
        is_own=True,
        videos_from="a folder of your own",
        lists_from="a file of your own, or the names of the folders",
    ),
}
