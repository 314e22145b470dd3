"""Bytes that `augment_clip` asks for, against its schedule: two passes over what is read, one more where it is blurred.

Each result is written once. The input is read once for all that is done pixel by pixel; once before, where the contrast
is drawn, for the mean that it turns about; and once more, tile by tile with a border, where the blur is drawn.
"""

import pytest
import torch

from benchmarks.traffic import count_traffic
from dclr.kernels import augment_clip
from dclr.kernels.augment.kernel import tile_size

from .test_augment import make_clip

FRAMES, HEIGHT, WIDTH, RADIUS = 4, 66, 40, 3
PLAIN, JITTERED, BLURRED = (0, 1, 1, 1, 0, 0), (0, 0.9, 1.2, 0.8, 0.1, 0), (1, 0.9, 1.2, 0.8, 0.1, 1.5)


def with_border(length):
    """Pixels that the tiles along an axis read together."""
    tile = tile_size(length, RADIUS)
    starts = range(0, length, tile)
    return sum(min(start + tile + RADIUS, length) - max(start - RADIUS, 0) for start in starts)


def frames_read(row, frames):
    """Passes over `frames` frames with these colours, other than the one for the difference."""
    mean = row[2] != 1
    border = with_border(HEIGHT) * with_border(WIDTH) / (HEIGHT * WIDTH)
    return frames * (mean + border * (row[5] > 0))


@pytest.mark.parametrize("into", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("static_row", [PLAIN, BLURRED], ids=["plain s", "blurred s"])
@pytest.mark.parametrize("row", [PLAIN, JITTERED, BLURRED], ids=["plain", "jittered", "blurred"])
def test_streams(row, static_row, into):
    clip, index = make_clip((1, FRAMES + 1, HEIGHT, WIDTH)), torch.zeros(1, dtype=torch.int64)
    colors = [torch.tensor([values], dtype=torch.float32) for values in (row, static_row)]
    with count_traffic() as traffic:
        results = augment_clip(
            clip, colors[0], static_index=index, static_color=colors[1], blur_size=2 * RADIUS + 1, dtype=into
        )
    # The static frame is read again where it is not blurred: it is known only while the clip goes by.
    frames = FRAMES + 1 + frames_read(row, FRAMES) + frames_read(static_row, 1) + (static_row[5] == 0)
    hold(traffic, frames, results, launches=3)


@pytest.mark.parametrize("row", [PLAIN, JITTERED, BLURRED], ids=["plain", "jittered", "blurred"])
def test_rgb_alone(row):
    clip, color = make_clip((1, FRAMES, HEIGHT, WIDTH)), torch.tensor([row], dtype=torch.float32)
    with count_traffic() as traffic:
        rgb = augment_clip(clip, color, blur_size=2 * RADIUS + 1, dtype=torch.bfloat16).rgb
    hold(traffic, FRAMES * (row[5] == 0) + frames_read(row, FRAMES), [rgb], launches=3)


def test_without_a_blur_there_are_two_launches():
    clip, color = make_clip((1, FRAMES, HEIGHT, WIDTH)), torch.tensor([JITTERED])
    with count_traffic() as traffic:
        rgb = augment_clip(clip, color).rgb
    hold(traffic, 2 * FRAMES, [rgb], launches=2)


def hold(traffic, frames, results, launches):
    """Written exactly once; read as often as the schedule says, but for the few values of each tile's clip."""
    written = sum(result.numel() * result.element_size() for result in results)
    schedule = frames * 3 * HEIGHT * WIDTH + written
    luma = traffic.per_kernel["luma_kernel"].bytes_stored
    assert traffic.launches == launches
    assert set(traffic.torch_ops) <= {"aten::min", "aten::max"}  # of the index, checked where it is on the CPU
    assert traffic.bytes_stored - luma == traffic.unique_bytes_stored - luma == written
    assert schedule <= traffic.bytes <= 1.1 * schedule, traffic.bytes / schedule
