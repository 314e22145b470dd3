"""Pictures of a run: curves, activation maps, neighbours, searches, kernels, masks, and the page that holds them."""

from dclr.visualize.activation import activation_maps, draw_activation
from dclr.visualize.curves import curves_of, draw_curve
from dclr.visualize.kernels import draw_kernels, temporal_weights
from dclr.visualize.masks import draw_masks, foreground_masks
from dclr.visualize.report import Picture, Report, page
from dclr.visualize.retrieval import draw_retrieval
from dclr.visualize.run import Run, read_run
from dclr.visualize.search import Descriptor, draw_search

__all__ = [
    "Descriptor",
    "Picture",
    "Report",
    "Run",
    "activation_maps",
    "curves_of",
    "draw_activation",
    "draw_curve",
    "draw_kernels",
    "draw_masks",
    "draw_retrieval",
    "draw_search",
    "foreground_masks",
    "page",
    "read_run",
    "temporal_weights",
]
