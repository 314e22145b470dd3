"""Names that saved runs had before: their configurations and checkpoints are read under the names of today."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Keys of a method's configuration.
KEYS = {
    "tau": "temperature",
    "tc_tau": "tc_temperature",
    "theta": "sr_temperature",
    "denom": "denominator",
    "ac": "alignment",
    "diff": "difference",
    "diff_source": "difference_source",
}
DIFFERENCES = {"forward17": "forward", "roll16": "backward_cyclic"}
# Buffers of a search's queues.
BUFFERS = {"key": "descriptor", "rgb": "rgb_projection", "mode": "modality_projection"}


def current_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """A method's configuration, as nested plain values, under the keys of today.

    Raises:
        ValueError: a setting is given under both of its names.
    """
    both = [(old, new) for old, new in KEYS.items() if old in values and new in values]
    if both:
        old, new = both[0]
        raise ValueError(f"method.{old}: is the old name of method.{new}, which is given too; expected one of them")
    values = {KEYS.get(key, key): value for key, value in values.items()}
    if values.get("difference") in DIFFERENCES:
        values["difference"] = DIFFERENCES[values["difference"]]
    if values.pop("loss_start", None) is not None:  # the first epochs of the terms, from before L_SD had a bound
        values.setdefault("sd_bound", "none")
    if isinstance(values.get("balance"), (int, float)):
        values["balance"] = "none"  # was the power of a term's value
    values.pop("color_shared", None)  # also a setting of the augmentation, which is the one that was used
    if values.pop("variant", "paper") == "official_release":
        return _release(values)
    return values


def _release(values: Mapping[str, Any]) -> dict[str, Any]:
    """The released recipe was a variant of `dclr`, of whose settings it read these."""
    read = {key: values[key] for key in ("temperature", "dim", "hidden") if key in values}
    search = values.get("search") or {}
    return {"name": "dclr_release", **read, **{key: search[key] for key in ("k", "queue") if key in search}}


def current_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A method's `state_dict()` under the keys of today."""

    def current(key: str) -> str:
        return re.sub(r"\b(search\.queues\.[sd]\.)(key|rgb|mode)$", lambda m: m[1] + BUFFERS[m[2]], key)

    return {current(key): value for key, value in state.items()}
