"""Self-supervised video pretraining that learns motion as well as scene.

The public names are imported when they are first used, so that `import dclr` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dclr.commands.embed import embed
    from dclr.commands.evaluate import evaluate
    from dclr.commands.pretrain import pretrain
    from dclr.data import load_dataset, read_clips
    from dclr.models import build_encoder, load_encoder

__version__ = "0.1.0"

# Name -> the module that defines it.
_PUBLIC = {
    "embed": "dclr.commands.embed",
    "evaluate": "dclr.commands.evaluate",
    "pretrain": "dclr.commands.pretrain",
    "load_dataset": "dclr.data",
    "read_clips": "dclr.data",
    "build_encoder": "dclr.models",
    "load_encoder": "dclr.models",
}

__all__ = ["build_encoder", "embed", "evaluate", "load_dataset", "load_encoder", "pretrain", "read_clips"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dclr' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
