"""Temporal kernel weights by layer (FAME Fig. 3): how an encoder weighs a frame against its neighbours.

A kernel whose weights over time are alike averages frames, and sees the scene; one whose weights differ sees change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from dclr.visualize.drawing import BLUE, GREEN, GREY, ORANGE, RED, WIDTH, short

COLORS = (GREY, BLUE, ORANGE, GREEN, RED)
# Of a layer, evenly: a million weights give the same violin, later.
MOST = 5000


def temporal_weights(encoder: nn.Module) -> dict[str, np.ndarray]:
    """Name of each convolution that spans several frames -> its weights (n,), in the order of the layers."""
    return {
        name: module.weight.detach().float().cpu().flatten().numpy()
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1
    }


def draw_kernels(encoders: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """A row for each layer, and in it a violin for each encoder; the bar in a violin spans half of its weights.

    Args:
        encoders: name of each encoder -> its `temporal_weights`; all of the same layers.

    Raises:
        ValueError: encoders of different layers.
    """
    layers = list(next(iter(encoders.values())))
    for name, weights in encoders.items():
        if list(weights) != layers:
            raise ValueError(f"{name}: its temporal convolutions are not those of {next(iter(encoders))}")
    height = 0.16 * len(encoders) + 0.14
    figure = Figure(figsize=(WIDTH, height * len(layers) + 0.9), layout="constrained")
    axes = figure.subplots()
    for turn, (name, weights) in enumerate(encoders.items()):
        places = [-row * height - 0.16 * turn for row in range(len(layers))]
        _violins(axes, [_even(weights[layer]) for layer in layers], places, COLORS[turn % len(COLORS)], name)
    axes.set_yticks([-row * height - 0.08 * (len(encoders) - 1) for row in range(len(layers))])
    axes.set_yticklabels([short(layer, 22) for layer in layers], fontsize=8, parse_math=False)
    axes.set_xlabel("weight", fontsize=9)
    axes.tick_params(axis="x", labelsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", fontsize=9, frameon=False, ncols=2)
    return figure


def _violins(axes: Axes, weights: Sequence[np.ndarray], places: Sequence[float], color: str, name: str) -> None:
    drawn = axes.violinplot(weights, places, orientation="horizontal", widths=0.18, showextrema=False)
    for body in drawn["bodies"]:
        body.set(facecolor=color, edgecolor=color, alpha=0.6)
    quarters = np.array([np.quantile(values, (0.25, 0.75)) for values in weights])
    axes.hlines(places, *quarters.T, color=color, linewidth=2.5, label=short(name, 28))


def _even(values: np.ndarray) -> np.ndarray:
    return values[:: -(-len(values) // MOST)]
