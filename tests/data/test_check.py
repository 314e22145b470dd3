import json
from dataclasses import replace

import pytest

from dclr.cli import main
from dclr.commands.check import CheckConfig, check
from dclr.config import DataConfig
from dclr.data import DATASETS, DatasetError
from tests.data.trees import touch, write_rows


def checked(root, dataset="folder", read=True, output=None, **data):
    return check(CheckConfig(DataConfig(dataset, str(root), workers=0, **data), read, output))


def lay_out(root, files, **kinds):
    """Copies of videos of the kinds at the given paths; a double underscore is a folder's end."""
    for name, kind in kinds.items():
        path = root / f"{name.replace('__', '/')}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[kind].read_bytes())


@pytest.fixture
def ucf(tmp_path, files, monkeypatch):
    lay_out(tmp_path / "UCF-101", files, Archery__a="avi", Archery__b="truncated", YoYo__c="text", YoYo__extra="avi")
    lists = tmp_path / "ucfTrainTestlist"
    write_rows(lists / "classInd.txt", "1 Archery", "2 YoYo")
    for split in (1, 2, 3):
        write_rows(lists / f"trainlist0{split}.txt", "Archery/a.avi 1", "YoYo/c.avi 2")
        write_rows(lists / f"testlist0{split}.txt", "Archery/b.avi")
    counts = {(split, subset): count for split in (1, 2, 3) for subset, count in (("train", 2), ("test", 1))}
    monkeypatch.setitem(DATASETS, "ucf101", replace(DATASETS["ucf101"], counts=counts))
    return tmp_path


def test_check_finds_every_kind_of_fault(ucf, capsys):
    (ucf / "UCF-101/Archery/a.avi").unlink()
    write_rows(ucf / "ucfTrainTestlist/testlist02.txt", "Archery/b.avi", "YoYo/extra.avi")
    (ucf / "ucfTrainTestlist/trainlist03.txt").unlink()
    output = ucf / "found.json"
    with pytest.raises(
        DatasetError, match="ucf101: 1 videos missing, 1 videos unreadable, 1 lists without the official"
    ):
        checked(ucf, "ucf101", output=str(output), frames=8)
    found = json.loads(output.read_text())
    rows = [(part["split"], part["subset"], part["listed"], part["official"]) for part in found["parts"]]
    assert rows == [(1, "train", 2, 2), (1, "test", 1, 1), (2, "train", 2, 2), (2, "test", 2, 1), (3, "test", 1, 1)]
    assert [part["missing"] for part in found["parts"]] == [["Archery/a.avi"], [], ["Archery/a.avi"], [], []]
    assert len(found["failed"]) == 1 and "no split file trainlist03.txt" in found["failed"][0]
    short, whole = (str(ucf / f"UCF-101/{name}.avi") for name in ("Archery/b", "YoYo/extra"))
    assert found["frames"] == {short: found["frames"][short], whole: 30} and 0 < found["frames"][short] < 17
    assert found["short"] == [short] and found["extra"] == []
    assert list(found["unreadable"]) == [str(ucf / "UCF-101/YoYo/c.avi")]
    shown = capsys.readouterr().out
    for line in ("1 missing: Archery/a.avi\n", "1 shorter than a clip of 17 frames", "frames: ", "UCF101.rar"):
        assert line in shown


def test_a_whole_dataset(ucf, files):
    (ucf / "UCF-101/YoYo/c.avi").write_bytes(files["avi"].read_bytes())
    found = checked(ucf, "ucf101", frames=4)
    assert found.extra == [str(ucf / "UCF-101/YoYo/extra.avi")] and len(found.frames) == 3
    assert not found.failed and not found.unreadable and not found.short
    write_rows(ucf / "ucfTrainTestlist/testlist02.txt", "Archery/a.avi")
    assert "split 2: 1 videos are in train and in test" in checked(ucf, "ucf101", read=False).notes


def test_a_second_check_reads_nothing_again(tmp_path, files, monkeypatch):
    lay_out(tmp_path, files, run__a="avi", jump__b="h264")
    first = checked(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("dclr.data.index.learn", None)
        assert checked(tmp_path) == first
    lay_out(tmp_path, files, run__a="truncated")
    again = checked(tmp_path).frames
    assert first.frames.keys() == again.keys() and sum(first.frames.values()) == 60 > sum(again.values())


def test_without_reading(tmp_path):
    touch(tmp_path, "run/a.mp4", "run/._b.mp4", "jump/c.mp4")
    found = checked(tmp_path, read=False)
    assert [(part.subset, part.listed, part.official, part.classes) for part in found.parts] == [("train", 2, None, 2)]
    assert not found.frames and found.notes[0] == "folder: passed over 1 hidden or system entries"
    assert sum("passed over" in note for note in found.notes) == 1


def test_names_that_are_not_text(tmp_path, capsys):
    touch(tmp_path, "train/caf\udce9.mp4", "test/a.mp4", "extra/caf\udce9.mp4")
    found = checked(tmp_path, read=False, output=str(tmp_path / "found.json"))
    assert found.extra == json.loads((tmp_path / "found.json").read_text())["extra"]
    assert "extra/caf\\udce9.mp4" in capsys.readouterr().out


def test_check_says_what_each_dataset_is(capsys):
    main(["check"])
    shown = capsys.readouterr().out
    for name, spec in DATASETS.items():
        assert f"{name}: {spec.title}" in shown and spec.videos_from in shown and spec.lists_from in shown


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--data.dataset", "ucf110", "--data.root", "x"], "unknown dataset 'ucf110'; did you mean 'ucf101'?"),
        (["--data.root", "nowhere"], "ucf101: there is no folder nowhere"),
        (["--data.dataset", "folder", "--data.root", "."], "folder: no video"),
    ],
)
def test_wrong_command_lines(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["check", *argv])
    assert stop.value.code == 1 and message in capsys.readouterr().err
