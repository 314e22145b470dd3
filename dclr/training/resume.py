"""Going on with a run: what it was asked for then and now, and which differences its steps so far can bear."""

from __future__ import annotations

from typing import Any

from dclr.config import ConfigError, PretrainConfig, flat_settings, to_dict
from dclr.distributed import world
from dclr.training.checkpoint import saved_config
from dclr.training.schedule import learning_rate
from dclr.training.trainer import Trainer

# Changes that leave every step what it is, but for rounding. The videos are compared themselves.
FREE = frozenset(
    [
        *(f"data.{name}" for name in ("dataset", "root", "annotations", "label", "where", "split", "subset")),
        *(f"data.{name}" for name in ("holdout", "holdout_seed")),
        *(f"data.{name}" for name in ("workers", "cache", "allow_missing", "max_failed_share")),
        *(f"train.{name}" for name in ("device", "compile", "fold", "pad", "static_once", "deterministic", "threads")),
        *(f"train.{name}" for name in ("checkpoint_every", "save_every", "log_every", "tensorboard", "timeout")),
        *(f"train.{name}" for name in ("eval_every", "eval_videos", "trackers")),
        "encoder_weights",
    ]
)
# What a position in a run, and the state of its optimiser, have no meaning without.
FIXED = frozenset(["encoder", "method.name", "train.seed", "train.batch", "train.accumulate", "optim.optimizer"])
# These may change where the steps so far keep their learning rates.
RATE = frozenset(
    ["train.epochs", *(f"optim.{name}" for name in ("lr", "scale_lr", "schedule", "milestones", "warmup"))]
)


def changed_settings(before: PretrainConfig, after: PretrainConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> its two values, of each setting but `output` that is not the same; None where there is none."""
    old, new = dict(flat_settings(to_dict(before))), dict(flat_settings(to_dict(after)))
    names = [name for name in {**old, **new} if name != "output"]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def check_resume(trainer: Trainer, state: dict[str, Any], allow_changes: bool = False) -> list[str]:
    """What differs from the checkpoint's run, a line each, where the trainer may go on from it.

    Args:
        trainer: at its start.
        allow_changes: go on even where the steps so far would have been others.

    Raises:
        ConfigError: the videos or a setting differ that cannot change within a run, or that may not.
        CheckpointError: the checkpoint's configuration is none.
    """
    folder, position = trainer.folder, state["position"]
    before = saved_config(folder, state)
    changes = changed_settings(before, trainer.config)
    fixed = [f"{name} {old}, this command {new}" for name, (old, new) in changes.items() if name in FIXED]
    # Checkpoints once had no digest of the videos, and are taken at their word.
    if position.get("dataset", trainer.dataset) != trainer.dataset:
        fixed.append("other videos or labels, or the same in another order")
    if fixed:
        raise ConfigError(
            f"{folder}: the run has {fixed[0]}, which cannot change within a run; expected the run's, "
            f"or another --output"
        )
    breaking = [name for name in changes if name not in FREE | RATE]
    if not _same_rates(before, trainer.config, position, trainer.steps_per_epoch):
        breaking += [name for name in changes if name in RATE]
    if breaking and not allow_changes:
        listed = ", ".join(f"{name} {changes[name][1]} (the run has {changes[name][0]})" for name in breaking)
        raise ConfigError(
            f"{folder}: its steps so far would have been others with {listed}; "
            f"expected the run's, or --allow-changes to go on all the same"
        )
    lines = [f"{name} {old} -> {new}" for name, (old, new) in changes.items()]
    processes = state.get("environment", {}).get("processes", world())
    if processes != world():
        lines.append(
            f"processes {processes} -> {world()}: batches, draws, negatives and queues stay the same; dropout is "
            f"another, and so are BatchNorm's statistics where they are not synchronised"
        )
    return lines


def _same_rates(before: PretrainConfig, after: PretrainConfig, position: dict[str, Any], steps_per_epoch: int) -> bool:
    """Whether the steps so far would have had the same learning rates."""
    done = position["epoch"] * steps_per_epoch + position["step"]

    def rate(config: PretrainConfig, step: int) -> float:
        train = config.train
        return learning_rate(
            config.optim, train.batch, train.epochs, *divmod(step, steps_per_epoch), steps_per_epoch=steps_per_epoch
        )

    return all(rate(before, step) == rate(after, step) for step in range(done))
