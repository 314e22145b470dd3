"""The papers' protocols on frozen features, as their released code runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dclr.evaluation.linear import LinearConfig


@dataclass(frozen=True)
class Recipe:
    """Settings that a protocol replaces; None where its source has no such evaluation.

    Attributes:
        data: of `EvaluationDataConfig`; what is not named is the pretraining's.
        retrieve: clip_l2 and center.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    linear: LinearConfig | None = None
    retrieve: Mapping[str, Any] | None = None


#: dclr: its linear script; its text says nothing of centring, so retrieval is as FAME's and DualVar's code computes it.
#: literal: retrieval with what DCLR's text says and nothing else.
#: fame: crops of native size; one random clip of each video in an epoch. Its l2-normalisation is a remark in the code.
#: dualvar: stride 4 in retrieval, clips not normalised before their mean; no linear probe.
#: videomoco: all 10 clips, features as they are; no retrieval.
FROZEN_RECIPES: dict[str, Recipe] = {
    "dclr": Recipe({}, LinearConfig(), {"clip_l2": True, "center": "per_split"}),
    "literal": Recipe({}, None, {"clip_l2": True, "center": "none"}),
    "fame": Recipe(
        {"test_crop": "native"},
        LinearConfig(lr=30.0, batch=256, epochs=100, milestones=(60, 80), clips=1),
        {"clip_l2": True, "center": "per_split"},
    ),
    "dualvar": Recipe({"stride": 4, "test_crop": "short128"}, None, {"clip_l2": False, "center": "per_split"}),
    "videomoco": Recipe(
        {"test_crop": "native"}, LinearConfig(lr=30.0, batch=256, epochs=100, milestones=(60, 80), l2=False), None
    ),
}
