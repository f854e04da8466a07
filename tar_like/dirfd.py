"""Walker: open the directories below a root one name at a time, never following a symlink.

    walker.dirfd(b"a/b") -> fd of b, reached as open(root) > openat(a) > openat(b)

Works for paths longer than PATH_MAX. Keeps the fds of the current path open, but no more than
``2 * KEEP``: of a deeper path the first and the last ones, and walks again from the nearest.
Not thread-safe: one Walker a thread.
"""

from __future__ import annotations

import errno
import os
import stat
from types import TracebackType

KEEP = 32
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_file(path: str | bytes, flags: int, mode: int = 0o600, dir_fd: int | None = None) -> int:
    """An fd of a regular file: no symlink is followed, and no FIFO waited for. Raises OSError."""
    return open_regular(path, flags, mode, dir_fd)[0]


def open_regular(
    path: str | bytes, flags: int, mode: int = 0o600, dir_fd: int | None = None
) -> tuple[int, os.stat_result]:
    """What ``open_file`` gives, and how the file is."""
    fd = os.open(path, flags | _FILE, mode, dir_fd=dir_fd)
    st = os.fstat(fd)
    if not stat.S_ISREG(st.st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return fd, st


def mount_of(fd: int) -> str:
    """The mount that an open file lies in, bind mounts told apart (proc(5), fdinfo)."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next(line for line in file if line.startswith("mnt_id:"))


class Walker:
    """File descriptors of directories below one root (which itself may be a symlink)."""

    _root = -1

    def __init__(self, root: str | bytes | os.PathLike[str], *, readable: bool = False) -> None:
        """Open the root. Raises OSError when it is missing or no directory.

        ``readable``: the directories' fds can be listed, where we may do so.
        """
        self._flags = _FLAGS & ~os.O_PATH if readable else _FLAGS
        self._names: list[bytes] = []
        self._fds: list[int] = []
        self._current = b""
        self._above: bytes | None = None
        """The directory that the current one lies in; None for the root."""
        self._root = self._open(root, follow=True)

    @property
    def root(self) -> int:
        """The root's own fd."""
        return self._root

    def dirfd(self, directory: bytes) -> int:
        """An fd of a directory (O_PATH, unless it is readable), valid until the next call.

        Raises OSError: ENOENT when it is missing, ENOTDIR when a name on the way is a symlink
        or a file.
        """
        if directory == self._current:
            return self._fds[-1] if self._fds else self._root
        above, slash, name = directory.rpartition(b"/")
        plain = bool(name and (above or not slash))  # not the root, nor from the top of all
        current, beside = self._current, self._above
        self._current, self._above = b"\0", None  # whatever fails, nothing is beside that
        if plain and beside == above and self._fds:  # as mostly: one after the other
            self._names.pop()
            os.close(self._fds.pop())
            current = above
        if plain and current == above and (not self._fds or self._fds[-1] != -1):
            self._push(name)
        else:
            names = directory.split(b"/") if directory else []
            self._pop_to(_common(names, self._names))
            for one in names[len(self._fds) :]:
                self._push(one)
        self._current, self._above = directory, above if self._fds else None
        return self._fds[-1] if self._fds else self._root

    def split(self, path: bytes) -> tuple[int, bytes]:
        """The fd of a path's parent directory, and the path's last name (``.`` for the root)."""
        parent, _, name = path.rpartition(b"/")
        return self.dirfd(parent), name or b"."

    def close(self) -> None:
        """Close every fd; done by itself when nobody has this object any more."""
        root, self._root = self._root, -1
        if root != -1:
            self._pop_to(0)
            os.close(root)

    __del__ = close

    def __enter__(self) -> Walker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _push(self, name: bytes) -> None:
        if name in (b"", b".", b".."):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        at = self._fds[-1] if self._fds else self._root
        fd = self._open(name, at)
        self._fds.append(fd)
        self._names.append(name)
        middle = len(self._fds) - KEEP - 1
        if middle >= KEEP and self._fds[middle] != -1:
            os.close(self._fds[middle])
            self._fds[middle] = -1

    def _open(
        self,
        name: str | bytes | os.PathLike[str],
        parent: int | None = None,
        *,
        follow: bool = False,
    ) -> int:
        flags = 0 if follow else os.O_NOFOLLOW
        try:
            return os.open(name, self._flags | flags, dir_fd=parent)
        except PermissionError:
            if self._flags & os.O_PATH:
                raise
            return os.open(name, _FLAGS | flags, dir_fd=parent)  # to be gone through, not listed

    def _pop_to(self, depth: int) -> None:
        """Forget the directories deeper than ``depth``, and those whose fds were given up."""
        self._current, self._above = b"\0", None
        while len(self._fds) > depth or (self._fds and self._fds[-1] == -1):
            fd = self._fds.pop()
            self._names.pop()
            if fd != -1:
                os.close(fd)


def _common(a: list[bytes], b: list[bytes]) -> int:
    """How many leading names two paths share."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
