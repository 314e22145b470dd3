"""What all pictures share: colours that the colour-blind tell apart, short labels, bytes of a PNG."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

# Of Okabe and Ito's palette.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"
DPI = 120


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG, without the name of the software, so that equal pictures are equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def class_name(classes: tuple[str, ...], label: int) -> str:
    """The name of a label; -1 is a video without one."""
    return classes[label] if label >= 0 else "no label"


def short(text: str, width: int) -> str:
    """`text` on one line of at most `width` characters, cut off with an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
