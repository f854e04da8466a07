"""The limit of a run on this machine, where ``tar-like limit`` finds it: a small file.

    FOLDER/TRANSFER.PID: the memory of a SharedBucket, mapped by the run and its processes

Its lock is held while the run lives, so one that nobody holds is left over, and is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from tar_like.upload.limit import MEMORY, SharedBucket

_NEW = ".new"


class Dial:
    """A file that a run holds, and the bucket that it is the memory of."""

    def __init__(self, folder: str, transfer: str, rate: int) -> None:
        """``rate`` is bytes a second. Raises OSError when the file cannot be made."""
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._path = os.path.join(folder, f"{transfer}.{os.getpid()}")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(self._path + _NEW, flags, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)  # before others can see it
        os.ftruncate(self._fd, MEMORY)
        self.bucket = SharedBucket(rate, self._fd)
        os.rename(self._path + _NEW, self._path)

    def close(self) -> None:
        """The run is over. What was forked meanwhile must have ended."""
        os.unlink(self._path)
        os.close(self._fd)


def turn(folder: str, prefix: str, rate: int) -> list[str]:
    """Set the limit of this user's runs of transfers whose id begins so; which these are."""
    found = []
    for transfer, fd in _held(folder):
        if transfer.startswith(prefix):
            SharedBucket.change(fd, rate)
            found.append(transfer)
    return sorted(found)


def _held(folder: str) -> Iterator[tuple[str, int]]:
    """Transfers of runs that live, with their open files. Removes the files of those that died."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    for name in names:
        path = os.path.join(folder, name)
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if _is_held(fd):
                    yield name.partition(".")[0], fd
                elif not name.endswith(_NEW):
                    os.unlink(path)
            finally:
                os.close(fd)


def _is_held(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
