"""Give verified files their names.

    directories are there > files and symlinks (parallel) > hard links > fingerprints

Each name is put in place by one rename from staging (a directory by mkdir), so each is either
old or new. Everything can be done again after a crash: a staged file that is gone has been
renamed already. A name that cannot be put in place is reported and harms no other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tar_like import digest
from tar_like.database import attach, connect_readonly
from tar_like.dirfd import Walker
from tar_like.errors import shown
from tar_like.index import Index
from tar_like.layout import HARDLINK, SYMLINK, Entry
from tar_like.proxy.backup import Backup
from tar_like.proxy.copying import copy_range
from tar_like.proxy.deletion import IN_THE_WAY, Deletion
from tar_like.proxy.kept import Kept
from tar_like.proxy.ledger import Landed
from tar_like.proxy.metadata import Metadata
from tar_like.proxy.passing import Passing
from tar_like.proxy.refusal import NO_TIME, Refused, failed, with_time
from tar_like.proxy.snapshot import base_of
from tar_like.proxy.staging import Staging
from tar_like.rules import Rules
from tar_like.sparse import data_of
from tar_like.wire import Failure

_CHANGED = "was changed in the destination during the commit: run it again"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


_VERIFIED = """
SELECT e.id, e.path, e.size, e.mtime, v.digest
FROM verified.verified v JOIN entry e ON e.id = v.entry_id
WHERE v.entry_id >= ? AND v.entry_id < ? ORDER BY v.entry_id
"""
_KEPT = """
SELECT e.id, e.path, e.size, e.mode, e.mtime, e.uid, e.gid, k.ino, k.ctime
FROM kept.landed k CROSS JOIN entry e ON e.id = k.entry_id
WHERE k.entry_id >= ? AND k.entry_id < ? ORDER BY k.entry_id
"""
_ONE_KEPT = "SELECT digest, ino, ctime FROM kept.landed WHERE entry_id = ?"
_OTHERS = """
SELECT e.id, e.path, e.kind, e.size, e.offset, e.mode, e.mtime, e.uid, e.gid, e.target, e.link,
  e.hash, e.ctime, e.ino, e.token, b.entry_id
FROM entry e LEFT JOIN plan.bare b ON b.entry_id = e.id
WHERE e.id >= ? AND e.id < ? AND e.kind IN ('f', 'l')
  AND NOT EXISTS (SELECT 1 FROM kept.landed k WHERE k.entry_id = e.id)
  AND NOT EXISTS (SELECT 1 FROM verified.verified v WHERE v.entry_id = e.id)
ORDER BY e.id
"""


LARGE, MOST_HELD = 32 << 20, 16
"""Bytes from which it takes the filesystem a while to free a file that was replaced, and how many
such files wait for that until the commit has been reported."""
_HOLD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Applied:
    """What a range of entries came to."""

    landed: list[tuple[int, bytes, int, int]] = field(default_factory=list)
    """Values of Landed as plain tuples, which pass between processes at a third of the cost.

    Not those of kept files that are just as they were.
    """
    lost: list[int] = field(default_factory=list)
    """Kept files that are not in place."""
    failures: list[Failure] = field(default_factory=list)
    named: list[int] = field(default_factory=list)
    """Files in place that have other names: what happens to those changes their fingerprint."""
    count: int = 0
    deleted: int = 0
    """Names that were removed since a directory had to give way."""


class Applier:
    """Puts entries of one transfer in place. One a process; not thread-safe."""

    def __init__(self, path: str, root: str) -> None:
        """``path`` is the transfer's folder, ``root`` the destination."""
        self._path = path
        self._index = Index(os.path.join(path, "index.db"))
        self._staging = Staging(os.path.join(path, "stage"))
        self._walker = Walker(root)
        self._metadata = Metadata(self._index.xattr_names)
        self._root = root
        self._rules = Rules.read(path)
        whole = self._rules.ignore_errors or not self._index.skipped_count("unreadable")
        folder = os.fsencode(self._rules.backup_dir)
        self._backup = Backup(root, folder) if folder else None
        self._may_clear = self._rules.delete and whole
        """Whether a directory that is not empty gives way to what is none."""
        self._base: Walker | None = None
        """The snapshot before, from which what is kept is shared."""
        if self._rules.snapshot:
            self._base = Walker(base_of(os.path.join(path, "../../.."), path))
        self._kept = Kept(os.path.join(path, "kept.db"))
        self._passing = Passing(self._rules, self._walker)
        self._wary = self._rules.update or self._rules.ignore_existing
        self._held: list[int] = []
        self._deleted = 0
        self._db: sqlite3.Connection | None = None
        self._algorithm = self._index.digest

    def apply_range(self, first: int, stop: int) -> Applied:
        """Files and symlinks with ids in ``[first, stop)``."""
        applied = Applied(count=stop - first)
        db = self._known()
        for entry_id, path, size, mtime, content in db.execute(_VERIFIED, (first, stop)):
            try:
                if not (self._wary and self._passed_now(entry_id)):
                    row = self._put_in_place(entry_id, path, size, mtime, content)
                    applied.landed.append(row)
            except (Refused, OSError) as error:
                applied.failures.append(failed(path, error))
        for entry_id in self._unlike(db.execute(_KEPT, (first, stop))):
            kept = Landed(entry_id, *db.execute(_ONE_KEPT, (entry_id,)).fetchone())
            self._apply_kept(applied, self._index.entry(entry_id), kept)
        for row in db.execute(_OTHERS, (first, stop)):
            entry = Entry._make(row[:15])
            try:
                if self._kept.passes(entry.id):
                    continue
                if entry.kind == SYMLINK:
                    self._apply_symlink(entry)
                elif row[15] is not None:
                    applied.landed.append(self._apply_bare(entry))
                # else verification has reported it
            except (Refused, OSError) as error:
                applied.failures.append(failed(entry.path, error))
        applied.deleted, self._deleted = self._deleted, 0
        return applied

    def _unlike(self, rows: Iterable[tuple[Any, ...]]) -> list[int]:
        """The kept files that are not just as they were and should be: by one look at each."""
        if self._base is not None or self._index.xattr_names:
            return [row[0] for row in rows]
        lstat = os.lstat
        parent, fd = b"", self._walker.root
        found = []
        for entry_id, path, size, mode, mtime, uid, gid, ino, ctime in rows:
            folder, _, name = path.rpartition(b"/")
            try:
                if folder != parent:
                    parent, fd = folder, self._walker.dirfd(folder)
                st = lstat(name, dir_fd=fd)
            except OSError:
                parent, fd = b"", self._walker.dirfd(b"")
                found.append(entry_id)
                continue
            if (
                st.st_ino != ino
                or st.st_ctime_ns != ctime
                or st.st_size != size
                or st.st_mtime_ns != mtime
                or st.st_mode != mode | stat.S_IFREG
                or st.st_uid != uid
                or st.st_gid != gid
                or st.st_nlink != 1
            ):
                found.append(entry_id)
        return found

    def _apply_kept(self, applied: Applied, entry: Entry, kept: Landed) -> None:
        """A file whose content is in place."""
        try:
            landed, names = self._touch_kept(entry, kept)
            applied.landed.append(landed)
            if names > 1:
                applied.named.append(entry.id)
        except (Refused, OSError) as error:
            applied.lost.append(entry.id)
            applied.failures.append(failed(entry.path, error))

    def _passed_now(self, entry_id: int) -> bool:
        """Whether a staged file must not take its place any more, by what has come there since."""
        return self._staging.holds(entry_id) and self._passing.passes(self._index.entry(entry_id))

    def _known(self) -> sqlite3.Connection:
        """The index, joined to what is known of its files: verified, kept or bare."""
        if self._db is None:
            self._db = connect_readonly(self._index.path)
            for name in ("verified", "kept", "plan"):
                path = os.path.join(self._path, f"{name}.db")
                attach(self._db, path, name)
        return self._db

    def _apply_bare(self, entry: Entry) -> tuple[int, bytes, int, int]:
        """A file without bytes to send: empty, or one hole."""
        content = digest.of_zeros(self._algorithm, entry.size)
        if entry.hash and entry.hash != content:
            raise Refused("changed", source=True)
        self._stage_bare(entry)
        return self._put_in_place(entry.id, entry.path, entry.size, entry.mtime, content)

    def _put_in_place(
        self, entry_id: int, path: bytes, size: int, mtime: int, content: bytes
    ) -> tuple[int, bytes, int, int]:
        """Give a staged file its name; ``content`` is its digest. The hot path of a commit."""
        renamed = True
        try:
            if size >= LARGE:
                self._hold(path)
            parent, name = self._rename_over(Staging.name(entry_id), path)
        except FileNotFoundError:
            renamed = False  # or rather before a crash: then it must be as we left it
            parent, name = self._walker.split(path)
        st = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if st.st_mtime_ns != mtime and renamed:
            raise Refused(NO_TIME)
        if st.st_size != size or st.st_mtime_ns != mtime:
            raise Refused("was replaced in the destination during the commit")
        if not renamed:
            st = self._as_left(self._index.entry(entry_id), content)
        return entry_id, content, st.st_ino, st.st_ctime_ns

    def _as_left(self, entry: Entry, content: bytes) -> os.stat_result:
        """A file that was put in place before a crash: is it as we left it still?"""
        parent, name = self._walker.split(entry.path)
        if self._digest_of(name, parent) != content:
            raise Refused(_CHANGED)
        return self._set_metadata(entry)

    def _set_metadata(self, entry: Entry) -> os.stat_result:
        """Bring a file that is in place to the entry's state."""
        parent, name = self._walker.split(entry.path)
        fd = _open_own(name, parent)
        try:
            self._metadata.apply(fd, entry, os.fstat(fd), self._index.xattrs(entry.id))
            return with_time(entry, os.fstat(fd))
        finally:
            os.close(fd)

    def _hold(self, path: bytes) -> None:
        """Keep the file that is replaced from being freed before this process ends."""
        if len(self._held) >= MOST_HELD:
            os.close(self._held.pop(0))
        parent, name = self._walker.split(path)
        with contextlib.suppress(FileNotFoundError):
            self._held.append(os.open(name, _HOLD, dir_fd=parent))

    def _stage_bare(self, entry: Entry) -> None:
        parent, name = self._walker.split(entry.path)
        try:
            st = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISREG(st.st_mode) and st.st_size == entry.size == 0 and st.st_nlink == 1:
                fd = os.open(name, _READ, dir_fd=parent)
                try:
                    self._metadata.apply(fd, entry, st, self._index.xattrs(entry.id))
                finally:
                    os.close(fd)
                return
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
                raise
        fd = self._staging.create(entry.id)
        try:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, entry.size)
            self._metadata.apply(fd, entry, os.fstat(fd), self._index.xattrs(entry.id))
        finally:
            os.close(fd)

    def _touch_kept(self, entry: Entry, kept: Landed) -> tuple[Landed, int]:
        """A file whose content is in place: its metadata may have changed.

        Also returns how many names it has, as far as a change of those matters.
        """
        if self._base is not None:
            return self._share(entry, kept, self._base), 1
        parent, name = self._walker.split(entry.path)
        st = os.stat(name, dir_fd=parent, follow_symlinks=False)
        same = st.st_ino == kept.ino and st.st_size == entry.size
        # Another ctime: touched by us before a crash, or by somebody else. The content tells.
        touched = st.st_ctime_ns != kept.ctime and kept.digest != b""
        if not same or (touched and not self._holds(name, parent, kept)):
            raise Refused("was changed in the destination during the transfer: run it again")
        names = st.st_nlink
        if not self._metadata.matches(entry, st):
            if names > 1:  # the others may be other entries, which have metadata of their own
                st = self._part(entry, parent, name, kept.digest)
            else:
                st = self._set_metadata(entry)
        elif self._index.xattr_names:
            st = self._set_metadata(entry)
        return Landed(entry.id, kept.digest, st.st_ino, st.st_ctime_ns), names

    def _share(self, entry: Entry, kept: Landed, base: Walker) -> Landed:
        """A file that the snapshot before has: by a further link, or copied if it differs."""
        parent, name = self._walker.split(entry.path)
        try:
            st = os.stat(name, dir_fd=parent, follow_symlinks=False)
            return Landed(entry.id, kept.digest, st.st_ino, st.st_ctime_ns)  # before a crash
        except FileNotFoundError:
            pass
        theirs, last = base.split(entry.path)
        st = os.stat(last, dir_fd=theirs, follow_symlinks=False)
        same = st.st_ino == kept.ino and st.st_size == entry.size
        if not same or (st.st_ctime_ns != kept.ctime and not self._holds(last, theirs, kept)):
            raise Refused("was changed in the snapshot before: run it again")
        if not self._metadata.matches(entry, st) or self._index.xattr_names:
            self._copy(entry, theirs, last)
        else:
            try:
                os.link(last, name, src_dir_fd=theirs, dst_dir_fd=parent, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV):
                    raise
                self._copy(entry, theirs, last)
        st = os.stat(name, dir_fd=parent, follow_symlinks=False)
        return Landed(entry.id, kept.digest, st.st_ino, st.st_ctime_ns)

    def separate(self, joined: Iterable[tuple[int, bytes]], firsts: Iterable[int]) -> Applied:
        """Give entries files of their own that are names of another's; with known digests.

        ``firsts`` keep theirs, whose attributes may have been set by the others' names.
        """
        applied = Applied()
        for entry_id, known in joined:
            entry = self._index.entry(entry_id)
            try:
                theirs, last = (self._base or self._walker).split(entry.path)
                st = self._part(entry, theirs, last, known)
                applied.landed.append((entry_id, known, st.st_ino, st.st_ctime_ns))
            except (Refused, OSError) as error:
                applied.lost.append(entry_id)
                applied.failures.append(failed(entry.path, error))
        for entry in map(self._index.entry, firsts if self._base is None else ()):
            try:
                self._set_metadata(entry)
            except (Refused, OSError) as error:
                applied.lost.append(entry.id)
                applied.failures.append(failed(entry.path, error))
        return applied

    def _part(self, entry: Entry, theirs: int, last: bytes, known: bytes) -> os.stat_result:
        """A file of its own, copied from another of that digest; how it is when it is in place."""
        self._copy(entry, theirs, last)
        parent, name = self._walker.split(entry.path)
        # First: whoever changes it while it is read, or later, changes what is taken here, too.
        st = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if known and self._digest_of(name, parent) != known:
            raise Refused(_CHANGED)
        return st

    def _copy(self, entry: Entry, theirs: int, last: bytes) -> None:
        """A file of its own, sharing blocks where the filesystem can."""
        source = os.open(last, _READ, dir_fd=theirs)
        try:
            fd = self._staging.create(entry.id)
            try:
                os.ftruncate(fd, 0)
                os.ftruncate(fd, entry.size)
                for start, stop in data_of(source, entry.size):
                    copy_range(source, start, fd, start, stop - start)
                self._metadata.apply(fd, entry, os.fstat(fd), self._index.xattrs(entry.id))
            finally:
                os.close(fd)
        finally:
            os.close(source)
        self._rename_over(Staging.name(entry.id), entry.path)

    def _holds(self, name: bytes, parent: int, kept: Landed) -> bool:
        """Whether a kept file still has its content, by reading it."""
        return self._digest_of(name, parent) == kept.digest

    def _digest_of(self, name: bytes, parent: int) -> bytes:
        hasher = digest.hasher(self._algorithm)
        fd = os.open(name, _READ, dir_fd=parent)
        with open(fd, "rb", buffering=0) as file:
            while data := file.read(1 << 20):
                hasher.update(data)
        return hasher.digest()

    def _apply_symlink(self, entry: Entry) -> None:
        parent, name = self._walker.split(entry.path)
        xattrs = self._index.xattrs(entry.id) if self._index.xattr_names else ()
        try:
            # Another name of it may be another entry's: links are made anew, after this.
            alone = os.stat(name, dir_fd=parent, follow_symlinks=False).st_nlink == 1
            same = alone and os.readlink(name, dir_fd=parent) == entry.target
        except OSError:
            same = False
        if same:
            self._metadata.apply_link(name, parent, entry, xattrs)
            with_time(entry, os.stat(name, dir_fd=parent, follow_symlinks=False))
            return
        staged = Staging.name(entry.id)
        self._unlink_staged(entry.id)
        try:
            os.symlink(entry.target, staged, dir_fd=self._staging.fd)
        except FileNotFoundError:
            self._staging.make_shard(entry.id)
            os.symlink(entry.target, staged, dir_fd=self._staging.fd)
        self._metadata.apply_link(staged, self._staging.fd, entry, xattrs)
        parent, name = self._rename_over(staged, entry.path)
        with_time(entry, os.stat(name, dir_fd=parent, follow_symlinks=False))

    def link_hard_links(self, refused: set[int]) -> Applied:
        """Further names of files: as links to their first name."""
        applied = Applied()
        for entry in self._index.of_kind(HARDLINK):
            applied.count += 1
            first = self._index.entry(entry.link)
            try:
                if self._kept.passes(entry.id) or self._kept.passes(entry.link):
                    continue
                if entry.link in refused:
                    text = f"is a hard link to {shown(first.path)}, which did not arrive"
                    raise Refused(text, source=True)
                self._link(entry, first)
            except (Refused, OSError) as error:
                applied.failures.append(failed(entry.path, error))
        applied.deleted, self._deleted = self._deleted, 0
        return applied

    def _link(self, entry: Entry, first: Entry) -> None:
        parent, name = self._walker.split(first.path)
        inode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_ino
        parent, name = self._walker.split(entry.path)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(name, dir_fd=parent, follow_symlinks=False).st_ino == inode:
                return
        staged = Staging.name(entry.id)
        self._unlink_staged(entry.id)
        self._staging.make_shard(entry.id)
        parent, name = self._walker.split(first.path)
        os.link(name, staged, src_dir_fd=parent, dst_dir_fd=self._staging.fd, follow_symlinks=False)
        self._rename_over(staged, entry.path)

    def ctime(self, entry_id: int, ino: int) -> int | None:
        """The ctime of a file as it is now; None where it is not as it was put in place.

        Raises OSError.
        """
        entry = self._index.entry(entry_id)
        parent, name = self._walker.split(entry.path)
        st = os.stat(name, dir_fd=parent, follow_symlinks=False)
        same = (st.st_ino, st.st_size) == (ino, entry.size) and self._metadata.matches(entry, st)
        return st.st_ctime_ns if same else None

    def _rename_over(self, staged: str, path: bytes) -> tuple[int, bytes]:
        """Give a staged name its place; a directory there gives way if it may.

        Returns where that is: the fd of the directory, valid as the walker's are, and the name.
        """
        if self._backup is not None:
            os.stat(staged, dir_fd=self._staging.fd, follow_symlinks=False)  # else it is in place
            self._backup.keep(path)
        parent, name = self._walker.split(path)
        try:
            os.rename(staged, name, src_dir_fd=self._staging.fd, dst_dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._remove_directory(path)
            parent, name = self._walker.split(path)
            os.rename(staged, name, src_dir_fd=self._staging.fd, dst_dir_fd=parent)
        return parent, name

    def _remove_directory(self, path: bytes) -> None:
        parent, name = self._walker.split(path)
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not self._may_clear:
                raise
            with contextlib.closing(Deletion(self._root, self._index, self._rules)) as deletion:
                cleared = deletion.clear(path)
                self._deleted += deletion.deleted
                if not cleared:
                    raise Refused(IN_THE_WAY) from None
            os.rmdir(name, dir_fd=parent)

    def _unlink_staged(self, entry_id: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(Staging.name(entry_id), dir_fd=self._staging.fd)


def _open_own(name: bytes, parent: int) -> int:
    """A readable fd of a file, also where its mode is closed to us, a plain user, who owns it.

    The mode that it is given for that is not its last one. Raises OSError.
    """
    try:
        return os.open(name, _READ, dir_fd=parent)
    except PermissionError:
        fd = os.open(name, _HOLD, dir_fd=parent)
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode):
                raise
            os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(st.st_mode) | stat.S_IRUSR)
            return os.open(f"/proc/self/fd/{fd}", _READ & ~os.O_NOFOLLOW)
        finally:
            os.close(fd)
