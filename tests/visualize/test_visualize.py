"""`dclr visualize` of a small run, end to end: pictures, page, what is left out, and one clear error for bad input."""

import html
import json
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest

import dclr.commands.visualize
import dclr.visualize.pictures
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
FRAME = re.compile(r'"data:image/png;base64,[A-Za-z0-9+/=\s]+"')
CURVES = ["loss_weighted_sum", "loss_vv", "similarity_vv", "learning_rate", "clips_s", "gradient_norm"]
CURVES += ["features_rank", "features_std"]


def config(run, **options):
    return VisualizeConfig(str(run), **{"device": "cpu", "data": DATA, "videos": 3, "neighbours": 2, **options})


def text(page):
    """The page without the frames of videos."""
    return FRAME.sub('"FRAME"', page.read_text(encoding="utf-8"))


def names(folder):
    return sorted(path.name for path in (folder / "report").iterdir())


def expected_names(videos=3, masks=2):
    each = [f"{kind}_{i}" for kind in ("activation", "retrieval", "search") for i in range(videos)]
    masked = [f"masks_{i}" for i in range(masks)]
    return sorted(f"{name}.svg" for name in (*each, *masked, "kernels", *(f"curve_{curve}" for curve in CURVES)))


def test_page_and_pictures(run, capsys):
    page = visualize(config(run))
    assert page == run / "report.html" and capsys.readouterr().out.splitlines()[-1] == str(page)
    assert names(run) == expected_names()
    for path in (run / "report").iterdir():
        width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', path.read_text()).groups()
        assert 250 < float(width) < 320 and 100 < float(height) < 400
        assert ElementTree.fromstring(path.read_text()).tag.endswith("svg")
    shown = text(page)
    assert shown.count("<figure") == len(expected_names())
    for part in ("after 2 epochs", "4 steps in", "device-hours", "CPU (", "encoder: r2plus1d_tiny", "name: simclr"):
        assert part in shown
    assert "Not shown" not in shown and "Started from" not in shown
    record = read_metrics(run / "retrieve_folder")[-1]
    # The neighbours' own figures are those of `dclr retrieve`, which the page has already.
    figure = f"R@1 {record['R@1']:.2f} (chance {record['chance']['R@1']:.2f})"
    assert shown.count(html.escape(record["protocol"])) == 1 and shown.count(figure) == 1


def test_figures_of_the_neighbours_where_no_evaluation_has_them(run):
    record = read_metrics(run / "retrieve_folder")[-1]
    shutil.rmtree(run / "retrieve_folder")
    shown = text(visualize(config(run)))
    assert html.escape(record["protocol"]) in shown and f"R@1 {record['R@1']:.2f}" in shown


def test_an_evaluation_made_twice_is_listed_once(run):
    record = read_metrics(run / "retrieve_folder")[-1]
    append_metrics(run / "retrieve_folder", {**record, "R@1": 12.34})
    shown = text(visualize(config(run, curves_only=True)))
    assert shown.count(html.escape(record["protocol"])) == 1 and "R@1 12.34" in shown


def test_a_finetuning_says_what_it_started_from(run):
    (run / "finetune.yaml").write_text("checkpoint: /runs/<b>/last.pt\nscratch: false\n")
    assert "<th>Started from</th><td>/runs/&lt;b&gt;/last.pt" in text(visualize(config(run, curves_only=True)))
    (run / "finetune.yaml").write_text("checkpoint: /runs/a/last.pt\nscratch: true\n")
    assert "random weights, with the encoder of /runs/a" in text(visualize(config(run, curves_only=True)))


def test_warnings_of_the_run_come_first(run):
    append_metrics(run, {"step": 9, "loss": 1.0, "warnings": ["features <collapsed>"]})
    shown = text(visualize(config(run, curves_only=True)))
    assert "<li>step 9: features &lt;collapsed&gt;</li>" in shown
    assert shown.index("<h2>Warnings") < shown.index("<h2>Training")


def test_for_phones_and_the_dark(run):
    shown = text(visualize(config(run, curves_only=True)))
    assert '<meta name="viewport" content="width=device-width' in shown
    assert "prefers-color-scheme: dark" in shown and "color-scheme: light dark" in shown
    assert "@media (max-width: 40rem)" in shown and 'data-name="percent"' in shown
    # Ink takes the colour of the page's text, and no picture has a width of its own.
    assert "currentColor" in shown and "#000000" not in shown
    assert not re.search(r'<svg [^>]*\b(width|height)="', shown)


def test_the_page_refers_to_nothing_outside_and_escapes_names(run):
    page = text(visualize(config(run, videos=9)))
    for strange in ("http", "src=", "<script", "@import", "<b>", STRANGE):
        assert strange not in page
    assert all(link in ("#", "F") for link in re.findall(r'href="(.)', page))
    assert all(link == "#" for link in re.findall(r"url\((.)", page))
    assert html.escape(STRANGE) in page
    identifiers = re.findall(r'<(?:clipPath|path|image) id="([^"]+)"', page)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', page))
    assert used and all(identifiers.count(name) == 1 for name in used)
    tags = re.findall(r"</?([a-zA-Z0-9]+)[^>]*?(/?)>", page)
    opened = [tag for tag, closed in tags if not closed]
    assert all(opened.count(tag) % 2 == 0 for tag in set(opened) - {"meta", "br"})


def test_twice_the_same_bytes_and_no_picture_of_an_earlier_call(run):
    visualize(config(run, videos=4))
    assert names(run) == expected_names(4)
    first, second = [
        {path.name: path.read_bytes() for path in (visualize(config(run)), *sorted((run / "report").iterdir()))}
        for _ in range(2)
    ]
    assert first == second and len(first) == 1 + len(expected_names())


def test_neighbours_are_those_of_nearest(run, videos, monkeypatch):
    panels, seen = [], []
    features_of = dclr.commands.visualize.features_of

    def evaluated(*arguments, **options):
        seen.append(features_of(*arguments, **options))
        return seen[-1]

    def drawn(*arguments):
        panels.append(arguments)
        return draw_retrieval(*arguments)

    monkeypatch.setattr(dclr.commands.visualize, "features_of", evaluated)
    monkeypatch.setattr(dclr.visualize.pictures, "draw_retrieval", drawn)
    visualize(config(run, videos=20, neighbours=30))
    gallery, query = seen[0].train, seen[0].test
    cosines, indices = nearest(gallery.clips, query.clips, 30)
    train, test = (load_dataset("folder", videos, label="motion", subset=subset) for subset in ("train", "test"))
    assert len(panels) == 9 and all(len(found) == 10 and classes == train.classes for _, found, classes in panels)
    order = dclr.commands.visualize.choose(query.labels, 20)
    for row, (shown, found, _) in zip(order, panels):
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
    assert names(tmp_path / "page") == sorted(f"curve_{curve}.svg" for curve in CURVES)
    assert "up to step 4" in text(page) and "R@1" in text(page)
    # Says how to have the rest, and no more: nobody asked for less.
    assert f"dclr visualize --checkpoint {run}" in text(page) and "asked for" not in text(page)
    # A checkpoint of the run stands for it, also one that is gone.
    again = visualize(config(run / "checkpoints" / "last.pt", curves_only=True))
    assert again == run / "report.html" and again.read_bytes() == page.read_bytes()


def test_a_checkpoint_named_from_within_its_folder_is_of_its_run(run, monkeypatch):
    monkeypatch.chdir(run / "checkpoints")
    assert visualize(config("last.pt", curves_only=True)) == run / "report.html"
    monkeypatch.chdir(run)
    with pytest.raises(ConfigError, match=r"checkpoint: got typo, expected a run"):
        visualize(config("typo", curves_only=True))


def test_runs_beside_this_one_whose_folders_have_one_name(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("a", "b"):
        shutil.copytree(run, tmp_path / place / "twin")
    visualize(config(run, beside=("a/twin", "b/twin")))
    labels = re.findall("<text[^>]*>([^<]*twin)</text>", (run / "report" / "kernels.svg").read_text())
    assert labels == ["twin", "b/twin"]


def test_a_run_without_log(run):
    (run / "metrics.jsonl").unlink()
    (run / "config.yaml").unlink()
    page = text(visualize(config(run)))
    assert "metrics.jsonl has no step of training" in page and "the run has not finished" in page
    assert "encoder: r2plus1d_tiny" in page and names(run) == [n for n in expected_names() if "curve" not in n]


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
    assert names(run) == expected_names(8)


def test_videos_without_labels(run, videos, tmp_path):
    """A plain folder of videos is training and test set at once."""
    (tmp_path / "plain").mkdir()
    for path in sorted((videos / "videos").iterdir())[:4]:
        (tmp_path / "plain" / path.name).symlink_to(path)
    data = EvaluationDataConfig(
        dataset="folder", root=str(tmp_path / "plain"), clips=2, workers=0, test_subset="train"
    )  # fmt: skip
    page = text(visualize(config(run, data=data)))
    assert "R@k: there are videos without a label." in page and "no label" in page
    # As many as the hold-out leaves of the four.
    shown = sum(name.startswith("activation") for name in names(run))
    assert 2 <= shown <= 3 and names(run) == expected_names(shown)


def test_command_line(run, capsys):
    main(["visualize", "--checkpoint", str(run), "--curves-only"])
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    with pytest.raises(SystemExit):
        main(["visualize", "--checkpoint", str(run), "--data.root", str(run / "gone"), "--device", "cpu"])
    assert capsys.readouterr().err.startswith(f"dclr: data.root: got {run / 'gone'}, expected the folder of the videos")


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
