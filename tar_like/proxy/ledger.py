"""The ledger: what the destination knows of its own content.

    ledger.db = the index of the last commit + landed(entry_id, digest, ino, ctime)
                + leaf(number, directory, first, names, digest)    of the index, in its order
                meta: landed = the algorithm; newest = the last mtime; unsynced = the machine,
                if nothing was synced; offsets = stale, if they are those of an earlier index

A file is *kept*, not sent, when the ledger's entry of that path has the wanted content and the
file in the destination still has the fingerprint (size, mtime, ctime, inode) it had when its
content was verified. Anything else is lacking.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

from tar_like.database import attach, connect_readonly, rewriting, scratch
from tar_like.index import Index
from tar_like.layout import sort_key
from tar_like.proxy.durable import machine, may_be_lost
from tar_like.proxy.rows import Rows

LANDED = """CREATE TABLE landed (
  entry_id INTEGER PRIMARY KEY,
  digest BLOB NOT NULL,
  ino INTEGER NOT NULL,
  ctime INTEGER NOT NULL
)"""

LEAF = """CREATE TABLE leaf (
  number INTEGER PRIMARY KEY,
  directory BLOB NOT NULL,
  first BLOB NOT NULL,
  names INTEGER NOT NULL,
  digest BLOB NOT NULL
)"""
LEAVES = "leaves.db"
"""Has that table, beside the index of a transfer."""
TIMES = ("newest", "changed")
OF_LEDGER = ("landed", "linked", *TIMES, "plan", "snapshot", "unsynced", "offsets")
"""What a ledger says of itself that an index does not."""
UNSYNCED, OFFSETS, LINKED = "unsynced", "offsets", "linked"
"""In its meta: who wrote it unsynced, that its offsets are stale, whether it has hard links."""
_BY_PATH = """
SELECT e.id, e.path, e.size, e.mtime, e.hash, l.digest, l.ino, l.ctime, e.token
FROM entry e JOIN landed l ON l.entry_id = e.id
"""
_BY_DIGEST = """
SELECT e.path, e.size, e.mtime, e.hash, l.digest, l.ino, l.ctime, e.token
FROM temp.wanted w CROSS JOIN landed l ON substr(l.digest, 1, 8) = substr(w.digest, 1, 8)
CROSS JOIN entry e ON e.id = l.entry_id WHERE l.digest = w.digest AND e.size > 0
"""
_LANDED_SINCE = """
SELECT e.path, e.size, e.mtime, e.hash, l.digest, l.ino, l.ctime, e.token
FROM entry e CROSS JOIN landed l ON l.entry_id = e.id
WHERE e.kind = 'f' AND e.size BETWEEN ? AND ? AND l.ctime >= ? ORDER BY l.ctime DESC
"""
_LEAVES = """
SELECT directory, first, names, digest FROM leaf WHERE number >= ? AND number < ? ORDER BY number
"""
_IN_GAPS = """
SELECT l.directory, l.first, l.names, l.digest
FROM temp.gap g CROSS JOIN leaf l ON l.number >= g.first AND l.number < g.stop
"""
_OF_FOLDERS = """
SELECT number, directory, first, names, digest FROM leaf
WHERE directory IN (SELECT path FROM temp.folder) ORDER BY number
"""
_ASKED_BY = {
    "wanted": (
        "CREATE TEMP TABLE wanted (digest BLOB PRIMARY KEY) WITHOUT ROWID",
        "INSERT OR IGNORE INTO temp.wanted VALUES (?)",
    ),
    "gap": (
        "CREATE TEMP TABLE gap (first INTEGER, stop INTEGER)",
        "INSERT INTO temp.gap VALUES (?, ?)",
    ),
    "folder": (
        "CREATE TEMP TABLE folder (path BLOB PRIMARY KEY) WITHOUT ROWID",
        "INSERT OR IGNORE INTO temp.folder VALUES (?)",
    ),
}
"""Tables of a connection's own: how each is made and filled."""
_DIGESTS = "SELECT digest FROM leaf WHERE number >= ? AND number < ? ORDER BY number"
INDEXES = {
    "file_by_size": "entry (size, mtime) WHERE kind = 'f'",
    "landed_by_digest": "landed (substr(digest, 1, 8))",
}
"""By name: what a file is looked for by when it may be what a new tree lacks. A ledger that an
earlier version has left has none, and is read through."""
_DIFFERENT = """
SELECT e.id FROM idx.entry e LEFT JOIN ledger.entry o ON o.id = e.id + ?1
WHERE e.id >= ?2 AND o.path IS NOT e.path ORDER BY e.id LIMIT 1
"""
_PATHS = "SELECT id, CAST(path AS BLOB) FROM {}.entry WHERE id >= ? ORDER BY id"
_EQUAL = """
INSERT INTO landed SELECT e.id, l.digest, l.ino, l.ctime
FROM idx.entry e CROSS JOIN ledger.entry o ON o.id = e.id + :shift
CROSS JOIN ledger.landed l ON l.entry_id = o.id
WHERE e.id >= :first AND e.id < :stop AND e.kind = 'f' AND e.size = o.size
AND CASE
  WHEN e.hash != x'' AND :comparable THEN e.hash = l.digest
  WHEN e.token != x'' AND o.token != x'' THEN e.token = o.token
  ELSE e.hash = x'' AND e.mtime = o.mtime END
AND o.id NOT IN {touched}
"""


class LeafRow(NamedTuple):
    """A leaf of an index (index.leaf), by its digest."""

    directory: bytes
    first: bytes
    """Its first name."""
    names: int
    """How many it has."""
    digest: bytes


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
        self.newest: int | None = None
        """The last mtime of its entries, in ns."""
        self.changed: int | None = None
        """The last ctime that was seen of them at the source, in ns."""
        if not os.path.exists(path):
            return
        try:
            db = connect_readonly(path)
            meta = dict(db.execute("SELECT key, value FROM meta"))
            db.execute("SELECT 1 FROM landed LIMIT 1").fetchone()
            writer = bytes.fromhex(meta.get(UNSYNCED, ""))
            newest, changed = (int(meta[key]) if key in meta else None for key in TIMES)
        except (sqlite3.Error, ValueError):
            return
        if writer and may_be_lost(writer, machine()):
            return
        self._db = db
        self.algorithm = meta.get("landed", "")
        self.index_id = meta.get("id", "")
        self.plan = meta.get("plan", "")
        self.newest, self.changed = newest, changed
        self.snapshot = meta.get("snapshot", "")

    def with_paths(self, wanted: Iterable[bytes]) -> Iterator[Row]:
        """Its files at these paths, as far as they can be read."""
        if self._db is None:
            return
        with contextlib.suppress(sqlite3.DatabaseError, TypeError, ValueError):
            rows = Rows(self._db, _BY_PATH)
            for path in wanted:
                found = rows.entry(path)
                row = None if found is None else Row._make(found[1:])
                if row is not None and row.size:
                    yield row

    def with_digests(self, wanted: Iterable[bytes]) -> Iterator[Row]:
        """Its files that have one of these digests, as far as they can be read."""
        if self._db is None:
            return
        with contextlib.suppress(sqlite3.DatabaseError):
            _fill(self._db, "wanted", ((one,) for one in wanted))
            yield from map(Row._make, self._db.execute(_BY_DIGEST))

    def landed_since(self, time: float, least: int, most: int) -> Iterator[Row]:
        """Its files of these sizes whose ctime is not before that (ns), the last ones first.

        Raises sqlite3.Error.
        """
        if self._db is not None:
            yield from map(Row._make, self._db.execute(_LANDED_SINCE, (least, most, time)))

    def leaves(self, first: int = 0, stop: int = 1 << 62) -> Iterator[LeafRow]:
        """The leaves of its index, by their numbers in its order; none where they are not known.

        Raises sqlite3.Error.
        """
        return map(LeafRow._make, self._of_leaves(_LEAVES, first, stop))

    def leaves_between(self, gaps: Iterable[tuple[int, int]]) -> Iterator[LeafRow]:
        """The same of several ranges of numbers. Raises sqlite3.Error."""
        if self._db is not None:
            _fill(self._db, "gap", gaps)
        return map(LeafRow._make, self._of_leaves(_IN_GAPS))

    def leaves_of(self, folders: Iterable[bytes]) -> Iterator[tuple[int, LeafRow]]:
        """The leaves of directories, with their numbers. Raises sqlite3.Error."""
        if self._db is not None:
            _fill(self._db, "folder", ((one,) for one in folders))
        return ((row[0], LeafRow._make(row[1:])) for row in self._of_leaves(_OF_FOLDERS))

    def digests(self, first: int, stop: int) -> list[bytes]:
        """The digests of leaves. Raises sqlite3.Error."""
        return [digest for (digest,) in self._of_leaves(_DIGESTS, first, stop)]

    def _of_leaves(self, query: str, *values: int) -> Iterable[tuple[Any, ...]]:
        if self._db is None or not self._has_leaves:
            return ()
        return self._db.execute(query, values)

    @cached_property
    def _has_leaves(self) -> bool:
        query = "SELECT 1 FROM sqlite_schema WHERE name = 'leaf'"
        return self._db is not None and self._db.execute(query).fetchone() is not None

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()


def _fill(db: sqlite3.Connection, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Have these rows, and no others, in one of the tables that questions are asked by."""
    create, insert = _ASKED_BY[table]
    db.execute(f"DROP TABLE IF EXISTS temp.{table}")
    db.execute(create)
    db.executemany(insert, rows)


def version_of(path: str) -> str:
    """Which file of the ledger there is; empty for none."""
    try:
        st = os.stat(path)
    except OSError:
        return ""
    return f"{st.st_ino}-{st.st_mtime_ns}-{st.st_size}"


def plan_of(path: str) -> str:
    """Which plan a destination's ledger was made by; empty when there is no ledger."""
    ledger = Ledger(path)
    ledger.close()
    return ledger.plan


def write_leaves(path: str, leaves: Iterable[LeafRow]) -> None:
    """Write the leaves of an index, in order, to a new file. Raises OSError, sqlite3.Error."""
    db = scratch(path)
    try:
        db.execute(LEAF)
        rows = ((number, *leaf) for number, leaf in enumerate(leaves))
        db.executemany("INSERT INTO leaf VALUES (?, ?, ?, ?, ?)", rows)
        db.execute("COMMIT")
    finally:
        db.close()


def whole_ledger(path: str, folder: str, landed: str) -> None:
    """Write a transfer's index with its leaves, and what has landed, to a new file.

    ``folder`` is the transfer's, ``landed`` a file with that table. Raises OSError, sqlite3.Error.
    """
    shutil.copyfile(os.path.join(folder, "index.db"), path)
    leaves = os.path.join(folder, LEAVES)
    db = rewriting(path)
    try:
        attach(db, landed, "source")
        if os.path.exists(leaves):
            attach(db, leaves, "leaves")
        db.execute(LANDED)
        db.execute("INSERT INTO landed SELECT * FROM source.landed WHERE digest != x''")
        db.execute(LEAF)
        if os.path.exists(leaves):
            db.execute("INSERT INTO main.leaf SELECT * FROM leaves.leaf")
        db.execute("COMMIT")
    finally:
        db.close()


def add_indexes(path: str) -> None:
    """Have what files are found by in a ledger that is new. Of no use any more where it fails.

    Raises sqlite3.Error.
    """
    with contextlib.closing(rewriting(path)) as db:
        for name, columns in INDEXES.items():
            db.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {columns}")
        db.execute("COMMIT")


class Comparison:
    """An index against a ledger, both attached to one connection: which files have equal content.

    Equal paths lie in runs, a fixed number of ids apart, as long as no name is new or gone; each
    run is compared by one statement.
    """

    def __init__(self, db: sqlite3.Connection, index: Index, ledger: Ledger) -> None:
        """``db`` has them as ``idx`` and ``ledger``."""
        self._db = db
        self._stop = index.entry_count
        self._comparable = ledger.algorithm == index.algorithm

    def take_equal(self, touched: str) -> None:
        """Put them into the table ``landed``, but those whose ledger's id is in this table.

        Raises sqlite3.Error.
        """
        insert = _EQUAL.format(touched=touched)
        for first, stop, shift in self._runs():
            values = {
                "first": first,
                "stop": stop,
                "shift": shift,
                "comparable": self._comparable,
            }
            self._db.execute(insert, values)

    def _runs(self) -> Iterator[tuple[int, int, int]]:
        """(first, stop, shift): entries ``[first, stop)`` are in the ledger, as ``id + shift``."""
        first, shift = 0, 0
        while first < self._stop:
            row = self._db.execute(_DIFFERENT, (shift, first)).fetchone()
            stop = self._stop if row is None else row[0]
            if stop > first:
                yield first, stop, shift
            if row is None:
                return
            pair = self._next_pair(stop, stop + shift)
            if pair is None:
                return
            first, shift = pair[0], pair[1] - pair[0]

    def _next_pair(self, ours: int, theirs: int) -> tuple[int, int] | None:
        """The ids of the first path from there on that both have."""
        entries = self._db.execute(_PATHS.format("idx"), (ours,))
        rows = self._db.execute(_PATHS.format("ledger"), (theirs,))
        entry, row = next(entries, None), next(rows, None)
        while entry is not None and row is not None:
            if entry[1] == row[1]:
                return entry[0], row[0]
            if sort_key(entry[1]) < sort_key(row[1]):
                entry = next(entries, None)
            else:
                row = next(rows, None)
        return None
