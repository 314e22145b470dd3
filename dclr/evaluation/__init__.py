"""Evaluation of a pretrained encoder: features once, then retrieval, nearest neighbours and linear probe on them.

Every result is a dict of figures in percent, with the protocol that gave them under "protocol".
"""

from dclr.evaluation.cache import CacheError, FeatureCache
from dclr.evaluation.features import Encoding, Features, extract_features
from dclr.evaluation.knn import classify_by_neighbours, knn_classification
from dclr.evaluation.linear import LinearConfig, classify_by_layer, linear_probe
from dclr.evaluation.retrieval import nearest, retrieval

__all__ = [
    "CacheError",
    "Encoding",
    "FeatureCache",
    "Features",
    "LinearConfig",
    "classify_by_layer",
    "classify_by_neighbours",
    "extract_features",
    "knn_classification",
    "linear_probe",
    "nearest",
    "retrieval",
]
