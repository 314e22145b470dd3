"""Video files of every awkward kind, each frame of which carries its own number."""

import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from dclr.data import count_frames, read_clips

HEIGHT, WIDTH, BITS = 48, 64, 8


def numbered(number: int) -> np.ndarray:
    """A picture (48, 64, 3): eight columns spell `number` in black and white, the lower third is darker."""
    bits = [255 * (number >> bit & 1) for bit in range(BITS)]
    picture = np.repeat(np.repeat(np.array(bits)[None, :, None], WIDTH // BITS, 1), 3, 2)
    picture = np.repeat(picture, HEIGHT, 0)
    picture[2 * HEIGHT // 3 :] //= 4
    return picture.astype(np.uint8)


def read_all(path) -> np.ndarray:
    """Every frame of a video, (F, H, W, 3)."""
    return read_clips(path, [0], count_frames(path))[0]


def number_of(picture: np.ndarray) -> int:
    """The number that a picture, upright and of any size, spells."""
    height, width = picture.shape[:2]
    upper = picture[: height // 2].mean(axis=(0, 2)).reshape(BITS, width // BITS).mean(axis=1)
    return sum(int(value > 128) << bit for bit, value in enumerate(upper))


def numbers_of(clips: np.ndarray) -> list[list[int]]:
    return [[number_of(picture) for picture in clip] for clip in clips]


def write(
    path: Path,
    pictures,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    picture_format: str = "rgb24",
    options: dict | None = None,
    times=None,
    metadata: dict | None = None,
    container_options: dict | None = None,
    **attributes,
) -> Path:
    """Encodes pictures (or none) at the given times, in 1/25 s."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        stream.codec_context.time_base = Fraction(1, 25)
        for name, value in attributes.items():
            setattr(stream.codec_context, name, value)
        if not len(pictures):
            container.start_encoding()
        for i, picture in enumerate(pictures):
            frame = picture
            if isinstance(picture, np.ndarray):
                frame = av.VideoFrame.from_ndarray(picture, format=picture_format)
            frame.pts = i if times is None else times[i]
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None)) if len(pictures) else None
    return path


def patch(source: Path, target: Path, marker: bytes, offset: int, value: bytes) -> Path:
    """A copy with `value` written `offset` bytes after each `marker`."""
    data = bytearray(source.read_bytes())
    place = data.find(marker)
    assert place >= 0
    while place >= 0:
        data[place + offset : place + offset + len(value)] = value
        place = data.find(marker, place + 1)
    target.write_bytes(data)
    return target


def middle_of_packet(path: Path, number: int) -> int:
    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[number]
    return packet.pos + packet.size // 2


def display_matrix(a: int, b: int, c: int, d: int) -> bytes:
    return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)


def write_tone(path: Path) -> Path:
    with wave.open(str(path), "wb") as tone:
        tone.setnchannels(1)
        tone.setsampwidth(2)
        tone.setframerate(8000)
        tone.writeframes(bytes(16000))
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, Path]:
    """Videos by kind. All of them have 30 frames but `truncated` and those that cannot be read."""
    folder = tmp_path_factory.mktemp("videos")
    pictures = [numbered(i) for i in range(30)]
    good = write(folder / "good.mp4", pictures, options={"bf": "2", "g": "12"})
    avi = write(folder / "bframes.avi", pictures, "mpeg4", options={"bf": "2", "g": "12", "qscale": "2"})
    named = write(folder / "named.mp4", pictures, metadata={"title": "METADATA"})
    front = write(folder / "front.mp4", pictures, container_options={"movflags": "faststart"})
    made = {
        "h264": good,
        "avi": avi,
        "ten bit": write(folder / "ten.mp4", pictures, pix_fmt="yuv420p10le"),
        "variable rate": write(folder / "variable.mp4", pictures, times=np.cumsum(np.arange(30) % 5 + 1).tolist()),
        "full range": write(folder / "full.mp4", pictures, pix_fmt="yuvj420p", color_range=2),
        "metadata": patch(named, folder / "metadata.mp4", b"METADATA", 0, b"\xe9\xff\xfe\x80caf\xe9"),
        "header": patch(avi, folder / "header.avi", b"avih", 8 + 16, struct.pack("<I", 32)),
        "colon": write(folder / "a: b %d #1.mp4", pictures),
        # The AVI writer fills gaps in time with empty chunks.
        "gaps": write(folder / "gaps.avi", pictures, "mpeg4", times=[i + i // 7 for i in range(30)]),
        "truncated": folder / "truncated.avi",
        "no index": folder / "no_index.mp4",
        "audio": write_tone(folder / "audio.wav"),
        "zero frames": write(folder / "zero.avi", [], "mpeg4"),
        "text": folder / "text.mp4",
        "empty": folder / "empty.mp4",
        "damaged": folder / "damaged.mp4",
        "folder": folder,
        "nowhere": folder / "nowhere.mp4",
    }
    # Both copies of the length in an AVI, in the file's header and in the stream's.
    patch(made["header"], made["header"], b"vids", 32, struct.pack("<I", 32))
    made["truncated"].write_bytes(avi.read_bytes()[: middle_of_packet(avi, 15)])
    made["no index"].write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    made["damaged"].write_bytes(front.read_bytes()[: middle_of_packet(front, 15)])
    made["text"].write_text("this is not a video\n" * 100)
    made["empty"].touch()
    return made
