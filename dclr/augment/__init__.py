"""What becomes of decoded clips before an encoder sees them.

`streams` flips, colours and normalises clips, and makes the static frame and the frame difference; `draws` has the
settings and the random numbers; `color` the steps of the colour augmentation; `foreground` FAME's masks.
"""

from dclr.augment.color import augment_color
from dclr.augment.draws import AugmentConfig, ColorDraw, Draw, color_table, draw_color
from dclr.augment.foreground import ForegroundConfig
from dclr.augment.streams import Augment, Difference, DifferenceSource, Streams

__all__ = [
    "Augment",
    "AugmentConfig",
    "ColorDraw",
    "Difference",
    "DifferenceSource",
    "Draw",
    "ForegroundConfig",
    "Streams",
    "augment_color",
    "color_table",
    "draw_color",
]
