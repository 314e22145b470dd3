import os

import pytest

from dclr.data import DatasetError, load_dataset
from tests.data.trees import names_of, touch, write_rows


@pytest.fixture
def listed(tmp_path):
    names = [f"clips/{i}.mp4" for i in range(4)]
    touch(tmp_path, *names)
    rows = zip(names, ("up", "down", "up", "left"), ("sea", "sea", "sand", "sky"), ("train", "train", "test", "test"))
    write_rows(tmp_path / "manifest.csv", "path,motion,scene,split", *(",".join(row) for row in rows))
    return tmp_path


@pytest.mark.parametrize(
    "options, numbers, labels",
    [
        ({}, [0, 1], (-1, -1)),
        ({"label": "motion"}, [0, 1], (2, 0)),
        ({"label": "motion", "subset": "test"}, [2, 3], (2, 1)),
        ({"label": "scene", "where": "scene=sea"}, [0, 1], (1, 1)),
        ({"label": "motion", "where": "motion=up"}, [0, 2], (2, 2)),
        ({"label": "motion", "where": "motion=up, split=test"}, [2], (2,)),
    ],
)
def test_folder_with_columns(listed, options, numbers, labels):
    dataset = load_dataset("folder", listed, **options)
    assert names_of(dataset, listed) == [f"clips/{i}.mp4" for i in numbers]
    assert dataset.labels == labels
    if options.get("label") == "motion":
        assert dataset.classes == ("down", "left", "up")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"label": "speed"}, "manifest.csv has no column 'speed'; it has path, motion, scene, split"),
        ({"where": "speed=1"}, "manifest.csv has no column 'speed'"),
        ({"where": "motion"}, "'motion' is not of the form column=value"),
        ({"where": "motion=round"}, "no row of .*manifest.csv has motion=round"),
        ({"subset": "val"}, "no row of .*manifest.csv has split=val"),
        ({"subset": "exam"}, 'subset must be "train" or "val" or "test", got \'exam\''),
        ({"split": 2}, "there is no split 2"),
        ({"annotations": "nowhere.csv"}, "annotations: there is no file or folder nowhere.csv, nor .*/nowhere.csv$"),
        ({"annotations": "Manifest_csv"}, "no file or folder Manifest_csv, .*; did you mean manifest.csv"),
        ({"annotations": "clips"}, "annotations: .*clips has no list train, training, .*manifest, annotations, labels"),
    ],
)
def test_folder_with_wrong_columns(listed, options, message):
    with pytest.raises(DatasetError, match=message):
        load_dataset("folder", listed, **options)


def test_folder_with_a_list_beside_the_videos(tmp_path):
    touch(tmp_path, "videos/a b.mp4", "videos/c.avi")
    listing = write_rows(tmp_path / "elsewhere.txt", "videos/a b.mp4 1", "videos/c.avi 0")
    dataset = load_dataset("folder", tmp_path / "videos", annotations=listing)
    assert names_of(dataset, tmp_path) == ["videos/a b.mp4", "videos/c.avi"] and dataset.labels == (1, 0)
    write_rows(tmp_path / "two.csv", "videos/c.avi,jump", "videos/a b.mp4,run")
    assert load_dataset("folder", tmp_path, annotations=tmp_path / "two.csv").classes == ("jump", "run")
    write_rows(tmp_path / "blank.csv", "path,label", ",1", "videos/c.avi,0")
    with pytest.raises(DatasetError, match=r"blank.csv, row 2: has no path"):
        load_dataset("folder", tmp_path / "videos", annotations=tmp_path / "blank.csv")
    write_rows(tmp_path / "ragged.csv", "path,label", "videos/c.avi")
    with pytest.raises(DatasetError, match=r"ragged.csv, row 2: 1 columns"):
        load_dataset("folder", tmp_path, annotations=tmp_path / "ragged.csv")


def test_a_list_without_a_known_column_of_labels_says_so(listed):
    assert "(label may be one of motion, scene, split)" in load_dataset("folder", listed).notes[0]
    assert not load_dataset("folder", listed, label="motion").notes


def test_a_column_of_the_list_by_another_spelling(listed):
    assert load_dataset("folder", listed, label="Motion", where="Scene=sand").labels == (2,)


def test_a_path_that_is_named_twice(tmp_path):
    touch(tmp_path, "a/x.mp4", "a/y.avi")
    listing = write_rows(tmp_path / "list.csv", "a/x.mp4,1", "a/y.avi,0", "./a/../a/x.mp4,1", f"{tmp_path}/a/y.mp4,0")
    dataset = load_dataset("folder", tmp_path, annotations=listing)
    assert names_of(dataset, tmp_path) == ["a/x.mp4", "a/y.avi"] and dataset.labels == (1, 0)
    assert dataset.notes == (
        f"folder: counted once 2 videos that the list names again: ./a/../a/x.mp4, {tmp_path}/a/y.mp4",
    )
    write_rows(listing, "a/x.mp4,run", "a/y.avi,run", "a/x.mp4,jump")
    with pytest.raises(DatasetError, match=r"a/x.mp4 is named twice, with the labels 'run' and 'jump'"):
        load_dataset("folder", tmp_path, annotations=listing)


@pytest.mark.parametrize("suffix", ["csv", "TSV", "txt"])
def test_lists_of_each_subset_number_their_classes_together(tmp_path, suffix):
    touch(tmp_path, *(f"{name}.mp4" for name in "abcd"))
    separator = {"csv": ",", "TSV": "\t", "txt": " "}[suffix]
    for name, rows in {"train": ["a.mp4 y", "b.mp4 z"], "val": ["c.mp4 x"], "test": ["d.mp4 z"]}.items():
        write_rows(tmp_path / f"{name}.{suffix}", *(row.replace(" ", separator) for row in rows))
    labels = {subset: load_dataset("folder", tmp_path, subset=subset).labels for subset in ("train", "val", "test")}
    assert labels == {"train": (1, 2), "val": (0,), "test": (2,)}
    given = {"annotations": tmp_path / f"train.{suffix}", "holdout": 0.5}
    assert names_of(load_dataset("folder", tmp_path, subset="test", **given), tmp_path) == ["d.mp4"]
    (tmp_path / f"test.{suffix}").unlink()
    stand_in = load_dataset("folder", tmp_path, subset="test", **given)
    assert names_of(stand_in, tmp_path) == ["c.mp4"] and stand_in.split == f"all rows of val.{suffix}"


@pytest.mark.parametrize("values, test", [(("train", "val", "test"), 2), (("Training", "Validation", "none"), 1)])
def test_a_column_of_subsets(tmp_path, values, test):
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    rows = [f"{name}.mp4,{value}" for name, value in zip("abc", values)]
    write_rows(tmp_path / "manifest.csv", "path,Subset", *rows)
    found = {subset: load_dataset("folder", tmp_path, subset=subset) for subset in ("train", "val", "test")}
    assert {subset: names_of(dataset, tmp_path) for subset, dataset in found.items()} == {
        "train": ["a.mp4"],
        "val": ["b.mp4"],
        "test": [f"{'abc'[test]}.mp4"],
    }
    assert found["test"].split == f"rows of manifest.csv with Subset={'test' if test == 2 else 'val'}"


def test_folder_of_class_folders(tmp_path):
    touch(tmp_path, "run/a.mp4", "jump/b.avi", "jump/c.MOV", "jump/notes.txt")
    dataset = load_dataset("folder", tmp_path)
    assert names_of(dataset, tmp_path) == ["jump/b.avi", "jump/c.MOV", "run/a.mp4"]
    assert (dataset.labels, dataset.classes) == ((0, 0, 1), ("jump", "run"))
    with pytest.raises(DatasetError, match="has no test videos"):
        load_dataset("folder", tmp_path, subset="test")


def test_folder_split_in_two(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", "val/run/c.mp4")
    train, test = (load_dataset("folder", tmp_path, subset=subset) for subset in ("train", "test"))
    assert names_of(test, tmp_path) == ["val/run/c.mp4"]
    assert test.labels == (1,) and test.classes == train.classes == ("jump", "run")


def test_folder_without_classes(tmp_path):
    touch(tmp_path, "b.mp4", "a.mp4")
    dataset = load_dataset("folder", tmp_path)
    assert (names_of(dataset, tmp_path), dataset.labels, dataset.classes) == (
        ["a.mp4", "b.mp4"],
        (-1, -1),
        (),
    )


def test_one_subfolder_does_not_hide_loose_videos(tmp_path):
    touch(tmp_path, "b.mp4", "a.mp4", "runs/first/config.yaml")
    dataset = load_dataset("folder", tmp_path)
    assert names_of(dataset, tmp_path) == ["a.mp4", "b.mp4"] and dataset.classes == ()
    assert dataset.notes == ("folder: passed over 1 files without a video's suffix",)
    touch(tmp_path, "run/c.mp4")
    dataset = load_dataset("folder", tmp_path)
    assert names_of(dataset, tmp_path) == ["a.mp4", "b.mp4", "run/c.mp4"]
    assert (dataset.labels, dataset.classes) == ((-1, -1, 0), ("run",))
    assert "folder: 2 videos lie in no class folder and have no label" in dataset.notes


def test_what_systems_leave_behind_is_passed_over(tmp_path):
    touch(tmp_path, "run/a.mp4", "run/._a.mp4", "run/@eaDir/a.mp4", "__MACOSX/run/a.mp4", ".AppleDouble/a.mp4")
    touch(tmp_path, "run/notes.txt", "run/folder.mp4/b.mp4", "run/Thumbs.db", ".DS_Store", ".dclr-frames")
    os.symlink(tmp_path / "nowhere", tmp_path / "run/gone.mp4")
    os.mkfifo(tmp_path / "run/pipe.mp4")
    dataset = load_dataset("folder", tmp_path)
    assert names_of(dataset, tmp_path) == ["run/a.mp4", "run/folder.mp4/b.mp4"] and dataset.classes == ("run",)
    (note,) = dataset.notes
    assert note.startswith("folder: passed over ") and sorted(note[len("folder: passed over ") :].split(", ")) == [
        "2 broken links or special files",
        "2 files without a video's suffix",
        "4 hidden or system entries",
    ]


def test_links_to_folders_are_followed(tmp_path):
    touch(tmp_path, "store/run/a.mp4", "root/jump/b.mp4")
    os.symlink(tmp_path / "store/run", tmp_path / "root/run")
    os.symlink(tmp_path / "root", tmp_path / "root/jump/around")
    dataset = load_dataset("folder", tmp_path / "root")
    assert names_of(dataset, tmp_path / "root") == ["jump/b.mp4", "run/a.mp4"]
    assert dataset.classes == ("jump", "run")
    assert dataset.notes == ("folder: passed over 1 links to a folder around them",)


@pytest.mark.parametrize("suffix", [".flv", ".gif", ".ts", ".m2ts", ".3gp", ".ogv", ".mts", ".mxf", ".MP4"])
def test_suffixes_of_videos(tmp_path, suffix):
    touch(tmp_path, f"run/a{suffix}")
    assert len(load_dataset("folder", tmp_path)) == 1


def test_train_val_and_test_are_three_subsets(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", "val/run/c.mp4", "test/run/d.mp4", "test/fly/e.mp4")
    found = {subset: load_dataset("folder", tmp_path, subset=subset) for subset in ("train", "val", "test")}
    assert {subset: names_of(dataset, tmp_path) for subset, dataset in found.items()} == {
        "train": ["train/jump/b.mp4", "train/run/a.mp4"],
        "val": ["val/run/c.mp4"],
        "test": ["test/fly/e.mp4", "test/run/d.mp4"],
    }
    assert {dataset.classes for dataset in found.values()} == {("fly", "jump", "run")}
    assert found["train"].notes == ("folder: 1 classes have no video in folder train: fly",)
    touch(tmp_path, "extra/f.mp4", "g.mp4")
    note = "folder: 2 videos outside of the folders test, train, val are left out"
    assert note in load_dataset("folder", tmp_path).notes


def test_a_class_named_train(tmp_path):
    touch(tmp_path, "train/a.mp4", "bus/b.mp4")
    assert load_dataset("folder", tmp_path).classes == ("bus", "train")


def class_folders(root, **counts):
    touch(root, *(f"{name}/{number}.mp4" for name, count in counts.items() for number in range(count)))


@pytest.mark.parametrize("share, expected", [(0.2, (2, 1, 1)), (0.5, (5, 2, 1)), (0.01, (1, 1, 1)), (0.99, (9, 4, 1))])
def test_a_hold_out_takes_its_share_of_each_class(tmp_path, share, expected):
    class_folders(tmp_path, a=10, b=5, c=2, single=1)
    train, test = (load_dataset("folder", tmp_path, subset=part, holdout=share) for part in ("train", "test"))
    whole = load_dataset("folder", tmp_path)
    assert sorted(train.paths + test.paths) == sorted(whole.paths) and not set(train.paths) & set(test.paths)
    assert train.classes == test.classes == whole.classes
    assert tuple(test.labels.count(label) for label in range(4)) == (*expected, 0)
    assert list(train.paths) == sorted(train.paths) and len(train.labels) == len(train)
    assert test.split == (
        f"test part of a hold-out: {share} of each class's videos for testing, seed 0; all videos of the folder"
    )
    assert "folder: 1 classes have one video, which is for training" in train.notes


def test_a_hold_out_goes_by_seed_and_names_alone(tmp_path):
    class_folders(tmp_path / "here", a=20, b=20)
    class_folders(tmp_path / "there", a=20, b=20)
    options = {"subset": "test", "holdout": 0.25}
    first = names_of(load_dataset("folder", tmp_path / "here", **options), tmp_path / "here")
    assert first == names_of(load_dataset("folder", tmp_path / "there", **options), tmp_path / "there")
    others = names_of(load_dataset("folder", tmp_path / "here", **options, seed=1), tmp_path / "here")
    assert first != others and len(first) == len(others) == 10
    touch(tmp_path / "here", "a/new.mp4")
    assert len(set(first) - set(names_of(load_dataset("folder", tmp_path / "here", **options), tmp_path / "here"))) <= 1


def test_a_hold_out_of_a_list_and_of_unlabelled_videos(tmp_path, listed):
    touch(tmp_path / "flat", *(f"{number}.mp4" for number in range(5)))
    test = load_dataset("folder", tmp_path / "flat", subset="test", holdout=0.2)
    assert len(test) == 1 and "0.2 of the videos for testing" in test.split
    write_rows(tmp_path / "all.csv", *(f"flat/{number}.mp4,{number % 2}" for number in range(5)))
    test = load_dataset("folder", tmp_path, annotations="all.csv", subset="test", holdout=0.5)
    assert sorted(test.labels) == [0, 0, 1] and "all rows of all.csv" in test.split


@pytest.mark.parametrize("options", [{}, {"where": "scene=sea"}])
def test_a_split_of_ones_own_goes_before_the_hold_out(listed, options):
    for subset in ("train", "test"):
        kept = load_dataset("folder", listed, subset=subset, holdout=0.5, **options)
        assert kept == load_dataset("folder", listed, subset=subset, **options)


def test_wrong_hold_outs(tmp_path):
    touch(tmp_path, "a/0.mp4", "b/0.mp4")
    with pytest.raises(DatasetError, match=r"holdout must be a share between 0 and 1, got 1.5"):
        load_dataset("folder", tmp_path, holdout=1.5)
    with pytest.raises(DatasetError, match="a hold-out needs two videos of some class, got 2 videos"):
        load_dataset("folder", tmp_path, subset="test", holdout=0.5)
    with pytest.raises(DatasetError, match=r"has no test videos: .*; evaluations then test a share of each class"):
        load_dataset("folder", tmp_path, subset="test")


def test_near_names(tmp_path):
    touch(tmp_path, "HandStandPushups/v_g01.avi", "run/b 1.avi")
    for asked, hint in (("HandstandPushups/v_g01.avi", "HandStandPushups/v_g01.avi"), ("runn/b_1.avi", "run/b 1.avi")):
        write_rows(tmp_path / "list.csv", f"{asked},1")
        with pytest.raises(DatasetError, match=f"1 of 1 train videos are not under .*; did you mean {hint}?"):
            load_dataset("folder", tmp_path, annotations="list.csv")
    for asked in ("run/b 2.avi", "fly/v_g01.avi"):
        write_rows(tmp_path / "list.csv", f"{asked},1")
        with pytest.raises(DatasetError, match=r"are not under [^?]*$"):
            load_dataset("folder", tmp_path, annotations="list.csv")
