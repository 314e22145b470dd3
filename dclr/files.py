"""Files that are never there in part, and whether those that are read are whole."""

from __future__ import annotations

import contextlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file, and its folder, so that at any moment `path` is either what it was or the whole new one.

    Raises:
        OSError: it cannot be written (a full disk); `path` is as it was, nothing else is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_or_explain(path: Path, data: bytes | memoryview) -> None:
    """As `write_whole`; the error names the file."""
    try:
        write_whole(path, data)
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error


def append_or_explain(path: Path, data: bytes) -> None:
    """Append to a file, which with its folder is made where it is not there: all or nothing.

    Raises:
        OSError: it cannot be written (a full disk); names the file, which is as it was.
    """
    length = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        length = path.stat().st_size if path.exists() else 0
        with open(path, "ab") as file:
            file.write(data)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, length)
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error


def damaged_zip(file: BinaryIO) -> bool:
    """Whether a file at its beginning, where it then is again, begins as a zip archive and is no intact one.

    `torch.save` writes such archives, and `torch.load` does not look at their checksums.
    """
    begins_as_zip = file.read(2) == b"PK"
    file.seek(0)
    return begins_as_zip and not intact_zip(file)


def intact_zip(file: BinaryIO) -> bool:
    """Whether a file is a zip archive all of which has its checksum; it is then at its beginning."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        return False
    finally:
        file.seek(0)


def _sync_folder(folder: Path) -> None:
    # Without this a power cut may undo the rename.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
