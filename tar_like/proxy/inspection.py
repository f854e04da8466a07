"""Inspection: a ledger's rows against the names in DEST, in step.

ledger, row by row > lstat of the names, many at a time > files that are not as they were left
                                                        > sights of directories where all is
"""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tar_like.dirfd import Walker
from tar_like.index.schema import SELECT_ENTRY
from tar_like.layout import DIRECTORY, FILE, HARDLINK, SYMLINK, Entry
from tar_like.lstat import Lstats
from tar_like.proxy.metadata import Metadata
from tar_like.proxy.place import HOME
from tar_like.proxy.recall import Recall
from tar_like.proxy.rows import Rows
from tar_like.proxy.sights import SIZE, Taking, Writing, columns_of, numbers_of

STRETCH = 256
"""Rows of files that are looked at in one go."""
_SELECT = """
SELECT e.id, CAST(e.path AS BLOB), e.kind, l.ino, l.ctime, e.mtime, e.size, e.mode, e.uid, e.gid
FROM entry e LEFT JOIN landed l ON l.entry_id = e.id
"""
_QUERY = f"{_SELECT} ORDER BY e.id"
FEW = 1
"""Of so many directories that are known one may be looked at by its own rows; else all are read."""
_Row = tuple[int, bytes, str, int | None, int | None, int, int, int, int, int]


class Inspection:
    """Goes through a ledger once."""

    def __init__(self, db: sqlite3.Connection, walker: Walker, *, same: bool) -> None:
        self._db = db
        self._walker = walker
        self._lstats = Lstats()
        self._metadata = Metadata(frozenset())
        self._known: Collection[bytes] = ()
        self._writing: Writing | None = None
        self._before: Recall | None = None
        self._path: list[_Folder] = []
        """The directories on the way to the names that come by."""
        self.same = same
        """Whether every entry was found in its place, as far as anybody wants to know."""
        self.extra = False
        """Whether a directory has names that the index lacks, where all that it has are there."""
        self.whole = True
        """Whether there are sights of all directories now."""

    def learn(self, writing: Writing, before: Recall) -> None:
        """Write the sights of the directories that are gone through.

        A symlink that is younger than is ``settled`` may be another one by now, and look the
        same: its directory gets no sight.
        """
        self._writing, self._before = writing, before

    def touched(self) -> Iterator[int]:
        """Files that are not as they were left, or are gone. Raises sqlite3.Error, OSError."""
        others = self._db.execute(f"{SELECT_ENTRY} WHERE kind IS NOT ? ORDER BY id", (FILE,))
        at = self._enter(b"", 0)
        names, rows = list[bytes](), list[_Row]()  # files that come one after the other
        for row in self._db.execute(_QUERY):
            folder, _, name = row[1].rpartition(b"/")
            if names and (folder != at.path or row[2] != FILE or len(names) == STRETCH):
                yield from self._see(at, names, rows)
                names, rows = [], []
            if folder != at.path:
                at = self._back_to(folder)
            if row[2] == FILE:
                names.append(name)
                rows.append(row)
            else:
                self._judge(Entry._make(next(others)), name or b".", at)
                if row[2] == DIRECTORY and folder != row[1]:
                    at = self._enter(row[1], row[0])
        yield from self._see(at, names, rows)
        while self._path:
            self._leave()

    def touched_but(self, known: Collection[bytes]) -> Iterator[int]:
        """The same, where so many directories are known that only the others' rows are read."""
        query = "SELECT id, path FROM entry WHERE kind = ? ORDER BY id"
        others = [one for one in self._db.execute(query, (DIRECTORY,)) if one[1] not in known]
        if len(others) * FEW > len(known):
            self._known = known
            yield from self.touched()
            return
        rows = Rows(self._db, _SELECT)
        for number, folder in others:
            at = self._enter(folder, number)
            names, files = list[bytes](), list[_Row]()
            for row in rows.names(folder, b"", rows.count):
                name = row[1].rpartition(b"/")[2]
                if row[2] == FILE:
                    names.append(name)
                    files.append(row)
                if names and (row[2] != FILE or len(names) == STRETCH):
                    yield from self._see(at, names, files)
                    names, files = [], []
                if row[2] != FILE:
                    entry = self._db.execute(f"{SELECT_ENTRY} WHERE id = ?", (row[0],)).fetchone()
                    self._judge(Entry._make(entry), name or b".", at)
            yield from self._see(at, names, files)
            self._leave()

    def _see(self, at: _Folder, names: list[bytes], rows: list[_Row]) -> Iterator[int]:
        """Files of one folder that are not as they were left."""
        if at.known or not names:
            return
        at.count += len(names)
        try:
            self._lstats.forget()
            self._lstats.look(names, at.fd)
            columns = columns_of(self._lstats)
            wanted = _packed(rows)
            same = columns[: SIZE + 1] == wanted[: SIZE + 1]
        except (OSError, struct.error):  # a time that the ledger cannot have, or nothing landed
            same = False
        if not same:
            self.same = False
            yield from (
                row[0]
                for name, row in zip(names, rows, strict=True)
                if _fingerprint(name, at.fd) != row[3 : 3 + SIZE + 1]
            )
        elif at.taking is not None:
            at.taking.add(names, columns)
            at.taking.exact = at.taking.exact and columns == wanted
            if at.taking.full:
                at.taking = None

    def _enter(self, folder: bytes, row: int) -> _Folder:
        """Go into a folder; without an fd, by which no name is found, when there is none."""
        at = _Folder(folder, known=folder in self._known)
        self._path.append(at)
        if not at.known:
            self._open(at)
            if self.same:
                own = self._before.own(at.fd) if self._before is not None else 0
                self._list(at)
                at.taking = Taking(row, own) if self._writing is not None else None
        return at

    def _back_to(self, folder: bytes) -> _Folder:
        """Out of the folders that are below it. Raises sqlite3.Error when it is none of them."""
        while self._path[-1].path != folder:
            self._leave()
            if not self._path:
                raise sqlite3.DatabaseError("a name lacks its folder")
        at = self._path[-1]
        if not at.known:
            self._open(at)
        return at

    def _leave(self) -> None:
        """All names of the innermost folder, and what is below them, came by."""
        at = self._path.pop()
        if at.known or not self.same:
            return
        if at.count != at.listed:
            self.extra = True
        elif at.taking is not None and self._writing is not None:
            self._writing.add(at.taking.sight(at.path))
            return
        self.whole = False

    def _open(self, at: _Folder) -> None:
        try:
            at.fd = self._walker.dirfd(at.path)
        except OSError:
            at.fd = -1
            self.same = False

    def _list(self, at: _Folder) -> None:
        """Count a directory's names, while its fd is at hand."""
        try:
            with os.scandir(b"/proc/self/fd/%d/" % at.fd) as entries:
                at.listed = sum(1 for _ in entries)
        except OSError:
            self.same = False
        if not at.path:
            at.listed += 1 - _has_home(self._walker)  # the root comes by as a name of its own

    def _judge(self, entry: Entry, name: bytes, at: _Folder) -> None:
        """See whether what is no file is in its place."""
        if at.known:
            return
        at.count += 1
        if not self.same:
            return
        try:
            st = os.lstat(name, dir_fd=at.fd)
            self.same = self._holds(entry, st, at.fd, name)
            if not self.same or at.taking is None:
                return
            if entry.kind == SYMLINK and self._before and st.st_ctime_ns > self._before.settled:
                at.taking = None
                return
            at.taking.add_one(name, numbers_of(st))
        except (OSError, struct.error):
            self.same = False
            return
        of_ledger = (entry.mode, entry.uid, entry.gid) == (
            stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid
        )  # fmt: skip
        at.taking.exact = at.taking.exact and of_ledger and entry.kind != HARDLINK
        if at.taking.full:
            at.taking = None

    def _holds(self, entry: Entry, st: os.stat_result, parent: int, name: bytes) -> bool:
        """Whether a directory, a symlink or a further name is as its entry says. Raises OSError."""
        if entry.kind == HARDLINK:
            query = "SELECT ino FROM landed WHERE entry_id = ?"
            row = self._db.execute(query, (entry.link,)).fetchone()
            return row is not None and bool(row[0] == st.st_ino)
        if entry.kind == SYMLINK:
            if os.readlink(name, dir_fd=parent) != entry.target:
                return False
        elif not stat.S_ISDIR(st.st_mode):
            return False
        return self._metadata.matches(entry, st)


@dataclass(slots=True)
class _Folder:
    """A directory whose names come by."""

    path: bytes
    known: bool
    """It need not be looked at."""
    fd: int = -1
    listed: int = 0
    """How many names it has, the receiver's own folder aside."""
    count: int = 0
    """How many came by."""
    taking: Taking | None = None
    """Its sight, as long as all is as the ledger says."""


def _packed(rows: list[_Row]) -> list[bytes]:
    """The columns of files, as sights have them. Raises struct.error where nothing has landed."""
    _, _, _, inos, ctimes, mtimes, sizes, modes, uids, gids = zip(*rows, strict=True)
    quads = (struct.pack(f"<{len(rows)}q", *one) for one in (inos, ctimes, mtimes, sizes))
    modes = tuple(map(stat.S_IFREG.__or__, modes))
    return [*quads, *(struct.pack(f"<{len(rows)}I", *one) for one in (modes, uids, gids))]


def _fingerprint(name: bytes, folder: int) -> tuple[int, ...]:
    try:
        st = os.lstat(name, dir_fd=folder)
    except OSError:
        return ()
    return st.st_ino, st.st_ctime_ns, st.st_mtime_ns, st.st_size


def _has_home(walker: Walker) -> bool:
    try:
        os.stat(HOME, dir_fd=walker.root, follow_symlinks=False)
    except OSError:
        return False
    return True
