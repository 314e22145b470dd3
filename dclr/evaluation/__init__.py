"""Evaluation of a pretrained encoder: features once, then retrieval and linear probe on them.

Every result is a dict of figures in percent, with the protocol that gave them under "protocol".
"""

from dclr.evaluation.features import Features, extract_features
from dclr.evaluation.linear import LinearConfig, linear_probe
from dclr.evaluation.retrieval import nearest, retrieval

__all__ = ["Features", "LinearConfig", "extract_features", "linear_probe", "nearest", "retrieval"]
