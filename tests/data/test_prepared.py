"""Prepared copies of single videos."""

import os
import resource
import signal

import av
import numpy as np
import pytest

from dclr.data import VideoError, count_frames, read_clips
from dclr.data import prepared as prepared_module
from dclr.data.prepared import is_prepared, small_size, write_prepared
from dclr.data.seeking import learn

from . import conftest as make
from .test_video import READABLE, TURNS


def noise(path, frames, height, width, **options):
    pictures = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode(None))
    return path


def wipe(path, numbers):
    """Overwrites the packets of these numbers with zeros."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for number in numbers:
        packet = packets[number]
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)


def read_prepared(path, starts, frames, stride=1):
    return read_clips(path, starts, frames, stride, known=learn(path))


@pytest.fixture(scope="module")
def copy(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared") / "copy.mp4"
    write_prepared(files["h264"], path)
    return path


@pytest.mark.parametrize("kind", READABLE)
def test_every_frame_once_and_in_order(files, tmp_path, kind):
    path = tmp_path / files[kind].name
    known = write_prepared(files[kind], path)
    assert known == learn(path) and is_prepared(known) and known.count == count_frames(path) == 30
    assert make.numbers_of(make.read_all(path)[None]) == [list(range(30))]
    assert make.numbers_of(read_prepared(path, [13, 0, 28], 4, 3)) == [[13, 16, 19, 22], [0, 3, 6, 9], [28, 1, 4, 7]]
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["a.avi", "a.mp4", "a.mov", "a.mkv", "a.webm", "a.wmv", "a.MPG", "a", "a: b %d.avi"])
def test_the_file_has_the_promised_form(files, tmp_path, name):
    path = tmp_path / name
    write_prepared(files["gaps"], path)
    with av.open(f"file:{path}") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("mpeg4", "yuv420p")
        assert abs(stream.average_rate - 25) < 0.1 and len(container.streams) == 1
        frames = list(container.decode(stream))
        assert not any(frame.pict_type == av.video.frame.PictureType.B for frame in frames)
        times = [frame.pts * frame.time_base for frame in frames]
    assert [n for n, frame in enumerate(frames) if frame.key_frame] == [0, 8, 16, 24]
    assert sorted(set(times)) == times
    assert learn(path).count == 30
    for starts in ([0, 29], [7, 8], [70, 3]):
        np.testing.assert_array_equal(read_prepared(path, starts, 9, 2), read_clips(path, starts, 9, 2))


def test_only_the_groups_of_the_wanted_frames_are_decoded(copy, tmp_path):
    path = tmp_path / "holes.mp4"
    path.write_bytes(copy.read_bytes())
    known = learn(path)
    expected = read_clips(path, [10, 16], 3, known=known)
    wipe(path, [*range(8), 13, 14, 15, *range(19, 30)])
    np.testing.assert_array_equal(read_clips(path, [10, 16], 3, known=known), expected)
    with pytest.raises(VideoError, match="had 30 frames, and now 13 decode"):
        read_clips(path, [12], 3, known=known)


@pytest.mark.parametrize("kind", ["truncated", "damaged"])
def test_damaged_videos_keep_the_frames_that_decode(files, tmp_path, kind):
    count = write_prepared(files[kind], tmp_path / "copy.avi").count
    assert count == count_frames(files[kind]) == count_frames(tmp_path / "copy.avi")
    copied, original = (make.numbers_of(make.read_all(path)[None]) for path in (tmp_path / "copy.avi", files[kind]))
    assert copied == original


@pytest.mark.parametrize("turn", TURNS)
def test_rotation_is_applied(files, tmp_path, turn):
    matrix, expected = TURNS[turn]
    turned = make.patch(files["h264"], tmp_path / "turned.mp4", b"tkhd", 44, make.display_matrix(*matrix))
    write_prepared(turned, tmp_path / "copy.mp4")
    plain, upright = read_clips(files["h264"], [5], 1)[0, 0], read_prepared(tmp_path / "copy.mp4", [5], 1)[0, 0]
    assert np.abs(expected(plain).astype(int) - upright).mean() < 4


@pytest.mark.parametrize(
    "width, height, expected",
    [
        (320, 240, (170, 128)),
        (340, 256, (170, 128)),
        (1280, 720, (228, 128)),
        (720, 1280, (128, 228)),
        (129, 129, (128, 128)),
        (128, 401, (128, 400)),
        (65, 49, (64, 48)),
        (1, 1, (2, 2)),
        (3, 2, (2, 2)),
    ],
)
def test_sizes(tmp_path, width, height, expected):
    assert small_size(width, height) == expected
    if width * height < 10000 or width == 340:
        source = noise(tmp_path / "source.mkv", 3, height, width)
        assert write_prepared(source, tmp_path / "copy.avi").count == 3
        assert read_prepared(tmp_path / "copy.avi", [1], 2).shape == (1, 2, *expected[::-1], 3)


def test_frames_of_another_size_are_scaled_to_the_first(tmp_path):
    parts = [make.write(tmp_path / f"{i}.h264", [make.numbered(5 * i + n) for n in range(5)]) for i in range(2)]
    large = np.kron(make.numbered(9), np.ones((2, 2, 1), np.uint8))
    with av.open(str(tmp_path / "large.h264"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = large.shape[1], large.shape[0], "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(large, format="rgb24")))
        container.mux(stream.encode(None))
    joined = tmp_path / "joined.h264"
    joined.write_bytes(parts[0].read_bytes() + (tmp_path / "large.h264").read_bytes() + parts[1].read_bytes())
    write_prepared(joined, tmp_path / "copy.mp4")
    clips = read_prepared(tmp_path / "copy.mp4", [0], 11)
    assert clips.shape[2:4] == (make.HEIGHT, make.WIDTH)
    assert make.numbers_of(clips) == [[0, 1, 2, 3, 4, 9, 5, 6, 7, 8, 9]]


@pytest.mark.parametrize(
    "pix_fmt, colorspace, color_range",
    [
        ("yuv420p", 1, 1),
        ("yuv420p", 5, 1),
        ("yuv420p", 2, 1),
        ("yuv420p", 1, 2),
        ("yuvj420p", 2, 2),
        ("yuv444p", 2, 1),
        ("yuv420p10le", 9, 1),
        ("rgb24", 0, 2),
    ],
)
def test_colours_survive(tmp_path, pix_fmt, colorspace, color_range):
    """Large patches of one colour each, from sources of several standards, ranges and formats."""
    colours = np.random.default_rng(0).integers(20, 236, (3, 4, 3))
    picture = np.kron(colours, np.ones((88, 85, 1))).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    if pix_fmt != "rgb24":
        frame = frame.reformat(format=pix_fmt, dst_colorspace=colorspace, dst_color_range=color_range)
    with av.open(str(tmp_path / "source.mkv"), "w") as container:
        stream = container.add_stream("libx264rgb" if pix_fmt == "rgb24" else "libx264", rate=25, options={"qp": "2"})
        stream.width, stream.height, stream.pix_fmt = 340, 264, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, color_range
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    write_prepared(tmp_path / "source.mkv", tmp_path / "copy.mp4")
    before = read_clips(tmp_path / "source.mkv", [0], 1)[0, 0, 44::88, 42::85].astype(int)
    after = read_prepared(tmp_path / "copy.mp4", [0], 1)[0, 0, 21::43, 20::41].astype(int)
    coarse = colorspace == 9 and int(av.__version__.partition(".")[0]) < 18  # older converters know BT.2020 roughly
    assert np.abs(after - before).max() <= 3 and np.abs(after - colours).max() <= (16 if coarse else 4)


@pytest.mark.parametrize("kind", ["no index", "audio", "zero frames", "text", "empty", "folder", "nowhere"])
def test_what_cannot_be_read_leaves_nothing_behind(files, tmp_path, kind):
    with pytest.raises(VideoError) as caught:
        write_prepared(files[kind], tmp_path / "copy.mp4")
    assert caught.value.path == str(files[kind]) and not os.listdir(tmp_path)


def test_a_copy_that_lacks_a_frame_is_found_out(files, tmp_path, monkeypatch):
    monkeypatch.setattr(prepared_module, "_transcode", lambda *a, real=prepared_module._transcode: real(*a) + 1)
    with pytest.raises(VideoError, match="its copy has 30 frames of the 31"):
        write_prepared(files["h264"], tmp_path / "copy.mp4")
    monkeypatch.undo()
    monkeypatch.setitem(prepared_module.ENCODER, "g", "12")
    with pytest.raises(VideoError, match="its copy cannot be decoded from every 8th frame"):
        write_prepared(files["h264"], tmp_path / "copy.mp4")
    assert not os.listdir(tmp_path)


def test_a_full_disk_is_not_the_videos_fault(tmp_path):
    source = noise(tmp_path / "source.mkv", 20, 100, 100)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot be written"):
            write_prepared(source, tmp_path / "copy.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == ["source.mkv"]


def encoded_again(copy, path):
    """Mirrored, with a key frame every 100 frames."""
    pictures = [np.ascontiguousarray(picture[:, ::-1]) for picture in make.read_all(copy)]
    return make.write(path, pictures, "mpeg4", options={"g": "100"}, metadata={"comment": "dclr prepare"})


def cut(copy, path):
    """Packets from the second key frame on, of which the file hides the first four."""
    with av.open(str(copy)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for packet in packets[prepared_module.GROUP :]:
            packet.stream = stream
            packet.pts -= packets[12].pts
            packet.dts = packet.pts
            target.mux(packet)
    return path


@pytest.mark.parametrize("made, count", [(encoded_again, 30), (cut, 18)])
def test_a_file_made_from_a_copy_is_a_file_of_its_own(copy, tmp_path, made, count):
    path = made(copy, tmp_path / "made.mp4")
    whole = make.read_all(path)
    assert len(whole) == count and not is_prepared(learn(path))
    for start in range(0, count - 4, 3):
        np.testing.assert_array_equal(read_prepared(path, [start], 4)[0], whole[start : start + 4])
