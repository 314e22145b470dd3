"""Features that were computed once: a folder of parts, which every evaluation of an encoder reads and adds to.

A video's entry is found by its path, size and time of change, so splits, subsets and labels share it, and a file that
was replaced is encoded anew. A folder is of one encoder's weights and one kind of clips, whose digest is its name.
Whoever adds to one drops from it the parts whose videos have all been replaced, and beside it the folders whose weights
no file has any more.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from dclr.data import EvaluationClips, VideoError, build_evaluation_loader
from dclr.distributed import gather_objects, is_first, rank, world
from dclr.errors import RunError
from dclr.evaluation.features import Encoded, Encoding, Features, require_few
from dclr.files import write_or_explain

ABOUT = "about.json"
# A part is written after so many videos or seconds: what an interruption can cost.
PART_VIDEOS, PART_SECONDS = 256, 60.0
# What was written to within a day may be in use by another evaluation.
LEFT_OVER_SECONDS = 86400.0


class CacheError(RunError):
    """A part of the cache that cannot be used: one line that names the file and the reason."""


class _Place(NamedTuple):
    """Where an entry is: its part, its row among the features there, and why it has none."""

    part: Path
    row: int
    reason: str


class FeatureCache:
    """The features of one encoder and one kind of clips below `folder`.

    Args:
        folder: of all caches of a run.
        settings: everything that the features depend on but the videos; plain values.
        weights: file that the encoder is from.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], weights: Path) -> None:
        self.settings, self.weights = json.dumps(settings, sort_keys=True, default=list), os.path.abspath(weights)
        self.folder = folder / hashlib.sha256(self.settings.encode()).hexdigest()[:16]

    def features(
        self,
        encoding: Encoding,
        clips: EvaluationClips,
        *,
        batch_videos: int = 4,
        workers: int = 0,
        max_failures: float = 0.01,
    ) -> Features | None:
        """Features of the videos of `clips`, those that are not there encoded now; all processes share the work.

        Returns:
            On the first process the features, in the order of the dataset; None on the others.

        Raises:
            CacheError: a part is damaged; it is left as it is.
            ValueError: as `extract_features`.
        """
        if len(clips) == 0:
            raise ValueError("dataset has no videos: there is nothing to extract features of")
        keys = [_key(path) for path in clips.dataset.paths]
        # By key, so that a path that is listed twice is encoded once; alike on all processes.
        first_of = {key: number for number, key in reversed(list(enumerate(keys)))}
        present = self._places() if is_first() else {}
        lacking = gather_objects([number for key, number in first_of.items() if key not in present])[0]
        if lacking:
            paths = clips.dataset.paths
            writer = _Writer(self.folder, paths, {paths[number]: keys[number] for number in lacking})
            loader = build_evaluation_loader(
                Subset(clips, lacking), batch_videos, workers=workers, rank=rank(), world=world()
            )
            if is_first():
                self._note_weights()
                self._drop_useless()
            try:
                encoding.run(loader, writer.take, is_first())
            finally:
                writer.flush()
        gather_objects(None)  # until all have written
        return self._read(keys, clips, max_failures) if is_first() else None

    def _note_weights(self) -> None:
        """Say what the features depend on, and which files have had these weights."""
        files = {**_weights_files(self.folder), self.weights: _file_state(self.weights)}
        about = {"settings": json.loads(self.settings), "weights": files}
        write_or_explain(self.folder / ABOUT, json.dumps(about).encode())

    def _drop_useless(self) -> None:
        """Remove what will never be read again."""
        for other in self.folder.parent.iterdir():
            if other != self.folder and _is_left_over(other):
                shutil.rmtree(other, ignore_errors=True)
        for part in self.folder.glob("*.npz"):
            if _is_replaced(part):
                part.unlink()

    def _places(self) -> dict[str, _Place]:
        """Where each entry is, by its video's key."""
        places: dict[str, _Place] = {}
        for part in sorted(self.folder.glob("*.npz")):
            videos, reasons = _load(part, "videos", "reasons")
            rows = np.cumsum(reasons == "") - 1
            for key, row, reason in zip(videos.tolist(), rows.tolist(), reasons.tolist()):
                places.setdefault(key, _Place(part, row, reason))
        return places

    def _read(self, keys: Sequence[str], clips: EvaluationClips, max_failures: float) -> Features:
        places = self._places()
        lost = [number for number, key in enumerate(keys) if key not in places]
        if lost:
            raise CacheError(
                f"{self.folder}: has no features of {clips.dataset.paths[lost[0]]} although it was encoded; all "
                f"processes must write to one file system"
            )
        found = [places[key] for key in keys]
        failures = [VideoError(clips.dataset.paths[n], place.reason) for n, place in enumerate(found) if place.reason]
        require_few(failures, len(keys), max_failures)
        read = [number for number, place in enumerate(found) if not place.reason]
        return Features.of(clips.dataset, read, _cached_rows([found[number] for number in read]), failures)


def _cached_rows(places: Sequence[_Place]) -> Tensor:
    """The features (V, n, D) at the places, each part read once."""
    of_part: dict[Path, list[int]] = {}
    for number, place in enumerate(places):
        of_part.setdefault(place.part, []).append(number)
    clips: np.ndarray | None = None
    for part, numbers in of_part.items():
        (stored,) = _load(part, "clips")
        clips = np.empty((len(places), *stored.shape[1:]), np.float32) if clips is None else clips
        clips[numbers] = stored[[places[number].row for number in numbers]]
    return torch.from_numpy(clips)


class _Writer:
    """Collects what is encoded, and writes a part of it every now and then: "videos" (keys), "paths", "reasons" why
    a video has no features, and the "clips" (V, n, D) of the others.

    Args:
        of_number: path of each video of the dataset.
        keys: path of each video that is to be encoded -> its key.
    """

    def __init__(self, folder: Path, of_number: Sequence[str], keys: Mapping[str, str]) -> None:
        self.folder, self.of_number, self.keys = folder, of_number, keys
        self._restart()

    def _restart(self) -> None:
        self.paths, self.reasons, self.clips, self.since = [], [], [], time.monotonic()

    def take(self, batch: Encoded) -> None:
        self.paths += [self.of_number[number] for number in batch.video_id.tolist()]
        self.reasons += [""] * len(batch.video_id)
        self.clips += [batch.clips.numpy()] if len(batch.clips) else []
        for failure in batch.failures:
            self.paths.append(failure.path)
            self.reasons.append(failure.reason or "unreadable")
        if len(self.paths) >= PART_VIDEOS or time.monotonic() - self.since > PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write a part, named by what is in it."""
        if not self.paths:
            return
        videos = [self.keys[path] for path in self.paths]
        clips = np.concatenate(self.clips) if self.clips else np.empty((0, 0, 0), np.float32)
        buffer = io.BytesIO()
        texts = {"videos": videos, "paths": list(map(os.path.abspath, self.paths)), "reasons": self.reasons}
        np.savez(buffer, **{name: np.array(text, np.str_) for name, text in texts.items()}, clips=clips)
        name = hashlib.sha256("".join(videos).encode()).hexdigest()[:16]
        write_or_explain(self.folder / f"{name}.npz", buffer.getbuffer())
        self._restart()


def _load(part: Path, *names: str) -> list[np.ndarray]:
    """Arrays of a part, whose sums are checked in reading."""
    try:
        with np.load(part, allow_pickle=False) as archive:
            return [archive[name] for name in names]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CacheError(
            f"{part}: damaged part of the features' cache ({error}); without it its videos are encoded again"
        ) from error


def _weights_files(folder: Path) -> dict[str, list[int]]:
    """The files that the features in a folder are from, and how each was then; none where it does not say."""
    try:
        files = json.loads((folder / ABOUT).read_bytes())["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return files if isinstance(files, dict) else {}


def _is_left_over(folder: Path) -> bool:
    """Whether the weights of its features are in none of their files any more, and nobody writes there."""
    files = _weights_files(folder)
    gone = bool(files) and all(_file_state(path) != state for path, state in files.items())
    return gone and time.time() - folder.stat().st_mtime > LEFT_OVER_SECONDS


def _is_replaced(part: Path) -> bool:
    """Whether other files are now where all the videos of a part were."""
    with np.load(part, allow_pickle=False) as archive:
        if "paths" not in archive:  # parts once did not say where their videos were
            return False
        entries = zip(archive["videos"].tolist(), archive["paths"].tolist())
    return all(os.path.exists(path) and _key(path) != key for key, path in entries)


def _key(path: str) -> str:
    """What a video's entry is found by."""
    place = os.fsencode(os.path.abspath(path))
    state = _file_state(path)
    if state is not None:  # reading it will say what is wrong
        place += "\0{}\0{}".format(*state).encode()
    return hashlib.sha256(place).hexdigest()[:32]


def _file_state(path: str) -> list[int] | None:
    """Size in bytes and time of change in nanoseconds; None where there is no such file."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]


def weights_digest(module: nn.Module) -> str:
    """64 hexadecimal digits of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
