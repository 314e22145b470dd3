"""Pictures of a run: loss curves, activation maps, retrieval panels, and the page that holds them all."""

from dclr.visualize.activation import activation_maps, draw_activation
from dclr.visualize.curves import draw_curves
from dclr.visualize.report import Picture, Report, page
from dclr.visualize.retrieval import draw_retrieval
from dclr.visualize.run import Run, read_run

__all__ = [
    "Picture",
    "Report",
    "Run",
    "activation_maps",
    "draw_activation",
    "draw_curves",
    "draw_retrieval",
    "page",
    "read_run",
]
