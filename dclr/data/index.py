"""What is known of a dataset's videos, kept in a file, so that each video is decoded as a whole only once.

The file lies in the folder that all the videos share or above it, or, where that cannot be written, in a cache folder.
A line is a video: its path below the folder, size and time of change, and what `learn` told. Lines are added, each
by one write, so that all workers, ranks and runs may share the file; a later line about a video replaces an earlier
one, and one that was torn is passed over. Another release of FFmpeg, which may decode differently, has its own file.

Whoever finds the file twice as long as it was when last tidied writes it anew, without what is about files that are
gone or have changed. A line that another process adds meanwhile is lost, and its video learned once more.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import av

from dclr.data.container import VideoError
from dclr.data.seeking import Entry, Known, learn
from dclr.files import write_whole

FORMAT = 1
# The file's length when it was last tidied, in a line of its own; before that it may grow to so many bytes.
TIDIED, UNTIDY_BYTES = b"tidied", 1 << 20


class FrameIndex:
    """`Known` of any of the videos at `paths`, from the file or by `learn`."""

    def __init__(self, paths: Iterable[str | os.PathLike]):
        self.files = [_IndexFile(*place) for place in _index_places(_shared_folder(paths))]

    def known(self, path: str | os.PathLike, held: list[av.VideoFrame] | None = None) -> Known:
        """What a video holds now: if it was changed since it was learned, it is learned again. Raises `VideoError`.

        held: as in `learn`; left as it is where nothing had to be decoded.
        """
        path = os.path.abspath(path)
        stamp = _stamp(path)
        for file in self.files:
            known = file.look_up(path, stamp)
            if known is not None:
                return known
        known = learn(path, held)
        # A file that is still being written will be learned again.
        if stamp == _stamp(path):
            self.add(path, known)
        return known

    def add(self, path: str | os.PathLike, known: Known) -> None:
        """Keeps what was just learned of a video."""
        path = os.path.abspath(path)
        stamp = _stamp(path)
        for file in self.files:
            try:
                return file.add(path, stamp, known)
            except OSError as error:
                reason = error
        self.files[-1].hold(path, stamp, known)
        warnings.warn(f"frame counts cannot be kept, so that every run decodes each video anew: {reason}", stacklevel=2)


class _IndexFile:
    """The file at `path` on the videos below `folder`, read as far as it went when last looked at."""

    def __init__(self, folder: str, path: Path):
        self.folder, self.path = folder, path
        self.lines: dict[bytes, bytes] = {}
        self.end, self.inode = 0, 0

    def __getstate__(self) -> dict:
        # A worker reads the file itself, which is faster than to be sent it.
        return {**self.__dict__, "lines": {}, "end": 0}

    def look_up(self, path: str, stamp: list[int]) -> Known | None:
        key = self._key(path)
        found = self._parse(key, stamp)
        if found is None and self._read_on():
            found = self._parse(key, stamp)
        return found

    def add(self, path: str, stamp: list[int], known: Known) -> None:
        """Raises `OSError`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = self._key(path) + b"\t" + _index_line(stamp, known)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            # What is before may be torn: the line break in front keeps it apart.
            os.write(descriptor, b"\n" + line + b"\n")
            length = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        self.hold(path, stamp, known)
        if length > UNTIDY_BYTES:
            self._tidy(length)

    def hold(self, path: str, stamp: list[int], known: Known) -> None:
        self.lines[self._key(path)] = _index_line(stamp, known)

    def _tidy(self, length: int) -> None:
        """Write the file anew once it has doubled its length; where it cannot be written, once it has doubled again."""
        self._read_on()
        before = self.lines.pop(TIDIED, b"")
        if before.isdigit() and length <= 2 * int(before):
            self.lines[TIDIED] = before
            return
        self.lines = {key: line for key, line in self.lines.items() if self._is_of_today(key)}
        text = b"".join(b"%s\t%s\n" % item for item in self.lines.items())
        self.lines[TIDIED] = b"%d" % len(text)
        try:
            write_whole(self.path, b"%s\t%s\n%s" % (TIDIED, self.lines[TIDIED], text))
        except OSError:
            self.lines[TIDIED] = b"%d" % length

    def _is_of_today(self, key: bytes) -> bool:
        """Whether a line is about a file as it is now."""
        try:
            return self._parse(key, _stamp(os.path.join(self.folder, json.loads(key)))) is not None
        except (TypeError, ValueError, VideoError):
            return False

    def _key(self, path: str) -> bytes:
        """The path below the folder, in ASCII without tabs or line breaks whatever it is."""
        return json.dumps(os.path.relpath(path, self.folder)).encode()

    def _read_on(self) -> bool:
        """Whether there were new lines."""
        try:
            with self.path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                if inode != self.inode:  # it was tidied
                    self.end, self.inode = 0, inode
                file.seek(self.end)
                text = file.read()
        except OSError:
            return False
        whole = text[: text.rfind(b"\n") + 1]
        self.end += len(whole)
        self.lines.update(parts for line in whole.split(b"\n") if len(parts := line.split(b"\t", 1)) == 2)
        return bool(whole)

    def _parse(self, key: bytes, stamp: list[int]) -> Known | None:
        record = self.lines.get(key)
        if record is None:
            return None
        try:
            size, time, *numbers, entries = json.loads(record)
            known = Known(*map(int, numbers), tuple(Entry(*map(int, entry)) for entry in entries))
        except (TypeError, ValueError):
            return None
        return known if [size, time] == stamp else None


def _index_line(stamp: list[int], known: Known) -> bytes:
    return json.dumps([*stamp, *known], separators=(",", ":")).encode()


def _stamp(path: str) -> list[int]:
    """Size in bytes and time of change in nanoseconds."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise VideoError(path, f"cannot be opened ({getattr(error, 'strerror', error)})") from error
    return [status.st_size, status.st_mtime_ns]


def _shared_folder(paths: Iterable[str | os.PathLike]) -> str:
    folders = {os.path.abspath(folder) for folder in {os.path.dirname(path) for path in map(os.fspath, paths)}}
    return os.path.commonpath(folders) if folders else os.getcwd()


def _index_places(folder: str) -> list[tuple[str, Path]]:
    """Where an index of the videos of a folder may be, and the folder that it is of: the better place first.

    That is where one is already, in the folder or, as that of all subsets, up to two above it; then the folder; then
    the cache. What has only the root of the file system in common shares no folder.
    """
    name = f"dclr-frames-{FORMAT}-{'.'.join(map(str, av.library_versions['libavcodec']))}"
    above = [place for place in (Path(folder), *Path(folder).parents)[:3] if place != place.parent]
    inside = [(str(place), place / f".{name}") for place in above]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dclr"
    cached = folder, cache / f"{name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    present = [place for place in inside if place[1].is_file()]
    return list(dict.fromkeys([*present, *inside[:1], cached]))
