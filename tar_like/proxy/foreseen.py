"""Foreseen: what a commit would do to names for which nothing is sent.

    entries of the index > lstat of their names > folders, symlinks and further names to be made,
    metadata to be set, files to be parted from others, names that cannot be put in place

It says what apply and directories would do to a destination that stays as it is now, and changes
nothing.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from typing import NamedTuple

from tar_like.dirfd import Walker
from tar_like.errors import shown
from tar_like.index import Index
from tar_like.layout import DIRECTORY, FILE, HARDLINK, SYMLINK, Entry
from tar_like.plan.rehearsed import Change
from tar_like.proxy.metadata import Metadata
from tar_like.proxy.refusal import NOT_EMPTY

TABLES = (
    "CREATE TABLE folder (entry_id INTEGER PRIMARY KEY)",
    "CREATE TABLE symlink (entry_id INTEGER PRIMARY KEY)",
    "CREATE TABLE link (entry_id INTEGER PRIMARY KEY)",
    "CREATE TABLE changed (entry_id INTEGER PRIMARY KEY, what INTEGER NOT NULL)",
)
_ENTRIES = """
SELECT e.id, e.path, e.kind, e.size, e.offset, e.mode, e.mtime, e.uid, e.gid, e.target, e.link,
  e.hash, e.ctime, e.ino, e.token, k.ino, b.entry_id IS NOT NULL
FROM idx.entry e LEFT JOIN kept.landed k ON k.entry_id = e.id
LEFT JOIN plan.bare b ON b.entry_id = e.id
WHERE e.id NOT IN (SELECT entry_id FROM kept.passed)
AND NOT (e.kind = 'h' AND e.link IN (SELECT entry_id FROM kept.passed))
ORDER BY e.id
"""
_STAYS = "CREATE TEMP TABLE stays (ino INTEGER PRIMARY KEY, entry_id INTEGER NOT NULL)"
"""Files with several names in the destination, of which this entry's stays as it is."""


class Step(NamedTuple):
    """Something that would be done to one entry."""

    statement: str
    values: tuple[object, ...]


_FOLDER = "INSERT INTO folder VALUES (?)"
_SYMLINK = "INSERT INTO symlink VALUES (?)"
_LINK = "INSERT INTO link VALUES (?)"
_CHANGED = "INSERT INTO changed VALUES (?, ?)"
_PARTED = "INSERT INTO local VALUES (?)"
_IN_PLACE = "DELETE FROM sent WHERE entry_id = ?"
_IN_THE_WAY = "INSERT INTO trouble VALUES (?, ?)"


class Foreseen:
    """What would be done, step by step: to be executed in the file that is to say it."""

    def __init__(
        self, db: sqlite3.Connection, index: Index, walker: Walker, *, whole: bool
    ) -> None:
        """``db`` has ``idx``, ``kept`` and ``plan`` attached.

        With ``whole`` a directory that is not empty gives way, or is named as one that may not.
        """
        self._db = db
        self._index = index
        self._walker = walker
        self._metadata = Metadata(index.xattr_names)
        self._whole = whole
        db.execute(_STAYS)

    def __iter__(self) -> Iterator[Step]:
        for row in self._db.execute(_ENTRIES):
            entry, ino, bare = Entry._make(row[:15]), row[15], bool(row[16])
            st = self._stat(entry)
            if entry.kind == DIRECTORY:
                yield from self._directory(entry, st)
                continue
            if st is not None and stat.S_ISDIR(st.st_mode) and self._is_in_the_way(entry):
                yield Step(_IN_THE_WAY, (shown(entry.path), NOT_EMPTY))
            elif entry.kind == SYMLINK:
                yield from self._symlink(entry, st)
            elif entry.kind == HARDLINK:
                yield from self._hard_link(entry, st)
            elif st is not None and ino is not None and st.st_ino == ino:
                yield from self._kept(entry, st)
            elif st is not None and bare and _is_empty(entry, st):
                yield Step(_IN_PLACE, (entry.id,))
                yield from self._same_kind(entry, st)

    def _stat(self, entry: Entry) -> os.stat_result | None:
        try:
            parent, name = self._walker.split(entry.path)
            return os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError:
            return None

    def _is_in_the_way(self, entry: Entry) -> bool:
        """Whether a directory has the name that is not empty, and may not be emptied."""
        if self._whole:
            return False  # or somebody else names it
        try:
            with os.scandir(b"/proc/self/fd/%d/" % self._walker.dirfd(entry.path)) as names:
                return next(names, None) is not None
        except OSError:
            return True

    def _directory(self, entry: Entry, st: os.stat_result | None) -> Iterator[Step]:
        if st is None or not stat.S_ISDIR(st.st_mode):
            yield Step(_FOLDER, (entry.id,))
        else:
            yield from self._same_kind(entry, st)

    def _symlink(self, entry: Entry, st: os.stat_result | None) -> Iterator[Step]:
        if st is None or self._target(entry) != entry.target:
            yield Step(_SYMLINK, (entry.id,))
        elif st.st_nlink == 1:
            yield from self._same_kind(entry, st)
        elif self._different(entry, st) or not self._stays(entry, st):
            yield Step(_SYMLINK, (entry.id,))  # else it is, too, but nobody can tell

    def _target(self, entry: Entry) -> bytes | None:
        try:
            parent, name = self._walker.split(entry.path)
            return os.readlink(name, dir_fd=parent)
        except OSError:
            return None

    def _hard_link(self, entry: Entry, st: os.stat_result | None) -> Iterator[Step]:
        """Made unless it is a name of the very file that its first name stays to be."""
        query = "SELECT 1 FROM stays WHERE ino = ? AND entry_id = ?"
        if st is None or self._db.execute(query, (st.st_ino, entry.link)).fetchone() is None:
            yield Step(_LINK, (entry.id,))

    def _kept(self, entry: Entry, st: os.stat_result) -> Iterator[Step]:
        different = self._different(entry, st)
        if different:
            yield _changed(entry, different)
        if st.st_nlink == 1 or different & ~Change.XATTRS:
            return  # alone, or it gets a file of its own
        if not self._stays(entry, st):
            yield Step(_PARTED, (entry.id,))

    def _stays(self, entry: Entry, st: os.stat_result) -> bool:
        """Note that an entry is what it should be; False where an earlier one is this very file."""
        query = "INSERT OR IGNORE INTO stays VALUES (?, ?)"
        return self._db.execute(query, (st.st_ino, entry.id)).rowcount > 0

    def _same_kind(self, entry: Entry, st: os.stat_result) -> Iterator[Step]:
        different = self._different(entry, st)
        if different:
            yield _changed(entry, different)

    def _different(self, entry: Entry, st: os.stat_result) -> Change:
        if not self._index.xattr_names:
            return self._metadata.differences(entry, st)
        parent, name = self._walker.split(entry.path)
        path = b"/proc/self/fd/%d/%s" % (parent, name)
        return self._metadata.differences(entry, st, path, self._index.xattrs(entry.id))


def _changed(entry: Entry, different: Change) -> Step:
    return Step(_CHANGED, (entry.id, int(different)))


def _is_empty(entry: Entry, st: os.stat_result) -> bool:
    """Whether an empty file lies where one should be."""
    return (
        entry.kind == FILE
        and stat.S_ISREG(st.st_mode)
        and (st.st_size == entry.size == 0 and st.st_nlink == 1)
    )


def whole_tree(db: sqlite3.Connection) -> None:
    """All folders, symlinks and further names, for a tree that is put together anew."""
    for insert, kind in ((_FOLDER, DIRECTORY), (_SYMLINK, SYMLINK), (_LINK, HARDLINK)):
        rows = db.execute("SELECT id FROM idx.entry WHERE kind = ? AND id > 0", (kind,))
        db.executemany(insert, rows)
