"""Moving scenes: labelled videos in which motion, scene and object are independent.

Every video has a textured background of its own, of one of eight scene families, over which a few bright objects, all
of one look, move in one direction at one speed. The look is the video's own too: a shape of one of eight families with
a size, an angle and holes of its own. Labels are the nearest of eight directions (`motion`) and the two families
(`scene`, `object`). No background and no look is drawn twice, so train and test share none. Three settings make it
harder, each alone: `scenes`, `turn`, `still`.
"""

from __future__ import annotations

import colorsys
import csv
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from tqdm import tqdm

MOTIONS = ("right", "down_right", "down", "down_left", "left", "up_left", "up", "up_right")
LABELS_FILE = "labels.csv"
FPS = 25


@dataclass
class SynthConfig:
    """What `dclr synth` draws. Lengths are in pixels, times in frames."""

    train: int = 1024
    test: int = 400
    size: int = 30
    """Height and width."""
    frames: int = 24
    contrast: float = 0.4
    """Range of the background's brightness, 0 (flat grey) to 1."""
    blend: Literal["add", "cover"] = "add"
    """Objects add to the background (the frame difference holds nothing of it) or cover it (it leaks in)."""
    objects: int = 3
    """Of each video, all alike."""
    object_size: int = 9
    """Width and height of the square that an object fits in."""
    brightness: float = 0.8
    """Of an object, 0 to 1."""
    speed: tuple[float, float] = (1.0, 2.0)
    """Slowest and fastest, in pixels per frame."""
    sector: float = 0.5
    """Share of the directions about a label's that videos take: 1 leaves no gap between labels, 0 has one each."""
    scenes: int = 0
    """Backgrounds that the videos of a split share, so that a background does not give its video away; the families
    take turns. 0: each its own. Train and test share none in any case."""
    turn: float = 0.0
    """Share of the videos that go another label's way in their second half, so that two clips of one video may show
    different motions; the label is the first half's."""
    still: int = 0
    """Objects that stand still: in a single frame they look like the others."""
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"train": 1, "test": 1, "objects": 1, "scenes": 0, "still": 0}
        for name, least in {**counts, "size": 8, "frames": 2, "object_size": 4, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"synth.{name}: got {getattr(self, name)}, expected at least {least}")
        for name in ("sector", "turn"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"synth.{name}: got {getattr(self, name)}, expected a share in [0, 1]")
        if self.object_size > self.size:
            raise ValueError(f"synth.object_size: got {self.object_size}, expected at most the frame's {self.size}")
        if not 0 <= self.speed[0] <= self.speed[1]:
            raise ValueError(f"synth.speed: got {self.speed}, expected two speeds, 0 <= slowest <= fastest")
        if self.size % 2:
            raise ValueError(f"synth.size: got {self.size}, expected an even number (4:2:0 video)")


def _stripes(u: np.ndarray, v: np.ndarray, phase: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.sin(u + phase[0])


def _checks(u: np.ndarray, v: np.ndarray, phase: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.sign(np.sin(u + phase[0]) * np.sin(v + phase[1]))


def _grain(u: np.ndarray, v: np.ndarray, phase: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(u.shape)


def _clouds(u: np.ndarray, v: np.ndarray, phase: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    spectrum = np.fft.fft2(rng.standard_normal(u.shape))
    frequency = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, u.shape), indexing="ij"))
    return np.fft.ifft2(spectrum / (0.03 + frequency) ** 1.5).real


def _rings(u: np.ndarray, v: np.ndarray, phase: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.sin(1.2 * np.hypot(u - 2 * phase[0], v - 2 * phase[1]))


def _gradient(u: np.ndarray, v: np.ndarray, phase: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return u


def _tiles(u: np.ndarray, v: np.ndarray, phase: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    tile = int(rng.integers(4, 8))
    coarse = rng.standard_normal([side // tile + 1 for side in u.shape])
    return np.kron(coarse, np.ones((tile, tile)))[: u.shape[0], : u.shape[1]]


def _grid(u: np.ndarray, v: np.ndarray, phase: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.maximum(np.cos(u + phase[0]), np.cos(v + phase[1]))


SCENES: dict[str, Callable[..., np.ndarray]] = {
    "stripes": _stripes,
    "checks": _checks,
    "grain": _grain,
    "clouds": _clouds,
    "rings": _rings,
    "gradient": _gradient,
    "tiles": _tiles,
    "grid": _grid,
}


# Within [-1, 1] x [-1, 1]; `thick` is about a third to two thirds.
OBJECTS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "disc": lambda x, y, thick: np.hypot(x, y) < 1,
    "ring": lambda x, y, thick: np.abs(np.hypot(x, y) - 1 + thick / 2) < thick / 2,
    "square": lambda x, y, thick: _box(x, y) < 0.8,
    "triangle": lambda x, y, thick: (y > -0.6) & (1.7 * np.abs(x) + y < 1),
    "cross": lambda x, y, thick: (np.minimum(np.abs(x), np.abs(y)) < thick / 1.5) & (_box(x, y) < 1),
    "bar": lambda x, y, thick: (np.abs(y) < thick) & (np.abs(x) < 1),
    "corner": lambda x, y, thick: (np.minimum(x, y) < 1.3 * thick - 1) & (_box(x, y) < 1),
    "pair": lambda x, y, thick: (np.abs(x) > 1 - thick) & (_box(x, y) < 1),
}


def _box(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y))


def object_picture(family: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size) float32 in [0, 1]: a shape of the family, turned, stretched, and with holes of its own."""
    fine = 4 * size  # drawn four times as large, so that its edge is smooth
    y, x = (np.mgrid[:fine, :fine] + 0.5) / fine * 2 - 1
    angle, (width, height) = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1, 2)
    x, y = (x * np.cos(angle) + y * np.sin(angle)) / width, (y * np.cos(angle) - x * np.sin(angle)) / height
    whole = list(OBJECTS.values())[family](x, y, rng.uniform(0.35, 0.65))
    while True:  # until about half of the shape is left
        shape = whole & np.kron(rng.random((4, 4)) < 0.7, np.ones((size, size), bool))
        if 2 * shape.sum() > whole.sum():
            break
    return rng.uniform(0.7, 1) * shape.reshape(size, 4, size, 4).mean((1, 3), dtype=np.float32)


def background(scene: int, size: int, contrast: float, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3) float32 in [0, 1]: a texture of the family in two colours near the family's hue."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle, frequency = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.6)
    u = frequency * (x * np.cos(angle) + y * np.sin(angle))
    v = frequency * (y * np.cos(angle) - x * np.sin(angle))
    texture = list(SCENES.values())[scene](u, v, rng.uniform(0, 2 * np.pi, 2), rng)
    texture = (texture - texture.min()) / max(float(np.ptp(texture)), 1e-6)
    hue = scene / len(SCENES) + rng.uniform(-0.1, 0.1)
    light = np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.6, 1), rng.uniform(0.7, 1)))
    dark = np.array(colorsys.hsv_to_rgb((hue + rng.uniform(0.03, 0.09)) % 1, rng.uniform(0.3, 1), rng.uniform(0, 0.4)))
    color = dark + (light - dark) * texture[..., None]
    return np.clip(0.3 + contrast * (color - 0.5), 0, 1).astype(np.float32)


def shared_background(number: int, split: str, config: SynthConfig) -> tuple[int, np.ndarray]:
    """Family and picture of one of a split's `config.scenes` backgrounds."""
    rng = np.random.default_rng((config.seed, number, 1 + (split == "test")))
    scene = number % len(SCENES)
    return scene, background(scene, config.size, config.contrast, rng)


def moving_scene(
    motion: int,
    scene: int,
    family: int,
    config: SynthConfig,
    rng: np.random.Generator,
    scenery: np.ndarray | None = None,
) -> np.ndarray:
    """One video, (frames, size, size, 3) uint8. Objects that leave on one side come back on the other.

    Args:
        motion, scene, family: numbers of the labels; the last is the object's.
        scenery: (size, size, 3) background to use; by default one of the family `scene` is drawn.
    """
    size = config.size
    scenery = background(scene, size, config.contrast, rng) if scenery is None else scenery
    velocity = _velocity(motion, rng.uniform(-0.5, 0.5), config, rng.uniform(*config.speed))
    start = rng.uniform(0, size, (config.objects, 2))
    look = object_picture(family, config.object_size, rng)
    time = np.arange(config.frames)[:, None, None]
    # `turn` and `still` draw random numbers only where they are on, and last: all else is as it is without them.
    change = _second_velocity(motion, velocity, config, rng) - velocity
    path = velocity * time + change * np.maximum(time - config.frames // 2, 0)
    moving = _objects(start + path, look, size)  # (frames, size, size, 1)
    if config.still:
        stands = rng.uniform(0, size, (1, config.still, 2))
        scenery = _over(scenery, _objects(stands, look, size), config)
    return np.round(np.clip(_over(scenery, moving, config), 0, 1) * 255).astype(np.uint8)


def _velocity(motion: int, offset: float, config: SynthConfig, speed: float) -> np.ndarray:
    # Within its label's sector the direction is continuous, so that two videos of one label still differ.
    angle = (motion + config.sector * offset) * 2 * np.pi / len(MOTIONS)
    return speed * np.array([np.cos(angle), np.sin(angle)])


def _second_velocity(motion: int, velocity: np.ndarray, config: SynthConfig, rng: np.random.Generator) -> np.ndarray:
    """Velocity of the second half: the first's, or, of the share `turn`, another label's at the same speed."""
    if not config.turn or rng.random() >= config.turn:
        return velocity
    other = motion + int(rng.integers(1, len(MOTIONS)))
    return _velocity(other, rng.uniform(-0.5, 0.5), config, float(np.hypot(*velocity)))


def _objects(corner: np.ndarray, look: np.ndarray, size: int) -> np.ndarray:
    """Objects with corners (frames, objects, xy), in pixels and between them: (frames, size, size, 1) in [0, 1]."""
    out = np.zeros((len(corner), size, size), np.float32)
    reach = np.arange(len(look) + 1)
    whole = np.floor(corner).astype(int)
    for frame, (places, rest) in enumerate(zip(whole, corner - whole)):
        for (x, y), (right, down) in zip(places, rest):
            # Between pixels: the weighted mean of the four nearest places.
            rows = (1 - down) * np.pad(look, ((0, 1), (0, 0))) + down * np.pad(look, ((1, 0), (0, 0)))
            picture = (1 - right) * np.pad(rows, ((0, 0), (0, 1))) + right * np.pad(rows, ((0, 0), (1, 0)))
            area = np.ix_([frame], (y + reach) % size, (x + reach) % size)
            out[area] = np.maximum(out[area], picture)
    return out[..., None]


def _over(scenery: np.ndarray, moving: np.ndarray, config: SynthConfig) -> np.ndarray:
    under = scenery * (1 - moving) if config.blend == "cover" else scenery
    return under + config.brightness * moving


def write_video(path: Path, frames: np.ndarray) -> None:
    """Encode (t, h, w, 3) uint8 RGB as near-lossless h264 in MP4: the frame difference is then motion, not noise."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "10", "preset": "ultrafast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, FPS)
        for rgb in frames:
            # x264's slower presets do not give the same bytes every time for pictures this small.
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def synthesize(root: Path, config: SynthConfig, progress: bool = True) -> Path:
    """Write the set: `videos/*.mp4` and `labels.csv` (path, motion, scene, object, split). One seed, one set.

    Returns:
        Path of the labels file.
    """
    root = Path(root)
    (root / "videos").mkdir(parents=True, exist_ok=True)
    splits = ["train"] * config.train + ["test"] * config.test
    rows = []
    for number, split in enumerate(tqdm(splits, desc="moving scenes", unit="video", disable=not progress)):
        rng = np.random.default_rng((config.seed, number))
        motion, scene, family = number % len(MOTIONS), int(rng.integers(len(SCENES))), int(rng.integers(len(OBJECTS)))
        scenery = None
        if config.scenes:
            scene, scenery = shared_background(int(rng.integers(config.scenes)), split, config)
        path = f"videos/{number:06d}.mp4"
        write_video(root / path, moving_scene(motion, scene, family, config, rng, scenery))
        rows.append((path, MOTIONS[motion], list(SCENES)[scene], list(OBJECTS)[family], split))
    labels = root / LABELS_FILE
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "motion", "scene", "object", "split"))
        writer.writerows(rows)
    return labels
