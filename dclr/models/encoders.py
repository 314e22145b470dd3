"""Video encoders by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

from torch import nn

from dclr.models.c3d import c3d
from dclr.models.i3d import i3d
from dclr.models.r2plus1d import r2plus1d_18, r2plus1d_micro, r2plus1d_tiny, r2plus1d_tv1111, r2plus1d_vcop
from dclr.models.resnet3d import mc3_18, r2d3d18, r3d18_hara, r3d_18, r3d_vcop
from dclr.models.s3d import s3d, s3dg
from dclr.models.vit import vit_base, vit_small, vit_tiny

_BUILDERS = (
    r2plus1d_vcop,
    r2plus1d_tv1111,
    r2plus1d_18,
    r2plus1d_tiny,
    r2plus1d_micro,
    r3d_18,
    r3d_vcop,
    r3d18_hara,
    mc3_18,
    r2d3d18,
    c3d,
    s3d,
    s3dg,
    i3d,
    vit_small,
    vit_base,
    vit_tiny,
)
ENCODERS: dict[str, Callable[..., nn.Module]] = {build.__name__: build for build in _BUILDERS}


def build_encoder(name: str, **options) -> nn.Module:
    """The encoder `name` of `ENCODERS`, freshly initialised from torch's global generator.

    It maps clips (B, 3, T, H, W) to features (B, C, T', H', W') with C = `encoder.feature_dim`; pooling and
    heads are the caller's.

    Raises:
        ValueError: no encoder has that name, or it has no such option.
    """
    if name not in ENCODERS:
        near = difflib.get_close_matches(name, ENCODERS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown encoder {name!r}: did you mean {near!r}? (one of {', '.join(ENCODERS)})")
    known = inspect.signature(ENCODERS[name]).parameters
    for option in options:
        if option not in known:
            takes = ", ".join(known) or "none"
            raise ValueError(f"encoder {name!r} has no option {option!r}; its options: {takes}")
    return ENCODERS[name](**options)
