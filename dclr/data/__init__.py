"""Video in: decoding, datasets and their official splits, clips and loaders."""

from dclr.data.clips import Batch, EvaluationClips, PretrainClips
from dclr.data.container import VideoError
from dclr.data.datasets import DATASETS, DatasetError, VideoDataset, load_dataset
from dclr.data.loader import EpochSampler, build_evaluation_loader, build_pretrain_loader, to_device
from dclr.data.video import count_frames, read_clips

__all__ = [
    "DATASETS",
    "Batch",
    "DatasetError",
    "EpochSampler",
    "EvaluationClips",
    "PretrainClips",
    "VideoDataset",
    "VideoError",
    "build_evaluation_loader",
    "build_pretrain_loader",
    "count_frames",
    "load_dataset",
    "read_clips",
    "to_device",
]
