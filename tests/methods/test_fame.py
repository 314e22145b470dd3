"""FAME as a method, and its masks in front of the other methods."""

import pytest
import torch

from dclr.augment import AugmentConfig, Draw
from dclr.augment.foreground import ForegroundConfig
from dclr.data import Batch
from dclr.methods import DCLRConfig, DualVarConfig, FAMEConfig, MoCoConfig, SimCLRConfig, build_method
from dclr.methods.search import SearchConfig
from dclr.models import build_encoder
from dclr.presets.fame import PRESETS


def batch(views=2, n=4, frames=5, size=24):
    clips = torch.randint(256, (views, n, frames, size, size, 3), dtype=torch.uint8)
    return Batch(clips, torch.arange(n), torch.zeros(n, dtype=torch.int64))


def loss(config, augment, views=2, seed=0):
    """The summed loss of one step from given weights, after its gradients."""
    torch.manual_seed(seed)
    method = build_method(config, build_encoder("r2plus1d_tiny"), augment).train()
    output = method(batch(views), Draw(torch.Generator().manual_seed(7)))
    total = sum(output.losses.values())
    total.backward()
    method.after_step()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())
    return total.item(), output


def test_fame_does_not_drop_masks_of_the_augmentation():
    with pytest.raises(ValueError, match=r"augment\.foreground: got .*grid.* expected it in method\.foreground"):
        loss(FAMEConfig(queue=16, dim=8, hidden=8), AugmentConfig(foreground=ForegroundConfig(mask="grid")))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_released_recipe(name):
    preset = PRESETS[name]()
    method, foreground = preset.method, preset.method.foreground
    assert (method.temperature, method.momentum, method.symmetric, method.key_bn) == (0.1, 0.999, True, "shuffle")
    assert method.queue == {"ucf101": 2048, "kinetics400": 65536}[preset.data.dataset]
    assert not preset.train.sync_bn and preset.optim.schedule == "cosine" and preset.optim.lr == 0.01
    assert method.hidden == {"i3d": 1024, "r2plus1d_18": 512}[preset.encoder]
    assert preset.augment.mean == (0.43216, 0.394666, 0.37645) and foreground.hue == "official"
    assert foreground.views == ("both" if "both views" in PRESETS[name].__doc__ else "single")
    assert foreground.merges == (name not in ("F1.1", "F3.1", "F4.1"))
    assert PRESETS[name].__doc__.splitlines()[0].count(" / ") or name == "fame_ucf101"


def test_fame_is_symmetric_moco_on_merged_clips():
    foreground = ForegroundConfig(mask="fame")
    own, output = loss(FAMEConfig(queue=16, dim=8, hidden=8), AugmentConfig())
    moco = MoCoConfig(temperature=0.1, symmetric=True, queue=16, dim=8, hidden=8)
    assert own == loss(moco, AugmentConfig(foreground=foreground))[0]
    assert own != loss(moco, AugmentConfig())[0]
    assert output.statistics["augment/still_clips"] == 0


METHODS = {
    "simclr": (SimCLRConfig(dim=8, hidden=8), 2),
    "dualvar": (DualVarConfig(dim=8, hidden=8), 4),
    "dclr": (DCLRConfig(dim=8, hidden=8, search=SearchConfig(on=())), 2),
    "dclr with crops of its own": (
        DCLRConfig(dim=8, hidden=8, search=SearchConfig(on=()), static_crop="independent"),
        4,
    ),
    "dclr from augmented clips": (
        DCLRConfig(dim=8, hidden=8, search=SearchConfig(on=()), difference_source="augmented"),
        2,
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_masks_stand_in_front_of_any_method(name):
    config, views = METHODS[name]
    merged, output = loss(config, AugmentConfig(foreground=ForegroundConfig(mask="grid")), views)
    assert merged != loss(config, AugmentConfig(), views)[0]
    assert "augment/still_clips" in output.statistics
