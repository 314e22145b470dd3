"""Frames decoded from the key frames before them are those that decoding from the beginning gives, bit for bit."""

import gc
import struct
import time

import av
import numpy as np
import pytest

from dclr.data import VideoError, read_clips
from dclr.data.container import decoded_frames
from dclr.data.seeking import Known, frames_by_number, learn

from . import conftest as make

RNG = np.random.default_rng(0)
# A scene that moves, so that frames predicted from wrong ones differ from the right ones.
SCENE = np.clip(RNG.normal(128, 60, (12, 16, 3)), 0, 255).repeat(12, 0).repeat(12, 1).astype(np.uint8)
PICTURES = [np.ascontiguousarray(SCENE[n : n + make.HEIGHT, 2 * n : 2 * n + make.WIDTH]) for n in range(60)]


def scene(path, codec="libx264", **options):
    attributes = {"pix_fmt": "yuv420p", "options": {"g": "12", "bf": "2"}, **options}
    return make.write(path, PICTURES, codec, **attributes)


def x264(path, parameters, **options):
    return scene(path, options={"x264-params": f"keyint=12:min-keyint=12:scenecut=0:{parameters}"}, **options)


def x265(path, parameters):
    return scene(path, "libx265", options={"x265-params": f"keyint=12:log-level=none:pools=1:{parameters}"})


VPX = {"g": "12", "deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "8"}


def without_first_packets(path, source, count):
    with av.open(str(source)) as container, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(container.streams.video[0])
        for packet in [packet for packet in container.demux(video=0) if packet.size][count:]:
            packet.stream = stream
            target.mux(packet)
    return path


def hidden_beginning(path, source, count):
    """The file's edit list leaves out the first frames."""
    with av.open(str(source)) as container, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        start = sorted(packet.pts for packet in packets)[count]
        for packet in packets:
            packet.stream, packet.pts, packet.dts = stream, packet.pts - start, packet.dts - start
            target.mux(packet)
    return path


def joined(path, *sources):
    path.write_bytes(b"".join(source.read_bytes() for source in sources))
    return path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Videos by kind, and how many places to decode from each must at least have (0: it must be none)."""
    folder = tmp_path_factory.mktemp("scenes")
    uneven = np.cumsum(RNG.integers(1, 5, 60)).tolist()
    avi, h264 = scene(folder / "a.avi", "mpeg4"), scene(folder / "a.mp4")
    made = {
        "mp4": (h264, 5),
        "avi": (avi, 5),
        "mkv": (scene(folder / "a.mkv"), 5),
        "mov": (scene(folder / "a.mov", "mpeg4"), 5),
        "hevc": (x265(folder / "hevc.mp4", "open-gop=0"), 5),
        "hevc open": (x265(folder / "open.mkv", "open-gop=1"), 5),
        "mpeg2": (scene(folder / "mpeg2.mkv", "mpeg2video"), 0),
        "vp9": (scene(folder / "vp9.webm", "libvpx-vp9", options=VPX), 5),
        "vp8": (scene(folder / "vp8.webm", "libvpx", options=VPX), 5),
        "intra": (scene(folder / "mjpeg.avi", "mjpeg", pix_fmt="yuvj420p", options={}), 0),
        "pyramid": (x264(folder / "pyramid.mp4", "bframes=5:b-pyramid=normal:b-adapt=0:ref=5"), 5),
        "open": (x264(folder / "open.mp4", "open-gop=1:bframes=3"), 1),
        "intra refresh": (x264(folder / "refresh.mp4", "intra-refresh=1"), 1),
        "interlaced": (x264(folder / "interlaced.mp4", "interlaced=1:bframes=2"), 5),
        "uneven": (scene(folder / "uneven.mp4", times=uneven), 4),
        "gaps": (scene(folder / "gaps.avi", "mpeg4", times=[i + i // 7 for i in range(60)]), 5),
        "ten bit": (scene(folder / "ten.mp4", pix_fmt="yuv420p10le"), 5),
        "no first key frame": (without_first_packets(folder / "late.mp4", h264, 5), 0),
        "no first key frame, avi": (without_first_packets(folder / "late.avi", avi, 5), 0),
        "hidden beginning": (hidden_beginning(folder / "hidden.mp4", h264, 5), 4),
        "raw": (scene(folder / "raw.h264"), 0),
        "two joined": (joined(folder / "two.h264", scene(folder / "b.h264"), scene(folder / "c.h264")), 0),
        "codec of no list": (scene(folder / "old.avi", "msmpeg4v2", options={"g": "12"}), 0),
        "header": (make.patch(avi, folder / "header.avi", b"avih", 8 + 16, struct.pack("<I", 99)), 5),
        "truncated": (folder / "cut.avi", 0),
        "unindexed": (folder / "unindexed.avi", 5),
    }
    data = avi.read_bytes()
    made["truncated"][0].write_bytes(data[: make.middle_of_packet(avi, 33)])
    made["unindexed"][0].write_bytes(data.replace(b"idx1", b"JUNK"))
    return made


KINDS = [
    "mp4", "avi", "mkv", "mov", "hevc", "hevc open", "mpeg2", "vp9", "vp8", "intra", "pyramid", "open", "intra refresh",
    "interlaced", "uneven", "gaps", "ten bit", "no first key frame", "no first key frame, avi", "hidden beginning",
    "raw", "two joined", "codec of no list", "header", "truncated", "unindexed",
]  # fmt: skip


def planes(frame):
    """The format, and the bytes of each plane of a YUV frame."""
    size = 2 if frame.format.components[0].bits > 8 else 1
    rows = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes]
    return frame.format.name, *(row[:, : size * plane.width].tobytes() for row, plane in zip(rows, frame.planes))


def assert_same_both_ways(path, draws=12):
    """Whatever frames are asked for."""
    expected = [planes(frame) for frame in decoded_frames(path)]
    known = learn(path)
    assert known.count == len(expected)
    rng = np.random.default_rng(0)
    wanted = [[entry.number] for entry in known.entries] + [list(range(known.count)), [known.count - 1]]
    for stride in rng.integers(1, 4, draws):
        numbers = np.add.outer(rng.integers(0, known.count, 2), stride * np.arange(5)) % known.count
        wanted.append(sorted(set(numbers.ravel().tolist())))
    for numbers in wanted:
        got = dict(frames_by_number(path, numbers, known))
        assert set(numbers) <= set(got) and list(got) == sorted(got)
        assert all(planes(frame) == expected[number] for number, frame in got.items()), numbers
    return known


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_are_equal(scenes, kind, monkeypatch):
    path, entries = scenes[kind]
    known = assert_same_both_ways(path)
    assert len(known.entries) >= entries and (entries or len(known.entries) <= 1)
    # Not because it fell back on the beginning.
    monkeypatch.setattr("dclr.data.seeking.decoded_frames", lambda path: pytest.fail("decoded from the beginning"))
    if known.entries:
        read_clips(path, [known.count - 3], 3, known=known)


@pytest.mark.parametrize("kind", ["h264", "avi", "variable rate", "full range", "metadata", "header", "colon", "gaps"])
def test_both_ways_are_equal_on_the_other_files(files, kind):
    assert len(assert_same_both_ways(files[kind]).entries) >= 1


@pytest.mark.parametrize("kind", ["truncated", "damaged"])
def test_damaged_files_are_decoded_from_their_beginning(files, kind):
    assert not assert_same_both_ways(files[kind]).entries


@pytest.mark.parametrize("kind", ["mp4", "avi"])
def test_only_what_is_needed_is_decoded(scenes, kind, monkeypatch):
    """From the key frames before the clips, and without the frames between them that nothing needs."""
    path, _ = scenes[kind]
    known = learn(path)
    numbers = list(range(26, 34, 2)) + list(range(50, 56, 2))
    got = [number for number, _ in frames_by_number(path, numbers, known)]
    assert set(numbers) <= set(got) and got[0] >= 24 and len(got) <= 14 and not set(got) & set(range(36, 48))


def test_a_file_that_changed_behind_our_back_is_decoded_from_its_beginning(scenes, tmp_path):
    path = tmp_path / "other.mp4"
    path.write_bytes(scenes["mp4"][0].read_bytes())
    known = learn(path)
    path.write_bytes(scenes["uneven"][0].read_bytes())
    got = read_clips(path, [20, 40], 5, known=known)
    np.testing.assert_array_equal(got, read_clips(path, [20, 40], 5))
    path.write_bytes(scenes["truncated"][0].read_bytes())
    with pytest.raises(VideoError, match=r"had 60 frames, and now \d\d decode"):
        read_clips(path, [50], 5, known=known)


def test_old_memory_in_damaged_frames(scenes, tmp_path):
    """Of MPEG-2, whose decoder does not see that the last slice of this frame is missing."""
    data, number = bytearray(scenes["mpeg2"][0].read_bytes()), 51
    with av.open(str(scenes["mpeg2"][0])) as container:
        packet = list(container.demux(video=0))[number]
    start = data.find(b"\0\0\1\3", packet.pos)
    assert packet.pos < start < packet.pos + packet.size + 20
    data[start : start + 30] = bytes.fromhex("d3de402577c568063cee918821b1c39c6262ab6a1af28b1dd6eadf1fb1f1")
    path = tmp_path / "damaged.mkv"
    path.write_bytes(data)
    held = []
    known, numbers = learn(path, held), [3, 4, 5, 12, 17, 24, 36, 47, 50, 59]
    np.testing.assert_array_equal(read_clips(path, numbers, 1, known=known), read_clips(path, numbers, 1))
    assert not held


def test_learning_takes_a_second_look_at_files_that_are_not_in_order(files):
    known = learn(files["truncated"])
    assert known == Known(known.count, make.HEIGHT, make.WIDTH) and 10 < known.count < 20


def test_long_files(tmp_path):
    """The last frames of many are there at once."""
    count = 6000
    with av.open(str(tmp_path / "long.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for number in range(count):
            picture = np.full((24, 16), number % 200 + 20, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode(None))
    known = learn(tmp_path / "long.mp4")
    assert known.count == count and len(known.entries) > count / 20
    numbers = [count - 7, count - 1]
    start = time.thread_time()
    got = list(frames_by_number(tmp_path / "long.mp4", numbers, known))
    assert time.thread_time() - start < 0.1 and len(got) < 20
    assert all(abs(int(frame.to_ndarray()[0, 0]) - (number % 200 + 20)) <= 3 for number, frame in got)


def test_frames_are_let_go_of_one_by_one(scenes):
    """Not only when Python looks for rings of objects: twelve frames of 8192 x 8192 would take more than a gigabyte."""
    path, _ = scenes["intra"]
    gc.collect()
    gc.disable()
    try:
        known = learn(path)
        read_clips(path, [0], known.count, known=known)
        kept = [each for each in gc.get_objects() if type(each) is av.VideoFrame]
    finally:
        gc.enable()
    assert known.count == 60 and len(kept) <= 2
