"""The guide's dataset, put where the guide says, is loaded as any other."""

import pytest

from dclr.data import datasets
from dclr.data.datasets import DATASETS, DatasetError, load_dataset

from .guides import blocks_of


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of the gestures, with three videos for training."""
    monkeypatch.setitem(DATASETS, "gestures", None)
    loader, entry = blocks_of("add_dataset")
    names = dict(vars(datasets))
    exec(loader + entry, names)
    (tmp_path / "clips").mkdir()
    for name in ("a.avi", "b.mp4", "c.avi"):
        (tmp_path / "clips" / name).touch()
    (tmp_path / "gestures_train.csv").write_text("path,label\na.avi,wave\nb.avi,nod\nc.avi,wave\n")
    return tmp_path


def test_labels_and_videos(root):
    videos = load_dataset("gestures", root)
    assert videos.classes == ("nod", "wave") and videos.labels == (1, 0, 1)
    assert [path.rpartition("/")[2] for path in videos.paths] == ["a.avi", "b.mp4", "c.avi"]
    assert "gestures_train.csv" in videos.split


def test_a_missing_video(root):
    (root / "clips" / "c.avi").unlink()
    with pytest.raises(DatasetError, match=r"gestures: 1 of 3 train videos are not under .*clips: c\.avi"):
        load_dataset("gestures", root)
    assert load_dataset("gestures", root, allow_missing=True).missing == ("c.avi",)


def test_a_missing_list_says_where_it_comes_from(root):
    with pytest.raises(DatasetError, match=r"no split file gestures_test\.csv.*gestures_lists\.zip"):
        load_dataset("gestures", root, subset="test")
