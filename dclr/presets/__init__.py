"""Presets: functions that return a whole configuration. `dclr pretrain --preset NAME`, flags win over it."""

from __future__ import annotations

from collections.abc import Callable

from dclr.config import PretrainConfig
from dclr.presets import dclr, demo, dualvar, fame, moco, small

PRESETS: dict[str, Callable[[], PretrainConfig]] = {
    **dclr.PRESETS,
    **moco.PRESETS,
    **fame.PRESETS,
    **dualvar.PRESETS,
    **demo.PRESETS,
    **small.PRESETS,
}
