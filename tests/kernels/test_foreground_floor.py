"""Bytes that FAME's passes over whole clips ask for: each element read once and each result written once."""

import pytest
import torch

from benchmarks.traffic import count_traffic
from dclr.augment import Augment, AugmentConfig, Draw
from dclr.augment.foreground import ForegroundConfig
from dclr.kernels import merge_foreground, motion_map

from .helpers import size
from .test_foreground import draw, make_clip

SHAPE = (4, 3, 17, 8, 32)


def hold(traffic, read, written):
    """One launch; written exactly once, read once, but for the few values that a tile has of its clip."""
    assert traffic.launches == 1
    assert set(traffic.torch_ops) <= {"aten::min", "aten::max"}  # of the index, checked where it is on the CPU
    assert traffic.bytes_stored == traffic.unique_bytes_stored == size(*written)
    floor = read + size(*written)
    assert floor <= traffic.bytes <= 1.05 * floor, traffic.bytes / floor


@pytest.mark.parametrize("layout", ["planar", "decoded"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_motion(dtype, layout):
    clip, flip = make_clip(SHAPE, dtype, layout), draw(SHAPE)[2]
    with count_traffic() as traffic:
        results = motion_map(clip, flip=flip)
    hold(traffic, size(clip), results)


@pytest.mark.parametrize("count", [4, 2])
@pytest.mark.parametrize("layout", ["planar", "decoded"])
@pytest.mark.parametrize("into", [torch.uint8, torch.float32], ids=str)
def test_hard_merge_reads_one_of_the_two(into, layout, count):
    clip, (background, weight, flip) = make_clip(SHAPE, layout=layout), draw(SHAPE, count)
    with count_traffic() as traffic:
        merged = merge_foreground(clip, background, weight, flip=flip, dtype=into)
    hold(traffic, size(clip, weight), [merged])


def test_soft_merge_reads_both():
    clip, (background, weight, flip) = make_clip(SHAPE), draw(SHAPE)
    weight = weight / 2 + 0.25
    with count_traffic() as traffic:
        merged = merge_foreground(clip, background, weight, flip=flip, dtype=torch.float32)
    hold(traffic, 2 * size(clip) + size(weight), [merged])


def test_augmentation_takes_each_pass_once():
    """FAME in front of the colours: the seed and the merge, of bytes, and then what the colours do without FAME."""
    clips = torch.randint(256, (2, 2, 9, 16, 16, 3), dtype=torch.uint8)

    def kernels(mask):
        augment = Augment(AugmentConfig(foreground=ForegroundConfig(mask=mask, views="both")))
        with count_traffic() as traffic:
            augment.streams(clips, Draw(torch.Generator().manual_seed(0)))
        return {name: kernel.bytes_loaded + kernel.bytes_stored for name, kernel in traffic.per_kernel.items()}

    plain, merged = kernels("none"), kernels("fame")
    assert set(merged) - set(plain) == {"motion_kernel", "merge_kernel"}
    assert merged["merge_kernel"] <= 1.05 * (2 * clips.numel() + 4 * 4 * 16 * 16)
    assert all(abs(merged[name] - count) <= 0.01 * count for name, count in plain.items())
