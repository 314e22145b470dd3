"""`dclr pretrain`: pretrain an encoder on videos."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from dclr.config import PretrainConfig
from dclr.distributed import choose_device, process_group
from dclr.training.setup import ready_trainer


def pretrain(config: PretrainConfig, resume: bool = False, encoder: nn.Module | None = None) -> Path:
    """Pretrain an encoder as configured; under torchrun, on all of its processes.

    Args:
        resume: go on from the run folder's last checkpoint, on the same trajectory; start where there is none.
        encoder: what to start with; by default `config.encoder`, freshly initialised.

    Returns:
        The run folder: config.yaml, metrics.jsonl, checkpoints and TensorBoard events.

    Raises:
        ConfigError, ValueError: settings, a dataset or sizes that cannot work.
        CheckpointError: one that cannot be read, written or continued.
        NonFiniteLoss, TooManyFailures: the run cannot go on; the last checkpoint is kept.
        Stopped: Ctrl-C or SIGTERM; the run is saved as it was after the step.
    """
    device = choose_device(config.train.device)
    with process_group(device):
        trainer = ready_trainer(config, device, resume, encoder)
        trainer.run()
    return trainer.folder
