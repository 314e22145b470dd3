"""Moving scenes: labelled videos in which motion and scene are independent.

Every video has a textured background of its own, of one of eight scene families, over which bright blobs all move in
one direction at one speed. Labels are the nearest of eight directions (`motion`) and the family (`scene`). No
background is drawn twice, so train and test share none. Three settings make it harder, each alone: `scenes`, `turn`,
`still`.
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


@dataclass
class SynthConfig:
    """What `dclr synth` draws. Lengths are in pixels, times in frames."""

    train: int = 1024
    test: int = 400
    size: int = 40
    """Height and width."""
    frames: int = 24
    contrast: float = 0.4
    """Range of the background's brightness, 0 (flat grey) to 1."""
    blend: Literal["add", "cover"] = "add"
    """Blobs add to the background (the frame difference holds motion alone) or cover it (it leaks in)."""
    blobs: int = 14
    radius: float = 1.6
    """Standard deviation of a blob."""
    brightness: float = 0.8
    """Of a blob's centre, 0 to 1."""
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
    """Blobs that stand still: in a single frame they look like the others."""
    seed: int = 0

    def __post_init__(self) -> None:
        least_of = {"train": 1, "test": 1, "size": 8, "frames": 2, "blobs": 1, "scenes": 0, "still": 0, "seed": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"synth.{name}: got {getattr(self, name)}, expected at least {least}")
        for name in ("sector", "turn"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"synth.{name}: got {getattr(self, name)}, expected a share in [0, 1]")
        if not self.radius > 0:
            raise ValueError(f"synth.radius: got {self.radius}, expected more than 0 pixels")
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
    motion: int, scene: int, config: SynthConfig, rng: np.random.Generator, scenery: np.ndarray | None = None
) -> np.ndarray:
    """One video, (frames, size, size, 3) uint8. Blobs that leave on one side come back on the other.

    Args:
        scenery: (size, size, 3) background to use; by default one of the family `scene` is drawn.
    """
    size = config.size
    scenery = background(scene, size, config.contrast, rng) if scenery is None else scenery
    velocity = _velocity(motion, rng.uniform(-0.5, 0.5), config, rng.uniform(*config.speed))
    start = rng.uniform(0, size, (config.blobs, 2))
    time = np.arange(config.frames)[:, None, None]
    # Settings that are off draw nothing, and those that are on draw last: what they do not concern stays as it is.
    change = _second_velocity(motion, velocity, config, rng) - velocity
    path = velocity * time + change * np.maximum(time - config.frames // 2, 0)
    blob = _blobs(start + path, config)  # (frames, size, size, 1)
    if config.still:
        stands = rng.uniform(0, size, (1, config.still, 2))
        scenery = _over(scenery, _blobs(stands, config), config)
    return np.round(np.clip(_over(scenery, blob, config), 0, 1) * 255).astype(np.uint8)


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


def _blobs(center: np.ndarray, config: SynthConfig) -> np.ndarray:
    """Blobs with centres (frames, blobs, xy): (frames, size, size, 1) in [0, 1], each pixel of the nearest one."""
    size = config.size
    distance = np.abs(np.arange(size)[:, None] - (center % size)[:, :, None])  # (frames, blobs, pixel, xy)
    distance = np.minimum(distance, size - distance)
    profile = np.exp(-(distance**2) / (2 * config.radius**2))
    return (profile[..., None, :, 0] * profile[..., :, None, 1]).max(1)[..., None]


def _over(scenery: np.ndarray, blob: np.ndarray, config: SynthConfig) -> np.ndarray:
    under = scenery * (1 - blob) if config.blend == "cover" else scenery
    return under + config.brightness * blob


def write_video(path: Path, frames: np.ndarray, fps: int = 25) -> None:
    """Encode (t, h, w, 3) uint8 RGB as near-lossless h264 in MP4: the frame difference is then motion, not noise."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "preset": "ultrafast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, fps)
        for rgb in frames:
            # x264's slower presets do not give the same bytes every time for pictures this small.
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def synthesize(root: Path, config: SynthConfig, progress: bool = True) -> Path:
    """Write the set: `videos/*.mp4` and `labels.csv` (path, motion, scene, split). The same seed gives the same set.

    Returns:
        Path of the labels file.
    """
    root = Path(root)
    (root / "videos").mkdir(parents=True, exist_ok=True)
    splits = ["train"] * config.train + ["test"] * config.test
    rows = []
    for number, split in enumerate(tqdm(splits, desc="moving scenes", unit="video", disable=not progress)):
        rng = np.random.default_rng((config.seed, number))
        motion, scene, scenery = number % len(MOTIONS), int(rng.integers(len(SCENES))), None
        if config.scenes:
            scene, scenery = shared_background(int(rng.integers(config.scenes)), split, config)
        path = f"videos/{number:06d}.mp4"
        write_video(root / path, moving_scene(motion, scene, config, rng, scenery))
        rows.append((path, MOTIONS[motion], list(SCENES)[scene], split))
    labels = root / LABELS_FILE
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "motion", "scene", "split"))
        writer.writerows(rows)
    return labels
