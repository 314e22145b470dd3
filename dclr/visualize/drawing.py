"""What all pictures share: colours that the colour-blind tell apart, a width that a phone shows, SVG."""

from __future__ import annotations

import io
import re

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Of Okabe and Ito's palette.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"
# Inches: shown at 360 pixels, letters of 9 points are 10 pixels high.
WIDTH = 4.2
BLACK = "#000000"
# Of the frames in a picture.
DPI = 144


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG document on a transparent ground; equal figures of one `name` are equal texts.

    Text stays text. `name` makes the identifiers inside differ from those of other pictures on the same page.
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", dpi=DPI, transparent=True, metadata=no_metadata)
    return buffer.getvalue()


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG, without the name of the software, so that equal pictures are equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def inline(document: str) -> str:
    """An SVG document as an element of an HTML page, whose text colour it takes where it was black."""
    element = document[document.index("<svg") :]
    element = re.sub(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", element)
    element = re.sub(r"<!--.*?-->\s*|<metadata>.*?</metadata>\s*|<defs>\s*</defs>\s*", "", element, flags=re.DOTALL)
    # Without a fixed width and height it is as wide as its place on the page.
    element = re.sub(r'^<svg ([^>]*?)width="[^"]*"', r"<svg \1", element)
    element = re.sub(r'^<svg ([^>]*?)height="[^"]*"', r"<svg \1", element)
    return element.replace(BLACK, "currentColor").strip()


def class_name(classes: tuple[str, ...], label: int) -> str:
    """The name of a label; -1 is a video without one."""
    return classes[label] if label >= 0 else "no label"


def short(text: str, width: int) -> str:
    """`text` on one line of at most `width` characters, cut off with an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def bare(axes: Axes) -> None:
    """Without ticks and frame, as for a picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
