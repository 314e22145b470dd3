"""`dclr extract`: features of videos as arrays that other programs read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dclr.evaluation import Features
from dclr.evaluation.checkpoint import EvaluationConfig, features_of
from dclr.files import write_or_explain


@dataclass
class ExtractConfig(EvaluationConfig):
    """Write the features of the training and the test videos to train.npz and test.npz."""

    output: str | None = None
    """Folder for the two files; by default <run>/extract_<dataset>."""


def extract(config: ExtractConfig) -> Path | None:
    """Write a checkpoint's features of the videos of a dataset to train.npz and test.npz.

    Each holds "clips" (V, n, D) float32 as of `Features`, "labels" (V,) int64, -1 unknown, "paths" (V,), "classes"
    (K,), and "protocol": a string. Videos that cannot be read have no row, and are named on the terminal.

    Returns:
        The folder of both; None on other processes of torchrun than the first.
    """
    found = features_of(["extract"], config)
    if found is None:
        return None
    folder = found.folder("extract")
    protocol = (
        f"{found.protocol}; features of {found.subject.name} in evaluation mode, averaged over time "
        f"and space, not normalised; {found.subject.words}"
    )
    for name, features in (("train", found.train), ("test", found.test)):
        write_or_explain(folder / f"{name}.npz", _archive(features, found.classes, protocol))
        videos, clips, dim = features.clips.shape
        print(f"{folder / name}.npz: {videos} videos x {clips} clips x {dim} features")
        if features.failures:
            print(f"left out, unreadable ({len(features.failures)}): {'; '.join(map(str, features.failures))}")
    print(f"protocol: {protocol}")
    return folder


def _archive(features: Features, classes: Sequence[str], protocol: str) -> memoryview:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        clips=features.clips.numpy(),
        labels=features.labels.numpy(),
        paths=np.array(features.paths, dtype=np.str_),
        classes=np.array(classes, dtype=np.str_),
        protocol=np.array(protocol),
    )
    return buffer.getbuffer()
