"""`dclr pretrain`: pretrain an encoder on videos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from dclr.config import ConfigError, PretrainConfig
from dclr.distributed import choose_device, is_first, process_group
from dclr.evaluation.epoch import EpochEvaluation
from dclr.training.checkpoint import own_name
from dclr.training.progress import few_steps, say
from dclr.training.setup import Resume, ready_trainer


def pretrain(
    config: PretrainConfig, resume: Resume = False, encoder: nn.Module | None = None, allow_changes: bool = False
) -> Path:
    """Pretrain an encoder as configured; under torchrun, on all of its processes.

    An encoder of your own is any module that maps clips (b, 3, T, h, w), floating, to features (b, C, T', h', w') and
    says its C as `feature_dim`; it need not know of the method, of pooling or of heads:

        run = pretrain(config, encoder=MyEncoder())
        trained = load_method(run, encoder=MyEncoder()).encoder

    Args:
        resume: go on from the run folder's last checkpoint, on the same trajectory; "or_start": where there is one.
        encoder: what to start with; by default `config.encoder`, freshly initialised. Moved to the device.
        allow_changes: resume even with settings under which the steps so far would have been others.

    Returns:
        The run folder: config.yaml, metrics.jsonl, checkpoints and TensorBoard events.

    Raises:
        ConfigError, ValueError: settings, a dataset, an encoder or sizes that cannot work; no run to resume.
        FolderTaken: another run is writing into the folder.
        CheckpointError: one that cannot be read, written or continued.
        NonFiniteLoss, TooManyFailures: the run cannot go on; the last checkpoint is kept.
        Stopped: Ctrl-C, SIGTERM or SIGHUP; the run is saved as it was after the step.
    """
    if encoder is not None:
        if config.encoder_weights:
            raise ConfigError(
                f"encoder_weights: got {config.encoder_weights}, expected none with an encoder of your own"
            )
        config = replace(config, encoder=own_name(encoder))
    device = choose_device(config.train.device)
    with process_group(device, config.train.timeout):
        evaluate = EpochEvaluation(config, device) if config.train.eval_every else None
        trainer = ready_trainer(config, device, resume, encoder, allow_changes)
        trainer.evaluate = evaluate
        if is_first() and (warning := few_steps(config, trainer.steps_per_epoch)):
            say(warning)
        trainer.run()
    return trainer.folder
