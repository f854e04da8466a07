"""What of a transfer is not sent, since the destination has its bytes.

kept.db = landed(entry_id, digest, ino, ctime)   in its place already
        + assembled(entry_id, digest, whole, believed)
                                                 staged, wholly or in part, from local content,
                                                 which was not read if it is believed
        + laying(entry_id, mark)                 of these, copies of older versions that were being
                                                 made still, and what tells such a version
        + twin(entry_id, first)                  the same as an earlier file that is sent
        + passed(entry_id)                       of whatever kind: the rules leave it as it is
        + ledger(plan)                           the plan by which the ledger was made
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator

from tar_like.database import attach, connect, scratch
from tar_like.dirfd import Walker
from tar_like.proxy.ledger import LANDED

PASSED = "CREATE TABLE passed (entry_id INTEGER PRIMARY KEY)"
LEDGER = "CREATE TABLE ledger (plan TEXT NOT NULL)"
_TABLES = (
    LANDED,
    PASSED,
    LEDGER,
    """CREATE TABLE assembled (
  entry_id INTEGER PRIMARY KEY,
  digest BLOB NOT NULL,
  whole INTEGER NOT NULL,
  believed INTEGER NOT NULL
)""",
    "CREATE TABLE laying (entry_id INTEGER PRIMARY KEY, mark TEXT NOT NULL)",
    """CREATE TABLE twin (
  entry_id INTEGER PRIMARY KEY,
  first INTEGER NOT NULL,
  digest BLOB NOT NULL
)""",
)


def create(path: str) -> sqlite3.Connection:
    """A new file to be filled, in a transaction that is open."""
    db = scratch(path)
    for table in _TABLES:
        db.execute(table)
    return db


class Kept:
    """A file of this kind, read-only."""

    def __init__(self, path: str) -> None:
        self._db = connect(path, "ro")
        self.passed_count = int(self._db.execute("SELECT count(*) FROM passed").fetchone()[0])
        self._some = self._db.execute("SELECT 1 FROM assembled LIMIT 1").fetchone() is not None

    def passes(self, entry_id: int) -> bool:
        """Whether an entry is passed over."""
        query = "SELECT 1 FROM passed WHERE entry_id = ?"
        return self.passed_count > 0 and self._db.execute(query, (entry_id,)).fetchone() is not None

    @property
    def ledger(self) -> str:
        """The plan of the ledger that this was compared with; empty for none."""
        row = self._db.execute("SELECT plan FROM ledger").fetchone()
        return str(row[0]) if row else ""

    def holds(self, index_path: str, root: str) -> bool:
        """Whether everything that is kept is in its place still, untouched."""
        attach(self._db, index_path, "idx")
        rows = self._db.execute(
            "SELECT path, landed.ino, landed.ctime FROM landed JOIN idx.entry e ON e.id = entry_id "
            "ORDER BY entry_id"
        )
        with Walker(root) as walker:
            return all(_is_there(walker, *row) for row in rows)

    def assembled(self, entry_id: int) -> bytes | None:
        """The digest that a file must have which is staged in part; None for another."""
        if not self._some:
            return None
        row = self._db.execute(
            "SELECT digest FROM assembled WHERE entry_id = ? AND NOT whole", (entry_id,)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def believed(self, entry_id: int) -> bool:
        """Whether a file was assembled without a look at its content."""
        query = "SELECT 1 FROM assembled WHERE entry_id = ? AND believed"
        return self._db.execute(query, (entry_id,)).fetchone() is not None

    def laying(self) -> list[tuple[int, str]]:
        """(entry id, mark) of files that were being laid when they were planned (proxy.laying)."""
        query = "SELECT 1 FROM sqlite_schema WHERE name = 'laying'"
        if self._db.execute(query).fetchone() is None:
            return []  # written by an earlier version
        return self._db.execute("SELECT entry_id, mark FROM laying ORDER BY 1").fetchall()

    def whole(self) -> Iterator[tuple[int, bytes]]:
        """(entry id, digest) of files that are staged whole, by entry."""
        return self._db.execute("SELECT entry_id, digest FROM assembled WHERE whole ORDER BY 1")

    def twins(self) -> Iterator[tuple[int, int, bytes]]:
        """(entry id, the entry whose bytes it has, digest), by entry."""
        return self._db.execute("SELECT entry_id, first, digest FROM twin ORDER BY 1")

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _is_there(walker: Walker, path: bytes, ino: int, ctime: int) -> bool:
    try:
        parent, name = walker.split(path)
        st = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return (st.st_ino, st.st_ctime_ns) == (ino, ctime)


def bytes_of_twins(path: str) -> int:
    """Bytes that the twins of a transfer (its folder) will take."""
    db = connect(os.path.join(path, "kept.db"), "ro")
    try:
        attach(db, os.path.join(path, "index.db"), "idx")
        query = "SELECT coalesce(sum(size), 0) FROM twin JOIN idx.entry ON id = entry_id"
        return int(db.execute(query).fetchone()[0])
    finally:
        db.close()
