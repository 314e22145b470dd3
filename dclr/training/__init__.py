"""Pretraining: the loop, its checkpoints and its log."""

from dclr.training.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, load_method, save_checkpoint
from dclr.training.failures import TooManyFailures
from dclr.training.interrupts import Stopped
from dclr.training.metrics import append_metrics, read_metrics
from dclr.training.setup import build_trainer, ready_trainer
from dclr.training.trainer import NonFiniteLoss, Trainer

__all__ = [
    "CheckpointError",
    "NonFiniteLoss",
    "Stopped",
    "TooManyFailures",
    "Trainer",
    "append_metrics",
    "build_trainer",
    "find_checkpoint",
    "load_checkpoint",
    "load_method",
    "read_metrics",
    "ready_trainer",
    "save_checkpoint",
]
