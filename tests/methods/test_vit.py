"""Every method pretrains a video transformer for a few steps; its map of tokens serves the losses on maps too."""

import pytest
import torch

from dclr.augment import AugmentConfig
from dclr.methods import METHODS, build_method
from dclr.methods.dclr import RefineConfig
from dclr.methods.search import SearchConfig
from dclr.models import build_encoder

from .test_dclr import batch_of, draw_of, total

SETTINGS = {
    "dclr": {"search": SearchConfig(queue=8, start=0, refresh=5, k=2), "refine": RefineConfig(start=0)},
    "dclr_release": {"queue": 8, "k": 2},
    "moco": {"queue": 8},
    "fame": {"queue": 8},
    "classifier": {"classes": 2},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_few_steps(name):
    torch.manual_seed(0)
    config = METHODS[name][0](**SETTINGS.get(name, {}))
    encoder = build_encoder("vit_tiny")
    method = build_method(config, encoder, AugmentConfig())
    method.start_epoch(0)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    before = [parameter.clone() for parameter in encoder.parameters()]
    for step in range(3):
        batch = batch_of(4, views=config.views * config.crops, seed=step, first_id=4 * step)
        loss = total(method, method(batch, draw_of(step)))
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
        optimizer.step()
        optimizer.zero_grad()
        method.after_step()
    assert all(not torch.equal(old, new) for old, new in zip(before, encoder.parameters()))
