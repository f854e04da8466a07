"""A scan that is known by its id before an index of it is written.

    beside: scan > rows, packed, and the id        later, if it is wanted: rows > index

When the other side has that index already, none is needed here, and no row is looked at. As soon
as a time shows that it has another one, the index is written beside the scan.
"""

from __future__ import annotations

import itertools
import marshal
import sqlite3
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import astuple

from tar_like.index import schema
from tar_like.index.build import NO_HASH, describe, writing
from tar_like.index.identity import Identity
from tar_like.index.numbering import BuildSummary, Numbering
from tar_like.source import Begins, Found, Skipped, Wanted

CHUNK = 1000
_NEWEST = struct.Struct("<q")
"""Before each chunk of rows: its last mtime."""
_LENGTH = struct.Struct("<I")
IN_MEMORY = 64 << 20
"""Bytes of rows that are kept in memory; more go to a file."""
AT_ONCE = -(1 << 63)


class Recorded:
    """The rows of an index without hashes, not yet written."""

    def __init__(self, source: Begins, wanted: Wanted) -> None:
        """Begin to scan it. Extended attributes are not recorded. Raises SourceUnusable."""
        self._url = source.url
        self._wanted = wanted
        self._packed = source.scan_as(wanted, _pack)
        self._path = ""
        self._rows = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 closed by close
        self._db: sqlite3.Connection | None = None
        self._skipped: list[tuple[bytes, str, str]] = []
        self._length = 0
        self.summary = BuildSummary()
        """What was found, with the id of the index without hashes; once it is finished."""

    def finish(self, path: str, newest: int | None) -> BuildSummary:
        """Wait until it is scanned. Raises TarLikeError.

        ``path`` is where the index goes, should it be wanted. ``newest`` is the last mtime (ns) of
        the index that the other side has; None where that is not known, AT_ONCE where it has none.
        """
        self._path = path
        last = b""
        for data in self._packed:
            if last:
                self._take(last, newest)
            last = data
        numbers, self._length, self._skipped = marshal.loads(last)
        self.summary = BuildSummary(*numbers)
        return self.summary

    def _take(self, data: bytes, newest: int | None) -> None:
        if self._db is None and newest is not None and _NEWEST.unpack_from(data)[0] > newest:
            self._begin()
        if self._db is not None:
            self._insert(self._db, data)
        else:
            self._rows.write(_LENGTH.pack(len(data)) + data)

    def _begin(self) -> sqlite3.Connection:
        """Begin the index, with the rows so far."""
        with writing(self._path):
            self._db = db = schema.create(self._path)
        self._rows.seek(0)
        while head := self._rows.read(_LENGTH.size):
            self._insert(db, self._rows.read(_LENGTH.unpack(head)[0]))
        return db

    def _insert(self, db: sqlite3.Connection, data: bytes) -> None:
        rows, segments = marshal.loads(memoryview(data)[_NEWEST.size :])
        with writing(self._path):
            db.executemany(schema.INSERT_ENTRY, rows)
            db.executemany("INSERT INTO segment VALUES (?, ?, ?)", segments)

    def write(self) -> BuildSummary:
        """Have the index, once, in its new file; it is not synced. Raises TarLikeError."""
        db = self._db or self._begin()
        with writing(self._path):
            insert = "INSERT INTO skipped (path, kind, detail) VALUES (?, ?, ?)"
            db.executemany(insert, self._skipped)
            describe(db, self.summary, self._length, NO_HASH, self._url, self._wanted)
            db.execute("COMMIT")
        return self.summary

    def close(self) -> None:
        """Give up the rows; the source is closed by whoever opened it."""
        self._packed = iter(())
        self._rows.close()
        if self._db is not None:
            self._db.close()


def _pack(scan: Iterator[Found | Skipped]) -> Iterator[bytes]:
    """Chunks of rows; the last one says what they are together."""
    numbering, identity = Numbering(), Identity(NO_HASH)
    summary = numbering.summary
    segments: list[tuple[int, int, int]] = []
    skipped: list[tuple[bytes, str, str]] = []

    def skip(one: Skipped) -> None:
        summary.count_skipped(one)
        skipped.append((one.path, one.kind, one.detail))

    def more(number: int, data: Iterable[tuple[int, int]], _: object) -> None:
        segments.extend((number, start, stop) for start, stop in data)

    rows = numbering.rows(scan, skip, more)
    while chunk := list(itertools.islice(rows, CHUNK)):
        identity.add(chunk)
        newest = max(row[6] for row in chunk)
        yield _NEWEST.pack(newest) + marshal.dumps((chunk, segments))
        segments.clear()
    for path, kind, _ in skipped:
        identity.add_skipped(path, kind)
    numbering.close()
    summary.id = identity.id()
    summary.added = summary.entries
    yield marshal.dumps((astuple(summary), numbering.length, skipped))
