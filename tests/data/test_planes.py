"""Clips as planes: what the decoder gave, and on the device the same crops as from RGB, of every kind of file."""

from functools import partial

import av
import numpy as np
import pytest
import torch

from dclr.data import PretrainClips, VideoDataset, VideoError, build_pretrain_loader, read_clips
from dclr.data.clips import crop_resize
from dclr.data.loader import to_device
from dclr.data.pictures import RGBClips
from dclr.data.planes import BT601, BT709, PlanarCrops, ToPlanes, rgb_matrix
from dclr.data.prepared import write_prepared
from dclr.data.seeking import learn

from . import conftest as make
from .test_video import READABLE, TURNS

CPU = torch.device("cpu")


def scene(height, width, seed=0):
    """A smooth picture with all colours but those at the ends of the range."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / 12
    waves = [np.sin(rows * a + columns * b + c) for a, b, c in rng.uniform(-1, 1, (3, 3))]
    return np.round(128 + 60 * np.stack(waves, -1)).astype(np.uint8)


def write_scenes(path, height, width, pix_fmt="yuv420p", colorspace=5, color_range=1, count=4):
    """Lossless, from RGB pictures; FFV1 takes odd sizes too."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, color_range
        for seed in range(count):
            frame = av.VideoFrame.from_ndarray(scene(height, width, seed), format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=colorspace, dst_color_range=color_range)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


class PlanarClips:
    """Whole frames: (S, F) lists of `Planes`."""

    def __init__(self, first, clips, frames):
        self.convert = ToPlanes(first)
        self.clips = [[None] * frames for _ in range(clips)]

    def put(self, frame, places):
        for s, f in places:
            self.clips[s][f] = self.convert(frame)

    def done(self):
        return self


def crops_of(path, starts, frames, boxes, size, known=None):
    into = partial(PlanarCrops, draw=lambda height, width: boxes, size=size)
    packed = read_clips(path, starts, frames, 1, into, known)
    return packed._replace(geometry=packed.geometry[:, None], matrix=packed.matrix[:, None]).to_rgb(CPU)[:, 0]


def differences(path, boxes, size, starts=(0,), frames=2, known=None):
    """Mean and largest difference, in 255ths, between the crops from planes and from RGB."""
    clips = torch.from_numpy(read_clips(path, starts, frames, known=known))
    expected = torch.stack([crop_resize(clip, box, size) for clip, box in zip(clips, boxes, strict=True)])
    difference = (crops_of(path, starts, frames, boxes, size, known).int() - expected.int()).abs()
    return difference.float().mean().item(), difference.max().item()


def padded(planes):
    """(Y, U, V) of one frame as arrays of the whole picture, the chroma repeated."""
    height, width = planes.y.shape
    return [planes.y, *(part.repeat(2, 0).repeat(2, 1)[:height, :width] for part in planes[1:])]


@pytest.mark.parametrize("kind", READABLE)
def test_frames_are_exact(files, kind):
    video = read_clips(files[kind], [13, 28], 4, 3, PlanarClips, learn(files[kind]))
    assert video.convert.size == (make.HEIGHT, make.WIDTH) and video.convert.offset == (0, 0)
    lumas = np.stack([[np.repeat(frame.y[..., None], 3, 2) for frame in clip] for clip in video.clips])
    assert make.numbers_of(lumas) == [[13, 16, 19, 22], [28, 1, 4, 7]]


@pytest.mark.parametrize("height, width", [(48, 64), (49, 63), (1, 1)])
def test_planes_are_those_of_the_decoder(tmp_path, height, width):
    path = write_scenes(tmp_path / "a.mkv", height, width)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    [[first, _, third]] = read_clips(path, [0], 3, 1, PlanarClips).clips
    for planes, frame in ((first, frames[0]), (third, frames[2])):
        for mine, plane in zip(planes, frame.planes, strict=True):
            rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
            np.testing.assert_array_equal(mine, rows[:, : plane.width])
        assert planes.u.shape == planes.v.shape == (-(-height // 2), -(-width // 2))


# Pixel format, colour space, range; mean and largest difference allowed. FFmpeg's fast conversion of 4:2:0 is itself
# off the exact one, by 1.1 in the mean and up to 2.8. The others lose chroma or bits on their way to 8-bit 4:2:0.
KINDS = {
    "601": ("yuv420p", 5, 1, 1.6, 4),
    "709": ("yuv420p", 1, 1, 1.6, 4),
    "2020": ("yuv420p", 9, 1, 1.6, 4),
    "unmarked": ("yuv420p", 2, 0, 1.6, 4),
    "full": ("yuv420p", 5, 2, 1.6, 4),
    "full 709": ("yuv420p", 1, 2, 1.6, 4),
    "ten bit": ("yuv420p10le", 1, 1, 2.0, 8),
    "444": ("yuv444p", 5, 1, 2.0, 8),
    "full 444": ("yuv444p", 5, 2, 2.0, 8),
    "422": ("yuv422p", 5, 1, 2.0, 8),
    "rgb": ("bgr0", 0, 2, 2.0, 8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_crops_equal_those_of_rgb(tmp_path, kind):
    pix_fmt, colorspace, color_range, mean, largest = KINDS[kind]
    path = write_scenes(tmp_path / "a.mkv", 96, 128, pix_fmt, colorspace, color_range)
    for box, size in (((0, 0, 96, 128), 32), ((3, 5, 61, 47), 32), ((10, 21, 20, 25), 48), ((95, 127, 1, 1), 4)):
        found = differences(path, [box], size)
        assert found[0] <= mean and found[1] <= largest, (box, size, found)


@pytest.mark.parametrize("height, width", [(97, 127), (97, 128), (96, 127)])
def test_crops_of_odd_frames(tmp_path, height, width):
    """Of an odd height FFmpeg interpolates the chroma."""
    path = write_scenes(tmp_path / "a.mkv", height, width)
    for box in ((0, 0, height, width), (height - 40, width - 50, 40, 50), (height - 1, width - 1, 1, 1)):
        mean, largest = differences(path, [box], 32)
        assert mean <= 1.8 and largest <= 8, (box, mean, largest)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("height, width", [(48, 64), (47, 63)])
def test_rotation_is_applied(tmp_path, monkeypatch, turn, height, width):
    """As to the RGB picture: each pixel keeps its chroma, on odd sides too."""
    matrix, expected = TURNS[turn]
    path = write_scenes(tmp_path / "a.mkv", height, width)
    plain = read_clips(path, [0], 1, 1, PlanarClips)
    turned_by = np.array(matrix).reshape(2, 2)
    monkeypatch.setattr("dclr.data.planes.display_matrix", lambda frame: turned_by)
    video = read_clips(path, [0], 1, 1, PlanarClips)
    upright = [expected(part) for part in padded(plain.clips[0][0])]
    size = video.convert.size
    assert size == upright[0].shape
    rows, columns = ((np.arange(n) + offset) // 2 for n, offset in zip(size, video.convert.offset))
    y, u, v = video.clips[0][0]
    for mine, wanted in zip((y, u[np.ix_(rows, columns)], v[np.ix_(rows, columns)]), upright):
        np.testing.assert_array_equal(mine, wanted)
    pixels = np.random.default_rng(0).integers(0, size, (40, 2)).tolist()
    crops = crops_of(path, [0], 1, [(row, column, 1, 1) for row, column in pixels], 1).flatten(1)
    exact = [video.convert.matrix @ [*(part[row, column] for part in upright), 1] for row, column in pixels]
    assert np.abs(crops.numpy() - np.clip(exact, 0, 255)).max() <= 0.5 + 1e-3


def test_rotation_marked_in_the_file(files, tmp_path):
    turned = make.patch(files["h264"], tmp_path / "t.mp4", b"tkhd", 44, make.display_matrix(*TURNS["quarter"][0]))
    mean, largest = differences(turned, [(1, 2, 51, 40)], 24)
    assert mean <= 1.5 and largest <= 4


def test_frames_of_another_size_are_scaled_to_the_first(tmp_path):
    """A raw h264 stream of two sizes."""
    small = make.write(tmp_path / "small.h264", [make.numbered(n) for n in range(3)])
    with av.open(str(tmp_path / "large.h264"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 2 * make.WIDTH, 2 * make.HEIGHT, "yuv420p"
        for n in range(3, 6):
            picture = np.kron(make.numbered(n), np.ones((2, 2, 1), np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    joined = tmp_path / "joined.h264"
    joined.write_bytes(small.read_bytes() + (tmp_path / "large.h264").read_bytes())
    [clip] = read_clips(joined, [0], 6, 1, PlanarClips).clips
    lumas = np.stack([np.repeat(frame.y[..., None], 3, 2) for frame in clip])
    assert lumas.shape == (6, make.HEIGHT, make.WIDTH, 3) and make.numbers_of(lumas[None]) == [list(range(6))]
    mean, largest = differences(joined, [(0, 0, 48, 64)], 24, frames=6)
    assert mean <= 1.6 and largest <= 4


def test_prepared(files, tmp_path):
    copy = tmp_path / "copy.mp4"
    known = write_prepared(files["h264"], copy)
    mean, largest = differences(copy, [(1, 2, 40, 51), (0, 0, 48, 64)], 24, (13, 28), known=known)
    assert mean <= 1.5 and largest <= 4


def test_colours_that_have_no_matrix(tmp_path):
    """YCgCo: a failure from planes as from RGB."""
    path = make.write(tmp_path / "a.mp4", [make.numbered(1)] * 2, colorspace=8)
    for into in (RGBClips, PlanarClips):
        with pytest.raises(VideoError, match="frame 0 cannot be converted to RGB"):
            read_clips(path, [0], 1, 1, into)


@pytest.mark.parametrize("shares", [BT601, BT709])
@pytest.mark.parametrize("full", [True, False])
def test_matrix(shares, full):
    """Gray is gray, from black to white; the primaries come back from their definition."""
    red, blue = shares
    foot, luma, chroma = (0, 1, 1) if full else (16, 219 / 255, 224 / 255)
    for r, g, b in ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 90, 200)):
        y = red * r + (1 - red - blue) * g + blue * b
        u, v = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
        yuv = [foot + luma * y, 128 + chroma * u, 128 + chroma * v, 1]
        np.testing.assert_allclose(rgb_matrix(red, blue, full) @ yuv, [r, g, b], atol=1e-3)


def dataset_of(files, *kinds):
    return VideoDataset("test", tuple(str(files[kind]) for kind in kinds), tuple(range(len(kinds))), ())


def clips_of(files, planes, **options):
    videos = dataset_of(files, "h264", "avi", "text", "full range", "ten bit")
    return PretrainClips(videos, frames=3, size=16, seed=7, planes=planes, **options)


def assert_same_batches(got, expected):
    for mine, batch in zip(got, expected, strict=True):
        assert mine.clips.shape == batch.clips.shape and mine.clips.dtype == torch.uint8
        difference = (mine.clips.int() - batch.clips.int()).abs()
        assert difference.float().mean() <= 1.5 and difference.max() <= 8, difference.max()
        assert torch.equal(mine.video_id, batch.video_id) and torch.equal(mine.label, batch.label)
        assert list(map(str, mine.failures)) == list(map(str, batch.failures))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_rgb(files, workers):
    expected = list(build_pretrain_loader(clips_of(files, planes=False), 2))
    packed = build_pretrain_loader(clips_of(files, planes=True), 2, workers=workers)
    assert_same_batches(to_device(packed, CPU), expected)
    assert any(batch.failures for batch in expected)


@pytest.mark.parametrize("options", [{"crops": 2}, {"cache": "memory"}], ids=str)
def test_crops_and_cache(files, options):
    expected = list(build_pretrain_loader(clips_of(files, planes=False, **options), 5))
    assert_same_batches(to_device(build_pretrain_loader(clips_of(files, True, **options), 5), CPU), expected)


def test_a_sample_holds_its_boxes_alone(files):
    sample = clips_of(files, planes=True)[0, 0]
    planes, geometry, matrix, frames, size = sample.clips
    assert (frames, size) == (4, 16) and geometry.shape == (2, 5) and matrix.shape == (2, 3, 4)
    _, h, w, odd_h, odd_w = geometry.unbind(1)
    lengths = frames * (h * w + 2 * ((h + odd_h + 1) // 2) * ((w + odd_w + 1) // 2))
    assert geometry[:, 0].tolist() == [0, lengths[0].item()] and len(planes) == lengths.sum()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu(files):
    loader = build_pretrain_loader(clips_of(files, planes=True), 2)
    assert all(tensor.is_pinned() for tensor in next(iter(loader)).clips[:3])
    for got, expected in zip(to_device(loader, torch.device("cuda")), to_device(loader, CPU), strict=True):
        assert (got.clips.cpu().int() - expected.clips.int()).abs().max() <= 1
