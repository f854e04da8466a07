"""The rows of a ledger by path, found by the order that they are in: there is no index of paths."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from tar_like.layout import sort_key

ID, PATH = 0, 1
"""Where these are in a row."""
Row = tuple[Any, ...]
UNKNOWN = -1
"""No row has this number."""
_KEPT = 4096
_AMONG = "WHERE e.id IN (SELECT value FROM json_each(?))"
_MANY = 1000
"""Rows that are asked for at once."""


class Rows:
    """Entries of a ledger, which numbers them in canonical order. Raises sqlite3.Error."""

    def __init__(self, db: sqlite3.Connection, select: str) -> None:
        """``select`` are the columns wanted, first id and path, of ``entry e``."""
        self._db = db
        self._select = select
        found = db.execute("SELECT value FROM meta WHERE key = 'entries'").fetchone()
        self.count = int(found[0])
        self._passed: dict[int, bytes] = {}
        """Keys of entries that searches begin with."""

    def path(self, number: int) -> bytes | None:
        """The path of an entry; None after the last one."""
        row = self._db.execute("SELECT path FROM entry WHERE id = ?", (number,)).fetchone()
        return None if row is None else bytes(row[0])

    def locate(self, path: bytes) -> int:
        """The number of the first entry that is not before this path."""
        key = sort_key(path)
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            if self._key(middle) < key:
                low = middle + 1
            else:
                high = middle
        return low

    def _key(self, number: int) -> bytes:
        key = self._passed.get(number)
        if key is None:
            key = sort_key(self.path(number) or b"")
            if len(self._passed) < _KEPT:
                self._passed[number] = key
        return key

    def entry(self, path: bytes) -> Row | None:
        """The row of this path."""
        query = f"{self._select} WHERE e.id = ? AND e.path = ?"
        found: Row | None = self._db.execute(query, (self.locate(path), path)).fetchone()
        return found

    def near(self, wanted: Iterable[tuple[bytes, int]]) -> Iterator[Row | None]:
        """The same of several paths, each with the number that it is likely to have."""
        wanted = iter(wanted)
        query = f"{self._select} {_AMONG}"
        while some := list(islice(wanted, _MANY)):
            numbers = json.dumps([number for _, number in some])
            found = {row[ID]: row for row in self._db.execute(query, (numbers,))}
            for path, number in some:
                row = found.get(number)
                yield row if row is not None and row[PATH] == path else self.entry(path)

    def names(self, directory: bytes, first: bytes, count: int) -> Iterator[Row]:
        """The rows of so many of a directory's names, from this one on; none of what is below."""
        prefix = directory + b"/" if directory else b""
        number, depth = self.locate(prefix + first), prefix.count(b"/")
        while count > 0:
            below = b""
            for row in self._db.execute(f"{self._select} WHERE e.id >= ? ORDER BY e.id", (number,)):
                below = row[PATH]
                if below.count(b"/") != depth or not below.startswith(prefix):
                    break
                yield row
                count -= 1
                if not count:
                    return
            else:
                return
            if not below.startswith(prefix):
                return
            end = below.find(b"/", len(prefix))
            number = self.locate(below[:end] + b"\1")
