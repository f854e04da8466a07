"""The ledger: what the destination knows of its own content.

    ledger.db = the index of the last commit + landed(entry_id, digest, ino, ctime)
                meta: landed = the algorithm; newest = the last mtime; unsynced = the machine,
                if nothing was synced

A file is *kept*, not sent, when the ledger's entry of that path has the wanted content and the
file in the destination still has the fingerprint (size, mtime, ctime, inode) it had when its
content was verified. Anything else is lacking.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tar_like.database import connect_readonly
from tar_like.index import Index
from tar_like.layout import sort_key
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
        if not os.path.exists(path):
            return
        try:
            db = connect_readonly(path)
            meta = dict(db.execute("SELECT key, value FROM meta"))
            db.execute("SELECT 1 FROM landed LIMIT 1").fetchone()
            writer = bytes.fromhex(meta.get(UNSYNCED, ""))
            newest = int(meta["newest"]) if "newest" in meta else None
        except (sqlite3.Error, ValueError):
            return
        if writer and may_be_lost(writer, machine()):
            return
        self._db = db
        self.algorithm = meta.get("landed", "")
        self.index_id = meta.get("id", "")
        self.plan = meta.get("plan", "")
        self.newest = newest
        self.snapshot = meta.get("snapshot", "")

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
