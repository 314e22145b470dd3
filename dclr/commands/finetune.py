"""Finetuning of a checkpoint's encoder on the labels of a dataset, and its test: `dclr finetune`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from dclr.augment import AugmentConfig
from dclr.config import ConfigError, OptimConfig, PretrainConfig, TrainConfig, load, save
from dclr.data import VideoDataset
from dclr.data.crops import SQUEEZED_RATIO, SQUEEZED_SCALE
from dclr.distributed import choose_device, is_first, process_group
from dclr.evaluation import Encoding, Features, extract_features
from dclr.evaluation.checkpoint import load_subject, output_folder
from dclr.evaluation.classification import classified
from dclr.evaluation.dataset import EvaluationDataConfig, clip_protocol, evaluation_clips, load_subsets, require_labels
from dclr.evaluation.linear import top1, video_scores
from dclr.evaluation.records import add_record, add_summary
from dclr.evaluation.targets import published
from dclr.methods import ClassifierConfig
from dclr.models.weights import absolute
from dclr.training import find_checkpoint, load_method, ready_trainer
from dclr.training.schedule import base_rate
from dclr.training.setup import Resume
from dclr.visualize.confusion import write_confusion
from dclr.visualize.run import FINETUNE


@dataclass
class FinetuneConfig:
    """Train a pretrained encoder with a linear classifier on top, all of it, and test it (DCLR Sec. 4.1)."""

    checkpoint: str
    """Run folder (its last checkpoint), checkpoint, file of `dclr export`, or weights of others as SOURCE:FILE."""
    output: str | None = None
    """Folder of the run; by default <run>/finetune_<dataset>."""
    splits: tuple[int, ...] = ()
    """Splits of the dataset to train and test on, each in a folder of its own; by default `data.split` alone."""
    seeds: tuple[int, ...] = ()
    """Seeds to train with, each in a folder of its own; by default `train.seed` alone."""
    resume: bool = False
    """Go on from the last checkpoint of the output folder, whose settings are those that are not given; of several
    splits or seeds, those that were not reached are started."""
    scratch: bool = False
    """Start from random weights instead of the checkpoint's: what pretraining is measured against."""
    data: EvaluationDataConfig = field(default_factory=EvaluationDataConfig)
    """Videos to train on and to test, and the test clips."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Range of a training crop's share of the frame's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of its aspect ratio."""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(grayscale=0, jitter=0, blur=0))
    """Of the training clips; `mean` and `std` must be the pretraining's, and are by default."""
    dropout: float = 0.7
    """Share of the pooled feature that is dropped in training."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=0.1))
    """Optimiser and learning rate."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=100))
    """An epoch takes one random clip of each video."""
    average: Literal["logits", "prob"] = "logits"
    """What is averaged over the clips of a test video: logits or softmax probabilities."""

    def __post_init__(self) -> None:
        if self.train.eval_every:
            raise ConfigError(
                f"train.eval_every: got {self.train.eval_every}, expected 0: a finetuning is tested at its end"
            )


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


def videomoco_recipe() -> FinetuneConfig:
    """VideoMoCo's: 10 epochs of 10 clips a video, here 100 of one; rate 0.005 for a batch of 256; no dropout."""
    return FinetuneConfig(
        "",
        data=EvaluationDataConfig(test_crop="native"),
        scale=(0.08, 1.0),
        dropout=0.0,
        optim=OptimConfig(lr=0.005),
        train=TrainConfig(epochs=100, batch=256),
    )


def diving48_recipe() -> FinetuneConfig:
    """Diving-48 (DCLR Table 2): its settings are not published, so those of `dclr`; stride and clips are its too."""
    return dclr_recipe()


RECIPES: dict[str, Callable[[], FinetuneConfig]] = {
    "dclr": dclr_recipe,
    "fame": fame_recipe,
    "dualvar_ucf101": dualvar_ucf101_recipe,
    "dualvar_k400": dualvar_k400_recipe,
    "videomoco": videomoco_recipe,
    "diving48": diving48_recipe,
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
    runs = _planned_runs(config)
    if len(runs) == 1:
        return _finetune_once(runs[0], config.resume)
    resume = "or_start" if config.resume else False  # of several, some may not have been reached
    with process_group(choose_device(config.train.device)):
        records = [
            {"split": run.data.split, "seed": run.train.seed, **record}
            for run in runs
            if (record := _finetune_once(run, resume))
        ]
    return add_summary(Path(runs[0].output).parent, records) if records else {}


def _planned_runs(config: FinetuneConfig) -> list[FinetuneConfig]:
    """The configuration of each split and seed; of several, each with a folder of its own below the output's."""
    pairs = [
        (split, seed)
        for split in config.splits or (config.data.split,)
        for seed in config.seeds or (config.train.seed,)
    ]
    split, seed = pairs[0]
    if len(pairs) == 1:
        return [replace(config, data=replace(config.data, split=split), train=replace(config.train, seed=seed))]
    subject = load_subject(config.checkpoint)
    folder = output_folder(
        "finetune", config.checkpoint, config.output, config.data.completed(subject.pretraining.data)
    )
    return [
        replace(
            config,
            output=str(folder / f"split{split or 1}_seed{seed}"),
            data=replace(config.data, split=split),
            train=replace(config.train, seed=seed),
        )
        for split, seed in pairs
    ]


def _finetune_once(config: FinetuneConfig, resume: Resume) -> dict[str, Any]:
    """One split and one seed, as `finetune`."""
    pretrained = load_subject(config.checkpoint)
    data = config.data.completed(pretrained.pretraining.data)
    config = replace(config, checkpoint=absolute(config.checkpoint), data=data)
    train, test = load_subsets(data)
    for subset in (train, test):
        require_labels(subset, "finetune")
    run = _training_run(config, data, pretrained.pretraining, train)
    start, saved = _starting_weights(config), _settings_in(Path(run.output)) if resume else None
    if saved and _starting_weights(saved) != start:
        raise ConfigError(
            f"{run.output}: its run starts from {_starting_weights(saved)}, this one from {start}: cannot resume"
        )
    device = choose_device(run.train.device)
    with process_group(device, run.train.timeout):
        trainer = ready_trainer(run, device, resume, None if config.scratch else pretrained.encoder)
        first = is_first()
        if first:
            trainer.folder.mkdir(parents=True, exist_ok=True)
            save(config, trainer.folder / FINETUNE)
        trainer.run()
    pretrained_on = "nothing" if config.scratch else pretrained.pretrained_on
    return _test(config, trainer.folder, device, (train, test), pretrained_on) if first else {}


def saved_settings(config: FinetuneConfig) -> FinetuneConfig | None:
    """What the run in the output folder of `config`, or the first of several, was asked for; None where none is."""
    first = _planned_runs(config)[0]
    data = config.data.completed(load_subject(config.checkpoint).pretraining.data)
    saved = _settings_in(output_folder("finetune", first.checkpoint, first.output, data))
    return saved and replace(saved, output=config.output)


def _settings_in(folder: Path) -> FinetuneConfig | None:
    path = folder / FINETUNE
    return load(path, FinetuneConfig("")) if path.exists() else None


def _training_run(
    config: FinetuneConfig, data: EvaluationDataConfig, pretraining: PretrainConfig, train: VideoDataset
) -> PretrainConfig:
    """The run that trains the classifier."""
    return PretrainConfig(
        output=str(output_folder("finetune", config.checkpoint, config.output, data)),
        encoder=pretraining.encoder,
        data=replace(data.of_subset(data.train_subset, data.train_where), scale=config.scale, ratio=config.ratio),
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


def _test(
    config: FinetuneConfig,
    folder: Path,
    device: torch.device,
    videos: tuple[VideoDataset, VideoDataset],
    pretrained_on: str,
) -> dict[str, Any]:
    """Figures of the finetuned model on evenly spaced clips; the record of them."""
    method, run, position = load_method(folder)
    features = extract_features(
        Encoding(method.encoder, device, run.augment.mean, run.augment.std),
        evaluation_clips(videos[1], config.data),
        batch_videos=config.data.batch_videos,
        workers=config.data.workers,
        max_failures=config.data.max_failed_share,
    )
    with torch.inference_mode():
        logits = method.layer.cpu()(features.clips)
    scores, clip_top1 = video_scores(logits, config.average), top1(logits, features.labels[:, None])
    found = classified(scores, features.labels, _finetuning_protocol(config, run, features), clip_top1=clip_top1)
    write_confusion(folder, "finetune", found.guesses, features.labels, videos[1].classes)
    record = {
        **found.figures,
        "checkpoint": str(find_checkpoint(folder)),
        "epoch": position["epoch"],
        "encoder": run.encoder,
        **published("finetune", config.data.dataset, pretrained_on),
    }
    return add_record(folder, "finetune", clip_protocol(config.data, *videos), record, features)


def _starting_weights(config: FinetuneConfig) -> str:
    return "random weights" if config.scratch else config.checkpoint


def _finetuning_protocol(config: FinetuneConfig, run: PretrainConfig, features: Features) -> str:
    train, optim, data = run.train, run.optim, run.data
    steps = ",".join(f"{share * train.epochs:g}" for share in optim.milestones)
    schedule = f"x0.1 at {steps}" if optim.schedule == "step" else optim.schedule
    rate = base_rate(optim, train.batch)
    averaged = "logits" if config.average == "logits" else "softmax probabilities"
    return (
        f"finetuned whole from {_starting_weights(config)}: {optim.optimizer} lr {rate:g} wd {optim.weight_decay:g} "
        f"m {optim.momentum:g} batch {train.batch}, {train.epochs} epochs of one random clip a video, "
        f"{data.scale[0]:g} to {data.scale[1]:g} of the frame, {schedule}, dropout {run.method.dropout:g}, "
        f"seed {train.seed}; "
        f"top-1 of {len(features.clips)} test videos by the mean {averaged} of {features.clips.shape[1]} clips"
    )
