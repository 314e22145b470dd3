"""`dclr visualize` of a small run, end to end: pictures, page, what is left out, and one clear error for bad input."""

import html
import json
import re
import struct

import numpy as np
import pytest

import dclr.commands.visualize
from dclr.cli import main
from dclr.commands.visualize import VisualizeConfig, visualize
from dclr.config import ConfigError
from dclr.data import load_dataset
from dclr.evaluation import nearest
from dclr.evaluation.dataset import EvaluationDataConfig
from dclr.training import append_metrics, read_metrics
from dclr.visualize import draw_retrieval
from tests.visualize.conftest import STRANGE

DATA = EvaluationDataConfig(clips=2, workers=0)
IMAGE = re.compile(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)"')


def config(run, **options):
    return VisualizeConfig(str(run), **{"device": "cpu", "data": DATA, "videos": 3, "neighbours": 2, **options})


def text(page):
    """The page without its pictures."""
    return IMAGE.sub("PICTURE", page.read_text(encoding="utf-8"))


def size(png):
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and png[12:16] == b"IHDR" and png.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", png[16:24])


def test_page_and_pictures(run, capsys):
    page = visualize(config(run))
    assert page == run / "report.html" and capsys.readouterr().out.splitlines()[-1] == str(page)
    names = ["activation_0.png", "activation_1.png", "activation_2.png", "curves.png", "retrieval.png"]
    assert sorted(path.name for path in (run / "report").iterdir()) == names
    for name in names:
        width, height = size((run / "report" / name).read_bytes())
        assert 300 < width < 2000 and 200 < height < 2000
    shown = text(page)
    assert shown.count("PICTURE") == len(names)
    for part in ("after 2 epochs", "4 steps in", "device-hours", "CPU (", "encoder: r2plus1d_tiny", "name: simclr"):
        assert part in shown
    assert "<p>Nothing.</p>" in shown
    record = read_metrics(run / "retrieve_folder")[-1]
    assert html.escape(record["protocol"]) in shown and f"R@1 {record['R@1']:.2f}" in shown
    # The panels' own figures are those of `dclr retrieve`.
    assert shown.count(html.escape(record["protocol"])) == 2 and shown.count(f"R@1 {record['R@1']:.2f}") == 2


def test_the_page_refers_to_nothing_outside_and_escapes_names(run):
    page = text(visualize(config(run, videos=9)))
    for strange in ("http", "src=", "href", "<script", "@import", "url(", STRANGE, "<b>"):
        assert strange not in page
    assert html.escape(STRANGE) in page
    tags = re.findall(r"</?([a-z0-9]+)", page)
    assert all(tags.count(tag) % 2 == 0 for tag in set(tags) - {"meta", "img", "br"})


def test_twice_the_same_bytes_and_no_picture_of_an_earlier_call(run):
    visualize(config(run, videos=4))
    assert len(list((run / "report").iterdir())) == 6
    first, second = [
        {path.name: path.read_bytes() for path in (visualize(config(run)), *sorted((run / "report").iterdir()))}
        for _ in range(2)
    ]
    assert first == second and len(first) == 6


def test_neighbours_are_those_of_nearest(run, videos, monkeypatch):
    panels, features = [], []
    cached_encoder = dclr.commands.visualize.cached_encoder

    def encoder_of(*arguments):
        encode = cached_encoder(*arguments)

        def encoded(videos):
            features.append(encode(videos))
            return features[-1]

        return encoded

    def drawn(*arguments):
        panels.append(arguments)
        return draw_retrieval(*arguments)

    monkeypatch.setattr(dclr.commands.visualize, "cached_encoder", encoder_of)
    monkeypatch.setattr(dclr.commands.visualize, "draw_retrieval", drawn)
    visualize(config(run, videos=20, neighbours=30))
    ((queries, neighbours, classes),) = panels
    gallery, query = features
    cosines, indices = nearest(gallery.clips, query.clips, 30)
    train, test = (load_dataset("folder", videos, label="motion", subset=subset) for subset in ("train", "test"))
    assert len(queries) == 9 and all(len(row) == 10 for row in neighbours) and classes == train.classes
    order = dclr.commands.visualize.choose(query.labels, 20)
    for row, shown, found in zip(order, queries, neighbours):
        assert shown.label == test.labels[row]
        assert [video.label for video in found] == [train.labels[i] for i in indices[row].tolist()]
        np.testing.assert_allclose([video.cosine for video in found], cosines[row], atol=1e-12)
        assert found[0].frame.shape == (20, 20, 3) and not (found[0].frame == found[1].frame).all()


def test_every_evaluation_record_is_listed_and_escaped(run):
    append_metrics(run / "linear_<i>", {"evaluation": "linear", "top1": 12.345, "epoch": 1, "protocol": "one & only"})
    append_metrics(run / "linear_<i>", {"evaluation": "linear", "top1": 67.891, "protocol": "again",
                                        "unreadable_videos": ["x.avi: truncated"]})  # fmt: skip
    append_metrics(run / "finetune_a", {"step": 1, "loss": 77.77})
    append_metrics(run, {"step": 4, "row": "vanilla", "motion R@1": 33.333, "protocol": "demo's"})
    saved = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(saved.replace("label: motion", "label: <i>").replace("python: ", "python: <i>"))
    page = text(visualize(config(run, curves_only=True)))
    quoted = ("linear_&lt;i&gt;", "one &amp; only", "label: &lt;i&gt;", "<td>&lt;i&gt;")
    for part in (*quoted, "top1 12.35", "top1 67.89", "again", "motion R@1 33.33", "vanilla"):
        assert part in page
    assert "Unreadable in linear_&lt;i&gt;: x.avi: truncated" in page and "77.77" not in page
    assert "<i>" not in page


def test_curves_only_needs_neither_checkpoint_nor_videos(run, tmp_path):
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    (run / "checkpoints").rmdir()
    data = EvaluationDataConfig(root=str(tmp_path / "gone"))
    page = visualize(config(run, curves_only=True, data=data, output=str(tmp_path / "page")))
    assert page == tmp_path / "page" / "report.html"
    assert [path.name for path in (tmp_path / "page" / "report").iterdir()] == ["curves.png"]
    assert "up to step 4" in text(page) and "--curves-only" in text(page) and "R@1" in text(page)
    # A checkpoint of the run stands for it, also one that is gone.
    again = visualize(config(run / "checkpoints" / "last.pt", curves_only=True))
    assert again == run / "report.html" and again.read_bytes() == page.read_bytes()


def test_a_checkpoint_named_from_within_its_folder_is_of_its_run(run, monkeypatch):
    monkeypatch.chdir(run / "checkpoints")
    assert visualize(config("last.pt", curves_only=True)) == run / "report.html"
    monkeypatch.chdir(run)
    with pytest.raises(ConfigError, match=r"checkpoint: got typo, expected a run"):
        visualize(config("typo", curves_only=True))


def test_a_run_without_log(run):
    (run / "metrics.jsonl").unlink()
    (run / "config.yaml").unlink()
    page = text(visualize(config(run)))
    assert "metrics.jsonl has no step of training" in page and "the run has not finished" in page
    assert "encoder: r2plus1d_tiny" in page and page.count("PICTURE") == 4


def test_unreadable_and_missing_videos_are_named(run, videos, tmp_path):
    """Of a copy of the videos, one is gone and one is broken."""
    copy = tmp_path / "copy"
    (copy / "videos").mkdir(parents=True)
    for path in (videos / "videos").iterdir():
        (copy / "videos" / path.name).symlink_to(path)
    (copy / "labels.csv").write_bytes((videos / "labels.csv").read_bytes())
    train, test = (load_dataset("folder", copy, label="motion", subset=subset) for subset in ("train", "test"))
    broken, gone = (copy / "videos" / name.rpartition("/")[2] for name in (test.paths[1], train.paths[0]))
    broken.unlink()
    broken.write_bytes(b"no video")
    gone.unlink()
    data = EvaluationDataConfig(clips=2, workers=0, root=str(copy), allow_missing=True, max_failed_share=0.2)
    page = text(visualize(config(run, data=data, videos=9)))
    assert f"Unreadable test video: {broken}" in page and gone.name in page and "Missing training video" in page
    assert page.count("PICTURE") == 8 + 2


def test_videos_without_labels(run, videos, tmp_path):
    """A plain folder of videos is training and test set at once."""
    (tmp_path / "plain").mkdir()
    for path in sorted((videos / "videos").iterdir())[:4]:
        (tmp_path / "plain" / path.name).symlink_to(path)
    data = EvaluationDataConfig(
        dataset="folder", root=str(tmp_path / "plain"), clips=2, workers=0, test_subset="train"
    )  # fmt: skip
    page = text(visualize(config(run, data=data)))
    assert "R@k: there are videos without a label." in page and "no label" in page and page.count("PICTURE") == 5


def test_command_line(run, capsys):
    main(["visualize", "--checkpoint", str(run), "--curves-only"])
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    with pytest.raises(SystemExit):
        main(["visualize", "--checkpoint", str(run), "--data.root", str(run / "gone"), "--device", "cpu"])
    assert capsys.readouterr().err.startswith(
        f"dclr: data.root: got {run / 'gone'}, expected the folder of the dataset"
    )


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"videos": 0}, ConfigError, "videos: got 0, expected at least 1"),
        ({"neighbours": -1}, ConfigError, "neighbours: got -1, expected at least 1"),
        ({"output": f"{__file__}/page"}, ConfigError, "output: got .*, but .*py is no folder that can be written to"),
        ({"data": EvaluationDataConfig(dataset="ucf101")}, ConfigError, "data.root: got none, expected the folder of"),
        ({"data": EvaluationDataConfig(root="/gone")}, ConfigError, "data.root: got /gone, expected .* --curves-only"),
    ],
)
def test_bad_input(trained, options, error, message):
    with pytest.raises(error, match=message):
        visualize(config(trained, **options))


def test_bad_runs(tmp_path):
    with pytest.raises(OSError, match=r"last.pt: cannot be read"):
        visualize(config(tmp_path))
    with pytest.raises(
        ConfigError, match=r"checkpoint: got .*, expected a run: .* has no config.yaml or metrics.jsonl"
    ):
        visualize(config(tmp_path, curves_only=True))
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"config.yaml: cannot be read as a configuration"):
        visualize(config(tmp_path, curves_only=True))
    (tmp_path / "config.yaml").write_text("a: 1")
    for line in ("no json", json.dumps([1])):
        (tmp_path / "metrics.jsonl").write_text(line + "\n")
        with pytest.raises(ConfigError, match=r"metrics.jsonl: .*expected a JSON object a line"):
            visualize(config(tmp_path, curves_only=True))
    assert not (tmp_path / "report.html").exists()
