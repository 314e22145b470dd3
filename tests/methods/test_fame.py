"""FAME as a method, and its masks in front of the other methods."""

import pytest
import torch

from dclr.augment import AugmentConfig, Draw
from dclr.data import Batch
from dclr.foreground import ForegroundConfig
from dclr.methods import DCLRConfig, DualVarConfig, FAMEConfig, MoCoConfig, SimCLRConfig, build_method
from dclr.methods.search import SearchConfig
from dclr.models import build_encoder


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


def test_fame_is_symmetric_moco_on_merged_clips():
    foreground = ForegroundConfig(mask="fame")
    own, output = loss(FAMEConfig(queue=16, dim=8, hidden=8), AugmentConfig())
    moco = MoCoConfig(tau=0.1, symmetric=True, queue=16, dim=8, hidden=8)
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
    "dclr from augmented clips": (DCLRConfig(dim=8, hidden=8, search=SearchConfig(on=()), diff_source="augmented"), 2),
}


@pytest.mark.parametrize("name", METHODS)
def test_masks_stand_in_front_of_any_method(name):
    config, views = METHODS[name]
    merged, output = loss(config, AugmentConfig(foreground=ForegroundConfig(mask="grid")), views)
    assert merged != loss(config, AugmentConfig(), views)[0]
    assert "augment/still_clips" in output.statistics
