"""Keep what a commit replaces or deletes, below one folder of the destination.

    DEST/a/b is replaced  >  DEST/BACKUP/a/b is what it was

Directories of the backup get mode and owner of those that they stand for. What lies in the backup
from an earlier run under the same name is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from tar_like.dirfd import Walker, mount_of
from tar_like.errors import UsageError
from tar_like.index import Index
from tar_like.rules import Rules

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def check_backup(index: Index, rules: Rules) -> None:
    """Raises UsageError when the tree itself has the name of the backup."""
    if rules.backup_dir and index.has_path(os.fsencode(rules.backup_dir)):
        raise UsageError(f"The source itself has {rules.backup_dir}: name another --backup-dir.")


class Backup:
    """The backup of one destination. Not thread-safe."""

    def __init__(self, root: str, folder: bytes) -> None:
        """``folder`` is relative to ``root``; it need not be there."""
        self._folder = folder
        self._walker = Walker(root)
        self._originals = Walker(root)

    def move(self, path: bytes) -> None:
        """Move a name that is no directory into the backup. Raises OSError."""
        there, last = self._place(path)
        parent, name = self._originals.split(path)
        try:
            os.rename(name, last, src_dir_fd=parent, dst_dir_fd=there)
        except IsADirectoryError:
            _remove(last, there)
            os.rename(name, last, src_dir_fd=parent, dst_dir_fd=there)

    def keep(self, path: bytes) -> None:
        """Have a name in the backup, too, before it is replaced by a rename. Raises OSError.

        By a further link, so that the name never vanishes; where there are none, by moving it.
        """
        parent, name = self._originals.split(path)
        try:
            st = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(st.st_mode):
            return  # whoever makes way for a file keeps what is in it
        there, last = self._place(path)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(last, dir_fd=there, follow_symlinks=False), st):
                return  # kept before a crash
            _remove(last, there)
        try:
            os.link(name, last, src_dir_fd=parent, dst_dir_fd=there, follow_symlinks=False)
        except OSError:
            self.move(path)

    def make(self, path: bytes) -> None:
        """Have a directory in the backup. Raises OSError."""
        self._directory(path)

    def close(self) -> None:
        """Close the folders."""
        self._walker.close()
        self._originals.close()

    def _place(self, path: bytes) -> tuple[int, bytes]:
        parent, _, name = path.rpartition(b"/")
        self._directory(parent)
        return self._walker.dirfd(self._under(parent)), name

    def _under(self, path: bytes) -> bytes:
        return self._folder + b"/" + path if path else self._folder

    def _directory(self, path: bytes) -> None:
        """Make a directory of the backup, and those above it."""
        try:
            self._walker.dirfd(self._under(path))
        except (FileNotFoundError, NotADirectoryError):
            if path:
                self._directory(path.rpartition(b"/")[0])
                self._make_one(path)
            else:
                self._make_folder()

    def _make_folder(self) -> None:
        done = b""
        for name in self._folder.split(b"/"):
            parent = self._walker.dirfd(done)
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
            done = done + b"/" + name if done else name

    def _make_one(self, path: bytes) -> None:
        parent, name = self._walker.split(self._under(path))
        if _is_no_directory(name, parent):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(name, dir_fd=parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
            st = os.stat(self._originals.dirfd(path))
            made = f"/proc/self/fd/{self._walker.dirfd(self._under(path))}"
            with contextlib.suppress(PermissionError):
                os.chown(made, st.st_uid, st.st_gid)
            os.chmod(made, stat.S_IMODE(st.st_mode) | 0o700)


def _is_no_directory(name: bytes, parent: int) -> bool:
    """Whether something else has the name. Raises OSError."""
    try:
        st = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return not stat.S_ISDIR(st.st_mode)


def _remove(name: bytes | str, parent: int) -> None:
    """Remove what an earlier run has kept under a name, and what is in it. Raises OSError."""
    try:
        os.unlink(name, dir_fd=parent)
    except IsADirectoryError:
        fd = os.open(name, _FOLDER, dir_fd=parent)
        try:
            if mount_of(fd) != mount_of(parent):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY)) from None
            for each in os.listdir(fd):
                _remove(each, fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)
