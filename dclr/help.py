"""Help that a newcomer reads first: one screen, shown before anything slow is imported."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path


def names_in(file: str, table: str) -> list[str]:
    """Names in a table of a file of this package, a dict or a tuple.

    The file is read and not imported, which would import torch and take seconds.
    """
    for node in ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == table:
            entries = node.value.keys if isinstance(node.value, ast.Dict) else node.value.elts
            names = (getattr(entry, "value", getattr(entry, "id", None)) for entry in entries)
            return [name for name in names if isinstance(name, str)]
    raise LookupError(f"{file}: there is no table {table}")


def _column(names: list[str]) -> str:
    """Names in lines, beside the flag that takes one."""
    return textwrap.fill(" ".join(names), 95, initial_indent=24 * " ", subsequent_indent=24 * " ").lstrip()


def pretrain_help() -> str:
    """Of `dclr pretrain`."""
    presets = [
        name
        for file in ("small", "dclr", "moco", "fame", "dualvar", "demo")
        for name in names_in(f"presets/{file}.py", "PRESETS")
    ]
    methods = [name for name in names_in("methods/__init__.py", "METHODS") if name != "classifier"]
    encoders = names_in("models/encoders.py", "_BUILDERS")
    return PRETRAIN.format(presets=_column(presets), methods=_column(methods), encoders=_column(encoders))


PRETRAIN = """\
usage: dclr pretrain [--preset NAME] [--config FILE] [--method NAME] [--SECTION.NAME VALUE ...]

Pretrain an encoder on videos.

  dclr pretrain --preset small --data.root my_videos --output runs/mine
  dclr pretrain --preset dclr_ucf101 --data.root /data/UCF-101 --encoder r3d_18
  dclr pretrain --preset fame_k400 --data.root /data/k400 --train.batch 256 --optim.scale-lr
  dclr pretrain --resume --output runs/mine
  torchrun --nproc-per-node 8 -m dclr pretrain --preset dclr_k400 --data.root /data/k400

Where settings come from; what is further down wins:
  --preset NAME         {presets}
                        or a row of the papers' tables; --list-presets explains all
  --config FILE         YAML, as the config.yaml in the folder of a run
  --method NAME         {methods}
  --SECTION.NAME VALUE  any setting

Settings that most runs need; --help-all lists all, with their defaults under the preset given:
  --output FOLDER       where the run is written
  --encoder NAME        {encoders}
  --data.dataset NAME   ucf101 hmdb51 kinetics400 diving48, or folder: class folders or a list
  --data.root FOLDER    where the videos are
  --data.frames, --data.stride, --data.size      of a clip: frames, raw frames to the next, pixels
  --train.epochs, --train.batch, --train.device  how long, videos a step, cpu or cuda
  --optim.lr RATE       learning rate; with --optim.scale-lr that of a batch of 64

Going on with a run that was stopped; Ctrl-C, SIGTERM and SIGHUP save it first:
  --resume              from the last checkpoint in --output, with the settings of the run
  --resume-or-start     the same, or from the start where there is none: for jobs sent again
  --allow-changes       even with settings under which the steps so far would have been others
"""
