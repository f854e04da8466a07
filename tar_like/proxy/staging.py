"""Staging: files under numbers, in the destination's own filesystem.

    stage/<entry id / 1024>/<entry id>     hexadecimal; with a dot and a mark: laid aside

Writes are idempotent, at fixed offsets. Names appear in commit only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import weakref

from tar_like.dirfd import open_file, open_regular
from tar_like.errors import NoSpace
from tar_like.proxy.durable import write_all

_CREATE = os.O_WRONLY | os.O_CREAT
_NEW = _CREATE | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REOPEN = os.O_RDWR
MODE = 0o644
"""Of a staged file: what most files have, so that few have to be given another. Nobody else
comes to where it lies."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Staging:
    """The staged files of one transfer. Thread-safe."""

    def __init__(self, directory: str) -> None:
        """Raises OSError."""
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self._fd)
        """Close the folder; done by itself when nobody has this object any more."""

    @property
    def fd(self) -> int:
        """The staging folder's fd; names below it come from ``name``."""
        return self._fd

    @staticmethod
    def name(entry_id: int) -> str:
        """A staged file's name, relative to the staging folder."""
        return f"{entry_id >> 10:x}/{entry_id:x}"

    def create(self, entry_id: int) -> int:
        """A writable fd of a staged file, made if it is new. Raises OSError, NoSpace."""
        name = self.name(entry_id)
        try:
            return self._open(name, _CREATE)[0]
        except FileNotFoundError:
            self.make_shard(entry_id)
            return self._open(name, _CREATE)[0]
        except OSError as error:
            raise mapped(error) from None

    def reopen(self, entry_id: int) -> int:
        """A readable and writable fd of a staged file. Raises FileNotFoundError, OSError."""
        return self._open(self.name(entry_id), _REOPEN)[0]

    def examine(self, entry_id: int) -> tuple[int, os.stat_result]:
        """What ``reopen`` gives, and how the file is."""
        return self._open(self.name(entry_id), _REOPEN)

    def _open(self, name: str, flags: int) -> tuple[int, os.stat_result]:
        try:
            return open_regular(name, flags, MODE, self._fd)
        except PermissionError:  # verification has given it its mode, and it is needed again
            os.chmod(name, MODE, dir_fd=self._fd)
            return open_regular(name, flags, MODE, self._fd)

    def make_shard(self, entry_id: int) -> None:
        """Make the folder that a staged file lies in."""
        try:
            os.mkdir(f"{entry_id >> 10:x}", 0o700, dir_fd=self._fd)
        except FileExistsError:
            pass
        except OSError as error:
            raise mapped(error) from None

    def stat(self, entry_id: int) -> os.stat_result:
        """How a staged file is. Raises FileNotFoundError."""
        return os.stat(self.name(entry_id), dir_fd=self._fd, follow_symlinks=False)

    def holds(self, entry_id: int) -> bool:
        """Whether there is a staged file; once it was given its name there is none."""
        try:
            self.stat(entry_id)
        except FileNotFoundError:
            return False
        return True

    def write(self, entry_id: int, data: memoryview, offset: int) -> None:
        """Put bytes into a staged file. Raises OSError, NoSpace."""
        try:
            fd = os.open(self.name(entry_id), _NEW, MODE, dir_fd=self._fd)
        except OSError:  # it is there, or its shard is not
            fd = self.create(entry_id)
        try:
            if os.pwrite(fd, data, offset) != len(data):
                write_all(fd, data, offset)
        except OSError as error:
            raise mapped(error) from None
        finally:
            os.close(fd)

    def remove(self, entry_id: int) -> None:
        """Have no staged file of an entry. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name(entry_id), dir_fd=self._fd)

    def lay_aside(self, entry_id: int, mark: str) -> None:
        """Give a staged file a name that says what it is; there is none then. Raises OSError."""
        name = self.name(entry_id)
        os.rename(name, f"{name}.{mark}", src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def take_aside(self, entry_id: int, mark: str) -> bool:
        """Stage what was laid aside with this mark, if there is such; remove what has others.

        Raises OSError.
        """
        shard, _, own = self.name(entry_id).partition("/")
        taken = False
        try:
            fd = os.open(shard, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            return False
        try:
            for name in os.listdir(fd):
                if name == f"{own}.{mark}":
                    os.rename(name, own, src_dir_fd=fd, dst_dir_fd=fd)
                    taken = True
                elif name.startswith(f"{own}."):
                    os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)
        return taken

    def open(self, entry_id: int) -> int:
        """A readable fd of a staged file. Raises FileNotFoundError when there is none."""
        return open_file(self.name(entry_id), os.O_RDONLY, dir_fd=self._fd)


def mapped(error: OSError | sqlite3.Error) -> Exception:
    """A full disk as our own error; everything else as it is."""
    code = error.errno if isinstance(error, OSError) else None
    if code in _FULL or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return NoSpace("The destination's disk is full: make room, then run the same again.")
    return error
