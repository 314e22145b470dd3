"""Cross-video search of single clips by what stands still in them and by what moves (DCLR Fig. 4).

T frames of H x W pixels in a clip; N clips are searched among; E features of a descriptor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import normalize

from dclr.kernels import decouple
from dclr.methods.search import CrossVideoSearch
from dclr.visualize.drawing import WIDTH, bare, short

FRAMES = 2  # shown of a clip


@dataclass(frozen=True)
class Found:
    """A clip, uint8 (T, H, W, 3), the name of its class, and its cosine with the query."""

    clip: np.ndarray
    label: str
    cosine: float = 1.0


class Descriptor(nn.Module):
    """Describes clips as the search of a DCLR run does: by the slow encoder, projected, where the run searches by them.

    Kinds that it does not search by, and all of a run whose slow encoder is not in use, the encoder itself describes.

    Args:
        encoder: (B, 3, T, H, W) -> (B, C, T', H', W'), in evaluation mode.
        search: of the run, with its current epoch started; None where it has none.
        mean, std: of each channel, those of the pretraining.
    """

    def __init__(
        self, encoder: nn.Module, search: nn.Module | None, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.search = search if isinstance(search, CrossVideoSearch) and search.filling else None
        self.encoder = encoder
        self.mean, self.std = mean, std
        of_both = self.search is not None and {"s", "d"} <= set(self.search.queues)
        slow = "slow encoder" if of_both else "slow encoder where the run searches, else by the encoder"
        self.name = slow if self.search else "encoder, as this run has no slow one in use"

    @torch.inference_mode()
    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """uint8 (N, T+1, H, W, 3) -> unit rows (N, E) under "static" and "difference", on the CPU."""
        middle = torch.full((len(clips),), (clips.shape[1] - 1) // 2, device=clips.device)
        streams = decouple(clips.permute(0, 4, 1, 2, 3), middle, mean=self.mean, std=self.std)
        kinds = {"static": streams.static, "difference": streams.difference}
        return {kind: normalize(self._describe(kind, clip), dim=1).cpu() for kind, clip in kinds.items()}

    def _describe(self, kind: str, clip_bcthw: Tensor) -> Tensor:
        if self.search is not None and kind[0] in self.search.queues:
            return self.search.describe(kind[0], clip_bcthw)
        return self.encoder(clip_bcthw).mean((2, 3, 4), dtype=torch.float32)


def draw_search(views: Sequence[Found], nearest: Mapping[str, Sequence[Found]]) -> Figure:
    """Two frames of each view of a query, and below them of the clip nearest to that view, by each kind.

    Args:
        views: of one video.
        nearest: kind -> what it finds for each view.
    """
    rows = {"query": views, **nearest}
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    grid = figure.subplots(len(rows), FRAMES * len(views), squeeze=False)
    for axes_row, (kind, found) in zip(grid, rows.items()):
        axes_row[0].set_ylabel(kind, fontsize=9)
        for view, shown in enumerate(found):
            own = axes_row[FRAMES * view : FRAMES * (view + 1)]
            for axes, time in zip(own, np.linspace(0, len(shown.clip) - 1, FRAMES).round().astype(int)):
                axes.imshow(shown.clip[time])
                bare(axes)
            title = f"view {view + 1}" if kind == "query" else f"{shown.cosine:.3f} {shown.label}"
            own[0].set_title(short(title, 22), fontsize=9, loc="left", parse_math=False)
    return figure
