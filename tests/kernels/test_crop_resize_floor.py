"""Bytes that `crop_resize_yuv` asks for, against its schedule: each result once, the pixels under each one's filter.

Neighbouring results share most of what they read: a GPU has it in its cache. Without any cache it would be counted as
here, about (2 h / size) (2 w / size) luma pixels and half as much chroma for each result.
"""

import pytest
import torch

from benchmarks.traffic import count_traffic
from dclr.kernels import crop_resize_yuv

from .test_crop_resize import make_crops, triangle

FRAMES = 2


def positions(length, odd, size):
    """Of each result along an axis: pixels under its filter, and pairs of them."""
    used = triangle(length, size) > 0
    pairs = (torch.arange(length) + odd) // 2
    shared = torch.stack([used[:, pairs == pair].any(1) for pair in range(int(pairs[-1]) + 1)], 1)
    return used.sum(1), shared.sum(1)


@pytest.mark.parametrize("box", [(20, 17, 1, 1), (12, 12, 0, 0), (5, 15, 1, 0)], ids=str)
@pytest.mark.parametrize("size", [6, 9])
def test_traffic(box, size):
    crops = make_crops([box], FRAMES)
    with count_traffic() as traffic:
        result = crop_resize_yuv(*crops, FRAMES, size)
    h, w, odd_h, odd_w = box
    (rows, row_pairs), (columns, column_pairs) = positions(h, odd_h, size), positions(w, odd_w, size)
    read = FRAMES * (torch.outer(rows, columns) + 2 * torch.outer(row_pairs, column_pairs)).sum().item()
    assert traffic.launches == 1 and not traffic.torch_ops
    assert traffic.bytes_stored == traffic.unique_bytes_stored == result.numel()
    # The few values of the clip's box and matrix come on top, for each program.
    assert read <= traffic.bytes_loaded <= read + 100 * FRAMES * -(-size * size // 256)
