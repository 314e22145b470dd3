"""FAME: the rows of its tables, finetuned top-1 on UCF-101 / HMDB-51 unless said.

Where its poster names neither encoder nor pretraining set (Tables 1, 3 and 4), these rows take R(2+1)D on UCF-101.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from dclr.augment import AugmentConfig, ForegroundConfig
from dclr.augment.draws import KINETICS_MEAN, KINETICS_STD
from dclr.config import DataConfig, OptimConfig, PretrainConfig, TrainConfig
from dclr.methods.fame import FAMEConfig


def _fame(dataset: str = "ucf101", encoder: str = "r2plus1d_18", size: int = 112, **foreground: Any) -> PretrainConfig:
    """SGD 0.01, batch 64, cosine over 200 epochs; queue 2048 on UCF-101, 65536 on Kinetics-400; hue as released."""
    queue = 65536 if dataset == "kinetics400" else 2048
    return PretrainConfig(
        encoder=encoder,
        data=DataConfig(dataset=dataset, size=size),
        augment=AugmentConfig(mean=KINETICS_MEAN, std=KINETICS_STD),
        optim=OptimConfig(schedule="cosine"),
        # Statistics over all GPUs would leave the shuffled BatchNorm nothing to do.
        train=TrainConfig(sync_bn=False),
        method=FAMEConfig(
            hidden=1024 if encoder == "i3d" else 512,
            queue=queue,
            foreground=ForegroundConfig(**{"mask": "fame", "hue": "official", **foreground}),
        ),
    )


def fame_ucf101() -> PretrainConfig:
    """FAME on UCF-101, half of the pixels foreground, in one view; the poster gives no figure for UCF-101 by name."""
    return _fame()


def fame_k400() -> PretrainConfig:
    """FAME on Kinetics-400 with R(2+1)D, 16 x 112 x 112; poster: 84.8 / 53.5, linear 72.2 / 42.2."""
    return _fame("kinetics400")


_K400_I3D = {"dataset": "kinetics400", "encoder": "i3d", "size": 224}

# Name -> (settings, poster's UCF-101 / HMDB-51, what the row shows).
ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "F1.1": ({"mask": "none"}, "75.8 / 45.5", "no merging"),
    "F1.2": ({"beta": 0.7}, "80.3 / 49.6", "beta 0.7 in one view"),
    "F1.3": ({"beta": 0.7, "views": "both"}, "79.6 / 50.8", "beta 0.7 in both views"),
    "F1.4": ({}, "81.2 / 52.6", "beta 0.5 in one view"),
    "F1.5": ({"views": "both"}, "81.2 / 51.4", "beta 0.5 in both views"),
    "F1.6": ({"beta": 0.3}, "82.0 / 51.6", "beta 0.3 in one view"),
    "F1.7": ({"beta": 0.3, "views": "both"}, "81.1 / 53.1", "beta 0.3 in both views"),
    "F3.1": ({"background": "none"}, "75.8 / 45.5", "own background"),
    "F3.2": ({"background": "intra"}, "77.4 / 47.6", "background of another clip of the video"),
    "F3.3": ({"background": "inter"}, "81.2 / 52.6", "background of another video"),
    "F4.1": ({"mask": "none"}, "75.8 / 45.5", "no mask"),
    "F4.2": ({"mask": "gauss"}, "77.9 / 46.4", "Gauss mask"),
    "F4.3": ({"mask": "seed"}, "80.4 / 51.3", "Seed mask"),
    "F4.4": ({"mask": "grid"}, "81.5 / 51.5", "Grid mask"),
    "F4.5": ({"mask": "fame"}, "81.2 / 52.6", "FAME mask"),
    "F4.6": ({**_K400_I3D, "mask": "grid"}, "86.5 / 58.7", "Grid mask, I3D on Kinetics-400 at 224"),
    "F4.7": (_K400_I3D, "88.6 / 61.1", "FAME mask, I3D on Kinetics-400 at 224"),
    "F5.1": ({"dataset": "kinetics400"}, "72.2 / 42.2 linear, 84.8 / 53.5 finetuned", "R(2+1)D on Kinetics-400"),
    "F5.2": (_K400_I3D, "88.6 / 61.1", "I3D on Kinetics-400 at 224"),
}


def _row(name: str) -> Callable[[], PretrainConfig]:
    settings, top1, shows = ROWS[name]
    row = partial(_fame, **settings)
    row.__doc__ = f"FAME Table {name[1]}: {shows}; poster: {top1} on UCF-101 / HMDB-51."
    return row


PRESETS: dict[str, Callable[[], PretrainConfig]] = {
    "fame_ucf101": fame_ucf101,
    "fame_k400": fame_k400,
    **{name: _row(name) for name in ROWS},
}
