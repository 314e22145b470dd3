"""`dclr evaluate` and its single verbs: the same figures, in one process and in two; splits, seeds, errors."""

import csv
import os
import socket
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dclr.cli import main
from dclr.commands.evaluate import (
    EvaluateConfig,
    KnnConfig,
    KnnOptions,
    LinearProbeConfig,
    RetrieveConfig,
    RetrieveOptions,
    evaluate,
    knn,
    linear,
    retrieve,
)
from dclr.evaluation.checkpoint import EvaluationConfig, features_of
from dclr.evaluation.dataset import EvaluationDataConfig, load_subsets
from dclr.evaluation.retrieval import recall_by_chance
from dclr.training import read_metrics
from tests.evaluation.conftest import data, encoded, run, save_run, ucf, videos  # noqa: F401

REPOSITORY = Path(__file__).parents[2]


def figures(record):
    return {key: value for key, value in record.items() if isinstance(value, float)}


def test_together_as_alone(run, data):  # noqa: F811
    common = {"device": "cpu", "data": data}
    together = evaluate(EvaluateConfig(str(run), protocols="retrieve, linear,knn", **common))
    assert list(together) == ["retrieve", "linear", "knn"]
    alone = {
        "linear": linear(LinearProbeConfig(str(run), **common)),
        "knn": knn(KnnConfig(str(run), **common)),
        "retrieve": retrieve(RetrieveConfig(str(run), **common)),
    }
    assert together == alone
    for name, record in alone.items():
        assert read_metrics(run / f"{name}_folder") == [record, record]


def test_both_of_two_ways_are_shown(run, data):  # noqa: F811
    common = {"device": "cpu", "data": data}
    centred, literal = (retrieve(RetrieveConfig(str(run), center=center, **common)) for center in ("per_split", "none"))
    for k in (1, 5, 10):
        assert centred[f"R@{k}"] == literal[f"R@{k}, centred"]
        assert centred[f"R@{k}, not centred"] == literal[f"R@{k}"]
    assert "R@20" not in centred, "the gallery has 18 videos"
    config = LinearProbeConfig(str(run), **common)
    unit, plain = linear(config), linear(replace(config, linear=replace(config.linear, l2=False)))
    assert unit["top1, not normalised"] == plain["top1"] and plain["top1, l2-normalised"] == unit["top1"]
    assert "l2-normalised" in unit["protocol"] and "l2-normalised" not in plain["protocol"]


def test_two_processes_equal_one(run, data, videos, tmp_path):  # noqa: F811
    """Every video is counted once, and the figures are those of one process."""
    single = evaluate(EvaluateConfig(str(run), device="cpu", data=data))
    other = save_run(tmp_path / "two", root=str(videos))
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    flags = ["--data.clips", "2", "--data.workers", "0", "--data.batch-videos", "3", "--device", "cpu"]
    command = [sys.executable, "-m", "dclr", "evaluate", "--checkpoint", str(other), *flags]
    processes = [
        subprocess.Popen(
            command, env={**common, "RANK": str(rank), "OMP_NUM_THREADS": "1"}, cwd=REPOSITORY,
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "R@1" in outputs[0][0] and outputs[1][0] == ""
    parts = [np.load(path) for path in (other / "features").glob("*/*.npz")]
    names = [name for part in parts for name in part["videos"].tolist()]
    assert len(names) == len(set(names)) == 29 and sorted(len(part["videos"]) for part in parts) == [5, 6, 9, 9]
    for name, record in single.items():
        (found,) = read_metrics(other / f"{name}_folder")
        assert figures(found) == pytest.approx(figures(record))
        assert found["protocol"] == record["protocol"]


def test_leave_one_out(run, data):  # noqa: F811
    """Every video among all others, counted here one by one."""
    common = {"device": "cpu", "data": data}
    both = features_of(["knn"], EvaluationConfig(str(run), **common))
    x = torch.cat([both.train.clips, both.test.clips]).double()
    labels = torch.cat([both.train.labels, both.test.labels]).numpy()
    x = (x / x.norm(dim=2, keepdim=True)).mean(1).numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = x @ x.T
    np.fill_diagonal(cosine, -2)
    order = np.argsort(-cosine, axis=1, kind="stable")
    together = evaluate(
        EvaluateConfig(
            str(run),
            protocols="knn,retrieve",
            leave_one_out=True,
            knn=KnnOptions(k=1),
            retrieve=RetrieveOptions(center="none"),
            **common,
        )
    )
    for k in (1, 5, 10, 20):
        expected = 100 * (labels[order[:, :k]] == labels[:, None]).any(1).mean()
        assert together["retrieve"][f"R@{k}"] == pytest.approx(expected)
    assert together["knn"]["top1"] == pytest.approx(together["retrieve"]["R@1"])
    assert "leave-one-out" in together["knn"]["protocol"] and "among 29 training" in together["retrieve"]["protocol"]


def test_an_overlap_of_training_and_test_videos_is_said(run, data):  # noqa: F811
    same = replace(data, test_where="split=train")
    records = evaluate(EvaluateConfig(str(run), device="cpu", data=same))
    assert "18 of the 18 test videos were trained on" in records["linear"]["protocol"]
    assert "leave-one-out" in records["knn"]["protocol"] and records["retrieve"]["R@1"] < 100
    assert "overlap" not in evaluate(EvaluateConfig(str(run), device="cpu", data=data))["linear"]["protocol"]


@pytest.mark.parametrize("own", [None, torch.tensor([0, -1, 3])])
def test_chance_is_that_of_random_orders(own):
    gallery, query = torch.tensor([0, 0, 1, 2, 1, 0, 2]), torch.tensor([0, 1, 2])
    hits = {1: 0, 3: 0, 7: 0}
    generator = np.random.default_rng(0)
    for _ in range(4000):
        for number, label in enumerate(query.tolist()):
            order = [row for row in generator.permutation(7) if own is None or row != own[number]]
            for k in hits:
                hits[k] += any(gallery[row] == label for row in order[:k])
    chance = recall_by_chance(gallery, query, [1, 3, 7], own)
    for k, count in hits.items():
        assert chance[f"R@{k}"] == pytest.approx(100 * count / 12000, abs=1.5)


def test_chance_stands_beside_the_figures(run, data, capsys):  # noqa: F811
    records = evaluate(EvaluateConfig(str(run), device="cpu", data=data))
    assert records["knn"]["chance"] == {"top1": 12.5, "top5": 62.5} == records["linear"]["chance"]
    assert records["retrieve"]["chance"].keys() == {"R@1", "R@5", "R@10"}
    assert "(chance 12.50%)" in capsys.readouterr().out


def test_splits_and_seeds_give_mean_and_spread(run, data, ucf, encoded, capsys):  # noqa: F811
    data = replace(data, dataset="ucf101", root=str(ucf))
    records = evaluate(EvaluateConfig(str(run), device="cpu", data=data, splits=(1, 2, 3), seeds=(0, 1)))
    assert sum(encoded) == 24 * 2, "the splits are of the same videos"
    singles = read_metrics(run / "linear_ucf101")
    assert [(record.get("split"), record.get("seed")) for record in singles[:-1]] == [
        (split, seed) for split in (1, 2, 3) for seed in (0, 1)
    ]
    values = [record["top1"] for record in singles[:-1]]
    found = records["linear"]
    assert found["top1"] == statistics.fmean(values) and found["spread"]["top1"] == statistics.stdev(values)
    assert found["splits"] == [1, 2, 3] and found["seeds"] == [0, 1] and found == singles[-1]
    assert "over splits 1, 2, 3 and seeds 0, 1" in found["protocol"]
    assert f"± {found['spread']['top1']:.2f} (chance 50.00%)" in capsys.readouterr().out
    assert len(read_metrics(run / "knn_ucf101")) == 4


def test_published_figures_of_the_same_setting(tmp_path, data, ucf, capsys):  # noqa: F811
    run = save_run(tmp_path / "run", root=str(ucf), dataset="ucf101", label=None)  # noqa: F811
    record = retrieve(RetrieveConfig(str(run), device="cpu", data=data))
    assert any("R@1 54.8%" in line and "DCLR" in line for line in record["published"])
    assert "published: R@1 54.8%" in capsys.readouterr().out


def test_classes_and_their_confusions(run, data):  # noqa: F811
    record = knn(KnnConfig(str(run), device="cpu", data=data))
    with open(run / "knn_folder" / "knn_classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and sum(int(row["videos"]) for row in rows) == 11
    assert 100 * sum(int(row["right"]) for row in rows) / 11 == pytest.approx(record["top1"])
    assert (run / "knn_folder" / "knn_confusion.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"protocols": "linear,knm"}, "protocols: got 'knm'; did you mean knn?"),
        ({"protocols": ""}, "protocols: got '', expected|protocols: got ''; "),
        ({"knn": KnnOptions(k=19)}, "k: got 19, expected at most the 18 training videos"),
        ({"retrieve": RetrieveOptions(ks=(1, 50))}, "ks: got 50, expected at most the 18 training videos"),
        ({"splits": (1, 2)}, "there is no split 2"),
    ],
)
def test_bad_input(run, data, options, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        evaluate(EvaluateConfig(str(run), device="cpu", data=data, **options))


def test_videos_without_labels(run, data, videos, encoded, tmp_path):  # noqa: F811
    names = [f"{videos}/videos/{number:06d}.mp4" for number in range(4)]
    listing = tmp_path / "list.csv"
    listing.write_text(
        "path,label,split\n" + "".join(f"{name},,{'train' if i < 3 else 'test'}\n" for i, name in enumerate(names))
    )
    bare = replace(data, dataset="folder", root=str(videos), annotations=str(listing))
    for verb, kind in ((linear, LinearProbeConfig), (knn, KnnConfig), (retrieve, RetrieveConfig)):
        with pytest.raises(ValueError, match="needs a class for each video, but 3 of 3 have none"):
            verb(kind(str(run), device="cpu", data=bare))
    listing.write_text(listing.read_text().replace(",,", ",wave,"))
    for verb, kind in ((linear, LinearProbeConfig), (knn, KnnConfig), (retrieve, RetrieveConfig)):
        with pytest.raises(ValueError, match="tells classes apart, but all videos are of one, wave"):
            verb(kind(str(run), device="cpu", data=bare))
    assert not encoded, "before anything is decoded"


def test_what_both_subsets_say_is_said_once(tmp_path, capsys):
    for number in range(4):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[number % 2] / f"{number}.mp4").touch()
    (tmp_path / "notes.txt").touch()
    load_subsets(EvaluationDataConfig("folder", str(tmp_path), frames=4, stride=1, size=16))
    assert capsys.readouterr().err == "folder: passed over 1 files without a video's suffix\n"


def test_commands(run, capsys):  # noqa: F811
    common = ["--checkpoint", str(run), "--data.clips", "1", "--data.workers", "0", "--device", "cpu"]
    main(["evaluate", *common, "--protocols", "knn,retrieve"])
    shown = capsys.readouterr().out
    assert shown.count("protocol: ") == 2 and "only 11 test videos: each counts for 9.1%" in shown
    main(["linear", *common, "--seeds", "0", "1"])
    assert "±" in capsys.readouterr().out
    main(["retrieve", *common, "--leave-one-out"])
    assert "leave-one-out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "verb, recipe, words",
    [
        (
            "linear",
            "fame",
            ["lr 30 wd 0 m 0.9 batch 256, 100 epochs of 1 random clips a video, x0.1 at", "native"],
        ),
        ("linear", "videomoco", ["lr 30 wd 0 m 0.9 batch 256, 100 epochs, x0.1 at 60,80", "cached features:"]),
        ("linear", "dclr", ["lr 5 wd 0 m 0.9 batch 128, 10 epochs, x0.1 at 6,8", "square_resize"]),
        ("retrieve", "literal", ["not centred", "each l2-normalised"]),
        ("retrieve", "dualvar", ["stride 4", "short128", "transductive", "clips a video, mean over clips"]),
        ("evaluate", "dualvar", ["stride 4"]),
    ],
)
def test_recipes_are_the_published_ones(run, capsys, verb, recipe, words):  # noqa: F811
    flags = ["--data.clips", "2", "--data.workers", "0", "--device", "cpu"]
    main([verb, "--checkpoint", str(run), "--recipe", recipe, *flags])
    out = capsys.readouterr().out
    assert all(word in out for word in words), out


def test_recipes_that_are_not_there(run, capsys):  # noqa: F811
    for argv, message in (
        (
            ["linear", "--recipe", "dualvar"],
            "recipe: got dualvar, whose source has no such evaluation; expected one of",
        ),
        (["knn", "--recipe", "fane"], "recipe: got 'fane'; did you mean fame?"),
    ):
        with pytest.raises(SystemExit):
            main([*argv, "--checkpoint", str(run)])
        assert message in capsys.readouterr().err
