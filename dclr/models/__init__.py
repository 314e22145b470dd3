"""Video encoders by name or from an exported file, their faster forward passes, and projection heads."""

import difflib
import inspect
import os
from collections.abc import Callable

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dclr.models.c3d import c3d
from dclr.models.fast import accelerate
from dclr.models.heads import ProjectionHead, average_pool
from dclr.models.i3d import i3d
from dclr.models.r2plus1d import r2plus1d_18, r2plus1d_tiny, r2plus1d_tv1111, r2plus1d_vcop
from dclr.models.resnet3d import mc3_18, r2d3d18, r3d18_hara, r3d_18, r3d_vcop
from dclr.models.s3d import s3d, s3dg

__all__ = ["ENCODERS", "ProjectionHead", "accelerate", "average_pool", "build_encoder", "load_encoder"]

_BUILDERS = (
    r2plus1d_vcop,
    r2plus1d_tv1111,
    r2plus1d_18,
    r2plus1d_tiny,
    r3d_18,
    r3d_vcop,
    r3d18_hara,
    mc3_18,
    r2d3d18,
    c3d,
    s3d,
    s3dg,
    i3d,
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


def load_encoder(path: str | os.PathLike) -> nn.Module:
    """The encoder in a file of `dclr export`, in evaluation mode on the CPU.

    It takes clips (B, 3, T, H, W) in [0, 1], minus `mean`, over `std`; both stand in the file's metadata, with the
    frames, stride and size of the pretraining.

    Raises:
        OSError: the file cannot be read.
        ValueError: not a safetensors file, one without the name of an encoder, or with other tensors than its.
    """
    path = os.path.expanduser(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise OSError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated, or not a safetensors file ({error})") from error
    name = metadata.get("encoder")
    if name not in ENCODERS:
        found = f"the encoder {name!r}" if name else "no encoder"
        raise ValueError(f"{path}: its metadata names {found}, expected one of {', '.join(ENCODERS)}")
    encoder = build_encoder(name)
    _require_same_tensors(path, name, encoder.state_dict(), state)
    encoder.load_state_dict(state)
    return encoder.eval()


def _require_same_tensors(path: str, name: str, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    shapes, expected_shapes = ({key: tuple(value.shape) for key, value in state.items()} for state in (found, expected))
    differing = [key for key in {**expected, **found} if shapes.get(key) != expected_shapes.get(key)]
    if differing:
        key = differing[0]
        here, there = (which.get(key, "nothing") for which in (shapes, expected_shapes))
        count = f"{len(differing)} of its tensors are not those of {name}"
        raise ValueError(f"{path}: {count}, first {key}: got {here}, expected {there}")
