import json

import pytest

from dclr.data import DatasetError, VideoDataset, lists, load_dataset

UCF_CLASSES = ("Archery", "Basketball", "YoYo")
UCF_TRAIN = (
    "Archery/v_Archery_g01_c01.avi",
    "YoYo/v_YoYo_g02_c01.avi",
    "Basketball/v_Basketball_g03_c01.avi",
)
UCF_TEST = ("Basketball/v_Basketball_g01_c01.avi", "YoYo/v_YoYo_g01_c01.avi")


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{row}\r\n" for row in rows).encode())
    return path


def names_of(dataset, root):
    return [path.removeprefix(f"{root}/") for path in dataset.paths]


@pytest.fixture
def ucf(tmp_path):
    touch(tmp_path / "UCF-101", *UCF_TRAIN, *UCF_TEST)
    splits = tmp_path / "ucfTrainTestlist"
    write(splits / "classInd.txt", *(f"{i} {name}" for i, name in enumerate(UCF_CLASSES, 1)))
    for split in (1, 2, 3):
        numbers = {name: i for i, name in enumerate(UCF_CLASSES, 1)}
        train = [f"{name} {numbers[name.split('/')[0]]}" for name in UCF_TRAIN[split - 1 :]]
        write(splits / f"trainlist0{split}.txt", *train)
        write(splits / f"testlist0{split}.txt", *UCF_TEST)
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


@pytest.mark.parametrize("root", ["", "UCF-101"])
def test_ucf101(ucf, root):
    train = load_dataset("ucf101", ucf / root)
    assert names_of(train, ucf / "UCF-101") == list(UCF_TRAIN)
    assert (train.labels, train.classes, train.missing) == ((0, 2, 1), UCF_CLASSES, ())
    test = load_dataset("ucf101", ucf / root, subset="test")
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
            write(tmp_path / splits / f"{name}_test_split{split}.txt", *rows)
            touch(tmp_path / root / name, *videos)
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
    write(tmp_path / listing, header, '"air drumming",abc,10,20,val', "zumba,-x_y,1,11,val")
    test = load_dataset("kinetics400", tmp_path, subset="test")
    assert names_of(test, tmp_path) == [layout, "val/zumba/-x_y_000001_000011.mp4"]
    assert (test.labels, test.classes) == ((0, 1), ("air drumming", "zumba"))


@pytest.mark.parametrize("row", ["zumba/a b_000001_000011.mp4 1", "zumba/a b_000001_000011 300 1"])
def test_kinetics400_as_a_list_of_paths(tmp_path, row):
    touch(tmp_path, "train/zumba/a b_000001_000011.mp4")
    listing = write(tmp_path / "lists" / "train.csv", row)
    write(tmp_path / "lists" / "label_map.txt", "air drumming", "zumba")
    train = load_dataset("kinetics400", tmp_path, annotations=listing)
    assert names_of(train, tmp_path) == ["train/zumba/a b_000001_000011.mp4"]
    assert (train.labels, train.classes) == ((1,), ("air drumming", "zumba"))
    write(listing, row[:-1] + "7")
    with pytest.raises(DatasetError, match="label '7' is not among the 2 classes"):
        load_dataset("kinetics400", tmp_path, annotations=listing)


def test_kinetics400_annotations_of_the_other_subset(tmp_path):
    touch(tmp_path, "train/a.mp4", "val/b.mp4")
    header = "label,youtube_id,time_start,time_end,split"
    train = write(tmp_path / "lists" / "train.csv", header, "zumba,a,1,11,train")
    write(tmp_path / "lists" / "val.csv", header, "zumba,b,1,11,val")
    for subset, name in (("train", "train/a.mp4"), ("test", "val/b.mp4")):
        dataset = load_dataset("kinetics400", tmp_path, subset=subset, annotations=train)
        assert names_of(dataset, tmp_path) == [name]
    write(train, "youtube_id,time_start,time_end,split", "a,1,11,train")
    with pytest.raises(DatasetError, match=r"train.csv has no column 'label'; it has youtube_id"):
        load_dataset("kinetics400", tmp_path, annotations=train)
    write(train, header)
    with pytest.raises(DatasetError, match=r"train.csv has a header, but no row"):
        load_dataset("kinetics400", tmp_path, annotations=train)


def test_diving48(tmp_path):
    touch(tmp_path / "rgb", "a_00001.mp4", "b_00002.mp4")
    entry = {"vid_name": "b_00002", "label": 47, "start_frame": 0, "end_frame": 9}
    write(tmp_path / "Diving48_V2_test.json", json.dumps([entry]))
    test = load_dataset("diving48", tmp_path, subset="test")
    assert names_of(test, tmp_path) == ["rgb/b_00002.mp4"] and test.labels == (47,) and len(test.classes) == 48
    vocabulary = [["Back", "15som", "05Twis", str(i)] for i in range(48)]
    write(tmp_path / "Diving48_vocab.json", json.dumps(vocabulary))
    assert load_dataset("diving48", tmp_path, subset="test").classes[47] == "Back_15som_05Twis_47"
    write(tmp_path / "Diving48_V2_test.json", "[")
    with pytest.raises(DatasetError, match=r"Diving48_V2_test.json is not JSON"):
        load_dataset("diving48", tmp_path, subset="test")


@pytest.fixture
def listed(tmp_path):
    names = [f"clips/{i}.mp4" for i in range(4)]
    touch(tmp_path, *names)
    rows = zip(names, ("up", "down", "up", "left"), ("sea", "sea", "sand", "sky"), ("train", "train", "test", "test"))
    write(tmp_path / "manifest.csv", "path,motion,scene,split", *(",".join(row) for row in rows))
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
        ({"subset": "val"}, 'subset must be "train" or "test"'),
        ({"split": 2}, "there is no split 2"),
        ({"annotations": "nowhere.csv"}, "no split file .*nowhere.csv"),
    ],
)
def test_folder_with_wrong_columns(listed, options, message):
    with pytest.raises(DatasetError, match=message):
        load_dataset("folder", listed, **options)


def test_folder_with_a_list_beside_the_videos(tmp_path):
    touch(tmp_path, "videos/a b.mp4", "videos/c.avi")
    listing = write(tmp_path / "elsewhere.txt", "videos/a b.mp4 1", "videos/c.avi 0")
    dataset = load_dataset("folder", tmp_path / "videos", annotations=listing)
    assert names_of(dataset, tmp_path) == ["videos/a b.mp4", "videos/c.avi"] and dataset.labels == (1, 0)
    write(listing, "videos/c.avi")
    with pytest.raises(DatasetError, match="not of the form `path label`"):
        load_dataset("folder", tmp_path, annotations=listing)
    write(tmp_path / "two.csv", "videos/c.avi,jump", "videos/a b.mp4,run")
    assert load_dataset("folder", tmp_path, annotations=tmp_path / "two.csv").classes == ("jump", "run")
    write(tmp_path / "blank.csv", "path,label", ",1", "videos/c.avi,0")
    with pytest.raises(DatasetError, match="1 of 2 train videos are not under"):
        load_dataset("folder", tmp_path / "videos", annotations=tmp_path / "blank.csv")
    write(tmp_path / "ragged.csv", "path,label", "videos/c.avi")
    with pytest.raises(DatasetError, match=r"ragged.csv, row 2: 1 columns"):
        load_dataset("folder", tmp_path, annotations=tmp_path / "ragged.csv")


def test_labels_that_are_numbers(tmp_path):
    listing = tmp_path / "list.csv"
    assert lists.encode(["2", "-1", ""], listing) == ([2, -1, -1], ("0", "1", "2"))
    assert lists.encode(["²", "10"], listing) == ([1, 0], ("10", "²"))
    with pytest.raises(DatasetError, match=r"list.csv: label '100000000000' is no class number: expected at most 9"):
        lists.encode(["0", "100000000000"], listing)


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


def test_errors(tmp_path, ucf):
    with pytest.raises(DatasetError, match="unknown dataset 'ucf10'; did you mean 'ucf101'"):
        load_dataset("ucf10", tmp_path)
    with pytest.raises(DatasetError, match=r"there is no folder .*/nowhere"):
        load_dataset("hmdb51", tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="there is no split 4"):
        load_dataset("ucf101", ucf, split=4)
    with pytest.raises(DatasetError, match="apply to the dataset 'folder' only"):
        load_dataset("ucf101", ucf, where="a=b")
    (tmp_path / "void").mkdir()
    with pytest.raises(DatasetError, match=r"no video .* under .*void"):
        load_dataset("folder", tmp_path / "void")
    write(ucf / "ucfTrainTestlist" / "classInd.txt", "1 Archery", "2 Basketball")
    with pytest.raises(DatasetError, match=r"trainlist01.txt: label 'YoYo' is not among the 2 classes"):
        load_dataset("ucf101", ucf)
    (ucf / "ucfTrainTestlist" / "trainlist01.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DatasetError, match=r"trainlist01.txt cannot be read as text"):
        load_dataset("ucf101", ucf)
