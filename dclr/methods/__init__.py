"""The methods, by name. Adding one is adding its file and a line here."""

from __future__ import annotations

from typing import Any

from torch import nn

from dclr.augment import AugmentConfig
from dclr.methods.base import Method, Output
from dclr.methods.classifier import Classifier, ClassifierConfig
from dclr.methods.dclr import DCLR, DCLRConfig
from dclr.methods.dclr_release import DCLRRelease
from dclr.methods.dualvar import DualVar, DualVarConfig
from dclr.methods.fame import FAME, FAMEConfig
from dclr.methods.moco import MoCo, MoCoConfig
from dclr.methods.simclr import SimCLR, SimCLRConfig

#: name -> (its configuration, the module)
METHODS: dict[str, tuple[type, type[Method]]] = {
    "dclr": (DCLRConfig, DCLR),
    "simclr": (SimCLRConfig, SimCLR),
    "moco": (MoCoConfig, MoCo),
    "fame": (FAMEConfig, FAME),
    "dualvar": (DualVarConfig, DualVar),
    "classifier": (ClassifierConfig, Classifier),
}


def method_name(config: Any) -> str:
    """Name under which a method's configuration is registered."""
    return next(name for name, (kind, _) in METHODS.items() if type(config) is kind)


def build_method(config: Any, encoder: nn.Module, augment: AugmentConfig) -> Method:
    """The method that a configuration describes.

    Raises:
        ValueError: it has heads without width, or what the method refuses.
    """
    for name in ("dim", "hidden", "segment_dim"):
        if getattr(config, name, 1) < 1:
            raise ValueError(f"method.{name}: got {getattr(config, name)}, expected at least 1")
    method = METHODS[method_name(config)][1]
    if getattr(config, "variant", "paper") == "official_release":
        method = DCLRRelease
    return method(config, encoder, augment)


__all__ = [
    "DCLR",
    "FAME",
    "METHODS",
    "Classifier",
    "ClassifierConfig",
    "DCLRConfig",
    "DCLRRelease",
    "DualVar",
    "DualVarConfig",
    "FAMEConfig",
    "Method",
    "MoCo",
    "MoCoConfig",
    "Output",
    "SimCLR",
    "SimCLRConfig",
    "build_method",
    "method_name",
]
