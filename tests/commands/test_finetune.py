"""Finetuning on generated videos: what is trained, from where, and that the figures are those of the model."""

import dataclasses

import pytest
import torch

from dclr.augment import AugmentConfig
from dclr.commands.finetune import RECIPES, FinetuneConfig, finetune
from dclr.commands.pretrain import pretrain
from dclr.config import ConfigError, DataConfig, OptimConfig, PretrainConfig, TrainConfig
from dclr.data import load_dataset, read_clips
from dclr.data.clips import centre_crop, uniform_starts
from dclr.data.synth import SynthConfig, synthesize
from dclr.data.video import count_frames
from dclr.evaluation.dataset import EvaluationDataConfig
from dclr.methods import SimCLRConfig
from dclr.training import Stopped, Trainer, load_checkpoint, load_method, read_metrics
from dclr.training.schedule import base_rate

TRAIN = TrainConfig(epochs=3, batch=8, device="cpu", tensorboard=False, log_every=1, checkpoint_every=1)
AUGMENT = AugmentConfig(mean=(0.4, 0.5, 0.6))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    synthesize(root, SynthConfig(train=17, test=8, size=24, frames=8, objects=2), progress=False)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory, videos):
    data = DataConfig(dataset="folder", root=str(videos), label="scene", frames=4, stride=1, size=16, workers=0)
    output = str(tmp_path_factory.mktemp("run") / "simclr")
    config = PretrainConfig(output, "r2plus1d_tiny", data, AUGMENT, train=TRAIN, method=SimCLRConfig())
    config.train = dataclasses.replace(TRAIN, epochs=1)
    return pretrain(config)


def config_of(run, **options):
    data = EvaluationDataConfig(clips=3, workers=0)
    return FinetuneConfig(str(run), **{"data": data, "train": TRAIN, "optim": OptimConfig(lr=0.1), **options})


def state(folder):
    return load_checkpoint(folder)["method"]


def test_figures_are_those_of_the_trained_model_on_the_test_clips(run, videos, tmp_path):
    record = finetune(config_of(run, output=str(tmp_path)))
    method = load_method(tmp_path).method.eval()
    test = load_dataset("folder", videos, label="scene", subset="test")
    clip_right, video_right = [], []
    for path, label in zip(test.paths, test.labels):
        clips = torch.from_numpy(read_clips(path, uniform_starts(count_frames(path), 4, 3), 4))
        clips = torch.stack([centre_crop(clip, 16, "square_resize") for clip in clips]).permute(0, 4, 1, 2, 3) / 255
        normal = (clips - torch.tensor(AUGMENT.mean).view(3, 1, 1, 1)) / torch.tensor(AUGMENT.std).view(3, 1, 1, 1)
        with torch.inference_mode():
            logits = method.layer(method.encoder(normal).mean((2, 3, 4)))
        clip_right += (logits.argmax(1) == label).tolist()
        video_right.append(logits.mean(0).argmax().item() == label)
    assert record["top1"] == pytest.approx(100 * sum(video_right) / len(video_right))
    assert record["clip_top1"] == pytest.approx(100 * sum(clip_right) / len(clip_right))
    assert read_metrics(tmp_path)[-1] == record
    assert "label scene" in record["protocol"] and "finetuned" in record["protocol"]


def test_all_of_the_encoder_is_trained_from_the_checkpoint(run, tmp_path):
    frozen = config_of(run, output=str(tmp_path / "frozen"), optim=OptimConfig(lr=1e-30, weight_decay=0))
    finetune(frozen)
    finetune(config_of(run, output=str(tmp_path / "trained")))
    before, after = state(tmp_path / "frozen"), state(tmp_path / "trained")
    weights = [name for name, _ in load_method(run).encoder.named_parameters()]
    for name in weights:
        assert torch.equal(before[f"encoder.{name}"], state(run)[f"encoder.{name}"])
        assert not torch.equal(after[f"encoder.{name}"], before[f"encoder.{name}"])


def test_from_scratch(run, tmp_path):
    record = finetune(config_of(run, output=str(tmp_path), scratch=True, optim=OptimConfig(lr=1e-30, weight_decay=0)))
    weights = [name for name, value in load_method(run).encoder.named_parameters() if value.dim() > 1]
    assert all(not torch.equal(state(tmp_path)[f"encoder.{name}"], state(run)[f"encoder.{name}"]) for name in weights)
    assert "random weights" in record["protocol"]


def test_interrupted_and_resumed_equals_uninterrupted(run, tmp_path, monkeypatch):
    whole = finetune(config_of(run, output=str(tmp_path / "whole")))
    save = Trainer.save

    def stop(trainer, keep=False):
        save(trainer, keep)
        if trainer.epoch == 1:
            raise Stopped("stopped", 15)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(Trainer, "save", stop)
        finetune(config_of(run, output=str(tmp_path / "parts")))
    with pytest.raises(ConfigError, match="expected --resume"):
        finetune(config_of(run, output=str(tmp_path / "parts")))
    parts = finetune(config_of(run, output=str(tmp_path / "parts"), resume=True))
    assert all(torch.equal(value, state(tmp_path / "parts")[name]) for name, value in state(tmp_path / "whole").items())
    assert {**parts, "checkpoint": ""} == {**whole, "checkpoint": ""}


def test_it_learns_the_labels_of_its_training_videos(run, tmp_path):
    train = dataclasses.replace(TRAIN, epochs=40)
    data = EvaluationDataConfig(clips=3, workers=0, test_where="split=train")
    record = finetune(config_of(run, output=str(tmp_path), train=train, data=data, dropout=0.0))
    assert record["top1"] >= 50, "chance is 12.5"


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_run(name, run, tmp_path):
    recipe = RECIPES[name]()
    recipe.data.clips, recipe.data.workers, recipe.data.stride = 2, 0, 1
    recipe.train = dataclasses.replace(TRAIN, epochs=1)
    recipe.checkpoint, recipe.output = str(run), str(tmp_path)
    assert 0 <= finetune(recipe)["top1"] <= 100


@pytest.mark.parametrize(
    "name, rate, batch, epochs, drops, decay",
    [
        ("dclr", 0.1, 64, 100, (60, 80), 1e-4),
        ("fame", 0.025, 128, 150, (60, 120), 1e-4),
        ("dualvar_ucf101", 0.05, 16, 100, (30, 60, 80), 1e-3),
        ("dualvar_k400", 0.05, 16, 150, (50, 100), 1e-3),
    ],
)
def test_recipes_are_the_published_ones(name, rate, batch, epochs, drops, decay):
    recipe = RECIPES[name]()
    optim, train = recipe.optim, recipe.train
    assert base_rate(optim, train.batch) == rate
    assert tuple(share * train.epochs for share in optim.milestones) == pytest.approx(drops)
    assert (train.batch, train.epochs, optim.weight_decay, optim.momentum) == (batch, epochs, decay, 0.9)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"augment": AugmentConfig(mean=(0.1, 0.1, 0.1))}, r"augment.mean: got \(0.1, 0.1, 0.1\), expected the pretr"),
        ({"data": EvaluationDataConfig(label="colour", workers=0)}, "colour"),
    ],
)
def test_bad_settings(run, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        finetune(config_of(run, output=str(tmp_path / "run"), **options))
    assert not (tmp_path / "run").exists()


def test_splits_and_seeds_give_mean_and_spread(run, tmp_path):
    train = dataclasses.replace(TRAIN, epochs=1)
    record = finetune(config_of(run, output=str(tmp_path), train=train, seeds=(0, 1)))
    singles = [read_metrics(tmp_path / f"split1_seed{seed}")[-1] for seed in (0, 1)]
    values = [single["top1"] for single in singles]
    assert record["top1"] == sum(values) / 2 and record["seeds"] == [0, 1] and record["spread"]["top1"] >= 0
    assert read_metrics(tmp_path)[-1] == record
    assert (tmp_path / "split1_seed1" / "finetune_confusion.png").exists()
    assert record["chance"] == {"top1": 12.5, "top5": 62.5} and "top5" in record


def test_weights_of_others_and_a_hold_out_of_class_folders(run, videos, tmp_path):
    """The videos that are held out are tested, and not trained on."""
    for number, path in enumerate(sorted((videos / "videos").glob("*.mp4"))):
        place = tmp_path / "classes" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / path.name).symlink_to(path)
    encoder = load_method(run).encoder
    torch.save({f"module.encoder_q.{key}": value for key, value in encoder.state_dict().items()}, tmp_path / "w.pt")
    data = EvaluationDataConfig("folder", str(tmp_path / "classes"), frames=4, stride=1, size=16, clips=2, workers=0)
    train = dataclasses.replace(TRAIN, epochs=1)
    record = finetune(config_of(f"dualvar:{tmp_path}/w.pt", data=data, train=train, output=str(tmp_path / "run")))
    assert "train part of a hold-out: 0.2 of each class" in record["protocol"]
    config = load_method(tmp_path / "run").config
    taken = [
        load_dataset(
            "folder", config.data.root, subset=part, holdout=config.data.holdout, seed=config.data.holdout_seed
        )
        for part in ("train", "test")
    ]
    assert len(taken[0]) + len(taken[1]) == 25 and not set(taken[0].paths) & set(taken[1].paths)
    assert f"top-1 of {len(taken[1])} test videos" in record["protocol"] and config.data.holdout == 0.2
    assert f"finetuned whole from dualvar:{tmp_path}/w.pt" in record["protocol"]


def test_the_training_videos_are_configured_as_given():
    """Every setting that an evaluation and a pretraining both have; the others are the pretraining's defaults."""
    given = EvaluationDataConfig(
        "folder", "/videos", "list.csv", "kind", 2, 0.3, 4, "val", "a=b", frames=3, stride=5, size=7, workers=1,
        allow_missing=True, max_failed_share=0.5,
    )  # fmt: skip
    expected = DataConfig(
        "folder", "/videos", "list.csv", "kind", "a=b", 2, "val", 3, 5, 7, workers=1, holdout=0.3, holdout_seed=4,
        allow_missing=True, max_failed_share=0.5,
    )  # fmt: skip
    assert given.of_subset(given.train_subset, given.train_where) == expected
    assert dataclasses.replace(given, split=None).of_subset("test", None).split == 1
