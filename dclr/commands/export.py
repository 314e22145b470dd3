"""`dclr export`: the encoder of a checkpoint as a file that other programs read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

import dclr
from dclr.config import ConfigError, to_dict
from dclr.evaluation.checkpoint import Subject, load_subject, run_folder
from dclr.files import write_or_explain
from dclr.methods import method_name
from dclr.visualize.card import model_card

SUFFIXES = {"safetensors": ".safetensors", "torch_export": ".pt2", "onnx": ".onnx"}
# Of the features of the file's encoder and of the checkpoint's; another program may sum in another order.
FEATURE_TOLERANCE = 1e-4


@dataclass
class ExportConfig:
    """Write the encoder of a checkpoint as one file."""

    checkpoint: str
    """Run folder (its last checkpoint), checkpoint file, or weights of others as SOURCE:FILE."""
    output: str | None = None
    """File, replaced where there is one; by default <run>/encoder with the format's suffix."""
    format: Literal["safetensors", "torch_export", "onnx"] = "safetensors"
    """safetensors: weights; torch_export: a program for torch.export.load (*.pt2); onnx: a graph (*.onnx)."""
    card: bool = False
    """Also write a model card beside it: what it takes, how it was pretrained, evaluations and cost."""


def export(config: ExportConfig) -> Path:
    """Write the encoder of a checkpoint as one file, after its features were compared with the checkpoint's.

    The file holds the preprocessing in its metadata. Its encoder maps clips (b, 3, T, H, W), normalised, to features
    (b, C, T', H', W'); a program or graph takes any b, and T, H, W of the pretraining. A safetensors file is read by
    `load_encoder`; its keys are those of the encoder's `state_dict()`: for r2plus1d_18, r3d_18 and mc3_18
    torchvision's without `fc.*`.

    Returns:
        The file.

    Raises:
        ConfigError: `output` has another suffix, or what the format needs is not installed.
        OSError, WeightsError: the checkpoint cannot be read, or the file not be written.
        RuntimeError: the features differ; nothing was written.
    """
    suffix = SUFFIXES[config.format]
    path = Path(config.output).expanduser() if config.output else run_folder(config.checkpoint) / f"encoder{suffix}"
    # Whatever lies there is replaced, which nobody wants of a checkpoint.
    if path.suffix != suffix:
        raise ConfigError(f"output: got {config.output}, expected a file *{suffix}")
    subject = load_subject(config.checkpoint)
    metadata = _metadata(subject)
    data = subject.pretraining.data
    clips = torch.randn((2, 3, data.frames, data.size, data.size), generator=torch.Generator().manual_seed(0))
    content, again = _FORMATS[config.format](subject.encoder, clips, metadata)
    _require_same(subject.encoder, again, clips)
    write_or_explain(path, content)
    length = "" if subject.epoch is None else f", {subject.epoch} epochs"
    print(f"{path}: {subject.name}, {metadata['feature_dim']} features{length}")
    if config.card:
        card = path.with_suffix(".md")
        write_or_explain(card, model_card(subject, path, run_folder(config.checkpoint)).encode())
        print(card)
    return path


Written = tuple[bytes, Callable[[Tensor], Tensor]]


def _write_safetensors(encoder: nn.Module, clips: Tensor, metadata: dict[str, str]) -> Written:
    content = safetensors.torch.save(encoder.state_dict(), metadata)
    state = safetensors.torch.load(content)

    def again(clips: Tensor) -> Tensor:
        return torch.func.functional_call(encoder, state, (clips,))

    return content, again


def _torch_export(encoder: nn.Module, clips: Tensor, metadata: dict[str, str]) -> Written:
    program = torch.export.export(encoder, (clips,), dynamic_shapes=({0: torch.export.Dim("clips")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(metadata)})
    return buffer.getvalue(), torch.export.load(io.BytesIO(buffer.getvalue())).module()


def _onnx(encoder: nn.Module, clips: Tensor, metadata: dict[str, str]) -> Written:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"format: onnx needs {error.name}, which is not installed: pip install dclr[onnx]") from error
    shapes = ({0: torch.export.Dim("clips")},)
    names = {"input_names": ["clips"], "output_names": ["features"]}
    program = torch.onnx.export(encoder, (clips,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
    model = program.model_proto
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def again(clips: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"clips": clips.numpy()})[0])

    return content, again


_FORMATS = {"safetensors": _write_safetensors, "torch_export": _torch_export, "onnx": _onnx}


def _require_same(encoder: nn.Module, again: Callable[[Tensor], Tensor], clips: Tensor) -> None:
    """Features of what was written, for one clip and for several, against the encoder's own."""
    with torch.no_grad():
        for some in (clips[:1], torch.cat([clips, clips[:1]])):
            expected, found = encoder(some), again(some)
            scale = expected.abs().max().clamp(min=1)
            if found.shape != expected.shape or (found - expected).abs().max() > FEATURE_TOLERANCE * scale:
                raise RuntimeError(f"the exported encoder's features of {len(some)} clips are not the checkpoint's")


def _metadata(subject: Subject) -> dict[str, str]:
    """What the file says of itself; all three formats take strings alone, so lists are JSON."""
    pretraining = subject.pretraining
    data, augment = pretraining.data, pretraining.augment
    own: dict[str, Any] = {}
    if subject.epoch is not None:
        own = {"epoch": str(subject.epoch), "method": method_name(pretraining.method)}
        own["config"] = json.dumps(to_dict(pretraining))
    return {
        "encoder": subject.name,
        "feature_dim": str(subject.encoder.feature_dim),
        "frames": str(data.frames),
        "stride": str(data.stride),
        "size": str(data.size),
        "mean": json.dumps(augment.mean),
        "std": json.dumps(augment.std),
        "dclr": dclr.__version__,
        **own,
    }
