"""A scan that is known by its id before an index of it is written.

    scan > rows, into a temporary file > id        later, if it is wanted: rows > index

When the other side has that index already, none is needed here. As soon as a name shows that it
has another one, the index is written beside the scan.
"""

from __future__ import annotations

import itertools
import marshal
import sqlite3
import struct
import tempfile
from collections.abc import Iterable
from typing import Any

from tar_like.index import schema
from tar_like.index.build import NO_HASH, describe, writing
from tar_like.index.identity import Identity
from tar_like.index.numbering import BuildSummary, Numbering
from tar_like.source import Skipped, Source, Wanted

CHUNK = 1000
_LENGTH = struct.Struct("<I")
IN_MEMORY = 64 << 20
"""Bytes of rows that are kept in memory; more go to a file."""


class Recorded:
    """The rows of an index without hashes, not yet written."""

    def __init__(
        self, source: Source, wanted: Wanted, path: str, newest: int | None = None
    ) -> None:
        """Scan it. Extended attributes are not recorded.

        ``path`` is where the index goes, should it be wanted. ``newest`` is the last mtime (ns) of
        the index that the other side has, where that is known. Raises TarLikeError.
        """
        self._source = source
        self._wanted = wanted
        self._path = path
        self._rows = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 closed by close
        self._db: sqlite3.Connection | None = None
        self._numbering = Numbering()
        self._segments: list[tuple[int, int, int]] = []
        self._skipped: list[Skipped] = []
        self.summary = self._numbering.summary
        """What was found, with the id of the index without hashes."""
        identity = Identity(NO_HASH)
        scan = source.scan(wanted)
        while chunk := list(itertools.islice(scan, CHUNK)):
            rows = list(self._numbering.rows(chunk, self._skip, self._more))
            self._take(rows, begin=newest is not None and any(row[6] > newest for row in rows))
            identity.add(rows)
        for one in self._skipped:
            identity.add_skipped(one.path, one.kind)
        self.summary.id = identity.id()
        self.summary.added = self.summary.entries
        self._numbering.close()

    def _take(self, rows: list[Any], *, begin: bool) -> None:
        if begin and self._db is None:
            self._begin()
        segments, self._segments = self._segments, []
        if self._db is not None:
            self._insert(self._db, rows, segments)
            return
        data = marshal.dumps((rows, segments))
        self._rows.write(_LENGTH.pack(len(data)) + data)

    def _begin(self) -> sqlite3.Connection:
        """Begin the index, with the rows so far."""
        with writing(self._path):
            self._db = db = schema.create(self._path)
        self._rows.seek(0)
        while head := self._rows.read(_LENGTH.size):
            # marshal.load would ask the file for each value by itself.
            self._insert(db, *marshal.loads(self._rows.read(_LENGTH.unpack(head)[0])))
        return db

    def _insert(self, db: sqlite3.Connection, rows: list[Any], segments: list[Any]) -> None:
        with writing(self._path):
            db.executemany(schema.INSERT_ENTRY, rows)
            db.executemany("INSERT INTO segment VALUES (?, ?, ?)", segments)

    def _skip(self, skipped: Skipped) -> None:
        self.summary.count_skipped(skipped)
        self._skipped.append(skipped)

    def _more(
        self, entry_id: int, segments: Iterable[tuple[int, int]], _: Iterable[tuple[bytes, bytes]]
    ) -> None:
        self._segments += [(entry_id, *segment) for segment in segments]

    def write(self) -> BuildSummary:
        """Have the index, once, in its new file; it is not synced. Raises TarLikeError."""
        db = self._db or self._begin()
        with writing(self._path):
            insert = "INSERT INTO skipped (path, kind, detail) VALUES (?, ?, ?)"
            db.executemany(insert, map(tuple, self._skipped))
            describe(db, self._numbering, NO_HASH, self._source.url, self._wanted)
            db.execute("COMMIT")
        return self.summary

    def close(self) -> None:
        """Give up the rows; the source is closed by whoever opened it."""
        self._rows.close()
        if self._db is not None:
            self._db.close()
