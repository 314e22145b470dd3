"""What every operator says of arguments of the wrong kind, and that it looks at no values that are not there."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dclr.kernels import (
    Ranges,
    activation_alignment,
    activation_map,
    augment_clip,
    crop_resize_yuv,
    decouple,
    decoupled_pool,
    info_nce,
    info_nce_ranges,
    merge_foreground,
    motion_map,
    topk_similarity,
    weighted_pool,
)

X, ROWS = torch.zeros(4, 8), torch.arange(4)
CLIP, MAP, COLOR = torch.zeros(4, 3, 5, 3, 3), torch.zeros(4, 2, 2, 2, 1), torch.zeros(4, 6)
PLANES, BOXES, MATRICES = torch.zeros(6, dtype=torch.uint8), torch.tensor([[0, 2, 2, 0, 0]]), torch.zeros(1, 3, 4)
TENSOR, INT = "a torch.Tensor", "an int"
# Name of the argument -> a call that gets it wrong, what it must be.
WRONG = [
    ("query", lambda: info_nce([1], X), TENSOR),
    ("positive", lambda: info_nce(X, X, positive=[0, 1]), TENSOR),
    ("exclude", lambda: info_nce(X, X, exclude=[0]), TENSOR),
    ("weight", lambda: info_nce(X, X, weight=0.5), TENSOR),
    ("temperature", lambda: info_nce(X, X, temperature="cold"), "a number"),
    ("scale", lambda: info_nce(X, X, scale=None), "a number"),
    ("where", lambda: info_nce_ranges(X, None), "Ranges"),
    ("positive", lambda: Ranges.of((0,), (0,), [[0]], rows=1, keys=1), TENSOR),
    ("queue", lambda: topk_similarity(X, [X], 2), TENSOR),
    ("k", lambda: topk_similarity(X, X, 2.0), INT),
    ("size", lambda: topk_similarity(X, X, 2, size=2.5), INT),
    ("query_id", lambda: topk_similarity(X, X, 2, query_id=[0], queue_id=[0]), TENSOR),
    ("queue_id", lambda: topk_similarity(X, X, 2, query_id=ROWS), "both query_id and queue_id, or neither"),
    ("query_id", lambda: topk_similarity(X, X, 2, queue_id=ROWS), "both query_id and queue_id, or neither"),
    ("clip", lambda: decouple([1], ROWS), TENSOR),
    ("static_index", lambda: decouple(CLIP, 0), TENSOR),
    ("flip", lambda: decouple(CLIP, ROWS, flip=True), TENSOR),
    ("std", lambda: decouple(CLIP, ROWS, std=0.5), "a value of each of 3 channels"),
    ("clip", lambda: augment_clip([1], COLOR), TENSOR),
    ("color", lambda: augment_clip(CLIP, [1]), TENSOR),
    ("mean", lambda: augment_clip(CLIP, COLOR, mean=0.5), "a value of each of 3 channels"),
    ("blur_size", lambda: augment_clip(CLIP, COLOR, blur_size=3.0), INT),
    ("clip", lambda: motion_map([1]), TENSOR),
    ("background", lambda: merge_foreground(CLIP, [0], X), TENSOR),
    ("geometry", lambda: crop_resize_yuv(PLANES, [0], MATRICES, 1, 2), TENSOR),
    ("frames", lambda: crop_resize_yuv(PLANES, BOXES, MATRICES, 1.5, 2), INT),
    ("size", lambda: crop_resize_yuv(PLANES, BOXES, MATRICES, 1, 2.5), INT),
    ("features", lambda: activation_map([1]), TENSOR),
    ("static", lambda: activation_alignment(MAP, [1], MAP), TENSOR),
    ("activation", lambda: weighted_pool(MAP, [1]), TENSOR),
    ("difference", lambda: decoupled_pool(MAP, MAP, [1]), TENSOR),
]


@pytest.mark.parametrize(("argument", "call", "expected"), WRONG, ids=[name for name, *_ in WRONG])
def test_arguments_of_the_wrong_kind(argument, call, expected):
    with pytest.raises((TypeError, ValueError), match=f"^{argument}: got .*, expected {expected}"):
        call()


# Of rows (4, 8) and of four indices.
INDEXED = {
    "info_nce": lambda x, rows: info_nce(x, x, positive=rows, exclude=rows),
    "decouple": lambda x, rows: decouple(x.view(4, 1, 2, 2, 2), rows).rgb,
    "merge_foreground": lambda x, rows: merge_foreground(x[:, :6].reshape(4, 3, 2, 1, 1), rows, x[:, :1].view(4, 1, 1)),
}


@pytest.mark.parametrize("name", INDEXED)
def test_fake_tensors_have_no_values(name):
    """The values of a fake tensor are not there; the shapes of the results are."""
    expected = INDEXED[name](X, torch.zeros(4, dtype=torch.int64)).shape
    with FakeTensorMode():
        assert INDEXED[name](torch.empty(4, 8), torch.empty(4, dtype=torch.int64)).shape == expected


@pytest.mark.parametrize("name", INDEXED)
def test_vmap_is_one_call_after_the_other(name):
    x, rows = torch.rand(3, 4, 8), torch.zeros(3, 4, dtype=torch.int64)
    expected = torch.stack([INDEXED[name](*pair) for pair in zip(x, rows)])
    torch.testing.assert_close(torch.vmap(INDEXED[name])(x, rows), expected)
