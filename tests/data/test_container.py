"""What files are opened, which stream is read, and what is refused."""

import os
from functools import partial

import av
import numpy as np
import pytest
import torch

from dclr.data import VideoError, count_frames, read_clips, seeking
from dclr.data import container as container_module
from dclr.data.clips import CentreCrops, RGBCrops
from dclr.data.planes import MAX_SHORT_SIDE, PlanarCrops
from dclr.data.prepared import write_prepared

from . import conftest as make


def streams(path, *parts):
    """One video stream each of (codec, pix_fmt, width, height, pictures, disposition)."""
    with av.open(str(path), "w") as container:
        made = []
        for codec, pix_fmt, width, height, count, disposition in parts:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            stream.disposition = disposition
            made.append((stream, count))
        for number, (stream, count) in enumerate(made):
            for picture in range(count):
                frame = np.full((stream.height, stream.width, 3), 40 * number + picture, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    return path


DEFAULT, OTHER = av.stream.Disposition.default, av.stream.Disposition(0)
STILL = "mjpeg", "yuvj420p", 320, 180, 1


@pytest.mark.parametrize(
    "parts, size, count",
    [
        ([(*STILL, DEFAULT), ("mpeg4", "yuv420p", 64, 48, 9, DEFAULT)], (48, 64), 9),
        ([("mpeg4", "yuv420p", 32, 18, 5, DEFAULT), ("mpeg4", "yuv420p", 64, 48, 9, DEFAULT)], (48, 64), 9),
        ([("mpeg4", "yuv420p", 64, 48, 9, OTHER), ("mpeg4", "yuv420p", 32, 18, 5, DEFAULT)], (18, 32), 5),
        ([("mpeg4", "yuv420p", 64, 48, 9, DEFAULT), ("mpeg4", "yuv420p", 64, 48, 5, DEFAULT)], (48, 64), 9),
    ],
    ids=["still in front", "small in front", "default behind", "equal"],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_best_stream_is_read(tmp_path, parts, size, count, suffix):
    path = streams(tmp_path / f"several.{suffix}", *parts)
    assert count_frames(path) == count and read_clips(path, [0], 1).shape[2:4] == size


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device"])
def test_only_regular_files_are_opened(tmp_path, kind):
    """A pipe would wait for ever."""
    path = tmp_path / "a.mp4"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path = "/dev/zero" if kind == "device" else path
        kind == "device" or path.symlink_to("/dev/zero")
    with pytest.raises(VideoError, match="is not a regular file"):
        count_frames(path)


def test_links_to_videos_are_opened(files, tmp_path):
    (tmp_path / "a.mp4").symlink_to(files["h264"])
    assert count_frames(tmp_path / "a.mp4") == 30


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile good.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-VERSION:3\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
    ids=["ffconcat", "hls", "sdp"],
)
def test_playlists_are_not_followed(files, tmp_path, text):
    (tmp_path / "good.mp4").write_bytes(files["h264"].read_bytes())
    (tmp_path / "list.mp4").write_text(text)
    with pytest.raises(VideoError, match=r"list\.mp4: is not a video \(playlists are not followed\)"):
        count_frames(tmp_path / "list.mp4")


def test_names_that_look_like_patterns(files, tmp_path):
    path = tmp_path / "frame%03d.png.mp4"
    path.write_bytes(files["h264"].read_bytes())
    assert count_frames(path) == 30


def test_a_file_takes_so_long_and_no_longer(files, monkeypatch):
    monkeypatch.setattr(container_module, "MAX_SECONDS", 0.0)
    with pytest.raises(VideoError, match="takes more than 0 s to decode"):
        count_frames(files["h264"])


def test_frames_are_so_large_and_no_larger(files, monkeypatch):
    monkeypatch.setattr(container_module, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(VideoError, match="has frames of 64 x 48, expected at most 3071 pixels"):
        count_frames(files["h264"])


def still(path, picture, marked, scale=1):
    """Four times the same picture, in a stream that says that it is interlaced, or not."""
    with av.open(str(path), "w") as container:
        options = {"x264-params": f"qp=4:interlaced={int(marked)}"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def stills(tmp_path):
    """Rows of random colours, in a stream with the mark of interlacing and in one without."""

    def both(height, width):
        rows = np.random.default_rng(0).integers(0, 256, (height, 1, 3), dtype=np.uint8)
        return [still(tmp_path / f"{mark}.mp4", np.repeat(rows, width, 1), mark) for mark in (True, False)]

    return both


def test_a_wrong_mark_of_interlacing_changes_nothing(stills):
    """By fields, the colours of a row would come from the row after the next."""
    marked, plain = stills(48, 64)
    with av.open(str(marked)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    got, expected = (read_clips(path, [0], 2).astype(int) for path in (marked, plain))
    assert np.abs(got - expected).mean() <= 1
    rgb, planes = (
        read_clips(marked, [0], 2, 1, partial(into, draw=lambda height, width: [(1, 2, 30, 40)], size=16))
        for into in (RGBCrops, PlanarCrops)
    )
    planes = planes._replace(geometry=planes.geometry[:, None], matrix=planes.matrix[:, None])
    assert (rgb.int() - planes.to_rgb(torch.device("cpu"))[:, 0].int()).abs().float().mean() <= 1.5


def test_copies_of_what_is_marked_interlaced(stills, tmp_path):
    copies = []
    for path in stills(384, 512):
        write_prepared(path, tmp_path / "copy.mp4")
        copies.append(read_clips(tmp_path / "copy.mp4", [0], 2).astype(int))
    assert np.abs(copies[0] - copies[1]).mean() <= 1


@pytest.mark.parametrize("frames", [12, 24])
def test_memory_does_not_grow_with_the_clips_of_large_frames(tmp_path, frames):
    """Crops are made as frames come: what is held are small pictures and no frame of the source."""
    path = make.write(tmp_path / "a.mp4", [make.numbered(n) for n in range(24)])
    held, puts = [], []
    into = partial(CentreCrops, size=16, test_crop="square_resize")

    class Counted:
        def __init__(self, first, clips, count):
            self.clips = into(first, clips, count)

        def put(self, frame, places):
            self.clips.put(frame, places)
            puts.append(len(places))
            held.append(self.clips.crops.numel())

        def done(self):
            return self.clips.done()

    read_clips(path, [0, 0, 0], frames, 1, Counted)
    assert puts == frames * [3] and set(held) == {3 * frames * 16 * 16 * 3}


def test_crops_of_very_large_frames_are_scaled(tmp_path):
    height, width = 2 * MAX_SHORT_SIDE, 2 * MAX_SHORT_SIDE + 64
    with av.open(str(tmp_path / "large.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for level in (50, 200):
            frame = np.full((height * 3 // 2, width), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="yuv420p")))
        container.mux(stream.encode(None))
    sizes = []

    def draw(height, width):
        sizes.append((height, width))
        return [(0, 0, height, width)]

    crops = read_clips(tmp_path / "large.mp4", [0], 2, 1, partial(PlanarCrops, draw=draw, size=16))
    assert sizes == [(MAX_SHORT_SIDE, MAX_SHORT_SIDE + 32)]
    assert crops.planes.numel() == 2 * MAX_SHORT_SIDE * (MAX_SHORT_SIDE + 32) * 3 // 2


class Demuxed:
    """A file's packets, which are let go of by `close` alone."""

    def __init__(self, packets):
        self.packets, self.closed = iter(packets), False

    def __iter__(self):
        return self.packets

    def close(self):
        self.closed = True


def test_packets_that_are_not_wanted_any_more_are_let_go_of(files, monkeypatch):
    """PyAV's generators keep memory where they are dropped: 150 bytes for each clip, in every loader process."""
    demuxed = []

    class Container:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.container.close()

        def demux(self, stream):
            demuxed.append(Demuxed(self.container.demux(stream)))
            return demuxed[-1]

    opened = container_module.open_video
    for module in (container_module, seeking):
        monkeypatch.setattr(module, "open_video", lambda path: Container(opened(path)))
    known = seeking.learn(files["h264"])
    read_clips(files["h264"], [0, 15], 2)
    read_clips(files["h264"], [0, 15], 2, known=known)
    assert len(demuxed) >= 5 and all(each.closed for each in demuxed)
