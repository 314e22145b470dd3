"""`dclr synth`: write generated videos to a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dclr.data.synth import SynthConfig, synthesize


@dataclass
class SynthCommand:
    """Write a labelled set of videos in which motion and scene are independent."""

    root: str
    """Folder to write to: videos/*.mp4 and labels.csv."""
    synth: SynthConfig = field(default_factory=SynthConfig)


def synth(config: SynthCommand) -> Path:
    """Write the videos; prints and returns the path of their list of labels."""
    labels = synthesize(Path(config.root).expanduser(), config.synth)
    print(labels)
    return labels
