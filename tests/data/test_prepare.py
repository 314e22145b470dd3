import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial

import av
import numpy as np
import pytest

from dclr.cli import main
from dclr.commands.prepare import PrepareConfig, prepare
from dclr.data import DatasetError, PretrainClips, VideoError, count_frames, load_dataset, read_clips, read_video
from dclr.data import prepared as prepared_module
from dclr.data.prepared import is_prepared, small_size, write_prepared
from dclr.data.seeking import learn

from . import conftest as make
from .test_video import READABLE, TURNS


def prepare_quietly(dataset, root, out, **options):
    return prepare(PrepareConfig(dataset, str(root), str(out), **{"workers": 0, **options}), progress=False)


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
    assert make.numbers_of(read_video(path)[None]) == [list(range(30))]
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
    assert make.numbers_of(read_video(tmp_path / "copy.avi")[None]) == make.numbers_of(read_video(files[kind])[None])


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
    pictures = [np.ascontiguousarray(picture[:, ::-1]) for picture in read_video(copy)]
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
    whole = read_video(path)
    assert len(whole) == count and not is_prepared(learn(path))
    for start in range(0, count - 4, 3):
        np.testing.assert_array_equal(read_prepared(path, [start], 4)[0], whole[start : start + 4])


UCF = {
    "Archery/v_Archery_g01_c01.avi": "avi",
    "Archery/v_Archery_g02_c01.avi": "header",
    "YoYo/v_YoYo_g01_c01.avi": "gaps",
    "YoYo/v_YoYo_g02_c01.avi": "bad",
}


def ucf(files, root, lists):
    for name, kind in UCF.items():
        path = root / "UCF-101" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files["truncated" if kind == "bad" else kind].read_bytes())
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "classInd.txt").write_text("1 Archery\n2 YoYo\n")
    names = list(UCF)
    for split in (1, 2, 3):
        (lists / f"trainlist0{split}.txt").write_text("".join(f"{n} {1 + ('YoYo' in n)}\n" for n in names[split - 1 :]))
        (lists / f"testlist0{split}.txt").write_text(f"{names[0]}\n")
    return root


@pytest.mark.parametrize(
    "root, lists, annotations, place",
    [
        ("data", "data/ucfTrainTestlist", None, "ucfTrainTestlist"),
        ("data/UCF-101", "data/ucfTrainTestlist", None, "annotations"),
        ("data", "data/UCF-101", None, "UCF-101"),
        ("data", "elsewhere", "elsewhere", "annotations"),
        ("data", "data/mine", "mine", "mine"),
    ],
)
def test_the_copy_takes_the_place_of_the_original(files, tmp_path, root, lists, annotations, place):
    ucf(files, tmp_path / "data", tmp_path / lists)
    given = str(tmp_path / annotations) if annotations == "elsewhere" else annotations
    done = prepare_quietly("ucf101", tmp_path / root, tmp_path / "out", annotations=given)
    assert (done.written, done.present, done.failures) == (4, 0, {})
    assert (tmp_path / "out" / place / "classInd.txt").exists()
    options = {"annotations": given if place == "mine" else None}
    for split, subset in ((1, "train"), (3, "train"), (2, "test")):
        before = load_dataset("ucf101", tmp_path / root, split=split, subset=subset, annotations=given)
        after = load_dataset("ucf101", tmp_path / "out", split=split, subset=subset, **options)
        assert (after.labels, after.classes) == (before.labels, before.classes)
        assert [os.path.relpath(path, tmp_path / "out") for path in after.paths] == [
            os.path.relpath(path, tmp_path / root) for path in before.paths
        ]


def test_training_samples_the_same_frames(files, tmp_path):
    root = ucf(files, tmp_path / "data", tmp_path / "data" / "splits")
    prepare_quietly("ucf101", root, tmp_path / "out")
    clips = [
        PretrainClips(load_dataset("ucf101", place), frames=4, size=32, seed=3) for place in (root, tmp_path / "out")
    ]
    for index in range(4):
        before, after = (part[2, index] for part in clips)
        assert (before.video_id, before.label) == (after.video_id, after.label) == (index, index // 2)
        assert (before.clips.int() - after.clips.int()).abs().float().mean() < 8
    assert [clips[0].videos.count(i) for i in range(4)] == [clips[1].videos.count(i) for i in range(4)]


def test_a_second_run_does_the_rest(files, tmp_path):
    root, out = ucf(files, tmp_path / "data", tmp_path / "data" / "splits"), tmp_path / "out"
    prepare_quietly("ucf101", root, out)
    copies = sorted(out.rglob("*.avi"))
    times = [path.stat().st_mtime_ns for path in copies]
    copies[1].unlink()
    done = prepare_quietly("ucf101", root, out)
    assert (done.written, done.present) == (1, 3)
    again = [path.stat().st_mtime_ns for path in copies]
    assert [now == then for now, then in zip(again, times)] == [True, False, True, True]
    assert not list(out.rglob("*.part"))
    copies[2].write_bytes(files["avi"].read_bytes())
    with pytest.raises(DatasetError, match=r"g01_c01.avi is there already, but not as dclr prepare writes it"):
        prepare_quietly("ucf101", root, out)


def test_unreadable_videos_are_listed(files, tmp_path, capsys):
    root, out = tmp_path / "root", tmp_path / "out"
    kinds = {"a/good.mp4": "h264", "a/text.avi": "text", "b/empty.mp4": "empty", "b/sound.mp4": "audio"}
    for name, kind in kinds.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(files[kind].read_bytes())
    (root / "Empty class").mkdir()
    with pytest.raises(DatasetError, match=r"3 of 4 videos could not be read, more than max_failed_share = 0.01"):
        prepare_quietly("folder", root, out)
    done = prepare_quietly("folder", root, out, max_failed_share=0.75)
    assert (done.written, done.present, len(done.failures)) == (0, 1, 3)
    assert "4 videos, 0 transcoded, 1 already there, 3 that could not be read" in capsys.readouterr().out
    lines = (out / "unreadable.txt").read_text().splitlines()
    assert lines == [f"{path}: {reason}" for path, reason in done.failures.items()]
    assert f"{root}/b/sound.mp4: has no video stream" in lines
    before, after = load_dataset("folder", root), load_dataset("folder", out)
    assert after.classes == before.classes == ("Empty class", "a", "b") and after.labels == (1,)
    for name in ("a/good.mp4", "Empty class"):
        (root / name).rename(tmp_path / os.path.basename(name))
    with pytest.raises(DatasetError, match=r"3 of 3 videos could not be read: .*root/a/text.avi: is not a video"):
        prepare_quietly("folder", root, out, max_failed_share=1)


def test_a_list_of_paths(files, tmp_path, capsys):
    """A list with another suffix, a missing video, and two subsets."""
    root = tmp_path / "root"
    for name in ("x/one.mp4", "x/two.3gp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(files["h264"].read_bytes())
    rows = ["path,label,split", "x/one.mp4,a,train", "x/two.3gp,b,test", "x/gone.mp4,b,test"]
    (root / "labels.csv").write_text("\n".join(rows))
    prepare_quietly("folder", root, tmp_path / "out")
    assert "going on without 1 videos that the lists name" in capsys.readouterr().err
    assert load_dataset("folder", tmp_path / "out").paths == (str(tmp_path / "out/x/one.mp4"),)
    test = load_dataset("folder", tmp_path / "out", subset="test", allow_missing=True)
    assert test.paths == (str(tmp_path / "out/x/two.3gp"),) and count_frames(test.paths[0]) == 30


def test_a_list_of_ones_own(files, tmp_path):
    root = tmp_path / "root"
    (root / "train" / "zumba").mkdir(parents=True)
    (root / "train" / "zumba" / "a b.mp4").write_bytes(files["h264"].read_bytes())
    (root / "mine[1].lst").write_text("zumba/a b.mp4 0\n")
    prepare_quietly("kinetics400", root, tmp_path / "out", annotations="mine[1].lst")
    after = load_dataset("kinetics400", tmp_path / "out", annotations="mine[1].lst")
    assert after.paths == (str(tmp_path / "out/train/zumba/a b.mp4"),) and after.labels == (0,)


def test_nothing_is_written_outside_of_out(files, tmp_path):
    """A row may lead out of the root."""
    for folder in ("work/A", "work/C"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "c.mp4").write_bytes(files["h264"].read_bytes())
    (tmp_path / "work/A/labels.csv").write_text("path,label\nc.mp4,a\n../C/c.mp4,b\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DatasetError, match=r"work/C/c\.mp4 is not under root .*work/A"):
        prepare_quietly("folder", tmp_path / "work/A", tmp_path / "out/D")
    assert sorted(tmp_path.rglob("*")) == before


def test_names_as_long_as_may_be(files, tmp_path):
    (tmp_path / "root").mkdir()
    name = 251 * "a" + ".mp4"
    (tmp_path / "root" / name).write_bytes(files["h264"].read_bytes())
    assert prepare_quietly("folder", tmp_path / "root", tmp_path / "out").written == 1
    assert count_frames(tmp_path / "out" / name) == 30


def test_training_from_copies_decodes_none_as_a_whole(files, tmp_path, monkeypatch):
    """Whichever half it is of: what `prepare` learned of all lies above both."""
    for half in ("train", "val"):
        (tmp_path / "root" / half / "a").mkdir(parents=True)
        (tmp_path / "root" / half / "a" / "v.mp4").write_bytes(files["h264"].read_bytes())
    prepare_quietly("folder", tmp_path / "root", tmp_path / "out")
    monkeypatch.setattr(
        "dclr.data.index.learn", lambda path, held: pytest.fail(f"{path} is decoded as a whole once more")
    )
    for subset in ("train", "test"):
        clips = PretrainClips(load_dataset("folder", tmp_path / "out", subset=subset), frames=4, size=32)
        assert clips[0, 0].clips.shape == (2, 5, 32, 32, 3)


@pytest.mark.parametrize("out", ["root", "root/inside", "root/../root", "."])
def test_out_is_another_folder(tmp_path, out):
    (tmp_path / "root").mkdir()
    with pytest.raises(DatasetError, match="expected a folder outside of root"):
        prepare_quietly("folder", tmp_path / "root", tmp_path / out)


@pytest.mark.parametrize(
    "argv, status, message",
    [
        (["--root", "x", "--out", "y"], 2, "dclr: --dataset is required"),
        (["--dataset", "ucf110", "--root", "x", "--out", "y"], 1, "unknown dataset 'ucf110'; did you mean 'ucf101'?"),
        (["--dataset", "ucf101", "--root", "x", "--out", "y"], 1, "ucf101: there is no folder"),
        (["--dataset", "ucf101", "--root", "x", "--out", "y", "--workers", "-1"], 2, "workers: got -1"),
    ],
)
def test_wrong_command_lines(capsys, tmp_path, monkeypatch, argv, status, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["prepare", *argv])
    assert stop.value.code == status and message in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_ctrl_c_and_going_on(files, tmp_path):
    """Two worker processes; Ctrl-C reaches all of them, as in a terminal."""
    root, out = tmp_path / "root", tmp_path / "out"
    (root / "class").mkdir(parents=True)
    count = 150
    for i in range(count):
        (root / "class" / f"{i:03d}.mp4").hardlink_to(files["h264"])
    command = [sys.executable, "-m", "dclr", "prepare", "--dataset", "folder", "--root", str(root), "--out", str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs in the background ignore it
    process = subprocess.Popen([*command, "--workers", "2"], start_new_session=True, preexec_fn=heed, **pipes)
    finished = lambda: {path.name: path.stat().st_mtime_ns for path in out.rglob("[!.]*.mp4")}  # noqa: E731
    while len(finished()) < 2 and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.splitlines()[-1] == "dclr: interrupted", errors
    before = finished()
    assert 2 <= len(before) < count and all(count_frames(out / "class" / name) == 30 for name in before)
    done = prepare_quietly("folder", root, out, workers=0)
    assert (done.written, done.present) == (count - len(before), len(before))
    after = finished()
    assert len(after) == count and before.items() <= after.items() and not list(out.rglob("*.part"))
