import json
import tracemalloc
from pathlib import Path

import pytest

from dclr.commands.check import CheckConfig, check
from dclr.commands.prepare import PrepareConfig, prepare
from dclr.config import DataConfig
from dclr.data import DATASETS, DatasetError, VideoDataset, load_dataset
from dclr.data.labels import encode_labels
from dclr.data.lists import read_table
from dclr.data.query import DatasetSpec
from tests.data.trees import names_of, touch, write_rows

UCF_CLASSES = ("Archery", "Basketball", "YoYo")
UCF_TRAIN = (
    "Archery/v_Archery_g01_c01.avi",
    "YoYo/v_YoYo_g02_c01.avi",
    "Basketball/v_Basketball_g03_c01.avi",
)
UCF_TEST = ("Basketball/v_Basketball_g01_c01.avi", "YoYo/v_YoYo_g01_c01.avi")


@pytest.fixture
def ucf(tmp_path):
    touch(tmp_path / "UCF-101", *UCF_TRAIN, *UCF_TEST)
    splits = tmp_path / "ucfTrainTestlist"
    write_rows(splits / "classInd.txt", *(f"{i} {name}" for i, name in enumerate(UCF_CLASSES, 1)))
    for split in (1, 2, 3):
        numbers = {name: i for i, name in enumerate(UCF_CLASSES, 1)}
        train = [f"{name} {numbers[name.split('/')[0]]}" for name in UCF_TRAIN[split - 1 :]]
        write_rows(splits / f"trainlist0{split}.txt", *train)
        write_rows(splits / f"testlist0{split}.txt", *UCF_TEST)
    return tmp_path


def videos(root, *names, labels=(0, 1, 1), classes=("a", "b")):
    return VideoDataset("test", tuple(f"{root}/{name}" for name in names), labels, classes)


def test_the_digest_goes_by_videos_and_labels_not_by_their_place():
    names = ("x/1.mp4", "x/2.mp4", "y/\udce9.mp4")
    digest = videos("/data", *names).digest
    assert len(digest) == 64 and digest == videos("/other/place", *names).digest == videos("there", *names).digest
    others = [
        videos("/data", "x/1.mp4", "x/2.mp4", "y/3.mp4"),
        videos("/data", *names[::-1]),
        videos("/data", *names, labels=(0, 0, 1)),
        videos("/data", *names, classes=("a", "c")),
        videos("/data", *names[:2], labels=(0, 1)),
        videos("/data", "x/1.mp4", "x/2.mp4", "z/\udce9.mp4"),
        videos("/data"),
    ]
    assert len({digest, *(other.digest for other in others)}) == 1 + len(others)


def test_a_list_without_a_video(ucf, tmp_path):
    """As a download that was cut off leaves it."""
    (ucf / "ucfTrainTestlist" / "trainlist01.txt").write_text("")
    with pytest.raises(DatasetError, match=r"^ucf101: split 1 train: its list names no video$"):
        load_dataset("ucf101", ucf)
    for split in (1, 2, 3):
        for subset in ("train", "test"):
            (ucf / "ucfTrainTestlist" / f"{subset}list0{split}.txt").write_text("")
    with pytest.raises(DatasetError, match="its list names no video"):
        prepare(PrepareConfig("ucf101", str(ucf), str(tmp_path.parent / "copy"), workers=0), progress=False)


@pytest.mark.parametrize("root", ["", "UCF-101"])
def test_ucf101(ucf, root):
    train = load_dataset("ucf101", ucf / root)
    assert names_of(train, ucf / "UCF-101") == list(UCF_TRAIN)
    assert (train.labels, train.classes, train.missing) == ((0, 2, 1), UCF_CLASSES, ())
    test = load_dataset("ucf101", ucf / root, subset="test")
    assert (train.split, test.split) == ("split 1 train", "split 1 test")
    assert names_of(test, ucf / "UCF-101") == list(UCF_TEST) and test.labels == (1, 2)
    assert len(load_dataset("ucf101", ucf / root, split=3)) == 1


@pytest.mark.parametrize("given", ["lists", "lists/trainlist01.txt"])
def test_annotations_elsewhere(ucf, given):
    (ucf / "ucfTrainTestlist").rename(ucf / "UCF-101" / "lists")
    with pytest.raises(DatasetError, match=r"no split file trainlist01.txt; looked in .*UCF-101"):
        load_dataset("ucf101", ucf)
    annotations = ucf / "UCF-101" / given
    assert len(load_dataset("ucf101", ucf, annotations=annotations)) == 3
    assert len(load_dataset("ucf101", ucf, annotations=annotations, subset="test")) == 2


def test_missing_videos(ucf):
    (ucf / "UCF-101" / UCF_TRAIN[1]).unlink()
    with pytest.raises(DatasetError, match=f"1 of 3 train videos are not under .*UCF-101: {UCF_TRAIN[1]}"):
        load_dataset("ucf101", ucf)
    rest = load_dataset("ucf101", ucf, allow_missing=True)
    assert rest.labels == (0, 1) and rest.missing == (UCF_TRAIN[1],) and len(rest) == 2
    for name in UCF_TEST:
        (ucf / "UCF-101" / name).unlink()
    with pytest.raises(DatasetError, match="2 of 2 test videos"):
        load_dataset("ucf101", ucf, subset="test", allow_missing=True)


def test_a_transcoded_copy_is_found(ucf):
    for name in UCF_TRAIN:
        path = ucf / "UCF-101" / name
        path.rename(path.with_suffix(".mp4"))
    expected = [name.replace(".avi", ".mp4") for name in UCF_TRAIN]
    assert names_of(load_dataset("ucf101", ucf), ucf / "UCF-101") == expected


@pytest.mark.parametrize("root, splits", [("hmdb51", "testTrainMulti_7030_splits"), ("hmdb51_org", "splits")])
def test_hmdb51(tmp_path, root, splits):
    names = {
        "wave": ("#20_a b_wave_0.avi", "x_wave_1.avi", "y_wave_2.avi"),
        "cartwheel": ("[K]_cartwheel_0.avi",),
    }
    for split in (1, 2, 3):
        marks = {"wave": (1, 2, 0) if split == 1 else (2, 1, 0), "cartwheel": (1,)}
        for name, videos in names.items():
            rows = [f"{video} {mark} " for video, mark in zip(videos, marks[name])]
            write_rows(tmp_path / splits / f"{name}_test_split{split}.txt", *rows)
            touch(tmp_path / root / name, *videos)
        write_rows(tmp_path / splits / f"._wave_test_split{split}.txt", "what a Mac leaves beside each file")
    train = load_dataset("hmdb51", tmp_path)
    assert names_of(train, tmp_path / root) == ["cartwheel/[K]_cartwheel_0.avi", "wave/#20_a b_wave_0.avi"]
    assert (train.labels, train.classes) == ((0, 1), ("cartwheel", "wave"))
    test = load_dataset("hmdb51", tmp_path / root, subset="test", split=2, annotations=tmp_path / splits)
    assert names_of(test, tmp_path / root) == ["wave/#20_a b_wave_0.avi"]


@pytest.mark.parametrize(
    "layout",
    [
        "val/air drumming/abc_000010_000020.mp4",
        "val_256/air_drumming/abc_000010_000020.mkv",
        "val/abc_000010_000020.mp4",
        "air drumming/abc_10_20.mp4",
        "abc.webm",
    ],
)
@pytest.mark.parametrize("listing", ["val.csv", "annotations/validate.csv"])
def test_kinetics400(tmp_path, layout, listing):
    touch(tmp_path, layout, "val/zumba/-x_y_000001_000011.mp4")
    header = "label,youtube_id,time_start,time_end,split"
    write_rows(tmp_path / listing, header, '"air drumming",abc,10,20,val', "zumba,-x_y,1,11,val")
    test = load_dataset("kinetics400", tmp_path, subset="test")
    assert names_of(test, tmp_path) == [layout, "val/zumba/-x_y_000001_000011.mp4"]
    assert (test.labels, test.classes) == ((0, 1), ("air drumming", "zumba"))


@pytest.mark.parametrize("row", ["zumba/a b_000001_000011.mp4 1", "zumba/a b_000001_000011 300 1"])
def test_kinetics400_as_a_list_of_paths(tmp_path, row):
    touch(tmp_path, "train/zumba/a b_000001_000011.mp4")
    listing = write_rows(tmp_path / "lists" / "train.csv", row)
    write_rows(tmp_path / "lists" / "label_map.txt", "air drumming", "zumba")
    train = load_dataset("kinetics400", tmp_path, annotations=listing)
    assert names_of(train, tmp_path) == ["train/zumba/a b_000001_000011.mp4"]
    assert (train.labels, train.classes) == ((1,), ("air drumming", "zumba"))
    write_rows(listing, row[:-1] + "7")
    with pytest.raises(
        DatasetError, match=r"train.csv, row 1, column 'label': label '7' is not a class number from 0 to 1"
    ):
        load_dataset("kinetics400", tmp_path, annotations=listing)


def test_kinetics400_annotations_of_the_other_subset(tmp_path):
    touch(tmp_path, "train/a.mp4", "val/b.mp4")
    header = "label,youtube_id,time_start,time_end,split"
    train = write_rows(tmp_path / "lists" / "train.csv", header, "zumba,a,1,11,train")
    write_rows(tmp_path / "lists" / "val.csv", header, "zumba,b,1,11,val")
    for subset, name in (("train", "train/a.mp4"), ("test", "val/b.mp4")):
        dataset = load_dataset("kinetics400", tmp_path, subset=subset, annotations=train)
        assert names_of(dataset, tmp_path) == [name]
    write_rows(train, "youtube_id,time_start,time_end,split", "a,1,11,train")
    with pytest.raises(DatasetError, match=r"train.csv has no column 'label'; it has youtube_id"):
        load_dataset("kinetics400", tmp_path, annotations=train)
    write_rows(train, header)
    with pytest.raises(DatasetError, match=r"train.csv has a header, but no row"):
        load_dataset("kinetics400", tmp_path, annotations=train)


@pytest.mark.parametrize("name, folder", [("kinetics600", "k600"), ("kinetics700", "k700-2020")])
def test_larger_kinetics(tmp_path, name, folder):
    touch(tmp_path / folder, "train/fly_tying/a_000001_000011.mp4", "val/b_000001_000011.mp4")
    for subset, row in (("train", "fly tying,a,1,11,train"), ("val", "fly tying,b,1,11,validate")):
        write_rows(tmp_path / "annotations" / f"{subset}.txt", "label,youtube_id,time_start,time_end,split", row)
    found = [load_dataset(name, tmp_path, subset=subset) for subset in ("train", "test")]
    assert [len(dataset) for dataset in found] == [1, 1] and found[1].split == "list val.txt"


@pytest.mark.parametrize("time", ["", "soon", "nan", "inf"])
def test_kinetics_rows_without_times(tmp_path, time):
    write_rows(tmp_path / "train.csv", "label,youtube_id,time_start,time_end", "zumba,a,1,11", f"zumba,b,1,{time}")
    message = f"train.csv, row 3, column 'time_end': got '{time}', expected a number of seconds"
    with pytest.raises(DatasetError, match=message):
        load_dataset("kinetics400", tmp_path)


def test_a_long_list_takes_little_memory(tmp_path):
    """Kinetics-400 has 240,000 rows, each with many names that its video may go by."""
    rows = 5000
    touch(tmp_path, *(f"train/zumba/{number:011d}_000001_000011.mp4" for number in range(rows)))
    header = "label,youtube_id,time_start,time_end"
    write_rows(tmp_path / "train.csv", header, *(f"zumba,{number:011d},1,11" for number in range(rows)))
    tracemalloc.start()
    try:
        dataset = load_dataset("kinetics400", tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(dataset) == rows and peak < 1000 * rows


@pytest.mark.parametrize(
    "train, test, labels",
    [
        (
            "something-something-v2-train.json",
            "something-something-v2-validation.json",
            "something-something-v2-labels",
        ),
        ("labels/train.json", "labels/validation.json", "labels/labels"),
    ],
)
def test_something_v2(tmp_path, train, test, labels):
    touch(tmp_path, "20bn-something-something-v2/7.webm", "20bn-something-something-v2/8.webm")
    write_rows(tmp_path / f"{labels}.json", json.dumps({"Holding something": "1", "Closing something": "0"}))
    first = {"id": "7", "label": "holding a pen", "template": "Holding [something]", "placeholders": ["a pen"]}
    write_rows(tmp_path / train, json.dumps([first]))
    write_rows(tmp_path / test, json.dumps([{"id": 8, "template": "Closing [something]"}]))
    found = [load_dataset("something_v2", tmp_path, subset=subset) for subset in ("train", "test")]
    assert [dataset.labels for dataset in found] == [(1,), (0,)]
    assert found[0].classes == ("Closing something", "Holding something")
    assert names_of(found[1], tmp_path) == ["20bn-something-something-v2/8.webm"]
    write_rows(tmp_path / train, json.dumps([first, {"id": "8"}]))
    with pytest.raises(DatasetError, match=r"train.json, entry 2: has no 'template'; expected id, template"):
        load_dataset("something_v2", tmp_path)
    for numbers, message in (
        ({"Holding something": "one"}, "a number for each class"),
        (["Holding"], "a dict, got a li"),
    ):
        write_rows(tmp_path / f"{labels}.json", json.dumps(numbers))
        with pytest.raises(DatasetError, match=f"labels.json: expected {message}"):
            load_dataset("something_v2", tmp_path, subset="test")
    write_rows(tmp_path / train, json.dumps({"id": "8"}))
    with pytest.raises(DatasetError, match=r"train.json: expected a list, got a dict"):
        load_dataset("something_v2", tmp_path)


def test_diving48(tmp_path):
    touch(tmp_path / "rgb", "a_00001.mp4", "b_00002.mp4")
    entry = {"vid_name": "b_00002", "label": 47, "start_frame": 0, "end_frame": 9}
    write_rows(tmp_path / "Diving48_V2_test.json", json.dumps([entry]))
    test = load_dataset("diving48", tmp_path, subset="test")
    assert names_of(test, tmp_path) == ["rgb/b_00002.mp4"] and test.labels == (47,) and len(test.classes) == 48
    vocabulary = [["Back", "15som", "05Twis", str(i)] for i in range(48)]
    write_rows(tmp_path / "Diving48_vocab.json", json.dumps(vocabulary))
    assert load_dataset("diving48", tmp_path, subset="test").classes[47] == "Back_15som_05Twis_47"
    write_rows(tmp_path / "Diving48_V2_test.json", "[")
    with pytest.raises(DatasetError, match=r"Diving48_V2_test.json is not JSON"):
        load_dataset("diving48", tmp_path, subset="test")


@pytest.mark.parametrize("name", DATASETS)
def test_every_entry_says_what_it_is_and_where_it_comes_from(name, tmp_path):
    spec = DATASETS[name]
    assert spec.title and spec.videos_from and spec.lists_from and set(spec.lists) >= {"train", "test"}
    assert set(spec.counts) <= set(spec.parts())
    with pytest.raises(
        DatasetError, match=r"no video \(" if name == "folder" else f"comes from {spec.lists_from[:20]}"
    ):
        load_dataset(name, tmp_path)


def test_a_new_dataset_is_one_entry(tmp_path, monkeypatch):
    """What the guide says: a loader, an entry, and everything that goes by the table knows it."""

    def rally(query):
        table = read_table(query.split_file())
        labels, classes = encode_labels(table["label"], table.place)
        return query.collect(query.folders()[-1], ([path] for path in table.paths), labels, classes, "the list")

    lists = {"train": ["rally_{split}_train.csv"], "test": ["rally_{split}_test.csv"]}
    spec = DatasetSpec("cars", rally, lists, "a page", "a page", folders=["rally"], splits=2, counts={(2, "test"): 1})
    monkeypatch.setitem(DATASETS, "rally", spec)
    touch(tmp_path, "rally/a.mp4", "rally/b.mp4")
    for split, subset in spec.parts():
        write_rows(tmp_path / "splits" / f"rally_{split}_{subset}.csv", f"{'ab'[split - 1]}.mp4,jump")
    assert names_of(load_dataset("rally", tmp_path, split=2), tmp_path) == ["rally/b.mp4"]
    assert spec.list_patterns() == ["rally_*_train.csv", "rally_*_test.csv"]
    found = check(CheckConfig(DataConfig("rally", str(tmp_path), workers=0), read=False))
    assert [part.official for part in found.parts] == [None, None, None, 1] and not found.extra


def test_errors(tmp_path, ucf):
    with pytest.raises(DatasetError, match="unknown dataset 'ucf10'; did you mean 'ucf101'"):
        load_dataset("ucf10", tmp_path)
    with pytest.raises(DatasetError, match=r"there is no folder .*/nowhere"):
        load_dataset("hmdb51", tmp_path / "nowhere")
    (tmp_path / "videos").mkdir()
    (tmp_path / "list.txt").touch()
    with pytest.raises(DatasetError, match=r"no folder .*/vidoes; did you mean .*/videos\?"):
        load_dataset("folder", tmp_path / "vidoes")
    with pytest.raises(DatasetError, match=r"list.txt is a file, expected the folder of the videos"):
        load_dataset("folder", tmp_path / "list.txt")
    with pytest.raises(DatasetError, match="there is no split 4"):
        load_dataset("ucf101", ucf, split=4)
    with pytest.raises(DatasetError, match="apply to the dataset 'folder' only"):
        load_dataset("ucf101", ucf, where="a=b")
    (tmp_path / "void").mkdir()
    with pytest.raises(DatasetError, match=r"no video .* under .*void"):
        load_dataset("folder", tmp_path / "void")
    write_rows(ucf / "ucfTrainTestlist" / "classInd.txt", "1 Archery", "2 Basketball")
    with pytest.raises(DatasetError, match=r"trainlist01.txt, row 2: label 'YoYo' is not one of the 2 classes"):
        load_dataset("ucf101", ucf)
    (ucf / "ucfTrainTestlist" / "trainlist01.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DatasetError, match=r"trainlist01.txt cannot be read as text"):
        load_dataset("ucf101", ucf)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "folder"])
def test_the_page_on_datasets_has_every_entry(name):
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith("|") and f"`{name}`" in line)
    assert DATASETS[name].videos_from.split()[0] in row
