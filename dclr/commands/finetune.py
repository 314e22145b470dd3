"""Finetuning of a checkpoint's encoder on the labels of a dataset, and its test: `dclr finetune`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from dclr.augment import AugmentConfig
from dclr.config import ConfigError, DataConfig, OptimConfig, PretrainConfig, TrainConfig, load, save
from dclr.data import VideoDataset
from dclr.data.crops import SQUEEZED_RATIO, SQUEEZED_SCALE
from dclr.distributed import choose_device, is_first, process_group
from dclr.evaluation import Features
from dclr.evaluation.checkpoint import add_record, output_folder
from dclr.evaluation.dataset import EvaluationDataConfig, encode, load_subsets
from dclr.evaluation.linear import top1, video_scores
from dclr.methods import ClassifierConfig
from dclr.training import find_checkpoint, load_method, ready_trainer
from dclr.training.schedule import base_rate

SETTINGS = "finetune.yaml"


@dataclass
class FinetuneConfig:
    """Train a pretrained encoder with a linear classifier on top, all of it, and test it (DCLR Sec. 4.1)."""

    checkpoint: str
    """Run folder (its last checkpoint), or checkpoint file."""
    output: str | None = None
    """Folder of the run; by default <run>/finetune_<dataset>."""
    resume: bool = False
    """Go on from the last checkpoint of the output folder, whose settings are those that are not given."""
    scratch: bool = False
    """Start from random weights instead of the checkpoint's: what pretraining is measured against."""
    data: EvaluationDataConfig = field(default_factory=EvaluationDataConfig)
    scale: tuple[float, float] = (0.2, 1.0)
    """Range of a training crop's share of the frame's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of its aspect ratio."""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(grayscale=0, jitter=0, blur=0))
    """Of the training clips; `mean` and `std` must be the pretraining's, and are by default."""
    dropout: float = 0.7
    """Share of the pooled feature that is dropped in training."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=0.1))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=100))
    """An epoch takes one random clip of each video."""
    average: Literal["logits", "prob"] = "logits"
    """What is averaged over the clips of a test video: logits or softmax probabilities."""


def dclr_recipe() -> FinetuneConfig:
    """DCLR's released script: 10 epochs of 10 clips a video, here 100 of one; rate 0.1, x0.1 at 60 and 80."""
    return FinetuneConfig("")


def fame_recipe() -> FinetuneConfig:
    """FAME's: 150 epochs, rate 0.025 for a batch of 128, x0.1 at 60 and 120; colour jitter; native test crops."""
    return FinetuneConfig(
        "",
        data=EvaluationDataConfig(test_crop="native"),
        augment=AugmentConfig(blur=0),
        optim=OptimConfig(lr=0.025, milestones=(0.4, 0.8)),
        train=TrainConfig(epochs=150, batch=128),
    )


def _dualvar_recipe(epochs: int, *milestones: int) -> FinetuneConfig:
    return FinetuneConfig(
        "",
        data=EvaluationDataConfig(stride=2, test_crop="short128"),
        scale=SQUEEZED_SCALE,
        ratio=SQUEEZED_RATIO,
        augment=AugmentConfig(grayscale=0, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0),
        dropout=0.0,
        optim=OptimConfig(lr=0.05, weight_decay=1e-3, milestones=tuple(epoch / epochs for epoch in milestones)),
        train=TrainConfig(epochs=epochs, batch=16),
        average="prob",
    )


def dualvar_ucf101_recipe() -> FinetuneConfig:
    """DualVar's after UCF-101: 100 epochs, rate 0.05 for a batch of 16, x0.1 at 30, 60, 80; test crops not squeezed."""
    return _dualvar_recipe(100, 30, 60, 80)


def dualvar_k400_recipe() -> FinetuneConfig:
    """DualVar's after Kinetics-400: 150 epochs, x0.1 at 50 and 100; else as after UCF-101."""
    return _dualvar_recipe(150, 50, 100)


RECIPES: dict[str, Callable[[], FinetuneConfig]] = {
    "dclr": dclr_recipe,
    "fame": fame_recipe,
    "dualvar_ucf101": dualvar_ucf101_recipe,
    "dualvar_k400": dualvar_k400_recipe,
}


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Finetune and test; under torchrun, train on all of its processes and test on the first.

    Returns:
        The record that was appended to <output>/metrics.jsonl: "top1" (test videos, by the average over their clips)
        and "clip_top1" in percent, and the protocol. Empty on other processes than the first.

    Raises:
        ConfigError, ValueError: settings or a dataset that cannot work.
        CheckpointError, NonFiniteLoss, TooManyFailures, Stopped: as `dclr.commands.pretrain.pretrain`.
    """
    checkpoint = os.path.abspath(find_checkpoint(config.checkpoint))
    pretrained = load_method(checkpoint)
    data = config.data.completed(pretrained.config.data)
    config = replace(config, checkpoint=checkpoint, data=data)
    train, test = load_subsets(data)
    run = _run(config, data, pretrained.config, train)
    start, saved = _start(config), _settings_in(Path(run.output)) if config.resume else None
    if saved and _start(saved) != start:
        raise ConfigError(f"{run.output}: its run starts from {_start(saved)}, this one from {start}: cannot resume")
    device = choose_device(run.train.device)
    with process_group(device, run.train.timeout):
        trainer = ready_trainer(run, device, config.resume, None if config.scratch else pretrained.encoder)
        first = is_first()
        if first:
            trainer.folder.mkdir(parents=True, exist_ok=True)
            save(config, trainer.folder / SETTINGS)
        trainer.run()
    return _test(config, trainer.folder, device, test) if first else {}


def saved_settings(config: FinetuneConfig) -> FinetuneConfig | None:
    """What the run in the output folder of `config` was last asked for; None where there is none."""
    data = config.data.completed(load_method(config.checkpoint).config.data)
    return _settings_in(output_folder("finetune", config.checkpoint, config.output, data))


def _settings_in(folder: Path) -> FinetuneConfig | None:
    path = folder / SETTINGS
    return load(path, FinetuneConfig("")) if path.exists() else None


def _run(
    config: FinetuneConfig, data: EvaluationDataConfig, pretraining: PretrainConfig, train: VideoDataset
) -> PretrainConfig:
    """The run that trains the classifier."""
    if min(train.labels) < 0:
        raise ConfigError(f"data: {data.dataset} has training videos without a class, expected one for each")
    return PretrainConfig(
        output=str(output_folder("finetune", config.checkpoint, config.output, data)),
        encoder=pretraining.encoder,
        data=DataConfig(
            dataset=data.dataset,
            root=data.root,
            annotations=data.annotations,
            label=data.label,
            where=data.train_where,
            split=data.split or 1,
            subset=data.train_subset,
            frames=data.frames,
            stride=data.stride,
            size=data.size,
            scale=config.scale,
            ratio=config.ratio,
            workers=data.workers,
            allow_missing=data.allow_missing,
            max_failed_share=data.max_failed_share,
        ),
        augment=_augmentation(config.augment, pretraining.augment),
        optim=config.optim,
        train=config.train,
        method=ClassifierConfig(len(train.classes), config.dropout),
    )


def _augmentation(augment: AugmentConfig, pretraining: AugmentConfig) -> AugmentConfig:
    """With the pretraining's mean and standard deviation."""
    for name in ("mean", "std"):
        given, wanted = getattr(augment, name), getattr(pretraining, name)
        if given not in (wanted, getattr(AugmentConfig, name)):
            raise ConfigError(f"augment.{name}: got {given}, expected the pretraining's {wanted}")
    return replace(augment, mean=pretraining.mean, std=pretraining.std)


def _test(config: FinetuneConfig, folder: Path, device: torch.device, test: VideoDataset) -> dict[str, Any]:
    """Top-1 of the finetuned model on evenly spaced clips; the record of it."""
    method, run, position = load_method(folder)
    features = encode(method.encoder, test, config.data, run.augment, device)
    with torch.inference_mode():
        logits = method.layer.cpu()(features.clips)
    record = {
        "top1": top1(video_scores(logits, config.average), features.labels),
        "clip_top1": top1(logits, features.labels[:, None]),
        "protocol": _protocol(config, run, features),
        "checkpoint": str(find_checkpoint(folder)),
        "epoch": position["epoch"],
        "encoder": run.encoder,
    }
    return add_record(folder, "finetune", config.data, record, features)


def _start(config: FinetuneConfig) -> str:
    return "random weights" if config.scratch else config.checkpoint


def _protocol(config: FinetuneConfig, run: PretrainConfig, features: Features) -> str:
    train, optim, data = run.train, run.optim, run.data
    steps = ",".join(f"{share * train.epochs:g}" for share in optim.milestones)
    schedule = f"x0.1 at {steps}" if optim.schedule == "step" else optim.schedule
    rate = base_rate(optim, train.batch)
    averaged = "logits" if config.average == "logits" else "softmax probabilities"
    return (
        f"finetuned whole from {_start(config)}: {optim.optimizer} lr {rate:g} wd {optim.weight_decay:g} "
        f"m {optim.momentum:g} batch {train.batch}, {train.epochs} epochs of one random clip a video, "
        f"{data.scale[0]:g} to {data.scale[1]:g} of the frame, {schedule}, dropout {run.method.dropout:g}, seed "
        f"{train.seed}; "
        f"top-1 of {len(features.clips)} test videos by the mean {averaged} of {features.clips.shape[1]} clips"
    )
