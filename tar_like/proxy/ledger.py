"""The ledger: what the destination knows of its own content.

    ledger.db = the index of the last commit + landed(entry_id, digest, ino, ctime)
                meta: landed = the algorithm; unsynced = the machine, if nothing was synced

A file is *kept*, not sent, when the ledger's entry of that path has the wanted content and the
file in the destination still has the fingerprint (size, mtime, ctime, inode) it had when its
content was verified. Anything else is lacking. Ledger and index are walked in step.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tar_like.database import connect_readonly
from tar_like.dirfd import Walker
from tar_like.index import Index
from tar_like.layout import FILE, Entry, sort_key
from tar_like.proxy.durable import machine, may_be_lost

LANDED = """CREATE TABLE landed (
  entry_id INTEGER PRIMARY KEY,
  digest BLOB NOT NULL,
  ino INTEGER NOT NULL,
  ctime INTEGER NOT NULL
)"""

UNSYNCED = "unsynced"
_FILES = """
SELECT e.path, e.size, e.mtime, e.hash, l.digest, l.ino, l.ctime, e.token
FROM entry e JOIN landed l ON l.entry_id = e.id
"""
_ROWS = f"{_FILES} ORDER BY e.id"


class Landed(NamedTuple):
    """A file that is in its place, and the fingerprint it had when it got there."""

    entry_id: int
    digest: bytes
    """Empty where the content is not known: rules.Rules.size_only."""
    ino: int
    ctime: int


class Row(NamedTuple):
    """A file of the ledger: its content, and the fingerprint it had then."""

    path: bytes
    size: int
    mtime: int
    hash: bytes
    digest: bytes
    ino: int
    ctime: int
    token: bytes
    """The source's own name of the version that it is."""

    def is_of(self, st: os.stat_result) -> bool:
        """Whether a file still has this fingerprint."""
        return (
            st.st_ino == self.ino
            and st.st_ctime_ns == self.ctime
            and st.st_size == self.size
            and st.st_mtime_ns == self.mtime
        )


class Ledger:
    """The ledger of a destination, read-only.

    Empty when there is none, when it is damaged, or when a power cut may have undone it.
    """

    def __init__(self, path: str) -> None:
        self._db: sqlite3.Connection | None = None
        self.algorithm = ""
        """The digest that ``hash`` and ``digest`` of its rows are."""
        self.index_id = ""
        """The index of the last commit; empty where there is none that can be believed."""
        self.snapshot = ""
        """The snapshot that it speaks of; empty for the destination itself."""
        self.plan = ""
        """The id of the plan that it was made by."""
        if not os.path.exists(path):
            return
        try:
            db = connect_readonly(path)
            meta = dict(db.execute("SELECT key, value FROM meta"))
            db.execute("SELECT count(*) FROM landed").fetchone()
            writer = bytes.fromhex(meta.get(UNSYNCED, ""))
        except (sqlite3.Error, ValueError):
            return
        if writer and may_be_lost(writer, machine()):
            return
        self._db = db
        self.algorithm = meta.get("landed", "")
        self.index_id = meta.get("id", "")
        self.plan = meta.get("plan", "")
        self.snapshot = meta.get("snapshot", "")

    def rows(self) -> Iterator[Row]:
        """Files in canonical order, as far as they can be read: more is sent then."""
        if self._db is None:
            return
        with contextlib.suppress(sqlite3.DatabaseError):
            yield from map(Row._make, self._db.execute(_ROWS))

    def sizes(self) -> Iterator[tuple[int, int]]:
        """(size, mtime) of its files that have bytes, as far as they can be read."""
        if self._db is None:
            return
        with contextlib.suppress(sqlite3.DatabaseError):
            yield from self._db.execute(
                "SELECT e.size, e.mtime FROM entry e JOIN landed l ON l.entry_id = e.id "
                "WHERE e.size > 0"
            )

    def with_paths(self, wanted: Iterable[bytes]) -> Iterator[Row]:
        """Its files at these paths, as far as they can be read."""
        return self._matching(f"{_FILES} WHERE e.path IN temp.wanted AND e.size > 0", wanted)

    def with_digests(self, wanted: Iterable[bytes]) -> Iterator[Row]:
        """Its files that have one of these digests, as far as they can be read."""
        return self._matching(f"{_FILES} WHERE l.digest IN temp.wanted AND e.size > 0", wanted)

    def _matching(self, query: str, wanted: Iterable[bytes]) -> Iterator[Row]:
        if self._db is None:
            return
        with contextlib.suppress(sqlite3.DatabaseError):
            self._db.execute("DROP TABLE IF EXISTS temp.wanted")
            self._db.execute("CREATE TEMP TABLE wanted (value BLOB PRIMARY KEY) WITHOUT ROWID")
            self._db.executemany(
                "INSERT OR IGNORE INTO wanted VALUES (?)", ((one,) for one in wanted)
            )
            yield from map(Row._make, self._db.execute(query))

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()


def plan_of(path: str) -> str:
    """Which plan a destination's ledger was made by; empty when there is no ledger."""
    ledger = Ledger(path)
    ledger.close()
    return ledger.plan


class Comparison:
    """An index against what the destination holds: what is kept, what is lacking."""

    def __init__(
        self, index: Index, ledger: Ledger, walker: Walker, *, size_only: bool = False
    ) -> None:
        self._size_only = size_only
        self._index = index
        self._ledger = ledger
        self._walker = walker
        self._rows = ledger.rows()
        self._next = next(self._rows, None)
        self.kept: list[Landed] = []

    def lacking(self, flush: _Flush) -> Iterator[Entry]:
        """Files to be sent; what is kept goes to ``flush`` in lists, in order."""
        for entry in self._index.of_kind(FILE):
            row = self._find(entry.path)
            if row is not None and self._same(entry, row) and self._untouched(entry, row):
                self.kept.append(Landed(entry.id, row.digest, row.ino, row.ctime))
            elif self._size_only and (found := self._of_size(entry)) is not None:
                self.kept.append(found)
            else:
                yield entry
            if len(self.kept) >= 2000:
                flush(self.kept)
                self.kept = []
        flush(self.kept)

    def _find(self, path: bytes) -> Row | None:
        row = self._next
        if row is None:
            return None
        if row.path != path:
            key = sort_key(path)
            while row is not None and sort_key(row.path) < key:
                row = next(self._rows, None)
            self._next = row
            if row is None or row.path != path:
                return None
        self._next = next(self._rows, None)
        return row

    def _same(self, entry: Entry, row: Row) -> bool:
        if entry.size != row.size or self._size_only:
            return entry.size == row.size
        if entry.hash and self._ledger.algorithm == self._index.algorithm:
            return entry.hash == row.digest
        if entry.token and row.token:
            return entry.token == row.token
        return not entry.hash and entry.mtime == row.mtime

    def _of_size(self, entry: Entry) -> Landed | None:
        """A file of the wanted size; nobody knows what is in it."""
        try:
            parent, name = self._walker.split(entry.path)
            st = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError:
            return None
        if not stat.S_ISREG(st.st_mode) or st.st_size != entry.size:
            return None
        return Landed(entry.id, b"", st.st_ino, st.st_ctime_ns)

    def _untouched(self, entry: Entry, row: Row) -> bool:
        try:
            parent, name = self._walker.split(entry.path)
            return row.is_of(os.stat(name, dir_fd=parent, follow_symlinks=False))
        except OSError:
            return False


class _Flush:
    """Writes kept files to the table ``landed``, a list at a time."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __call__(self, kept: list[Landed]) -> None:
        self._db.executemany("INSERT INTO landed VALUES (?, ?, ?, ?)", kept)


def compare(
    index: Index,
    ledger_path: str,
    walker: Walker,
    db: sqlite3.Connection,
    *,
    size_only: bool = False,
) -> Iterator[Entry]:
    """The files that the destination lacks, in order; the others go to ``db``'s ``landed``.

    The table is complete once the iterator is exhausted.
    """
    ledger = Ledger(ledger_path)
    try:
        comparison = Comparison(index, ledger, walker, size_only=size_only)
        yield from comparison.lacking(_Flush(db))
    finally:
        ledger.close()
