"""Video encoders by name or from a file, their faster forms, and projection heads."""

from dclr.models.encoders import ENCODERS, build_encoder
from dclr.models.fast import accelerate
from dclr.models.heads import ProjectionHead, average_pool
from dclr.models.weights import Preprocessing, WeightsError, load_encoder, read_encoder

__all__ = [
    "ENCODERS",
    "Preprocessing",
    "ProjectionHead",
    "WeightsError",
    "accelerate",
    "average_pool",
    "build_encoder",
    "load_encoder",
    "read_encoder",
]
