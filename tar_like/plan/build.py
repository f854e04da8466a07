"""Make a plan from the files that the receiver lacks."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator

from tar_like.database import scratch
from tar_like.index import Index
from tar_like.layout import Entry, Extent, place
from tar_like.plan import schema


def build_plan(index: Index, lacking: Iterable[Entry], path: str, block_size: int) -> None:
    """Write the plan for these files, given in canonical order, to a new file, synced.

    A file without bytes to send (empty, or one hole) is listed as ``bare``: the receiver makes
    it by itself. Raises OSError or sqlite3.Error when it cannot be written.
    """
    db = scratch(path)
    try:
        db.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
        db.execute(f"PRAGMA user_version={schema.VERSION}")
        for table in schema.TABLES:
            db.execute(table)
        layer = _Layer(db, index)
        db.executemany("INSERT INTO extent VALUES (?, ?, ?, ?)", layer.extents(lacking))
        meta = {
            "index": index.id,
            "block_size": str(block_size),
            "length": str(layer.length),
            "bytes": str(layer.bytes),
            "files": str(layer.files),
        }
        db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        db.execute("COMMIT")
    finally:
        db.close()
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Layer:
    """Lays the data of files end to end."""

    def __init__(self, db: sqlite3.Connection, index: Index) -> None:
        self._db = db
        self._segments = _Segments(index)
        self.length = 0
        self.bytes = 0
        self.files = 0

    def extents(self, lacking: Iterable[Entry]) -> Iterator[Extent]:
        for entry in lacking:
            self.files += 1
            ranges = self._segments.of(entry)
            if not ranges:
                self._db.execute("INSERT INTO bare VALUES (?)", (entry.id,))
            for start, stop in ranges:
                offset = place(self.length, stop - start)
                self.length = offset + stop - start
                self.bytes += stop - start
                yield Extent(offset, entry.id, start, stop)


class _Segments:
    """The data ranges of files, asked for in order of entry id."""

    def __init__(self, index: Index) -> None:
        self._rows = index.segments()
        self._next = next(self._rows, None)

    def of(self, entry: Entry) -> list[tuple[int, int]]:
        """The ranges of a file that hold data: all of it, where it has no holes."""
        while self._next is not None and self._next[0] < entry.id:
            self._next = next(self._rows, None)
        if self._next is None or self._next[0] != entry.id:
            return [(0, entry.size)] if entry.size else []
        ranges = []
        while self._next is not None and self._next[0] == entry.id:
            _, start, stop = self._next
            if start < stop:
                ranges.append((start, stop))
            self._next = next(self._rows, None)
        return ranges
