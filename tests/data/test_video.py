import os
import pickle

import av
import numpy as np
import pytest

from dclr.data import VideoError, count_frames, read_clips, seeking
from dclr.data.seeking import learn

from . import conftest as make

READABLE = ("h264", "avi", "ten bit", "variable rate", "full range", "metadata", "header", "colon", "gaps")
TURNS = {
    "quarter": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "half": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "three quarters": ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
    "mirror": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "transpose": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
}


@pytest.mark.parametrize("seek", [False, True])
@pytest.mark.parametrize("kind", READABLE)
def test_frames_are_exact(files, kind, seek):
    assert count_frames(files[kind]) == 30
    clips = read_clips(files[kind], [13, 0, 4], 5, 4, known=learn(files[kind]) if seek else None)
    assert clips.shape == (3, 5, make.HEIGHT, make.WIDTH, 3) and clips.dtype == np.uint8
    assert make.numbers_of(clips) == [[13, 17, 21, 25, 29], [0, 4, 8, 12, 16], [4, 8, 12, 16, 20]]
    assert make.numbers_of(make.read_all(files[kind])[None]) == [list(range(30))]


@pytest.mark.parametrize("seek", [False, True])
@pytest.mark.parametrize("kind", ["h264", "avi"])
def test_past_the_end_the_video_starts_again(files, kind, seek):
    clips = read_clips(files[kind], [25, 29, 61], 4, 3, known=learn(files[kind]) if seek else None)
    assert make.numbers_of(clips) == [[25, 28, 1, 4], [29, 2, 5, 8], [1, 4, 7, 10]]


def test_the_files_are_as_awkward_as_they_say(files):
    with av.open(str(files["avi"])) as container:
        frames = list(container.decode(video=0))
        assert any(frame.pict_type == av.video.frame.PictureType.B for frame in frames)
    with av.open(str(files["header"])) as container:
        assert container.streams.video[0].frames == 32
    with pytest.raises(UnicodeDecodeError), av.open(str(files["metadata"])) as container:
        print(container.metadata)
    with av.open(str(files["ten bit"])) as container:
        assert next(container.decode(video=0)).format.name == "yuv420p10le"


def test_decoding_stops_at_the_last_needed_frame(files, monkeypatch):
    decoded = []
    frames = seeking.decoded_frames

    def counted(path):
        for frame in frames(path):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(seeking, "decoded_frames", counted)
    read_clips(files["h264"], [3, 0], 4, 2)
    assert len(decoded) == 10
    decoded.clear()
    read_clips(files["h264"], [20, 3], 10, 1)
    assert len(decoded) == 30


@pytest.mark.parametrize("turn", TURNS)
def test_rotation_is_applied(files, tmp_path, turn):
    matrix, expected = TURNS[turn]
    turned = make.patch(files["h264"], tmp_path / "turned.mp4", b"tkhd", 44, make.display_matrix(*matrix))
    plain, upright = read_clips(files["h264"], [5], 2), read_clips(turned, [5], 2)
    assert upright.flags.c_contiguous
    np.testing.assert_array_equal(upright[0, 1], expected(plain[0, 1]))


@pytest.mark.parametrize("colorspace, red, blue", [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (2, 0.299, 0.114)])
@pytest.mark.parametrize("color_range", [1, 2])
def test_colour_against_the_standard(tmp_path, colorspace, red, blue, color_range):
    """Patches of one colour each, by the definitions of BT.709 and BT.601; without a mark it is BT.601."""
    patches = np.random.default_rng(0).uniform(0.05, 0.95, (3, 4, 3))
    r, g, b = np.moveaxis(patches, -1, 0)
    luma = red * r + (1 - red - blue) * g + blue * b
    cb, cr = (b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)
    foot, luma_range, chroma_range = (0, 255, 255) if color_range == 2 else (16, 219, 224)
    planes = np.round([foot + luma_range * luma, 128 + chroma_range * cb, 128 + chroma_range * cr])
    luma = (planes[0] - foot) / luma_range
    cb, cr = (planes[1:] - 128) / chroma_range
    r, b = luma + (2 - 2 * red) * cr, luma + (2 - 2 * blue) * cb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    flat = [np.kron(plane, np.ones((n, n))).ravel() for plane, n in zip(planes, (16, 8, 8))]
    path = make.write(
        tmp_path / "colour.mp4",
        [np.concatenate(flat).astype(np.uint8).reshape(make.HEIGHT * 3 // 2, make.WIDTH)] * 2,
        picture_format="yuv420p",
        options={"qp": "0"},
        colorspace=colorspace,
        color_range=color_range,
    )
    got = read_clips(path, [0], 2)[0, 1, 8::16, 8::16].astype(float)
    # FFmpeg's fast conversion, which is the expected one, is itself up to 2.4 off the exact value.
    assert np.abs(got - 255 * np.stack([r, g, b], axis=-1)).max() <= 2.5


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
def test_colour_equals_the_scale_filter(tmp_path, pix_fmt):
    noise = np.random.default_rng(0).integers(0, 256, (make.HEIGHT, make.WIDTH, 3), dtype=np.uint8)
    path = make.write(tmp_path / "noise.mkv", [noise] * 2, "ffv1", pix_fmt)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        nodes = [graph.add_buffer(template=stream), graph.add("scale", "flags=bicubic")]
        graph.link_nodes(*nodes, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        graph.push(next(container.decode(stream)))
        expected = graph.pull().to_ndarray()
    got = read_clips(path, [0], 1)[0, 0]
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= 2


@pytest.mark.parametrize("kind", ["truncated", "damaged"])
def test_truncated_files_give_what_decodes(files, kind):
    count = count_frames(files[kind])
    [shown] = make.numbers_of(make.read_all(files[kind])[None])
    assert 10 < count == len(shown) < 20
    assert shown[:10] == list(range(10)) and shown == sorted(shown)
    assert make.numbers_of(read_clips(files[kind], [count - 2], 4)) == [[*shown[-2:], 0, 1]]


def test_a_broken_packet_is_left_out(files, tmp_path):
    broken = tmp_path / "broken.avi"
    broken.write_bytes(files["avi"].read_bytes())
    with av.open(str(files["avi"])) as container:
        packet = list(container.demux(video=0))[12]
    data = bytearray(broken.read_bytes())
    data[packet.pos + 8 : packet.pos + 8 + packet.size] = bytes(packet.size)
    broken.write_bytes(data)
    assert 25 <= count_frames(broken) < 30
    assert read_clips(broken, [20], 3).shape == (1, 3, make.HEIGHT, make.WIDTH, 3)


def test_frames_of_another_size_are_scaled_to_the_first(tmp_path):
    """A raw mpeg4 stream of two sizes."""
    parts = []
    for i, scale in enumerate((1, 2)):
        pictures = [np.kron(make.numbered(4 * i + n), np.ones((scale, scale, 1), np.uint8)) for n in range(4)]
        frames = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures]
        path = tmp_path / f"{i}.m4v"
        with av.open(str(path), "w", format="m4v") as container:
            stream = container.add_stream("mpeg4", rate=25, options={"qscale": "2"})
            stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts.append(path.read_bytes())
    joined = tmp_path / "joined.m4v"
    joined.write_bytes(b"".join(parts))
    clips = read_clips(joined, [0], 8)
    assert clips.shape[2:4] == (make.HEIGHT, make.WIDTH)
    assert make.numbers_of(clips) == [list(range(8))]


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("no index", "not a video"),
        ("audio", "no video stream"),
        ("zero frames", "no frame of it decodes"),
        ("text", "not a video"),
        ("empty", "not a video"),
        ("folder", "directory"),
        ("nowhere", "No such file"),
    ],
)
@pytest.mark.parametrize("reader", [count_frames, make.read_all, learn, lambda path: read_clips(path, [0], 2)])
def test_what_cannot_be_read_is_named(files, kind, reason, reader):
    with pytest.raises(VideoError, match=reason) as caught:
        reader(files[kind])
    assert caught.value.path == str(files[kind]) and str(caught.value).startswith(f"{files[kind]}: ")


def test_permission(files, tmp_path):
    path = tmp_path / "closed.mp4"
    path.write_bytes(files["h264"].read_bytes())
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(VideoError, match="Permission denied"):
            count_frames(path)
    finally:
        os.seteuid(user)


def test_video_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "is odd")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "is odd", "a.mp4: is odd")


@pytest.mark.parametrize("starts, frames, stride", [([-1], 1, 1), ([], 1, 1), ([0], 0, 1), ([0], 1, 0)])
def test_arguments(files, starts, frames, stride):
    with pytest.raises(ValueError, match="read_clips"):
        read_clips(files["h264"], starts, frames, stride)
