"""DualVar after its released code; figures are finetuned top-1 on UCF-101 / HMDB-51.

Clips are placed otherwise. The released code draws the middle frame of each clip from the whole video, alone, and
repeats the first or last frame where the clip reaches past it, as test clips do with the last. Here, as for every
method, the clips of a video begin at different frames and lie within it, and a video of under 66 frames is a loop.

Its frames are squeezed to 128 x 171 (width x height) before a 112 x 112 crop. For frames of 4:3 that is a crop of
fixed shape: 87.5% of the width, 65.5% of the height. `--data.ratio 1 1` is the crop without the squeeze.
"""

from __future__ import annotations

from collections.abc import Callable

from dclr.augment import AugmentConfig
from dclr.config import DataConfig, OptimConfig, PretrainConfig, TrainConfig
from dclr.data.crops import SQUEEZED_RATIO, SQUEEZED_SCALE
from dclr.methods.dualvar import DualVarConfig


def _dualvar(dataset: str, method: DualVarConfig) -> PretrainConfig:
    """SGD 0.003, batch 64, 200 epochs, rate x 0.1 at 120 and 160; every 4th frame; strong jitter, no mirror flip."""
    return PretrainConfig(
        data=DataConfig(dataset=dataset, stride=4, scale=SQUEEZED_SCALE, ratio=SQUEEZED_RATIO),
        # The released jitter is applied with probability 0.8 twice over.
        augment=AugmentConfig(
            flip=0, grayscale=0, jitter=0.64, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5
        ),
        optim=OptimConfig(lr=0.003),
        train=TrainConfig(epochs=200, batch=64, sync_bn=True),
        method=method,
    )


def dualvar_ucf101() -> PretrainConfig:
    """DualVar on UCF-101, SimCLR form; paper: 79.0 on UCF-101 / 45.4 on HMDB-51, finetuned."""
    return _dualvar("ucf101", DualVarConfig())


def dualvar_ucf101_moco() -> PretrainConfig:
    """DualVar on UCF-101, MoCo form; paper: 78.5 on UCF-101 / 47.5 on HMDB-51, finetuned."""
    return _dualvar("ucf101", DualVarConfig(form="moco", sr_clip=None))


def dualvar_k400() -> PretrainConfig:
    """DualVar on Kinetics-400, SimCLR form; paper: 82.0 on UCF-101 / 51.2 on HMDB-51, finetuned."""
    return _dualvar("kinetics400", DualVarConfig())


def dualvar_only_seg() -> PretrainConfig:
    """DualVar on UCF-101 without temporal coherent contrast (its code's `only-seg`); no figure published."""
    return _dualvar("ucf101", DualVarConfig(mode="clip-sr"))


PRESETS: dict[str, Callable[[], PretrainConfig]] = {
    "dualvar_ucf101": dualvar_ucf101,
    "dualvar_ucf101_moco": dualvar_ucf101_moco,
    "dualvar_k400": dualvar_k400,
    "dualvar_only_seg": dualvar_only_seg,
}
