"""Folders of videos: which files are videos, where a named one lies, and what else is there."""

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterator

VIDEO_FORMATS = (
    "3g2, 3gp, asf, avi, divx, f4v, flv, gif, m2ts, m2v, m4v, mkv, mov, mp4, mpeg, mpg, mts, mxf, ogm, ogv, ts, "
    "vob, webm, wmv"
)
VIDEO_SUFFIXES = frozenset(f".{name}" for name in VIDEO_FORMATS.split(", "))
# What file managers, archives and network drives leave in folders, whatever its suffix; and all names with a dot first.
SYSTEM_NAMES = frozenset(["__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"])
# More names than this are not searched for one of a similar spelling.
MAX_SIMILAR = 5000


def is_system(name: str) -> bool:
    """Whether a file or folder of this name belongs to the system, not to the dataset."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def has_video_suffix(path: str) -> bool:
    """Whether a path ends as a video file does."""
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES


def walk_videos(folder: str | os.PathLike, passed: Counter[str]) -> Iterator[str]:
    """The paths of the videos below a folder, through links to folders; counts in `passed` what is not one."""
    yield from _walk(os.fspath(folder), passed, frozenset())


def _walk(folder: str, passed: Counter[str], above: frozenset[tuple[int, int]]) -> Iterator[str]:
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        passed["links to a folder around them"] += 1
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_system(entry.name):
                # Not worth a word where it could not have been a video anyway.
                passed["hidden or system entries"] += has_video_suffix(entry.name) or entry.is_dir()
            elif entry.is_dir():
                yield from _walk(entry.path, passed, above | {identity})
            elif not has_video_suffix(entry.name):
                passed["files without a video's suffix"] += 1
            elif entry.is_file():
                yield entry.path
            else:
                passed["broken links or special files"] += 1


class FolderIndex:
    """Finds videos by path, whatever the suffix, reading each folder once: a look per file is slow on a network."""

    def __init__(self) -> None:
        # Folder -> a video's name without its suffix, or a file's whole name -> the file's name.
        self.folders: dict[str, dict[str, str]] = {}

    def find(self, path: str) -> str | None:
        """The file at `path`, or else the video there with another suffix."""
        folder, name = os.path.split(path)
        files = self.folders.get(folder)
        if files is None:
            files = self.folders[folder] = _files(folder)
        file = files.get(name) or files.get(_stem(name))
        return file and os.path.join(folder, file)


def _files(folder: str) -> dict[str, str]:
    # Also False for what no folder can be called.
    if not os.path.isdir(folder):
        return {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file())
    files: dict[str, str] = {}
    for name in names:
        stem = _stem(name)
        if stem in files:
            # Of two videos that differ in their suffix, the earlier is found by its whole name.
            files[files[stem]] = files[stem]
        files[stem] = name
    return files


def _stem(name: str) -> str:
    return os.path.splitext(name)[0] if has_video_suffix(name) and not is_system(name) else name


def near_path(root: str, path: str) -> str | None:
    """A path below `root` that is there and spelled like `path`, or else its folder, if that is spelled otherwise.

    The names of folders may differ in a few letters, a file's in case and punctuation alone: numbered files are alike.
    """
    *folders, name = os.path.normpath(path).split(os.sep)
    here = root
    for folder in folders:
        near = near_name(here, folder)
        if near is None:
            return None
        here = os.path.join(here, near)
    near = near_name(here, name, cutoff=1)
    found = os.path.relpath(os.path.join(here, near or ""), root)
    return found if near or found != os.path.join(*folders, "").rstrip(os.sep) else None


def near_name(folder: str, name: str, cutoff: float = 0.8) -> str | None:
    """The name in a folder that is most like `name`, if one is alike enough; case and punctuation do not count."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    if name in names:
        return name
    spellings = {simple_name(_stem(other)): other for other in names}
    wanted = simple_name(_stem(name))
    if cutoff < 1 and wanted not in spellings and len(names) <= MAX_SIMILAR:
        wanted = next(iter(difflib.get_close_matches(wanted, spellings, n=1, cutoff=cutoff)), wanted)
    return spellings.get(wanted)


def simple_name(name: str) -> str:
    """A name without case and punctuation."""
    return re.sub(r"[\W_]+", "", name.casefold())
