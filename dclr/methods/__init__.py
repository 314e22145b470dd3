"""The methods, by name. Adding one is adding its file and a line here."""

from __future__ import annotations

from torch import nn

from dclr.augment import AugmentConfig
from dclr.methods.base import ContrastiveConfig, Method, MethodConfig, Output
from dclr.methods.classifier import Classifier, ClassifierConfig
from dclr.methods.dclr import DCLR, DCLRConfig
from dclr.methods.dclr_release import DCLRRelease, DCLRReleaseConfig
from dclr.methods.dualvar import DualVar, DualVarConfig
from dclr.methods.fame import FAME, FAMEConfig
from dclr.methods.moco import MoCo, MoCoConfig
from dclr.methods.simclr import SimCLR, SimCLRConfig

#: name -> (its configuration, the module)
METHODS: dict[str, tuple[type[MethodConfig], type[Method]]] = {
    "dclr": (DCLRConfig, DCLR),
    "dclr_release": (DCLRReleaseConfig, DCLRRelease),
    "simclr": (SimCLRConfig, SimCLR),
    "moco": (MoCoConfig, MoCo),
    "fame": (FAMEConfig, FAME),
    "dualvar": (DualVarConfig, DualVar),
    "classifier": (ClassifierConfig, Classifier),
}


def method_name(config: MethodConfig) -> str:
    """Name under which a method's configuration is registered."""
    return next(name for name, (kind, _) in METHODS.items() if type(config) is kind)


def build_method(config: MethodConfig, encoder: nn.Module, augment: AugmentConfig) -> Method:
    """The method that a configuration describes.

    Raises:
        ValueError: what the method refuses in these together.
    """
    return METHODS[method_name(config)][1](config, encoder, augment)


__all__ = [
    "DCLR",
    "FAME",
    "METHODS",
    "Classifier",
    "ClassifierConfig",
    "ContrastiveConfig",
    "DCLRConfig",
    "DCLRRelease",
    "DCLRReleaseConfig",
    "DualVar",
    "DualVarConfig",
    "FAMEConfig",
    "Method",
    "MethodConfig",
    "MoCo",
    "MoCoConfig",
    "Output",
    "SimCLR",
    "SimCLRConfig",
    "build_method",
    "method_name",
]
