"""Draws that do not depend on the number of ranks, and augmentation that is the same for every frame of a clip."""

import kornia
import pytest
import torch

import dclr.augment.streams
from dclr.augment import Augment, AugmentConfig, Draw, augment_color, draw_color
from dclr.augment.foreground import ForegroundConfig

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1, 1)
OFF = AugmentConfig(flip=0, grayscale=0, jitter=0, blur=0)


def clips(views=2, n=3, frames=5, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (views, n, frames, size, size, 3), generator=generator, dtype=torch.uint8)


def draw(rank=0, world=1, seed=0):
    return Draw(torch.Generator().manual_seed(seed), rank, world)


def bcthw(value):
    return value.flatten(0, 1).permute(0, 4, 1, 2, 3).float() / 255


def test_ranks_share_one_draw():
    whole = draw()
    parts = [draw(rank, 3) for rank in range(3)]
    for name, arguments in (("uniform", (-1.0, 2.0)), ("integers", (7,)), ("chance", (0.4,))):
        together = getattr(whole, name)(2, 6, *arguments).view(2, 6)
        split = torch.cat([getattr(part, name)(2, 2, *arguments).view(2, 2) for part in parts], dim=1)
        assert torch.equal(together, split), name


def test_streams_without_augmentation():
    """s is one normalised frame of v (DCLR Eq. 3), d the frame difference over T + 1 frames (Eq. 4), by std only."""
    raw = bcthw(clips())
    rgb, static, difference = Augment(OFF).streams(clips(), draw())
    torch.testing.assert_close(rgb, (raw[:, :, :4] - MEAN) / STD)
    torch.testing.assert_close(difference, (raw[:, :, 1:] - raw[:, :, :4]) / STD)
    assert static.shape == rgb.shape
    for clip, still in zip(rgb, static):
        assert any(torch.allclose(still[:, 0], clip[:, t]) for t in range(4))
        assert all(torch.equal(still[:, t], still[:, 0]) for t in range(4))
    torch.testing.assert_close(difference.sum(2) * STD[..., 0, :, :], raw[:, :, 4] - raw[:, :, 0])


def test_flip_is_shared_by_the_three_streams():
    plain, mirrored = (Augment(AugmentConfig(flip=p, grayscale=0, jitter=0, blur=0)) for p in (0, 1))
    for one, other in zip(plain.streams(clips(), draw()), mirrored.streams(clips(), draw())):
        torch.testing.assert_close(one.flip(-1), other)


def test_difference_has_no_colour_augmentation():
    config = AugmentConfig(flip=0, grayscale=1, jitter=1)
    torch.testing.assert_close(
        Augment(config).streams(clips(), draw()).difference, Augment(OFF).streams(clips(), draw()).difference
    )


@pytest.mark.parametrize("source", ["raw", "augmented"])
def test_roll_wraps_around(source):
    raw = bcthw(clips())[:, :, :4]
    difference = Augment(OFF, "backward_cyclic", source).streams(clips(), draw()).difference * STD
    torch.testing.assert_close(difference[:, :, 0], raw[:, :, 0] - raw[:, :, 3])
    torch.testing.assert_close(difference[:, :, 1:], raw[:, :, 1:] - raw[:, :, :3])


def test_augmented_difference_is_that_of_the_augmented_clip():
    config = AugmentConfig(flip=0.5, blur=0)
    rgb, _, difference = Augment(config, "forward", "augmented").streams(clips(), draw())
    torch.testing.assert_close(difference[:, :, :3], rgb[:, :, 1:] - rgb[:, :, :-1], atol=1e-5, rtol=1e-5)


def test_color_is_shared_or_independent():
    config = AugmentConfig(flip=0, grayscale=0, jitter=1, blur=0)
    frozen = clips()[:, :, :1].expand(-1, -1, 5, -1, -1, -1)
    shared = AugmentConfig(**{**vars(config), "color_shared": True})
    rgb, static, _ = Augment(shared).streams(frozen, draw())
    torch.testing.assert_close(rgb, static)
    rgb, static, _ = Augment(config).streams(frozen, draw())
    assert (rgb - static).abs().amax((1, 2, 3, 4)).min() > 0.01


def test_draws_of_rgb_are_flips_then_colours():
    """Nothing else is drawn where clips keep their backgrounds, and nothing else done."""
    config, drawn, own = AugmentConfig(), draw(), draw()
    rgb = Augment(config).rgb(clips(size=32), drawn)
    raw = bcthw(clips(size=32))[:, :, :4]
    flip, color = own.chance(2, 3, config.flip), draw_color(config, own, 2, 3)
    flipped = torch.where(flip.view(-1, 1, 1, 1, 1), raw.flip(-1), raw)
    torch.testing.assert_close(rgb, (augment_color(flipped, config, color) - MEAN) / STD, atol=1e-5, rtol=0)
    assert torch.equal(drawn.generator.get_state(), own.generator.get_state())


def test_every_frame_gets_the_same_augmentation():
    still = clips(size=32)[:, :, :1].expand(-1, -1, 5, -1, -1, -1)
    rgb = Augment(AugmentConfig()).rgb(still, draw(seed=3))
    assert rgb.shape[2] == 4
    torch.testing.assert_close(rgb, rgb[:, :, :1].expand_as(rgb))


def test_jitter_and_blur_against_kornia_frame_by_frame():
    config = AugmentConfig(flip=0, grayscale=0, jitter=1, blur=1)
    clip = bcthw(clips(size=32))
    color = draw_color(config, draw(), 2, 3)
    got = augment_color(clip, config, color)
    for b in range(6):
        frames = clip[b].transpose(0, 1)
        out = (frames * color.brightness[b]).clamp(0, 1)
        mean = kornia.color.rgb_to_grayscale(out).mean()
        out = (mean + (out - mean) * color.contrast[b]).clamp(0, 1)
        out = kornia.enhance.adjust_saturation(out, color.saturation[b])
        out = kornia.enhance.adjust_hue(out, color.hue[b] * 2 * torch.pi)
        out = kornia.filters.gaussian_blur2d(out, (3, 3), (color.sigma[b].item(),) * 2)
        torch.testing.assert_close(got[b].transpose(0, 1), out, atol=2 / 255, rtol=0)
    assert got.min() >= 0 and got.max() <= 1


def test_probabilities_choose_clips():
    config = AugmentConfig(grayscale=0.5, jitter=0, blur=0)
    clip = bcthw(clips())
    color = draw_color(config, draw(seed=1), 2, 3)
    got = augment_color(clip, config, color)
    assert 0 < color.grayscale.sum() < 6
    for b, gray in enumerate(color.grayscale):
        assert torch.equal(got[b], clip[b]) != gray
        if gray:
            torch.testing.assert_close(got[b][0], got[b][2])


@pytest.fixture
def fused(monkeypatch):
    """The operator in place of kornia, as on a GPU; without one it runs its plain PyTorch reference."""
    monkeypatch.setattr(dclr.augment.streams, "runs_triton", lambda clip: True)


FUSED = {
    "default": AugmentConfig(),
    "shared colours": AugmentConfig(color_shared=True),
    "no blur": AugmentConfig(blur=0),
    "no saturation, no hue": AugmentConfig(saturation=0, hue=0, grayscale=0, jitter=1),
    "strong": AugmentConfig(jitter=1, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur_sigma=(1.0, 3.0)),
    "merged": AugmentConfig(foreground=ForegroundConfig(mask="seed")),
}


@pytest.mark.parametrize("config", FUSED.values(), ids=FUSED)
def test_operator_equals_kornia(config, monkeypatch):
    """The same draws give the same streams: within 1 / 255 before normalising, and the generator moves as far."""
    augment, results, states = Augment(config), [], []
    for operator in (False, True):
        monkeypatch.setattr(dclr.augment.streams, "runs_triton", lambda clip, answer=operator: answer)
        drawn = draw(seed=4)
        results.append([*augment.streams(clips(size=40), drawn), augment.rgb(clips(size=40), drawn)])
        states.append(drawn.generator.get_state())
    for one, other in zip(*results):
        assert one.shape == other.shape and one.dtype == torch.float32
        torch.testing.assert_close(one * STD, other * STD, atol=1 / 255, rtol=0)
    assert torch.equal(*states)
    assert results[1][1].stride(2) == 0


def test_operator_gives_the_encoders_dtype_and_layout(fused):
    with torch.autocast("cpu", torch.bfloat16):
        streams = Augment(AugmentConfig()).streams(clips(size=24), draw())
    for part in (streams.rgb, streams.static[:, :, :1], streams.difference):
        assert part.dtype == torch.bfloat16 and part.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("options", [("backward_cyclic", "augmented"), ("forward", "augmented")])
def test_other_differences_stay_with_kornia(options, fused, monkeypatch):
    """The released code's differences, which the operator does not make."""
    monkeypatch.delattr(dclr.augment.streams, "augment_clip")
    assert Augment(OFF, *options).streams(clips(), draw()).difference.isfinite().all()


@pytest.mark.parametrize(
    "options", [{"flip": 1.5}, {"brightness": -1.0}, {"hue": -0.1}, {"blur_sigma": (2.0, 0.1)}, {"blur_sigma": (0, 1)}]
)
def test_out_of_range(options):
    with pytest.raises(ValueError, match=f"augment.{next(iter(options))}: got "):
        AugmentConfig(**options)
