"""The directories of a tree that is put in place.

first: made, and usable by us > files, links, deletions > last: their own metadata, children first
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection

from tar_like.dirfd import Walker
from tar_like.index import Index
from tar_like.layout import DIRECTORY, Entry
from tar_like.proxy.backup import Backup
from tar_like.proxy.kept import Kept
from tar_like.proxy.metadata import Metadata
from tar_like.proxy.refusal import Refused, failed, with_time
from tar_like.rules import Rules
from tar_like.wire import Failure


class Directories:
    """The directories of one transfer; those that its rules pass over stay as they are."""

    def __init__(self, path: str, root: str, there: Collection[int] = ()) -> None:
        """``path`` is the transfer's folder, ``root`` the destination.

        ``there`` are directories that are in their place already, and as their entries say.
        """
        self._there = there
        self._index = Index(os.path.join(path, "index.db"))
        self._kept = Kept(os.path.join(path, "kept.db"))
        self._root = root
        self._walker = Walker(root)
        self._metadata = Metadata(self._index.xattr_names)
        folder = os.fsencode(Rules.read(path).backup_dir)
        self._backup = Backup(root, folder) if folder else None

    def make(self) -> list[Failure]:
        """Every directory of the index, usable by us until its metadata is set."""
        failures = []
        for entry in self._index.of_kind(DIRECTORY):
            if entry.id in self._there and entry.mode & stat.S_IRWXU == stat.S_IRWXU:
                continue
            try:
                if self._kept.passes(entry.id):
                    continue
                if entry.path:
                    self._make_directory(entry)
                else:
                    self._open_root()
            except OSError as error:
                failures.append(failed(entry.path, error))
        return failures

    def _open_root(self) -> None:
        mode = os.stat(self._walker.root).st_mode
        if mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{self._walker.root}", stat.S_IMODE(mode) | 0o700)

    def _make_directory(self, entry: Entry) -> None:
        parent, name = self._walker.split(entry.path)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
            return
        except FileExistsError:
            st = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(st.st_mode):
            if self._backup is not None:
                self._backup.move(entry.path)
            else:
                os.unlink(name, dir_fd=parent)
            os.mkdir(name, 0o700, dir_fd=parent)
        elif st.st_mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{self._walker.dirfd(entry.path)}", st.st_mode | 0o700)

    def finish(self) -> list[Failure]:
        """The directories' own metadata, children first."""
        self._walker = Walker(self._root)  # what is open since then may have been moved
        failures = []
        for entry in self._index.backwards(DIRECTORY):
            if self._kept.passes(entry.id):
                continue
            try:
                if self._is_finished_by_name(entry):
                    continue
                fd = os.open(
                    b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC,
                    dir_fd=self._walker.dirfd(entry.path),
                )  # fmt: skip
                try:
                    xattrs = self._index.xattrs(entry.id) if self._index.xattr_names else ()
                    self._metadata.apply(fd, entry, os.fstat(fd), xattrs)
                    with_time(entry, os.fstat(fd))
                finally:
                    os.close(fd)
            except (Refused, OSError) as error:
                failures.append(failed(entry.path, error))
        return failures

    def _is_finished_by_name(self, entry: Entry) -> bool:
        """Whether a directory is as its entry says, once it has its time; it is not opened."""
        if self._index.xattr_names:
            return False
        parent, name = self._walker.split(entry.path)
        st = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not (stat.S_ISDIR(st.st_mode) and self._metadata.matches_but_time(entry, st)):
            return False
        if st.st_mtime_ns != entry.mtime:
            times = entry.mtime, entry.mtime
            os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)
            with_time(entry, os.stat(name, dir_fd=parent, follow_symlinks=False))
        return True
