import csv
import random

import pytest

from dclr.data import DATASETS, DatasetError, load_dataset
from dclr.data.labels import encode_labels
from dclr.data.lists import lines, read_table
from tests.data.trees import names_of, touch, write_rows

CAPTION = "long " * 40_000


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        ("header.csv", "path,label\na.mp4,x\nb.mp4,y\n", ("x", "y")),
        ("capitals.csv", "Path,Label\na.mp4,x\nb.mp4,y\n", ("x", "y")),
        ("name.csv", "name,label\na.mp4,x\nb.mp4,y\n", ("x", "y")),
        ("two_names.csv", "clip_name,clip_path,label\nfirst,a.mp4,x\nsecond,b.mp4,y\n", ("x", "y")),
        ("unknown_name.csv", "wo,label\na.mp4,x\nb.mp4,y\n", ("x", "y")),
        ("other_order.csv", "class,Video Path\nx,a.mp4\ny,b.mp4\n", ("x", "y")),
        ("tabs.txt", "path\tlabel\na.mp4\tx\nb.mp4\ty\n", ("x", "y")),
        ("tabs.csv", "File Name\tLabel\na.mp4\tx\nb.mp4\ty\n", ("x", "y")),
        ("tabs.tsv", "a.mp4\tx\nb.mp4\ty\n", ("x", "y")),
        ("semicolons.csv", "path;label\na.mp4;x\nb.mp4;y\n", ("x", "y")),
        ("LOUD.CSV", "a.mp4,x\nb.mp4,y\n", ("x", "y")),
        ("commas.txt", "a.mp4,x\nb.mp4,y\n", ("x", "y")),
        ("empty_column.csv", "a.mp4,x,\nb.mp4,y,\n", ("x", "y")),
        ("empty_header.csv", "path,label,\na.mp4,x,\nb.mp4,y,\n", ("x", "y")),
        ("frames.csv", "a.mp4,30,x\nb.mp4,20,y\n", ("x", "y")),
        ("label_first.csv", "x,a.mp4\ny,b.mp4\n", ("x", "y")),
        ("newline.csv", 'path,note,label\na.mp4,"one\ntwo",x\nb.mp4,"",y\n', ("x", "y")),
        ("blanks.csv", 'path, label\na.mp4, "x, really"\nb.mp4, y\n', ("x, really", "y")),
        ("line_separator.csv", "path,label\na.mp4,x\u2028z\nb.mp4,y\n", ("x\u2028z", "y")),
        ("caption.csv", f'path,caption,label\na.mp4,"{CAPTION}",x\nb.mp4,,y\n', ("x", "y")),
        ("caption_first.csv", f'a.mp4,"{CAPTION}",x\nb.mp4,,y\n', ("x", "y")),
        ("old_mac.csv", "path,label\ra.mp4,x\rb.mp4,y\r", ("x", "y")),
        ("byte_order_mark.csv", "\ufeffpath,label\na.mp4,x\nb.mp4,y\n", ("x", "y")),
        ("gap.csv", "path,label\n\na.mp4,x\n\nb.mp4,y\n", ("x", "y")),
        ("plain.txt", "a.mp4 x\nb.mp4 y\n", ("x", "y")),
        ("words.txt", "a.mp4 jump up\nb.mp4 y\n", ("jump up", "y")),
        ("frames.txt", "a.mp4 30 x\nb.mp4 20 y\n", ("x", "y")),
        ("separator.txt", "a.mp4 x\u2028z\nb.mp4 y\n", ("x\u2028z", "y")),
        ("paths.txt", "a.mp4\nb.mp4\n", ("", "")),
        ("paths.csv", "a.mp4\nb.mp4\n", ("", "")),
        ("path_header.csv", "path\na.mp4\nb.mp4\n", ("", "")),
    ],
)
def test_lists_as_people_write_them(tmp_path, name, content, labels):
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    dataset = load_dataset("folder", tmp_path, annotations=name)
    assert names_of(dataset, tmp_path) == ["a.mp4", "b.mp4"] and not dataset.notes
    assert tuple("" if label < 0 else dataset.classes[label] for label in dataset.labels) == labels


@pytest.mark.parametrize("row", ["a, b.mp4", "a, b.mp4 1", "a b.mp4 1", "a, b.mp4 30 1"])
def test_paths_with_blanks_and_commas(tmp_path, row):
    table = read_table(write_rows(tmp_path / "list.txt", row))
    assert table.paths == [row.partition(".mp4")[0] + ".mp4"]
    assert table["label"] == ["1" if row.endswith("1") else ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"list.csv is empty"),
        ("path,label\n", r"list.csv has a header, but no row"),
        ("path,label\na.mp4,x\n\nb.mp4\n", r"list.csv, row 4: 1 columns, but the header has 2"),
        ('path,note,label\na.mp4,"two\nlines",x\nb.mp4,x\n', r"list.csv, row 3: 2 columns, but the header has 3"),
        ("a.mp4,x\nb.mp4,x,y\n", r"list.csv, row 2: 3 columns, but the first row has 2"),
        ("path,label,label\na.mp4,x,y\n", r"list.csv, row 1: two columns are named 'label'"),
        ("path,label\n,x\n", r"list.csv, row 2: has no path"),
    ],
)
def test_errors_name_the_row(tmp_path, content, message):
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(DatasetError, match=message):
        load_dataset("folder", tmp_path, annotations="list.csv")


def test_the_limit_of_other_readers_stays(tmp_path):
    limit = csv.field_size_limit()
    read_table(write_rows(tmp_path / "list.csv", "path,caption", f"a.mp4,{CAPTION}"))
    assert csv.field_size_limit() == limit


def test_lines_end_where_a_text_editor_ends_them(tmp_path):
    (tmp_path / "list.txt").write_bytes("one\u2028still\r\n\x0btwo\x85\n\nthree\rfour".encode())
    assert lines(tmp_path / "list.txt") == ["one\u2028still", "two", "three", "four"]


def place(row: int) -> str:
    return f"list.csv, row {row + 1}"


@pytest.mark.parametrize(
    ("values", "labels", "classes"),
    [
        (["2", "-1", ""], [2, -1, -1], ("0", "1", "2")),
        (["10.0", "2.0", "0"], [10, 2, 0], tuple(map(str, range(11)))),
        (["10.5", "2.5", "2.25"], [2, 1, 0], ("2.25", "2.5", "10.5")),
        (["²", "10"], [1, 0], ("10", "²")),
        (["", ""], [-1, -1], ()),
        ([], [], ()),
    ],
)
def test_labels(values, labels, classes):
    assert encode_labels(values, place) == (labels, classes)


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        (["0", "100000000000"], None, "row 2: label '100000000000' is not a class number from 0 to 99999"),
        (["0", "-2"], None, "row 2: label '-2' is not a class number"),
        (["9" * 5000], None, r"row 1: label '9{40}... \(5000 characters\)' is not a class number"),
        (["1", "2"], ("run", "jump"), "row 2: label '2' is not a class number from 0 to 1, or -1 for unknown"),
        (["run", "jmup"], ("run", "jump"), "row 2: label 'jmup' is not one of the 2 classes; did you mean 'jump'?"),
    ],
)
def test_strange_labels(values, classes, message):
    with pytest.raises(DatasetError, match=message):
        encode_labels(values, place, classes)


SEEDS = (
    "path,label\na.mp4,x\nb.mp4,y\n",
    "label,youtube_id,time_start,time_end,split\nx,a,1,11,train\ny,b,1,11,val\n",
    "a.mp4 30 1\nb.mp4 20 0\n",
    'path;note\na.mp4;"one\ntwo"\n',
    '[{"vid_name": "a", "label": 1}, {"id": 2, "template": "x"}]',
)
PIECES = (
    *("\n", "\r", ",", "\t", ";", '"', " ", "/", "\0", "\u2028", "\ufeff", "é", "[", "{", "="),
    *("-1", "9" * 400, ".mp4", "path"),
)


def mutated(rng: random.Random) -> bytes:
    content = rng.choice(SEEDS)
    for _ in range(rng.randint(0, 6)):
        place = rng.randrange(len(content) + 1)
        inserted = "".join(rng.choices(PIECES, k=rng.randint(0, 3)))
        content = content[:place] + inserted + content[place + rng.randint(0, 4) :]
    return content.encode() + bytes(rng.randrange(256) for _ in range(rng.choice((0, 0, 0, 2))))


@pytest.mark.parametrize("dataset", ["folder", "kinetics400", "diving48", "something_v2"])
def test_damaged_lists_give_one_kind_of_error(tmp_path, dataset):
    touch(tmp_path, "a.mp4", "b.mp4")
    rng, loaded = random.Random(dataset), 0
    for name in DATASETS[dataset].other_lists:
        (tmp_path / name).write_text('{"x": "0"}' if "labels" in name else '[["x"]]' if "json" in name else "x\ny\n")
    for number in range(100):
        listing = tmp_path / rng.choice([name.replace("*", str(number)) for name in DATASETS[dataset].lists["train"]])
        listing.write_bytes(mutated(rng))
        try:
            loaded += len(load_dataset(dataset, tmp_path, annotations=listing, allow_missing=True))
        except DatasetError as error:
            assert str(listing) in str(error) or dataset in str(error)
        listing.unlink()
    assert loaded or dataset != "folder"
