"""`crop_resize_yuv` as an operator: checks, compilation, export, fake tensors; what it says of wrong arguments."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dclr.kernels import crop_resize_yuv

from .helpers import compiled_for_all_sizes
from .test_crop_resize import BOXES, make_crops


def test_opcheck():
    for boxes in (BOXES, []):
        torch.library.opcheck(torch.ops.dclr.crop_resize_yuv.default, (*make_crops(boxes), 2, 6))


def test_one_graph_serves_all_batches():
    compiled, graphs = compiled_for_all_sizes(lambda *crops: crop_resize_yuv(*crops, 2, 6))
    for count in (2, 5, 8):
        crops = make_crops(BOXES[:count])
        assert torch.equal(compiled(*crops), crop_resize_yuv(*crops, 2, 6))
    assert len(graphs) == 1


def test_exported():
    class Clips(torch.nn.Module):
        def forward(self, *crops):
            return crop_resize_yuv(*crops, 2, 6)

    program = torch.export.export(Clips(), make_crops())
    assert torch.equal(program.module()(*make_crops()), crop_resize_yuv(*make_crops(), 2, 6))


def test_fake_tensors():
    with FakeTensorMode():
        planes = torch.empty(1000, dtype=torch.uint8, device="cuda")
        geometry = torch.empty(3, 5, dtype=torch.int64, device="cuda")
        clips = crop_resize_yuv(planes, geometry, torch.empty(3, 3, 4, device="cuda"), 17, 112)
    assert clips.shape == (3, 17, 112, 112, 3) and clips.dtype == torch.uint8 and clips.device.type == "cuda"


def changed(geometry, row, column, value):
    geometry = geometry.clone()
    geometry[row, column] = value
    return geometry


def bad_arguments():
    planes, geometry, matrix = make_crops()
    yield (planes.int(), geometry, matrix, 2, 6), TypeError, "planes: got torch.int32"
    yield (planes[None], geometry, matrix, 2, 6), ValueError, "planes"
    yield (planes, geometry.int(), matrix, 2, 6), TypeError, "geometry"
    yield (planes, geometry[:, :4], matrix, 2, 6), ValueError, "geometry"
    yield (planes, geometry[0], matrix[0], 2, 6), ValueError, "geometry"
    yield (planes, geometry, matrix.double(), 2, 6), TypeError, "matrix"
    yield (planes, geometry, matrix[1:], 2, 6), ValueError, "matrix"
    yield (planes, geometry, matrix[:, :, :3], 2, 6), ValueError, "matrix"
    yield (planes, geometry, matrix.to("meta"), 2, 6), ValueError, "matrix on meta"
    yield (planes, geometry, matrix, 0, 6), ValueError, "frames: got 0"
    yield (planes, geometry, matrix, 2, 0), ValueError, "size: got 0"
    yield (planes, geometry, matrix, 2, 2**15), ValueError, "size: got 32768"
    for row, column, value in ((3, 0, -1), (3, 1, 0), (3, 2, -4), (3, 3, 2), (3, 4, -1), (7, 0, 10**9)):
        yield (planes, changed(geometry, row, column, value), matrix, 2, 6), ValueError, f"geometry\\[{row}\\]"
    yield (planes, geometry, matrix, 3, 6), ValueError, "geometry\\[7\\]: .* a box of 3 frames in"


@pytest.mark.parametrize("arguments, error, message", list(bad_arguments()))
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        crop_resize_yuv(*arguments)
