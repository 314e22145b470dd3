"""Nearest-neighbour classification: against votes counted one by one, ties, few videos, and the command."""

import math

import numpy as np
import pytest
import torch

from dclr.cli import main
from dclr.data.synth import SynthConfig, synthesize
from dclr.evaluation import Features, knn_classification
from dclr.training import read_metrics


def random_features(videos, seed, clips=3, dim=7, classes=9, spread=2.5):
    """Classes have centres of their own, so that figures are neither chance nor perfect."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (videos,), generator=generator)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(videos, clips, dim, generator=generator)
    return Features(centres[labels][:, None] + spread * noise, labels)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cosines(train, test, clip_l2, center):
    g, q = (features.clips.numpy().astype(np.float64) for features in (train, test))
    g, q = ((unit(x) if clip_l2 else x).mean(1) for x in (g, q))
    shift = {"per_split": (g.mean(0), q.mean(0)), "train": (g.mean(0), g.mean(0)), "none": (0, 0)}[center]
    return unit(q - shift[1]) @ unit(g - shift[0]).T


def counted(similarity, train_labels, test_labels, k, temperature):
    """Shares of test videos whose class is the first, or among the first five, that its neighbours vote for."""
    right = {1: 0, 5: 0}
    for row, label in zip(similarity.tolist(), test_labels.tolist()):
        votes = {}
        for index in sorted(range(len(row)), key=lambda j: (-row[j], j))[:k]:
            votes.setdefault(int(train_labels[index]), []).append(math.exp(row[index] / temperature))
        guesses = sorted(votes, key=lambda c: (-math.fsum(votes[c]), c))
        for n in right:
            right[n] += label in guesses[:n]
    return {f"top{n}": 100 * count / len(test_labels) for n, count in right.items()}


@pytest.mark.parametrize("center", ["per_split", "train", "none"])
@pytest.mark.parametrize("clip_l2", [True, False])
@pytest.mark.parametrize("k, temperature", [(1, 0.07), (20, 0.07), (20, 5.0), (1000, 0.5)])
def test_equals_votes_counted_one_by_one(center, clip_l2, k, temperature):
    train, test = random_features(61, seed=1), random_features(150, seed=2)
    similarity = cosines(train, test, clip_l2, center)
    expected = counted(similarity, train.labels, test.labels, k, temperature)
    options = {"classes": 9, "k": k, "temperature": temperature, "clip_l2": clip_l2, "center": center}
    result = knn_classification(train, test, **options).figures
    assert {key: result[key] for key in ("top1", "top5")} == pytest.approx(expected, abs=1e-9)
    assert 20 < result["top1"] < 80 and result["top1"] <= result["top5"]


def test_defaults_are_those_of_the_literature():
    train, test = random_features(61, seed=1), random_features(150, seed=2)
    expected = knn_classification(train, test, classes=9, k=20, temperature=0.07, clip_l2=True, center="none").figures
    assert knn_classification(train, test, classes=9).figures == expected


def test_ties_of_neighbours_and_of_votes():
    """Cosines of exactly 0 and 1: whole numbers of votes, nearly all of them tied."""
    generator = torch.Generator().manual_seed(3)
    train_axis, test_axis = (torch.randint(3, (n,), generator=generator) for n in (40, 200))
    labels = [torch.randint(7, (n,), generator=generator) for n in (40, 200)]
    train, test = (Features(torch.eye(3)[axis][:, None], label) for axis, label in zip((train_axis, test_axis), labels))
    similarity = (test_axis[:, None] == train_axis).double().numpy()
    for k in (1, 4, 13, 40):
        expected = counted(similarity, train.labels, test.labels, k, 0.5)
        result = knn_classification(train, test, classes=7, k=k, temperature=0.5).figures
        assert {key: result[key] for key in ("top1", "top5")} == pytest.approx(expected)


def test_equal_votes_go_to_the_lower_class():
    train = Features(torch.ones(4, 1, 2), torch.tensor([3, 1, 3, 1]))
    for label, right in ((1, 100.0), (3, 0.0)):
        test = Features(torch.ones(1, 1, 2), torch.tensor([label]))
        assert knn_classification(train, test, classes=4).figures["top1"] == right


def test_a_class_without_a_vote_is_not_a_guess():
    train = Features(torch.ones(3, 1, 2), torch.tensor([5, 5, 6]))
    test = Features(torch.ones(4, 1, 2), torch.tensor([0, 1, 5, 6]))
    result = knn_classification(train, test, classes=7).figures
    assert (result["top1"], result["top5"]) == (25.0, 50.0)


def test_few_classes_have_no_top5():
    for classes, keys in ((5, {"top1", "chance", "protocol"}), (6, {"top1", "top5", "chance", "protocol"})):
        features = random_features(30, seed=4, classes=classes)
        assert knn_classification(features, features, classes=classes).figures.keys() == keys


def test_a_tiny_temperature_leaves_it_to_the_nearest():
    train, test = random_features(61, seed=1), random_features(150, seed=2)
    nearest = knn_classification(train, test, classes=9, k=1).figures["top1"]
    assert knn_classification(train, test, classes=9, temperature=1e-9).figures["top1"] == nearest


def test_protocol_says_what_was_done():
    train, test = random_features(12, seed=8), random_features(5, seed=9)
    protocol = knn_classification(train, test, classes=9).figures["protocol"]
    for part in ("5 test videos", "12 training videos", "9 classes", "3 clips", "each l2-normalised", "not centred"):
        assert part in protocol
    assert protocol.endswith("exp(cosine / 0.07) of the 12 nearest")
    changed = knn_classification(train, test, classes=9, k=4, temperature=0.1, clip_l2=False, center="train").figures
    assert changed["protocol"].endswith("exp(cosine / 0.1) of the 4 nearest")
    assert "each l2" not in changed["protocol"] and "gallery's mean" in changed["protocol"]


TRAIN, TEST = random_features(10, 0), random_features(5, 1)


@pytest.mark.parametrize(
    "train, test, options, message",
    [
        (TRAIN, random_features(5, 1, dim=8), {}, "train has 7 features a clip, test 8"),
        (TRAIN._replace(labels=torch.zeros(3)), TEST, {}, r"train must have features .* got \(10, 3, 7\) and \(3,\)"),
        (TRAIN, TEST._replace(clips=torch.zeros(5, 7)), {}, "test must have features"),
        (TRAIN, Features(torch.zeros(0, 3, 7), torch.zeros(0, dtype=torch.int64)), {}, "test must have features"),
        (
            TRAIN,
            TEST._replace(labels=torch.full((5,), -1)),
            {},
            "5 of the 5 test videos have no label, expected a class",
        ),
        (TRAIN, TEST, {"classes": 2}, r"train labels .* in 0\.\.1"),
        (TRAIN, TEST, {"k": 0}, "k must be at least 1, got 0"),
        (TRAIN, TEST, {"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        (TRAIN, TEST, {"center": "both"}, "center must be one of per_split, train, none"),
    ],
)
def test_bad_input(train, test, options, message):
    with pytest.raises(ValueError, match=message):
        knn_classification(train, test, **{"classes": 9, **options})


def test_command(tmp_path, capsys):
    run, root = tmp_path / "run", tmp_path / "videos"
    synthesize(root, SynthConfig(train=9, test=8, size=16, frames=8, objects=2), progress=False)
    data = ["--data.dataset", "folder", "--data.root", str(root), "--data.label", "motion", "--data.workers", "0"]
    main(["pretrain", "--method", "simclr", "--encoder", "r2plus1d_tiny", *data, "--data.frames", "4", "--data.size",
          "16", "--data.stride", "1", "--train.batch", "4", "--train.epochs", "1", "--train.device", "cpu",
          "--train.no-tensorboard", "--output", str(run)])  # fmt: skip
    capsys.readouterr()
    argv = ["knn", "--checkpoint", str(run), "--data.clips", "2", "--data.workers", "0", "--device", "cpu"]
    main([*argv, "--data.test-where", "split=train", "--k", "1"])
    main([*argv, "--temperature", "0.1", "--center", "train"])
    own, other = read_metrics(run / "knn_folder")
    assert own["top1"] < 100 and "leave-one-out" in own["protocol"], "no video is its own nearest"
    assert own["evaluation"] == "knn" and own["epoch"] == 1 and "2 evenly spaced clips" in own["protocol"]
    assert "gallery's mean" in other["protocol"] and other["protocol"] in capsys.readouterr().out
    for flags, message in (
        (["--temperatur", "1"], "dclr: unknown argument '--temperatur'; did you mean --temperature?"),
        (["--center", "both"], "--center"),
        (["--k", "0"], "dclr: k: got 0, expected at least 1"),
    ):
        with pytest.raises(SystemExit):
            main([*argv, *flags])
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
