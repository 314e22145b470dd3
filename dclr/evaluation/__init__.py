"""Evaluation of a pretrained encoder: features once, then retrieval, nearest neighbours and linear probe on them.

Figures are a dict in percent, with the protocol that gave them under "protocol"; a classification also has the guesses.
"""

from dclr.evaluation.cache import CacheError, FeatureCache
from dclr.evaluation.features import Encoding, Features, extract_features
from dclr.evaluation.knn import knn_classification
from dclr.evaluation.linear import LinearConfig, linear_probe
from dclr.evaluation.retrieval import nearest, retrieval

__all__ = [
    "CacheError",
    "Encoding",
    "FeatureCache",
    "Features",
    "LinearConfig",
    "extract_features",
    "knn_classification",
    "linear_probe",
    "nearest",
    "retrieval",
]
