"""The papers' figures: search (DCLR Fig. 4), temporal kernels (FAME Fig. 3), masks (FAME Fig. 4)."""

import numpy as np
import pytest
import torch
from torch import nn

from dclr.augment import AugmentConfig
from dclr.config import PretrainConfig
from dclr.methods import DCLRConfig, SimCLRConfig, build_method
from dclr.methods.search import SearchConfig
from dclr.models import build_encoder
from dclr.visualize import Descriptor, draw_kernels, draw_masks, draw_search, foreground_masks, temporal_weights
from dclr.visualize.drawing import svg
from dclr.visualize.pictures import kernels
from dclr.visualize.search import Found

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def clips_of(count, frames=5, size=20):
    return torch.randint(256, (count, frames, size, size, 3), generator=torch.Generator().manual_seed(1)).byte()


def method_of(config, epoch):
    torch.manual_seed(0)
    method = build_method(config, build_encoder("r2plus1d_tiny"), AugmentConfig()).eval()
    method.start_epoch(epoch, resumed=True)
    return method


def by_hand(encoder, head, clips):
    """Static clip and difference (DCLR Eq. 3-4) in float64, described and normalised, row by row."""
    described = {}
    pixels = clips.double().permute(0, 4, 1, 2, 3) / 255
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1, 1) for values in (MEAN, STD))
    normal = (pixels - mean) / std
    frames = clips.shape[1] - 1
    static = normal[:, :, frames // 2 : frames // 2 + 1].expand(-1, -1, frames, -1, -1)
    for kind, clip in (("static", static), ("difference", normal.diff(dim=2))):
        pooled = encoder.double()(clip).mean((2, 3, 4))
        row = head(pooled) if kind == "difference" and head is not None else pooled
        described[kind] = (row / row.norm(dim=1, keepdim=True)).detach()
    return described


@pytest.mark.parametrize("epoch, slow", [(0, False), (3, True)])
def test_the_slow_encoder_describes_once_it_is_in_use(epoch, slow):
    method = method_of(DCLRConfig(search=SearchConfig(queue=8, start=2, refresh=2), dim=8, hidden=8), epoch)
    with torch.no_grad():
        for parameter in method.search.slow.parameters():
            parameter.add_(0.01)
    clips = clips_of(3)
    descriptor = Descriptor(method.encoder, method.search, MEAN, STD)
    found = descriptor(clips)
    assert ("slow" in descriptor.name.split()[0]) == slow
    searching = method.double().search.slow
    by_difference = (searching.encoder, searching.heads["d"]) if slow else (method.encoder, None)
    for kind, source in (("static", (method.encoder, None)), ("difference", by_difference)):
        np.testing.assert_allclose(found[kind], by_hand(*source, clips)[kind], atol=1e-4)


def test_without_a_search_the_encoder_describes():
    found = Descriptor(method_of(SimCLRConfig(dim=8, hidden=8), 0).encoder, None, MEAN, STD)(clips_of(2))
    assert found["static"].shape == found["difference"].shape == (2, 96)


def test_search_shows_views_above_what_they_find():
    clips = clips_of(6).numpy()
    views = [Found(clip, "") for clip in clips[:2]]
    figure = draw_search(views, {"static": [Found(clips[2], "a", 0.5), Found(clips[3], "$b", 0.25)],
                                 "difference": [Found(clips[4], "c"), Found(clips[5], "d")]})  # fmt: skip
    grid = np.array(figure.axes).reshape(3, 4)
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["query", "static", "difference"]
    assert [axes.get_title("left") for axes in grid[1]] == ["0.500 a", "", "0.250 $b", ""]
    for row in range(3):
        for view in range(2):
            for place, time in enumerate((0, 4)):
                assert (grid[row, 2 * view + place].images[0].get_array() == clips[2 * row + view][time]).all()
    assert "<svg" in svg(figure, "search")


def test_temporal_kernels_are_those_of_several_frames_in_order():
    encoder = build_encoder("r2plus1d_tiny")
    weights = temporal_weights(encoder)
    assert len(weights) == 1 + 4 * 2 and next(iter(weights)).startswith("stem")
    assert all(values.ndim == 1 for values in weights.values())
    assert np.array_equal(weights["stem.0.3"], encoder.stem[0][3].weight.detach().flatten())


def test_violins_of_the_layers_of_several_encoders():
    weights = {"a": np.linspace(-1, 1, 101), "b": np.linspace(0, 4, 41)}
    figure = draw_kernels({"before": weights, "this run": {name: 2 * values for name, values in weights.items()}})
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    bars = [
        np.array(lines.get_segments())[:, :, 0]
        for lines in axes.collections
        if lines.get_label() in ("before", "this run")
    ]
    np.testing.assert_allclose(bars[0], [[-0.5, 0.5], [1, 3]])
    np.testing.assert_allclose(bars[1], [[-1, 1], [2, 6]])
    with pytest.raises(ValueError, match="other: its temporal convolutions are not those of before"):
        draw_kernels({"before": weights, "other": {"a": weights["a"]}})


def test_kernels_stand_beside_those_before_training_and_of_other_runs():
    run = PretrainConfig(encoder="r2plus1d_tiny")
    state = torch.get_rng_state()
    (shown,) = kernels(build_encoder("r2plus1d_tiny"), run, {"<another>": build_encoder("r2plus1d_tiny")})
    assert shown.name == "kernels.svg"
    assert "before training" in shown.svg and "this run" in shown.svg and "&lt;another&gt;" in shown.svg
    assert kernels(nn.Conv2d(3, 4, 3), run, {}) == []
    # Only the encoder given here has drawn from the generator.
    assert not torch.equal(state, torch.get_rng_state())


def test_masks_keep_what_moves_and_merge_it():
    clip = torch.full((6, 40, 40, 3), 90, dtype=torch.uint8)
    for time in range(6):
        clip[time, 10:30, 4 + 4 * time : 14 + 4 * time] = torch.tensor([230, 40, 40], dtype=torch.uint8)
    other = torch.full_like(clip, 10)
    masks = foreground_masks(clip)
    assert list(masks) == ["fame", "seed", "grid", "gauss"]
    for name in ("fame", "seed"):
        assert masks[name].sum() == 800 and masks[name][20, 20] == 1 and masks[name][2, 2] == 0
    assert set(masks["grid"].unique().tolist()) == {0, 1} and masks["gauss"].max() <= 1
    figure = draw_masks(clip, other, masks)
    panels = {axes.get_title(): axes.images[0].get_array() for axes in figure.axes}
    kept = masks["fame"].numpy().astype(bool)
    assert (panels["clip"] == clip[3].numpy()).all()
    assert (panels["on another clip"] == np.where(kept[..., None], clip[3].numpy(), 10)).all()
    assert (panels["fame"][kept] == clip[3].numpy()[kept]).all() and (
        panels["fame"][~kept] != clip[3].numpy()[~kept]
    ).any()
