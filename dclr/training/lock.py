"""One run in a folder at a time."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from dclr.errors import RunError

LOCK = ".lock"


class FolderTaken(RunError):
    """A folder that cannot have a run of this process: another one is writing there, or nothing can be written."""


class RunLock:
    """Holds a folder until `release`, or until the process ends, however it ends: the system keeps the lock, not the
    file. On NFS the server keeps it, for processes of all machines.

    Args:
        folder: made where it is not there.

    Attributes:
        warning: why nothing is held, where the file system knows no locks; else empty.

    Raises:
        FolderTaken: another process, or this one, holds it; or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        import fcntl  # not on Windows

        self.warning = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # No process that is started inherits it: a worker that outlives this process would keep the lock.
            self._file = open(folder / LOCK, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise FolderTaken(f"{folder}: cannot be written ({error.strerror})") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read(200).decode(errors="replace").strip()
            self.release()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                self.warning = f"{folder}: no locks on its file system ({error.strerror}); a second run would go unseen"
                return
            raise FolderTaken(f"{folder}: another run is writing there{holder and f' ({holder})'}") from error
        try:
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError as error:
            self.release()
            raise FolderTaken(f"{folder / LOCK}: cannot be written ({error.strerror})") from error

    def release(self) -> None:
        """Let another run in."""
        self._file.close()
