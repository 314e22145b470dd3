"""FAME's masks and merge, against worked examples and clip by clip in NumPy."""

import colorsys
import math

import numpy as np
import pytest
import torch

from dclr.augment import Augment, AugmentConfig, Draw
from dclr.augment.foreground import ForegroundConfig, color_bins, foreground_mask, gauss_mask, min_max, seed, smooth
from dclr.kernels import merge_foreground, motion_map

OFF = {"flip": 0, "grayscale": 0, "jitter": 0, "blur": 0, "mean": (0, 0, 0), "std": (1, 1, 1)}


def random_clips(batch=3, size=24, frames=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, size, size, generator=generator)


def random_bytes(batch=3, size=24, frames=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, 3, frames, size, size), dtype=torch.uint8, generator=generator)


def test_seed_of_the_worked_example():
    first = torch.tensor([[[0, 2], [4, 8]], [[1, 2], [7, 4]], [[3, 2], [7, 9]]]) / 10  # (t, h, w)
    clip = torch.stack([first, first / 2, torch.zeros_like(first)])[None]
    expected = torch.tensor([[[1 / 3, 0], [1 / 3, 1]]])
    torch.testing.assert_close(seed(motion_map(clip).motion), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("hue, blue_bin", [("correct", 513), ("official", 597)])
def test_mask_of_the_worked_example(hue, blue_bin):
    number = torch.arange(1, 17).view(4, 4)
    clip = torch.zeros(1, 3, 3, 4, 4)
    for t in range(3):
        clip[0, 0, t, :, :2] = 0.5 + 0.01 * t * number[:, :2]
        clip[0, 2, t, :, 2:] = 0.6 + 0.0001 * t * number[:, 2:]
    bins = color_bins(clip.mean(2), hue)[0] + 1
    assert bins[:3, :2].unique().tolist() == [560] and bins[3, :2].unique().tolist() == [660]
    assert bins[:, 2:].unique().tolist() == [blue_bin]
    mask, still = foreground_mask(clip, ForegroundConfig(mask="fame", hue=hue))
    assert mask[0, :, :2].all() and not mask[0, :, 2:].any() and not still.any()


# Clip by clip in NumPy


def blurred(image):
    taps = int(0.1 * len(image)) // 2 * 2 + 1
    offset = np.arange(taps) - taps // 2
    kernel = np.exp(-(offset**2) / (2 * (taps / 3) ** 2))
    kernel /= kernel.sum()
    padded = np.pad(image, taps // 2, mode="reflect")
    rows = sum(k * padded[i : i + len(image)] for i, k in enumerate(kernel))
    return sum(k * rows[:, i : i + len(image)] for i, k in enumerate(kernel))


def scaled(image):
    return (image - image.min()) / (np.ptp(image) + 1e-8)


def seed_of(clip):
    steps = [np.abs(clip[:, t + 1] - clip[:, t]).sum(0) for t in range(clip.shape[1] - 1)]
    return scaled(blurred(sum(steps) / len(steps)))


def bin_of(pixel, hue):
    h, s, v = colorsys.rgb_to_hsv(*pixel)
    angle = 2 * math.pi * h * (2 * math.pi if hue == "official" else 1)
    x, y = (s * math.cos(angle) + 1) / 2, (s * math.sin(angle) + 1) / 2
    return round(9 * x + 1) - 1 + 10 * (round(9 * y + 1) - 1) + 100 * (round(9 * v + 1) - 1)


def score_of(clip, hue):
    moving = seed_of(clip)
    mean = clip.mean(1)
    bins = np.array([[bin_of(mean[:, h, w], hue) for w in range(mean.shape[2])] for h in range(mean.shape[1])])
    order = np.argsort(-moving.ravel(), kind="stable")
    pixels = len(order)
    foreground = np.bincount(bins.ravel()[order[: pixels // 2]], minlength=1000).astype(float)
    background = np.bincount(bins.ravel()[order[pixels - int(0.1 * pixels) :]], minlength=1000) + 1.0
    foreground, background = foreground / foreground.sum(), background / background.sum()
    return scaled(blurred((foreground / (foreground + background))[bins]))


@pytest.mark.parametrize("clips", [random_clips(), random_bytes()], ids=["float32", "uint8"])
@pytest.mark.parametrize("hue", ["correct", "official"])
def test_fame_and_seed_against_numpy(hue, clips):
    for beta in (0.3, 0.5, 1.0):
        refined, _ = foreground_mask(clips, ForegroundConfig(mask="fame", beta=beta, hue=hue))
        plain, _ = foreground_mask(clips, ForegroundConfig(mask="seed", beta=beta))
        for b, clip in enumerate((clips.double() / (255 if clips.dtype == torch.uint8 else 1)).numpy()):
            for mask, score in ((refined[b], score_of(clip, hue)), (plain[b], seed_of(clip))):
                kept = int(beta * 24 * 24)
                assert mask.sum() == kept
                # Pixels whose scores differ by rounding alone may change places.
                least = np.sort(score.ravel())[-kept]
                assert mask[torch.from_numpy(score > least + 1e-5)].all()
                assert not mask[torch.from_numpy(score < least - 1e-5)].any()


def test_smoothing_of_a_point():
    image = torch.zeros(1, 112, 112)
    image[0, 50, 50] = 1
    weights = torch.tensor([0.049492, 0.069167, 0.089735, 0.108073, 0.120829, 0.125407])
    torch.testing.assert_close(smooth(image)[0].sum(0)[45:51], weights, atol=1e-6, rtol=0)
    assert torch.equal(smooth(image[:, :19, :19]), image[:, :19, :19])


def test_grid_keeps_the_cells_that_move_most():
    clips = torch.zeros(1, 3, 2, 8, 8)
    clips[:, :, 1, 2:4, 4:6] = 1  # one cell
    clips[:, :, 1, 6, 0] = 0.5
    mask, _ = foreground_mask(clips, ForegroundConfig(mask="grid", beta=0.125))
    expected = torch.zeros(8, 8)
    expected[2:4, 4:6] = expected[6:8, 0:2] = 1
    assert torch.equal(mask[0], expected)


@pytest.mark.parametrize("size", [8, 26])
def test_grid_against_numpy(size):
    clips = random_clips(size=size)
    mask, _ = foreground_mask(clips, ForegroundConfig(mask="grid"))
    cell = np.arange(size) * 4 // size
    for b, clip in enumerate(clips.double().numpy()):
        score = seed_of(clip)
        sums = np.array([score[np.ix_(cell == i, cell == j)].sum() for i in range(4) for j in range(4)])
        kept = np.zeros(16)
        kept[np.argsort(-sums)[:8]] = 1
        assert np.array_equal(mask[b].numpy(), kept.reshape(4, 4)[np.ix_(cell, cell)])


def test_gauss_mask():
    mask = gauss_mask(torch.zeros(2, 9, 9))
    row = torch.exp(-(((torch.arange(9) - 4) / 3) ** 2) / 2)
    torch.testing.assert_close(mask, (row[:, None] * row).expand(2, -1, -1))


def test_clips_that_stand_still_are_told():
    clips = random_clips()
    clips[1] = clips[1, :, :1]
    mask, still = foreground_mask(clips, ForegroundConfig(mask="seed", beta=0.25))
    assert still.tolist() == [False, True, False]
    assert mask[1].flatten()[:144].all() and mask[1].sum() == 144  # ties go to the lower index


@pytest.mark.parametrize("kind", ["fame", "seed", "grid", "gauss"])
def test_a_single_frame_stands_still(kind):
    mask, still = foreground_mask(random_clips(frames=1), ForegroundConfig(mask=kind))
    assert still.all() and mask.isfinite().all()
    assert not seed(motion_map(random_clips(frames=1)).motion).any()


def test_time_reversal_keeps_the_mask_and_beta_1_the_clip():
    clips = random_bytes()
    masks = [foreground_mask(x, ForegroundConfig(mask="fame")).weight for x in (clips, clips.flip(2))]
    assert torch.equal(*masks)
    whole = foreground_mask(clips, ForegroundConfig(mask="fame", beta=1.0)).weight
    assert torch.equal(merge_foreground(clips, torch.arange(3).flip(0), whole), clips)


@pytest.mark.parametrize("mask", ["fame", "seed", "grid", "gauss"])
def test_mask_of_mirrored_clips(mask):
    clips, flip, config = random_bytes(), torch.tensor([True, False, True]), ForegroundConfig(mask=mask)
    mirrored = torch.where(flip.view(-1, 1, 1, 1, 1), clips.flip(-1), clips)
    assert all(map(torch.equal, foreground_mask(clips, config, flip), foreground_mask(mirrored, config)))


def test_min_max_of_a_constant():
    assert not min_max(torch.full((2, 3, 3), 7.0)).any()


# As an augmentation


def batch(n=4, frames=5, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (2, n, frames, size, size, 3), dtype=torch.uint8, generator=generator)


def augmented(clips, streams=False, **foreground):
    config = AugmentConfig(**OFF, foreground=ForegroundConfig(**{"mask": "seed", "views": "both", **foreground}))
    augment, draw = Augment(config), Draw(torch.Generator().manual_seed(5))
    return augment.streams(clips, draw) if streams else augment.rgb(clips, draw)


def plain(clips):
    return (clips[:, :, :-1].float() / 255).flatten(0, 1).permute(0, 4, 1, 2, 3)


def sources(merged, clips):
    """Of each merged clip, the clips that each of its pixels can come from."""
    originals = plain(clips)
    return [
        {other for other in range(len(originals)) if (one == originals[other]).all(0).all(0).any()} for one in merged
    ]


def test_inter_video_background_is_of_the_same_view():
    clips = batch()
    found = sources(augmented(clips, perm="derangement"), clips)
    for row, used in enumerate(found):
        assert row in used and len(used) == 2 and {other // 4 for other in used} == {row // 4}


def test_intra_video_background_is_the_other_view():
    clips = batch()
    for row, used in enumerate(sources(augmented(clips, background="intra"), clips)):
        assert used == {row, (row + 4) % 8}


def test_single_view_leaves_the_other_alone():
    clips = batch()
    merged = augmented(clips, views="single")
    assert torch.equal(merged[4:], plain(clips)[4:]) and not torch.equal(merged[:4], plain(clips)[:4])


@pytest.mark.parametrize("foreground", [{"mask": "none"}, {"background": "none"}, {"beta": 1.0}])
def test_what_changes_nothing(foreground):
    clips = batch()
    assert torch.equal(augmented(clips, **foreground), plain(clips))


def test_off_takes_no_random_numbers():
    draws = [Draw(torch.Generator().manual_seed(5)) for _ in range(2)]
    Augment(AugmentConfig()).rgb(batch(), draws[0])
    Augment(AugmentConfig(foreground=ForegroundConfig(mask="fame", background="none"))).rgb(batch(), draws[1])
    assert torch.equal(*(draw.uniform(1, 3) for draw in draws))


def test_a_batch_of_one_stays_as_it_is():
    clips = batch(n=1)
    assert torch.equal(augmented(clips), plain(clips))
    assert not torch.equal(augmented(clips, background="intra"), plain(clips))
    alone = augmented(clips, streams=True)
    assert all(torch.equal(*pair) for pair in zip(alone, augmented(clips, streams=True, mask="none")))


@pytest.mark.parametrize("mask", ["fame", "seed", "grid", "gauss"])
@pytest.mark.parametrize("background", ["inter", "intra", "none"])
@pytest.mark.parametrize("views", ["single", "both"])
def test_merge_of_a_batch_by_its_definition(mask, background, views):
    """x' = x M + y (1 - M), clip by clip, with the permutation that the draw gives."""
    clips = batch(size=24)
    draw = Draw(torch.Generator().manual_seed(5))
    Augment(AugmentConfig(**OFF)).rgb(clips, draw)
    rows = torch.arange(8)
    permuted = (torch.tensor([[0], [4]]) + draw.permutations(2, 4)).flatten()
    source = {"inter": permuted, "intra": (rows + 4) % 8, "none": rows}[background]
    raw = clips[:, :, :-1].flatten(0, 1).permute(0, 4, 1, 2, 3)
    originals, merged = plain(clips), augmented(clips, mask=mask, background=background, views=views)
    for row, own in enumerate(originals):
        view = row // 4
        other = originals[source[row]] if views == "both" or view == 0 else own
        weight = foreground_mask(raw[[row]], ForegroundConfig(mask=mask)).weight[0]
        torch.testing.assert_close(merged[row], own * weight + other * (1 - weight), atol=1e-6, rtol=0)


def test_every_stream_has_the_same_background():
    """Also a static frame with a crop of its own: with equal crops of clips that stand still it is the clip."""
    still = batch(n=6)[:, :, :1].expand(-1, -1, 5, -1, -1, -1)
    config = AugmentConfig(**OFF, foreground=ForegroundConfig(mask="gauss", views="both", perm="derangement"))
    for number in range(3):
        rgb, static, difference = Augment(config).streams(still, Draw(torch.Generator().manual_seed(number)), still)
        assert torch.equal(rgb, static) and not torch.equal(rgb, plain(still)) and not difference.any()


@pytest.mark.parametrize("source", ["raw", "augmented"])
@pytest.mark.parametrize("diff", ["forward", "backward_cyclic"])
def test_flipped_once_before_the_merge(source, diff):
    """A clip that is mirrored for the merge is not mirrored again: all three streams are those of mirrored clips."""
    foreground = ForegroundConfig(mask="seed", views="both")
    plain_, mirrored = (
        Augment(AugmentConfig(**{**OFF, "flip": p}, foreground=foreground), diff, source) for p in (0, 1)
    )
    expected = plain_.streams(batch().flip(-2), Draw(torch.Generator().manual_seed(5)))
    for one, other in zip(mirrored.streams(batch(), Draw(torch.Generator().manual_seed(5))), expected):
        torch.testing.assert_close(one, other)


def test_colours_do_not_depend_on_the_number_of_ranks():
    """Backgrounds are of a rank's own videos, flips and colours those of the global batch."""
    clips, config = batch(), AugmentConfig(blur=0, foreground=ForegroundConfig(mask="gauss", background="intra"))
    whole = Augment(config).rgb(clips, Draw(torch.Generator().manual_seed(5))).unflatten(0, (2, 4))
    parts = [
        Augment(config).rgb(clips[:, 2 * rank : 2 * rank + 2], Draw(torch.Generator().manual_seed(5), rank, 2))
        for rank in range(2)
    ]
    torch.testing.assert_close(torch.cat([part.unflatten(0, (2, 2)) for part in parts], dim=1), whole)
    config.foreground = ForegroundConfig(mask="gauss")  # view 1 keeps its background, so that it shows the colours
    whole = Augment(config).rgb(clips, Draw(torch.Generator().manual_seed(5)))[4:]
    parts = [
        Augment(config).rgb(clips[:, 2 * rank : 2 * rank + 2], Draw(torch.Generator().manual_seed(5), rank, 2))[2:]
        for rank in range(2)
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_streams_of_a_merged_clip():
    """Static frame and difference are those of the merged clip."""
    rgb, static, difference = augmented(batch(), streams=True, mask="gauss")
    torch.testing.assert_close(difference[:, :, :-1], rgb[:, :, 1:] - rgb[:, :, :-1], atol=1e-6, rtol=0)
    assert all((static[b] == rgb[b][:, [t]]).all() for b in range(8) for t in _frames_of(static[b], rgb[b]))


def _frames_of(static, rgb):
    matches = [t for t in range(rgb.shape[1]) if torch.equal(static[:, 0], rgb[:, t])]
    assert matches
    return matches


def test_permutations_of_each_rank():
    draws = [Draw(torch.Generator().manual_seed(1), rank, 2).permutations(2, 5, derangement=True) for rank in (0, 1)]
    for drawn in draws:
        assert drawn.sort(1).values.tolist() == [list(range(5))] * 2
        assert not (drawn == torch.arange(5)).any()
    assert not torch.equal(*draws)
    assert Draw(torch.Generator()).permutations(2, 1, derangement=True).tolist() == [[0], [0]]


@pytest.mark.parametrize("beta", [0, -0.5, 1.5, float("nan")])
def test_beta_out_of_range(beta):
    with pytest.raises(ValueError, match=r"foreground\.beta: got"):
        ForegroundConfig(beta=beta)
