"""`dclr prepare`: a copy of a dataset that is several times faster to sample, in the same layout."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from glob import escape
from itertools import product
from pathlib import Path
from typing import NamedTuple

from torch.utils.data import Dataset

from dclr.config import default_workers
from dclr.data.container import VideoError
from dclr.data.datasets import DatasetError, dataset_spec, load_all
from dclr.data.index import FrameIndex
from dclr.data.loader import as_ready
from dclr.data.own_videos import all_class_folders
from dclr.data.prepared import is_prepared, write_prepared

UNREADABLE_FILE = "unreadable.txt"


@dataclass
class PrepareConfig:
    """What `dclr prepare` transcodes, and where to."""

    dataset: str
    """A dataset's name, or `folder` for any videos; `dclr check` lists them."""
    root: str
    """Folder of the dataset."""
    out: str
    """Folder of the copy; a second run goes on where the first stopped."""
    annotations: str | None = None
    """Split file or folder of split files, where they are not beside the videos; for `folder` a csv or txt list."""
    where: str | None = None
    """Rows of a `folder`'s list to take, as COLUMN=VALUE."""
    workers: int = field(default_factory=default_workers)
    """Processes, each with a video of its own: by default one a core, at most 4; 0 works in this one."""
    max_failed_share: float = 0.01
    """The exit status says failure when more than this share of the videos cannot be read."""

    def __post_init__(self) -> None:
        for name in ("workers", "max_failed_share"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 0")


@dataclass
class Prepared:
    """What `prepare` did: videos `written`, those `present` from an earlier run, and `failures` (path -> reason)."""

    written: int = 0
    present: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def prepare(config: PrepareConfig, progress: bool = True) -> Prepared:
    """Transcode every video of all splits of a dataset, and copy the split files.

    A video keeps its path and suffix below `out`, so that `out` takes the place of `root` in training. Those that
    cannot be read are listed in `out/unreadable.txt` as `path: reason`. What is finished is not done again.

    Raises:
        DatasetError: the dataset cannot be loaded or has no place in `out`; or too many videos cannot be read, which
            is said when all the others are done.
        OSError: `out` cannot be written to.
    """
    root, out = (Path(os.path.abspath(Path(folder).expanduser())) for folder in (config.root, config.out))
    if root == out or root in out.parents or out in root.parents:
        raise DatasetError(f"out: got {out}, expected a folder outside of root {root}, and not around it")
    videos = _videos_of_splits(config, root)
    copies = [out / video.relative_to(root) for video in videos]
    for folder in _folders(config, root, out) | {copy.parent for copy in copies}:
        folder.mkdir(parents=True, exist_ok=True)
    for source, copy in _lists(config, root, videos):
        (out / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, out / copy)
    done = _transcode_all(videos, copies, out / UNREADABLE_FILE, config.workers, progress)
    print(
        f"{out}: {len(videos)} videos, {done.written} transcoded, {done.present} already there, "
        f"{len(done.failures)} that could not be read"
    )
    if done.failures:
        print(f"listed in {out / UNREADABLE_FILE}; where split files name them, training needs --data.allow-missing")
    share = len(done.failures) / len(videos)
    if share == 1 or share > config.max_failed_share:
        path, reason = next(iter(done.failures.items()))
        allowed = "" if share == 1 else f", more than max_failed_share = {config.max_failed_share:g} allows"
        raise DatasetError(
            f"{len(done.failures)} of {len(videos)} videos could not be read{allowed}: {path}: {reason} "
            f"(all in {out / UNREADABLE_FILE})"
        )
    return done


def _videos_of_splits(config: PrepareConfig, root: Path) -> list[Path]:
    """The videos that any split and subset names and that are there."""
    loaded, errors = load_all(config.dataset, root, annotations=config.annotations, where=config.where)
    found = dict.fromkeys(Path(os.path.abspath(path)) for dataset in loaded.values() for path in dataset.paths)
    missing = {name for dataset in loaded.values() for name in dataset.missing}
    for error in errors:
        print(f"going on without: {error}", file=sys.stderr)
    if missing:
        print(f"going on without {len(missing)} videos that the lists name but {root} lacks", file=sys.stderr)
    strange = [video for video in found if root not in video.parents]
    if strange:
        raise DatasetError(f"{strange[0]} is not under root {root}, so it has no place in out")
    return list(found)


def _folders(config: PrepareConfig, root: Path, out: Path) -> set[Path]:
    """The folders that stand for classes: an empty one counts when the classes are numbered."""
    if config.dataset != "folder":
        return {out}
    return {out, *(out / folder.relative_to(root) for folder in all_class_folders(root))}


def _lists(config: PrepareConfig, root: Path, videos: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Split files and where below `out` their copies go: the same place, or `annotations` for those outside of root."""
    shared = set.intersection(*(set(video.parents) for video in videos))
    inside = [folder for folder in shared if folder == root or root in folder.parents]
    bases = inside if config.dataset == "folder" else [*inside, root.parent]
    spec = dataset_spec(config.dataset)
    patterns = spec.list_patterns()
    if config.annotations is not None:
        given = Path(config.annotations).expanduser()
        given = Path(os.path.abspath(given if given.exists() else root / given))
        bases = [given if given.is_dir() else given.parent]
        patterns = (*patterns, escape(given.name))
    taken = set()
    for base, below, pattern in product(bases, spec.all_list_folders(), patterns):
        for source in filter(Path.is_file, sorted((base / below).glob(pattern))):
            under_root = root in source.parents
            # A list outside of root counts only where root has none of that name.
            if under_root or (source.name not in taken and config.dataset != "folder"):
                taken.add(source.name)
                yield source, source.relative_to(root) if under_root else Path("annotations") / source.name


class _Outcome(NamedTuple):
    """Of video number `index`: `frames` written, 0 if the copy was there, or the `reason` why it failed."""

    index: int
    frames: int = 0
    reason: str | None = None


class _Transcoding(Dataset):
    """Item i transcodes video i."""

    def __init__(self, videos: list[Path], copies: list[Path]):
        self.videos, self.copies, self.index = videos, copies, FrameIndex(copies)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> _Outcome:
        video, copy = self.videos[index], self.copies[index]
        try:
            if not copy.exists():
                known = write_prepared(video, copy)
                self.index.add(copy, known)
                return _Outcome(index, known.count)
        except VideoError as error:
            return _Outcome(index, reason=error.reason)
        if not self._was_prepared(copy):
            raise DatasetError(f"{copy} is there already, but not as dclr prepare writes it; expected another out")
        return _Outcome(index)

    def _was_prepared(self, copy: Path) -> bool:
        try:
            return is_prepared(self.index.known(copy))
        except VideoError:
            return False


def _transcode_all(videos: list[Path], copies: list[Path], listing: Path, workers: int, progress: bool) -> Prepared:
    """Works through the videos, and lists those that cannot be read as they are met."""
    done = Prepared()
    with (
        as_ready(_Transcoding(videos, copies), workers, "prepare", progress) as bar,
        listing.open("w", encoding="utf-8", errors="backslashreplace", buffering=1) as unreadable,
    ):
        for index, frames, reason in bar:
            if reason is not None:
                done.failures[str(videos[index])] = reason
                print(f"{videos[index]}: {reason}", file=unreadable)
                bar.set_postfix(unreadable=len(done.failures), refresh=False)
            elif frames:
                done.written += 1
            else:
                done.present += 1
    return done
