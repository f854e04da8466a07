"""Give files, directories and symlinks the owner, mode, attributes and times of their entries.

Order matters: chown clears setuid bits, ACLs change mode bits, a mode may be closed to us, and
times go last.
As another user than root, owners stay as they are, and groups change where permitted (as rsync
does). Only what differs is touched.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence

from tar_like.layout import SYMLINK, Entry
from tar_like.plan.rehearsed import Change

ACLS = ("system.posix_acl_access", "system.posix_acl_default")


class Metadata:
    """Applies entries' metadata, as the user that this process is."""

    def __init__(self, xattr_kinds: frozenset[str]) -> None:
        """``xattr_kinds``: of ``xattrs`` and ``acls``, what the index speaks of."""
        self._root = os.geteuid() == 0
        self._groups = {os.getegid(), *os.getgroups()}
        self._kinds = xattr_kinds

    def matches(self, entry: Entry, st: os.stat_result) -> bool:
        """Whether a name already is as the entry says (attributes not looked at)."""
        return st.st_mtime_ns == entry.mtime and self.matches_but_time(entry, st)

    def matches_but_time(self, entry: Entry, st: os.stat_result) -> bool:
        """The same, but for its time."""
        return (entry.kind == SYMLINK or stat.S_IMODE(st.st_mode) == entry.mode) and self._owner(
            entry, st
        ) is None

    def differences(
        self,
        entry: Entry,
        st: os.stat_result,
        path: bytes = b"",
        xattrs: Sequence[tuple[bytes, bytes]] = (),
    ) -> Change:
        """What applying an entry to a name would change; ``path`` leads to it, for attributes."""
        found = Change(0)
        if entry.kind != SYMLINK and stat.S_IMODE(st.st_mode) != entry.mode:
            found |= Change.MODE
        if st.st_mtime_ns != entry.mtime:
            found |= Change.MTIME
        if self._owner(entry, st) is not None:
            found |= Change.OWNER
        if self._kinds and self._xattrs_differ(path, xattrs):
            found |= Change.XATTRS
        return found

    def apply(
        self, fd: int, entry: Entry, st: os.stat_result, xattrs: Sequence[tuple[bytes, bytes]]
    ) -> None:
        """Bring an open file or directory (not O_PATH) to the entry's state. Raises OSError."""
        owner = self._owner(entry, st)
        if owner is not None:
            os.fchown(fd, *owner)
        if self._kinds:
            self._apply_xattrs_open(fd, st, xattrs)
        if owner is not None or self._kinds:
            st = os.fstat(fd)
        if st.st_mode & 0o7777 != entry.mode:
            os.fchmod(fd, entry.mode)
        if st.st_mtime_ns != entry.mtime:
            os.utime(fd, ns=(entry.mtime, entry.mtime))

    def apply_link(
        self, name: bytes | str, dir_fd: int, entry: Entry, xattrs: Sequence[tuple[bytes, bytes]]
    ) -> None:
        """Bring a symlink to the entry's state. Raises OSError."""
        st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        owner = self._owner(entry, st)
        if owner is not None:
            os.chown(name, *owner, dir_fd=dir_fd, follow_symlinks=False)
        if self._kinds:
            path = b"/proc/self/fd/%d/%s" % (dir_fd, os.fsencode(name))
            self._apply_xattrs(path, xattrs, follow=False)
        if st.st_mtime_ns != entry.mtime:
            os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=dir_fd, follow_symlinks=False)

    def _owner(self, entry: Entry, st: os.stat_result) -> tuple[int, int] | None:
        """The (uid, gid) to set, with -1 for what stays; None if nothing has to change."""
        if st.st_uid == entry.uid and st.st_gid == entry.gid:
            return None
        uid = entry.uid if self._root and st.st_uid != entry.uid else -1
        may_group = self._root or entry.gid in self._groups
        gid = entry.gid if may_group and st.st_gid != entry.gid else -1
        return None if uid == gid == -1 else (uid, gid)

    def _apply_xattrs_open(
        self, fd: int, st: os.stat_result, wanted: Sequence[tuple[bytes, bytes]]
    ) -> None:
        path = f"/proc/self/fd/{fd}".encode()
        try:
            self._apply_xattrs(path, wanted, follow=True)
        except PermissionError:  # its mode is closed to us, a plain user, and set again after this
            os.fchmod(fd, stat.S_IMODE(st.st_mode) | 0o600)
            self._apply_xattrs(path, wanted, follow=True)

    def _apply_xattrs(
        self, path: bytes, wanted: Sequence[tuple[bytes, bytes]], *, follow: bool
    ) -> None:
        for name, value in self._xattr_changes(path, wanted, follow=follow):
            if value is None:
                os.removexattr(path, name, follow_symlinks=follow)
            else:
                os.setxattr(path, name, value, follow_symlinks=follow)

    def _xattrs_differ(self, path: bytes, wanted: Sequence[tuple[bytes, bytes]]) -> bool:
        try:
            return next(self._xattr_changes(path, wanted, follow=False), None) is not None
        except OSError:
            return True  # to apply them says why

    def _xattr_changes(
        self, path: bytes, wanted: Sequence[tuple[bytes, bytes]], *, follow: bool
    ) -> Iterator[tuple[str, bytes | None]]:
        """(name, value) of attributes to be set, None for one to be removed."""
        mine = {os.fsdecode(name): value for name, value in wanted}
        try:
            present = os.listxattr(path, follow_symlinks=follow)
        except OSError as error:
            if error.errno == errno.ENOTSUP and not mine:
                return
            raise
        for name in present:
            if name not in mine and self._managed(name):
                yield name, None
        # ACLs last: they may close the mode to us
        for name, value in sorted(mine.items(), key=lambda item: item[0] in ACLS):
            if not self._managed(name):
                continue
            if name not in present or os.getxattr(path, name, follow_symlinks=follow) != value:
                yield name, value

    def _managed(self, name: str) -> bool:
        if name in ACLS:
            return "acls" in self._kinds
        allowed = name.startswith("user.") or (self._root and not name.startswith("system."))
        return "xattrs" in self._kinds and allowed
