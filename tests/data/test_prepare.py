"""`dclr prepare`: copies of whole datasets."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dclr.cli import main
from dclr.commands.prepare import PrepareConfig, prepare
from dclr.data import DatasetError, PretrainClips, count_frames, load_dataset

from ..processes import HEED, doing_first


def prepare_quietly(dataset, root, out, **options):
    return prepare(PrepareConfig(dataset, str(root), str(out), **{"workers": 0, **options}), progress=False)


UCF = {
    "Archery/v_Archery_g01_c01.avi": "avi",
    "Archery/v_Archery_g02_c01.avi": "header",
    "YoYo/v_YoYo_g01_c01.avi": "gaps",
    "YoYo/v_YoYo_g02_c01.avi": "bad",
}


def ucf(files, root, lists):
    for name, kind in UCF.items():
        path = root / "UCF-101" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files["truncated" if kind == "bad" else kind].read_bytes())
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "classInd.txt").write_text("1 Archery\n2 YoYo\n")
    names = list(UCF)
    for split in (1, 2, 3):
        (lists / f"trainlist0{split}.txt").write_text("".join(f"{n} {1 + ('YoYo' in n)}\n" for n in names[split - 1 :]))
        (lists / f"testlist0{split}.txt").write_text(f"{names[0]}\n")
    return root


@pytest.mark.parametrize(
    "root, lists, annotations, place",
    [
        ("data", "data/ucfTrainTestlist", None, "ucfTrainTestlist"),
        ("data/UCF-101", "data/ucfTrainTestlist", None, "annotations"),
        ("data", "data/UCF-101", None, "UCF-101"),
        ("data", "elsewhere", "elsewhere", "annotations"),
        ("data", "data/mine", "mine", "mine"),
    ],
)
def test_the_copy_takes_the_place_of_the_original(files, tmp_path, root, lists, annotations, place):
    ucf(files, tmp_path / "data", tmp_path / lists)
    given = str(tmp_path / annotations) if annotations == "elsewhere" else annotations
    done = prepare_quietly("ucf101", tmp_path / root, tmp_path / "out", annotations=given)
    assert (done.written, done.present, done.failures) == (4, 0, {})
    assert (tmp_path / "out" / place / "classInd.txt").exists()
    options = {"annotations": given if place == "mine" else None}
    for split, subset in ((1, "train"), (3, "train"), (2, "test")):
        before = load_dataset("ucf101", tmp_path / root, split=split, subset=subset, annotations=given)
        after = load_dataset("ucf101", tmp_path / "out", split=split, subset=subset, **options)
        assert (after.labels, after.classes) == (before.labels, before.classes)
        assert [os.path.relpath(path, tmp_path / "out") for path in after.paths] == [
            os.path.relpath(path, tmp_path / root) for path in before.paths
        ]


def test_training_samples_the_same_frames(files, tmp_path):
    root = ucf(files, tmp_path / "data", tmp_path / "data" / "splits")
    prepare_quietly("ucf101", root, tmp_path / "out")
    clips = [
        PretrainClips(load_dataset("ucf101", place), frames=4, size=32, seed=3) for place in (root, tmp_path / "out")
    ]
    for index in range(4):
        before, after = (part[2, index] for part in clips)
        assert (before.video_id, before.label) == (after.video_id, after.label) == (index, index // 2)
        assert (before.clips.int() - after.clips.int()).abs().float().mean() < 8
    assert [clips[0].videos.count(i) for i in range(4)] == [clips[1].videos.count(i) for i in range(4)]


def test_a_second_run_does_the_rest(files, tmp_path):
    root, out = ucf(files, tmp_path / "data", tmp_path / "data" / "splits"), tmp_path / "out"
    prepare_quietly("ucf101", root, out)
    copies = sorted(out.rglob("*.avi"))
    times = [path.stat().st_mtime_ns for path in copies]
    copies[1].unlink()
    done = prepare_quietly("ucf101", root, out)
    assert (done.written, done.present) == (1, 3)
    again = [path.stat().st_mtime_ns for path in copies]
    assert [now == then for now, then in zip(again, times)] == [True, False, True, True]
    assert not list(out.rglob("*.part"))
    copies[2].write_bytes(files["avi"].read_bytes())
    with pytest.raises(DatasetError, match=r"g01_c01.avi is there already, but not as dclr prepare writes it"):
        prepare_quietly("ucf101", root, out)


def test_unreadable_videos_are_listed(files, tmp_path, capsys):
    root, out = tmp_path / "root", tmp_path / "out"
    kinds = {"a/good.mp4": "h264", "a/text.avi": "text", "b/empty.mp4": "empty", "b/sound.mp4": "audio"}
    for name, kind in kinds.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(files[kind].read_bytes())
    (root / "Empty class").mkdir()
    with pytest.raises(DatasetError, match=r"3 of 4 videos could not be read, more than max_failed_share = 0.01"):
        prepare_quietly("folder", root, out)
    done = prepare_quietly("folder", root, out, max_failed_share=0.75)
    assert (done.written, done.present, len(done.failures)) == (0, 1, 3)
    assert "4 videos, 0 transcoded, 1 already there, 3 that could not be read" in capsys.readouterr().out
    lines = (out / "unreadable.txt").read_text().splitlines()
    assert lines == [f"{path}: {reason}" for path, reason in done.failures.items()]
    assert f"{root}/b/sound.mp4: has no video stream" in lines
    before, after = load_dataset("folder", root), load_dataset("folder", out)
    assert after.classes == before.classes == ("Empty class", "a", "b") and after.labels == (1,)
    for name in ("a/good.mp4", "Empty class"):
        (root / name).rename(tmp_path / os.path.basename(name))
    with pytest.raises(DatasetError, match=r"3 of 3 videos could not be read: .*root/a/text.avi: is not a video"):
        prepare_quietly("folder", root, out, max_failed_share=1)


def test_a_list_of_paths(files, tmp_path, capsys):
    """A list with another suffix, a missing video, and two subsets."""
    root = tmp_path / "root"
    for name in ("x/one.mp4", "x/two.3gp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(files["h264"].read_bytes())
    rows = ["path,label,split", "x/one.mp4,a,train", "x/two.3gp,b,test", "x/gone.mp4,b,test"]
    (root / "labels.csv").write_text("\n".join(rows))
    prepare_quietly("folder", root, tmp_path / "out")
    assert "going on without 1 videos that the lists name" in capsys.readouterr().err
    assert load_dataset("folder", tmp_path / "out").paths == (str(tmp_path / "out/x/one.mp4"),)
    test = load_dataset("folder", tmp_path / "out", subset="test", allow_missing=True)
    assert test.paths == (str(tmp_path / "out/x/two.3gp"),) and count_frames(test.paths[0]) == 30


def test_a_list_of_ones_own(files, tmp_path):
    root = tmp_path / "root"
    (root / "train" / "zumba").mkdir(parents=True)
    (root / "train" / "zumba" / "a b.mp4").write_bytes(files["h264"].read_bytes())
    (root / "mine[1].lst").write_text("zumba/a b.mp4 0\n")
    prepare_quietly("kinetics400", root, tmp_path / "out", annotations="mine[1].lst")
    after = load_dataset("kinetics400", tmp_path / "out", annotations="mine[1].lst")
    assert after.paths == (str(tmp_path / "out/train/zumba/a b.mp4"),) and after.labels == (0,)


def test_nothing_is_written_outside_of_out(files, tmp_path):
    """A row may lead out of the root."""
    for folder in ("work/A", "work/C"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "c.mp4").write_bytes(files["h264"].read_bytes())
    (tmp_path / "work/A/labels.csv").write_text("path,label\nc.mp4,a\n../C/c.mp4,b\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DatasetError, match=r"work/C/c\.mp4 is not under root .*work/A"):
        prepare_quietly("folder", tmp_path / "work/A", tmp_path / "out/D")
    assert sorted(tmp_path.rglob("*")) == before


def test_names_as_long_as_may_be(files, tmp_path):
    (tmp_path / "root").mkdir()
    name = 251 * "a" + ".mp4"
    (tmp_path / "root" / name).write_bytes(files["h264"].read_bytes())
    assert prepare_quietly("folder", tmp_path / "root", tmp_path / "out").written == 1
    assert count_frames(tmp_path / "out" / name) == 30


def test_training_from_copies_decodes_none_as_a_whole(files, tmp_path, monkeypatch):
    """Whichever half it is of: what `prepare` learned of all lies above both."""
    for half in ("train", "val"):
        (tmp_path / "root" / half / "a").mkdir(parents=True)
        (tmp_path / "root" / half / "a" / "v.mp4").write_bytes(files["h264"].read_bytes())
    prepare_quietly("folder", tmp_path / "root", tmp_path / "out")
    monkeypatch.setattr(
        "dclr.data.index.learn", lambda path, held: pytest.fail(f"{path} is decoded as a whole once more")
    )
    for subset in ("train", "test"):
        clips = PretrainClips(load_dataset("folder", tmp_path / "out", subset=subset), frames=4, size=32)
        assert clips[0, 0].clips.shape == (2, 5, 32, 32, 3)


@pytest.mark.parametrize("out", ["root", "root/inside", "root/../root", "."])
def test_out_is_another_folder(tmp_path, out):
    (tmp_path / "root").mkdir()
    with pytest.raises(DatasetError, match="expected a folder outside of root"):
        prepare_quietly("folder", tmp_path / "root", tmp_path / out)


@pytest.mark.parametrize(
    "argv, status, message",
    [
        (["--root", "x", "--out", "y"], 2, "dclr: --dataset is required"),
        (["--dataset", "ucf110", "--root", "x", "--out", "y"], 1, "unknown dataset 'ucf110'; did you mean 'ucf101'?"),
        (["--dataset", "ucf101", "--root", "x", "--out", "y"], 1, "ucf101: there is no folder"),
        (["--dataset", "ucf101", "--root", "x", "--out", "y", "--workers", "-1"], 2, "workers: got -1"),
    ],
)
def test_wrong_command_lines(capsys, tmp_path, monkeypatch, argv, status, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["prepare", *argv])
    assert stop.value.code == status and message in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_ctrl_c_and_going_on(files, tmp_path):
    """Two worker processes; Ctrl-C reaches all of them, as in a terminal."""
    root, out = tmp_path / "root", tmp_path / "out"
    (root / "class").mkdir(parents=True)
    count = 150
    for i in range(count):
        (root / "class" / f"{i:03d}.mp4").hardlink_to(files["h264"])
    command = [sys.executable, "-m", "dclr", "prepare", "--dataset", "folder", "--root", str(root), "--out", str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(doing_first(HEED, [*command, "--workers", "2"]), start_new_session=True, **pipes)
    finished = lambda: {path.name: path.stat().st_mtime_ns for path in out.rglob("[!.]*.mp4")}  # noqa: E731
    while len(finished()) < 2 and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.splitlines()[-1] == "dclr: interrupted", errors
    before = finished()
    assert 2 <= len(before) < count and all(count_frames(out / "class" / name) == 30 for name in before)
    done = prepare_quietly("folder", root, out, workers=0)
    assert (done.written, done.present) == (count - len(before), len(before))
    after = finished()
    assert len(after) == count and before.items() <= after.items() and not list(out.rglob("*.part"))


def test_no_more_processes_than_cores(monkeypatch):
    """PyTorch warns of them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    assert PrepareConfig("folder", "x", "y").workers == 2
