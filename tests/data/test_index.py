"""What was learned of videos is kept, shared, and learned again where a file has changed."""

import errno
import os
import pickle
import threading
import warnings

import pytest

from dclr.data import VideoError
from dclr.data import index as index_module
from dclr.data.index import FrameIndex
from dclr.data.seeking import learn

from . import conftest as make


@pytest.fixture
def learned(monkeypatch):
    """Which videos are decoded as a whole."""
    names = []

    def recorded(path, held=None):
        names.append(os.path.basename(path))
        return learn(path, held)

    monkeypatch.setattr(index_module, "learn", recorded)
    return names


@pytest.fixture
def videos(files, tmp_path):
    paths = []
    for name, kind in {"a/one.mp4": "h264", "a/two.avi": "avi", "b/three.mp4": "variable rate"}.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[kind].read_bytes())
        paths.append(path)
    return paths


def index_files(folder):
    return [path for path in folder.rglob(".dclr-frames-*") if path.is_file()]


def test_each_video_is_decoded_once(videos, tmp_path, learned):
    """By whoever shares the folder: another index, one that was there before, a worker's, one of a subset."""
    first, other = FrameIndex(videos), FrameIndex(videos)
    assert [first.known(path) for path in videos] == [learn(path) for path in videos]
    for index in (first, other, FrameIndex(videos), pickle.loads(pickle.dumps(first)), FrameIndex(videos[:2])):
        assert [index.known(path) for path in videos[:2]] == [learn(path) for path in videos[:2]]
    assert learned == ["one.mp4", "two.avi", "three.mp4"]
    assert [path.parent for path in index_files(tmp_path)] == [tmp_path / "set"]


def test_the_folder_may_move(videos, tmp_path, learned):
    FrameIndex(videos).known(videos[0])
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = [tmp_path / "moved" / path.relative_to(tmp_path / "set") for path in videos]
    assert FrameIndex(moved).known(moved[0]).count == 30 and learned == ["one.mp4"]


def test_a_changed_video_is_learned_again(files, videos, learned):
    index = FrameIndex(videos)
    assert index.known(videos[0]).count == 30
    videos[0].write_bytes(files["damaged"].read_bytes())
    assert index.known(videos[0]).count == FrameIndex(videos).known(videos[0]).count < 20
    os.utime(videos[0], ns=(1, 1))
    index.known(videos[0])
    assert learned == 3 * ["one.mp4"]
    videos[0].unlink()
    with pytest.raises(VideoError, match=r"one\.mp4: cannot be opened \(No such file"):
        index.known(videos[0])


def test_a_video_that_grows_while_it_is_read_is_not_kept(files, videos, monkeypatch):
    def grows(path, held):
        known = learn(path)
        with open(path, "ab") as file:
            file.write(b"more")
        return known

    monkeypatch.setattr(index_module, "learn", grows)
    assert FrameIndex(videos).known(videos[1]).count == 30
    assert not index_files(videos[1].parents[1])


@pytest.mark.parametrize("damage", ["torn", "noise", "empty", "wrong"])
def test_a_damaged_index_is_written_on(videos, tmp_path, learned, damage):
    for path in videos[:2]:
        FrameIndex(videos).known(path)
    [file] = index_files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes({
        "torn": whole[:-30],
        "noise": os.urandom(300),
        "empty": b"",
        "wrong": whole.replace(b",30,", b",true,").replace(b"[[", b"[{"),
    }[damage])  # fmt: skip
    for _ in range(2):
        assert [FrameIndex(videos).known(path) for path in videos] == [learn(path) for path in videos]
    assert learned[2:] == (["two.avi", "three.mp4"] if damage == "torn" else ["one.mp4", "two.avi", "three.mp4"])


def test_what_is_about_files_that_are_gone_is_dropped(files, videos, tmp_path, learned, monkeypatch):
    """Once the file has grown; whoever had read it before finds what is left."""
    monkeypatch.setattr(index_module, "UNTIDY_BYTES", 2000)
    other = FrameIndex(videos)
    for path in videos:
        other.known(path)
    gone = tmp_path / "set" / "b" / "gone.mp4"
    gone.write_bytes(files["h264"].read_bytes())
    FrameIndex(videos).known(gone)
    gone.unlink()
    for number in range(40):
        os.utime(videos[0], ns=(number, number))
        FrameIndex(videos).known(videos[0])
    [file] = index_files(tmp_path)
    assert len(learned) == 4 + 40 and file.stat().st_size < 4500 and b"gone" not in file.read_bytes()
    for index in (other, FrameIndex(videos)):
        assert [index.known(path) for path in videos] == [learn(path) for path in videos]
    assert len(learned) == 44


def test_an_index_that_cannot_be_tidied_is_written_on(videos, tmp_path, learned, monkeypatch):
    """And not all of its files are looked at again for each line."""
    monkeypatch.setattr(index_module, "UNTIDY_BYTES", 100)
    looks = []

    def refused(path, data):
        looks.append(path)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(index_module, "write_whole", refused)
    index = FrameIndex(videos)
    for number in range(32):
        os.utime(videos[0], ns=(number, number))
        index.known(videos[0])
    [file] = index_files(tmp_path)
    assert file.read_bytes().count(b"\n\n") == 31 and 3 <= len(looks) <= 6


def test_writers_at_once(videos, learned, monkeypatch):
    """Lines of several writers do not mix."""
    monkeypatch.setattr(index_module, "UNTIDY_BYTES", 1 << 30)
    indices = [FrameIndex(videos) for _ in range(4)]
    known = learn(videos[0])

    def write(index):
        for number in range(100):
            index.add(videos[number % 3], known._replace(entries=200 * known.entries))

    threads = [threading.Thread(target=write, args=(index,)) for index in indices]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    [file] = index_files(videos[0].parents[1])
    lines = file.read_bytes().split(b"\n")
    assert len([line for line in lines if line]) == 400 and len({len(line) for line in lines if line}) <= 6


def test_folders_that_cannot_be_written(videos, tmp_path, monkeypatch, learned):
    """Then a cache folder is; else each run learns anew, and says so."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "set" / index_files_name()).mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FrameIndex(videos).known(videos[0]).count == FrameIndex(videos).known(videos[0]).count == 30
    assert learned == ["one.mp4"] and len(list((tmp_path / "cache" / "dclr").iterdir())) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(videos[0]))
    index = FrameIndex(videos)
    with pytest.warns(UserWarning, match="frame counts cannot be kept"):
        index.known(videos[0])
    assert index.known(videos[0]).count == 30 and learned == 2 * ["one.mp4"]


def index_files_name():
    return index_module._index_places("/a/b")[0][1].name


def test_strange_names(files, tmp_path, learned):
    names = ["a\tb.mp4", "a\nb.mp4", os.fsdecode(b"caf\xe9.mp4"), "ä\u2028.mp4", '"[].mp4']
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.write_bytes(files["h264"].read_bytes())
    for _ in range(2):
        assert [FrameIndex(paths).known(path).count for path in paths] == 5 * [30]
    assert len(learned) == 5


def test_many_rows(tmp_path):
    """240,000 lines are read in seconds: counted here as one pass over a tenth of them."""
    path = make.write(tmp_path / "v.mp4", [make.numbered(1)] * 20)
    index = FrameIndex([path])
    index.known(path)
    [file] = index_files(tmp_path)
    line = file.read_bytes().strip()
    file.write_bytes(
        b"".join(line.replace(b"v.mp4", b"v%d.mp4" % number) + b"\n" for number in range(24000)) + line + b"\n"
    )
    fresh = FrameIndex([path])
    assert fresh.known(path).count == 20 and len(fresh.files[0].lines) == 24001
