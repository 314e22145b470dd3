"""Encoders on the Hugging Face Hub: `pip install dclr[hub]`."""

from __future__ import annotations

import dataclasses
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from dclr.models.encoders import build_encoder
from dclr.models.weights import Preprocessing, read_encoder


class HubEncoder(nn.Module, PyTorchModelHubMixin, library_name="dclr", tags=["video", "self-supervised"]):
    """An encoder with `save_pretrained`, `push_to_hub` and `from_pretrained`; its config.json holds the preprocessing.

    Args:
        encoder: name of `ENCODERS`.
        preprocessing: fields of `Preprocessing`.
    """

    def __init__(self, encoder: str, preprocessing: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder)
        given = {
            key: tuple(value) if isinstance(value, list) else value for key, value in (preprocessing or {}).items()
        }
        self.preprocessing = self.encoder.preprocessing = Preprocessing(**given)

    def forward(self, clips_bcthw: Tensor) -> Tensor:
        """Normalised clips (B, 3, T, H, W) to features (B, C, T', H', W')."""
        return self.encoder(clips_bcthw)

    @classmethod
    def of(cls, path: str) -> HubEncoder:
        """The encoder of a run, a checkpoint, an export or others' weights, as `load_encoder` reads them."""
        file = read_encoder(path)
        hub = cls(file.name, dataclasses.asdict(file.preprocessing))
        hub.encoder.load_state_dict(file.encoder.state_dict())
        return hub.eval()
