"""Strays: files of the destination that its ledger does not vouch for.

    lacking files that are not in their place > a walk of the destination, if anything can stray
    > regular files of their sizes, less what the ledger vouches for > survey.db: stray
    > read on several processes > strays.db: their digests > sources of lacking files

Nothing is believed of a stray but what was read, and that only as long as it has the fingerprint
that it had then. Names are taken from the walk; no symlink is followed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tar_like.database import connect, scratch
from tar_like.errors import SourceUnusable
from tar_like.layout import FILE, PAGE
from tar_like.proxy.ledger import Row
from tar_like.source.contract import Found, Wanted
from tar_like.source.folder import FolderSource

NAME = "strays.db"
MOST = 16
"""Strays of one size that are read for each lacking file of that size. Those that lie at the path
of a lacking file of their size are not counted: they are read anyway."""
STRAY = """CREATE TABLE stray (
  path BLOB PRIMARY KEY,
  size INTEGER NOT NULL,
  mtime INTEGER NOT NULL,
  ino INTEGER NOT NULL,
  ctime INTEGER NOT NULL,
  entry_id INTEGER,
  UNIQUE (ino, ctime)
) WITHOUT ROWID"""
"""``entry_id``: of the lacking file of this size at whose path it lies."""

_WANTED = (
    "CREATE TEMP TABLE wanted (size INTEGER, mtime INTEGER, many INTEGER, "
    "PRIMARY KEY (size, mtime)) WITHOUT ROWID",
    """INSERT INTO wanted SELECT size, mtime, count(*) FROM lacking
    WHERE size > 0 AND NOT (at_size = size AND at_mtime = mtime) GROUP BY size, mtime""",
)
_INSERT = """
INSERT OR IGNORE INTO stray SELECT :path, :size, :mtime, :ino, :ctime, NULL
WHERE EXISTS (SELECT 1 FROM wanted WHERE size = :size AND mtime = :mtime)
OR (:size >= :page AND EXISTS (SELECT 1 FROM wanted WHERE size = :size))
"""
_VOUCHED = """
DELETE FROM stray WHERE path IN (
  SELECT CAST(o.path AS BLOB) FROM ledger.landed l CROSS JOIN ledger.entry o ON o.id = l.entry_id
  WHERE o.size IN (SELECT size FROM wanted) AND o.id NOT IN {touched})
"""
_IN_PLACE = """
UPDATE stray SET entry_id = l.entry_id FROM lacking l JOIN idx.entry e ON e.id = l.entry_id
WHERE l.at_size = l.size AND stray.path = e.path AND stray.size = l.size
"""
_TOO_MANY = """
DELETE FROM stray WHERE path IN (
  SELECT path FROM (
    SELECT path, size, row_number() OVER (
      PARTITION BY size ORDER BY (size, mtime) NOT IN (SELECT size, mtime FROM wanted), path
    ) AS number FROM stray WHERE entry_id IS NULL) s
  JOIN (SELECT size, sum(many) AS many FROM wanted GROUP BY size) USING (size)
  WHERE number > :most * many)
"""
_READ = """CREATE TABLE read (
  path BLOB NOT NULL,
  size INTEGER NOT NULL,
  mtime INTEGER NOT NULL,
  digest BLOB NOT NULL,
  ino INTEGER NOT NULL,
  ctime INTEGER NOT NULL,
  entry_id INTEGER
)"""
_ROWS = "SELECT path, size, mtime, x'', digest, ino, ctime, x'' FROM read"
_PLACED = """
SELECT entry_id, path, size, mtime, x'', digest, ino, ctime, x'' FROM read
WHERE entry_id IS NOT NULL ORDER BY entry_id
"""


class Stray(NamedTuple):
    """A file, and the fingerprint that it had when it was seen."""

    path: bytes
    size: int
    mtime: int
    ino: int
    ctime: int
    entry_id: int | None
    """The lacking file of its size at whose path it lies."""

    def read_as(self, digest: bytes) -> Row:
        """What is known of it once it is read."""
        return Row(self.path, self.size, self.mtime, b"", digest, self.ino, self.ctime, b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vouched:
    """What the ledger, attached as ``ledger``, vouches for."""

    touched: str
    """The table of its files that are not as it says."""
    alone: bool
    """There was nothing besides when that was looked at."""


def note_strays(db: sqlite3.Connection, root: str, vouched: Vouched | None) -> None:
    """Fill a survey's table ``stray``, if files are lacking that could be among them.

    Raises sqlite3.Error.
    """
    for statement in _WANTED:
        db.execute(statement)
    if db.execute("SELECT 1 FROM wanted LIMIT 1").fetchone() is None:
        return
    db.executemany(_INSERT, map(_values, _files(root, _Sizes(db))))
    if vouched is not None:
        db.execute(_VOUCHED.format(touched=vouched.touched))
    db.execute(_IN_PLACE)
    db.execute(_TOO_MANY, {"most": MOST})


class _Sizes:
    """The sizes that are wanted, and some others: a sieve of a fixed size before the table."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._there = bytearray(1 << 16)
        for (size,) in db.execute("SELECT DISTINCT size FROM wanted"):
            self._there[size & 0xFFFF] = 1

    def __contains__(self, size: int) -> bool:
        return bool(self._there[size & 0xFFFF])


def _values(found: Found) -> dict[str, object]:
    return {
        "path": found.path,
        "size": found.size,
        "mtime": found.mtime,
        "ino": found.ino,
        "ctime": found.ctime,
        "page": PAGE,
    }


def _files(root: str, sizes: _Sizes) -> Iterator[Found]:
    """The regular files that may be wanted."""
    try:
        tree = FolderSource(root)
    except SourceUnusable:
        return
    try:
        for found in tree.scan(Wanted()):
            if isinstance(found, Found) and found.kind == FILE and found.size in sizes:
                yield found
    except SourceUnusable:
        return  # what was not seen is sent
    finally:
        tree.close()


def write_read(path: str, rows: Iterable[tuple[Stray, bytes]]) -> None:
    """Write strays and their digests to a new file."""
    db = scratch(path)
    try:
        db.execute(_READ)
        values = (
            (one.path, one.size, one.mtime, digest, one.ino, one.ctime, one.entry_id)
            for one, digest in rows
        )
        db.executemany("INSERT INTO read VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        db.execute("CREATE INDEX in_place ON read (entry_id) WHERE entry_id IS NOT NULL")
        db.execute("COMMIT")
    finally:
        db.close()


class Strays:
    """The strays that were read for one transfer, read-only; none where there is no file."""

    def __init__(self, path: str) -> None:
        self._db = connect(path, "ro") if os.path.exists(path) else None
        self._placed: Iterator[tuple[Any, ...]] = iter(())
        if self._db is not None:
            self._placed = self._db.execute(_PLACED)
        self._next = next(self._placed, None)

    def __iter__(self) -> Iterator[Row]:
        return map(Row._make, self._db.execute(_ROWS)) if self._db is not None else iter(())

    def at(self, entry_id: int) -> Row | None:
        """The one that lies at the path of a lacking file, and has its size.

        To be asked for in ascending order.
        """
        while self._next is not None and self._next[0] < entry_id:
            self._next = next(self._placed, None)
        found = self._next
        return Row._make(found[1:]) if found is not None and found[0] == entry_id else None

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
