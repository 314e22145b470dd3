"""`dclr.embed`: features of one video."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor, nn

from dclr.data import EvaluationClips, VideoDataset
from dclr.data.clips import collate
from dclr.distributed import choose_device
from dclr.evaluation.features import Encoded, Encoding
from dclr.models import load_encoder


def embed(
    video: str | os.PathLike,
    encoder: str | os.PathLike | nn.Module,
    *,
    clips: int = 10,
    device: str = "auto",
) -> Tensor:
    """Features of a video's clips, evenly spaced over its length: (clips, D) float32 on the CPU, not normalised.

    The clips are those of evaluation: of the pretraining's frames, stride and size, of the largest centred square.

    Args:
        encoder: what `load_encoder` takes, or what it returned: for many videos load it once.
        clips: how many.

    Raises:
        VideoError: the video cannot be read.
        OSError, WeightsError: as `load_encoder`.
    """
    loaded = encoder if isinstance(encoder, nn.Module) else load_encoder(encoder)
    seen = getattr(loaded, "preprocessing", None)
    if seen is None:
        raise ValueError("encoder: has no `preprocessing`, expected one of load_encoder")
    path = str(Path(video).expanduser())
    alone = VideoDataset("video", (path,), (-1,), ())
    shape = {"frames": seen.frames, "stride": seen.stride, "size": seen.size}
    sample = EvaluationClips(alone, **shape, clips=clips)[0]
    if sample.failures:
        raise sample.failures[0]
    found: list[Encoded] = []
    Encoding(loaded, choose_device(device), seen.mean, seen.std).run([collate([sample])], found.append, progress=False)
    return found[0].clips[0].clone()
