"""Pretraining: the loop, its checkpoints and its log."""

from dclr.training.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, load_method, save_checkpoint
from dclr.training.failures import TooManyFailures
from dclr.training.interrupts import Stopped
from dclr.training.metrics import append_metrics, read_metrics
from dclr.training.trainer import NonFiniteLoss, Trainer, pretrain

__all__ = [
    "CheckpointError",
    "NonFiniteLoss",
    "Stopped",
    "TooManyFailures",
    "Trainer",
    "append_metrics",
    "find_checkpoint",
    "load_checkpoint",
    "load_method",
    "pretrain",
    "read_metrics",
    "save_checkpoint",
]
