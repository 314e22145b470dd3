"""Published figures, to be shown beside ours where the setting is the same.

DCLR Tables 1 to 3, FAME Tables 2, 5 and 6, DualVar Tables 4 and 5 (its README, where the abstract says 46.1 for R@1).
"""

from __future__ import annotations

from typing import NamedTuple

UCF, HMDB, K400, DIVING = "ucf101", "hmdb51", "kinetics400", "diving48"


class Target(NamedTuple):
    """A published row: `method` evaluated by `evaluation` on `dataset` (split 1), pretrained on `pretrained`.

    setting: encoder and clips, as far as the paper says. figures: in percent.
    """

    evaluation: str
    dataset: str
    pretrained: str
    method: str
    setting: str
    figures: dict[str, float]


def _top1(evaluation: str, pretrained: str, method: str, setting: str, ucf: float, hmdb: float) -> list[Target]:
    figures = {UCF: ucf, HMDB: hmdb}
    return [Target(evaluation, on, pretrained, method, setting, {"top1": top1}) for on, top1 in figures.items()]


def _diving(pretrained: str, method: str, setting: str, top1: float) -> Target:
    return Target("finetune", DIVING, pretrained, method, setting, {"top1": top1})


def _recall(dataset: str, pretrained: str, method: str, setting: str, *recalls: float) -> Target:
    figures = {f"R@{k}": recall for k, recall in zip((1, 5, 10, 20, 50), recalls)}
    return Target("retrieve", dataset, pretrained, method, setting, figures)


R21D = "R(2+1)D, 16 x 112"

TARGETS: tuple[Target, ...] = (
    *_top1("linear", K400, "DCLR", R21D, 72.3, 46.4),
    *_top1("linear", K400, "FAME", R21D, 72.2, 42.2),
    *_top1("linear", K400, "MLRep", "R3D", 63.2, 33.4),
    *_top1("linear", K400, "RSPNet", "R3D", 61.8, 42.8),
    *_top1("finetune", UCF, "DCLR", R21D, 82.3, 50.1),
    *_top1("finetune", K400, "DCLR", R21D, 83.3, 52.7),
    *_top1("finetune", UCF, "TempTrans", "R(2+1)D", 81.6, 46.4),
    *_top1("finetune", UCF, "DualVar (SimCLR)", R21D, 79.0, 45.4),
    *_top1("finetune", UCF, "DualVar (MoCo)", R21D, 78.5, 47.5),
    *_top1("finetune", K400, "DualVar (SimCLR)", R21D, 82.0, 51.2),
    *_top1("finetune", K400, "FAME", R21D, 84.8, 53.5),
    *_top1("finetune", K400, "FAME", "I3D, 16 x 224", 88.6, 61.1),
    *_top1("finetune", K400, "VideoMoCo", "R(2+1)D, 32 x 112", 78.7, 49.2),
    _diving(UCF, "DCLR", R21D, 72.7),
    _diving(K400, "DCLR", R21D, 75.1),
    _diving(UCF, "FAME", "16 x 224", 67.8),
    _diving(K400, "FAME", "16 x 224", 72.9),
    _diving("nothing", "random weights", "as DCLR prints it", 50.7),
    _diving("nothing", "random weights", "as FAME prints it", 57.4),
    _recall(UCF, UCF, "DCLR", R21D, 54.8, 68.3, 75.9, 82.8),
    _recall(HMDB, UCF, "DCLR", R21D, 24.1, 44.5, 53.7, 64.5),
    _recall(UCF, UCF, "VCLR", "R2D-50", 46.8, 61.8, 70.4, 79.0),
    _recall(UCF, UCF, "Pace", "R(2+1)D", 25.6, 42.7, 51.3, 61.3),
    _recall(HMDB, UCF, "Pace", "R(2+1)D", 12.9, 31.6, 43.2, 58.0),
    _recall(UCF, K400, "FAME", R21D, 64.6, 77.7, 82.9, 87.6, 94.2),
    _recall(UCF, UCF, "DualVar", "R(2+1)D, pretraining set not stated", 46.7, 63.1, 69.7, 78.0, 87.8),
)


def published(evaluation: str, dataset: str, pretrained: str) -> dict[str, list[str]]:
    """For a record of an evaluation after pretraining on another dataset: published rows of its setting, if any."""
    wanted = evaluation, dataset, pretrained
    lines = [_row_in_words(target) for target in TARGETS if target[:3] == wanted]
    return {"published": lines} if lines else {}


def _row_in_words(target: Target) -> str:
    figures = "  ".join(f"{name} {value:.1f}%" for name, value in target.figures.items())
    return f"published: {figures}  {target.method}, {target.setting}, pretrained on {target.pretrained}"
