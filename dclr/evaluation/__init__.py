"""Evaluation of a pretrained encoder: features once, then retrieval, nearest neighbours and linear probe on them.

Every result is a dict of figures in percent, with the protocol that gave them under "protocol".
"""

from dclr.evaluation.features import Features, extract_features
from dclr.evaluation.knn import knn_classification
from dclr.evaluation.linear import LinearConfig, linear_probe
from dclr.evaluation.retrieval import nearest, retrieval

__all__ = [
    "Features",
    "LinearConfig",
    "extract_features",
    "knn_classification",
    "linear_probe",
    "nearest",
    "retrieval",
]
