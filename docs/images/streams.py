"""Draws streams.png: a generated clip, its static frame and its frame difference, and what is contrasted with what.

python docs/images/streams.py
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dclr.data import read_clips
from dclr.data.synth import LABELS_FILE, SynthConfig, synthesize

INK, GROUND = "#1f2328", "#ffffff"


def main() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        synthesize(Path(folder), SynthConfig(train=9, test=8, size=64, frames=24, object_size=17), progress=False)
        assert (Path(folder) / LABELS_FILE).exists()
        paths = sorted(Path(folder).rglob("*.mp4"))
        clip = read_clips(paths[3], [0], 9, 2)[0].astype(np.float32)
    static = np.broadcast_to(clip[4], clip[:8].shape)
    difference = 127 + np.diff(clip, axis=0) / 2
    figure = Figure(figsize=(8.4, 3.3), facecolor=GROUND, layout="constrained")
    grid = figure.subplots(3, 5, width_ratios=[1, 1, 1, 1, 1.7])
    rows = (
        ("clip v", clip, "what the encoder is trained for"),
        ("static frame s", static, "v and s of another clip of the video\nattract: know the scene (vs)"),
        ("difference d", difference, "v and d of another clip of the video\nattract: know the motion (vd)"),
    )
    for axes_row, (name, frames, text) in zip(grid, rows):
        for axes, time in zip(axes_row[:4], (0, 2, 4, 6)):
            axes.imshow(frames[time].round().clip(0, 255).astype(np.uint8))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        axes_row[0].set_ylabel(name, color=INK, fontsize=10)
        axes_row[4].axis("off")
        axes_row[4].text(0, 0.5, text, color=INK, fontsize=9.5, va="center", transform=axes_row[4].transAxes)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
