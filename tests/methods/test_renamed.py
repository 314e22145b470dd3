"""Runs that were saved under the names of before."""

from dataclasses import replace

import pytest
import torch

from dclr.config import ConfigError, OptimConfig, PretrainConfig, load, to_dict, update
from dclr.evaluation.checkpoint import load_subject
from dclr.methods import DCLRConfig, DCLRReleaseConfig, DualVarConfig, build_method
from dclr.methods.dclr import AlignmentConfig, RefineConfig
from dclr.methods.renamed import BUFFERS
from dclr.methods.search import SearchConfig
from dclr.models import build_encoder
from dclr.training import load_method, save_checkpoint

# A configuration as it was written with `ac`, `tau`, `denom`, `diff` and `variant`.
SEARCH = {
    "on": ["s", "d"], "k": 2, "dist": "prior", "start": 1, "refresh": 1, "queue": 8, "on_refresh": "flush",
    "exclude_same_video": True, "feat": "proj",
}  # fmt: skip
OLD = {
    "name": "dclr",
    "losses": {"vv": 0.0, "vs": 1.0, "vd": 1.0, "sd": 1.0},
    "loss_start": {"vv": 0, "vs": 0, "vd": 0, "sd": 0},
    "same_view": False,
    "search": SEARCH,
    "ac": {"lambda": 0.25, "reduction": "sum", "start": 2},
    "refine": {"s": True, "d": False, "start": 0},
    "tau": 0.2,
    "dim": 8,
    "hidden": 16,
    "denom": "joint",
    "symmetric": False,
    "balance": 0.0,
    "heads": "separate",
    "center": False,
    "bn": "mixed",
    "static_crop": "shared",
    "diff": "forward17",
    "diff_source": "augmented",
    "variant": "paper",
}
NEW = DCLRConfig(
    search=SearchConfig(on=("s", "d"), k=2, start=1, refresh=1, queue=8), alignment=AlignmentConfig(0.25, "sum", 2),
    refine=RefineConfig(True, False, 0), temperature=0.2, dim=8, hidden=16, denominator="joint",
    bn="mixed", difference_source="augmented", sd_bound="none", balance="none",
)  # fmt: skip


def read(method):
    return update(PretrainConfig(), {"method": method}).method


def test_old_settings_of_dclr():
    assert read(OLD) == NEW
    assert read({**OLD, "diff": "roll16"}).difference == "backward_cyclic"


def test_the_released_recipe_was_a_variant():
    """It read five settings, and went its own way whatever the others said."""
    released = {**OLD, "variant": "official_release", "diff": "roll16", "static_crop": "independent"}
    assert read(released) == DCLRReleaseConfig(temperature=0.2, dim=8, hidden=16, k=2, queue=8)


def test_old_settings_of_dualvar():
    old = {"name": "dualvar", "tau": 0.2, "tc_tau": 0.3, "theta": 0.4}
    assert read(old) == DualVarConfig(temperature=0.2, tc_temperature=0.3, sr_temperature=0.4)


def test_a_saved_run_without_the_choice_scaled_its_rate(tmp_path):
    """Clipping that was off had a first epoch; where it was on, that key is named."""
    path = tmp_path / "config.yaml"
    path.write_text("optim: {lr: 0.02, clip: null, clip_start: 3}\nrun: {torch: '2.13'}\n")
    assert load(path).optim == OptimConfig(lr=0.02, scale_lr=True)
    path.write_text("optim: {lr: 0.02}\n")
    assert not load(path).optim.scale_lr
    path.write_text("optim: {clip: 1.0, clip_start: 3}\nrun: {torch: '2.13'}\n")
    with pytest.raises(ConfigError, match=r"unknown configuration key optim\.clip_start"):
        load(path)


def test_a_setting_under_both_names():
    with pytest.raises(ConfigError, match=r"method\.tau: is the old name of method\.temperature, which is given too"):
        read({"tau": 0.1, "temperature": 0.2})


def test_an_old_checkpoint_is_read(tmp_path):
    config = PretrainConfig(encoder="r2plus1d_tiny", method=NEW)
    method = build_method(config.method, build_encoder(config.encoder), config.augment)
    method.search.queues["d"].descriptor.normal_()
    old_names = {new: old for old, new in BUFFERS.items()}
    state = {}
    for key, value in method.state_dict().items():
        parent, _, name = key.rpartition(".")
        is_queue = parent in ("search.queues.s", "search.queues.d")
        state[f"{parent}.{old_names.get(name, name)}" if is_queue else key] = value
    assert "search.queues.d.key" in state
    optim = {key: value for key, value in to_dict(config)["optim"].items() if key != "scale_lr"}
    saved = {**to_dict(config), "method": OLD, "optim": {**optim, "clip_start": 0}}
    save_checkpoint(tmp_path / "last.pt", {"config": saved, "method": state, "position": {"epoch": 1, "step": 0}})
    loaded = load_method(tmp_path / "last.pt")
    assert loaded.config == replace(config, optim=replace(config.optim, scale_lr=True))
    assert load_subject(str(tmp_path / "last.pt")).pretraining == loaded.config
    for key, value in method.state_dict().items():
        other = loaded.method.state_dict()[key]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key
