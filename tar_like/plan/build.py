"""Make a plan from the files that the receiver lacks."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator

from tar_like.database import attach, scratch
from tar_like.index import Index
from tar_like.layout import Entry, Extent, place
from tar_like.plan import schema
from tar_like.plan.segments import Segments

Part = Callable[[Entry], list[tuple[int, int]] | None]
"""The ranges of a file that are lacking; None where all of it is."""


def build_plan(
    index: Index,
    lacking: Iterable[Entry],
    path: str,
    block_size: int,
    part: Part = lambda _: None,
) -> str:
    """Write the plan for these files, given in canonical order, to a new file; it is not synced.

    Returns its id. A file without bytes to send (empty, or one hole) is listed as ``bare``: the
    receiver makes it by itself. Raises OSError or sqlite3.Error when it cannot be written.
    """
    db = scratch(path)
    try:
        _create(db, index.path)
        layer = _Layer(db, index, part)
        db.executemany("INSERT INTO extent VALUES (?, ?, ?, ?)", layer.extents(lacking))
        return _finish(
            db, index, block_size, length=layer.length, total=layer.bytes, files=layer.files
        )
    finally:
        db.close()


def _create(db: sqlite3.Connection, index_path: str) -> None:
    db.execute("COMMIT")
    attach(db, index_path, "idx")
    db.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={schema.VERSION}")
    db.execute("BEGIN")
    for table in schema.TABLES:
        db.execute(table)


def _finish(
    db: sqlite3.Connection, index: Index, block_size: int, *, length: int, total: int, files: int
) -> str:
    plan_id = secrets.token_hex(16)
    meta = {
        "id": plan_id,
        "index": index.id,
        "block_size": str(block_size),
        "length": str(length),
        "bytes": str(total),
        "files": str(files),
    }
    db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    db.execute("COMMIT")
    return plan_id


def build_whole_plan(index: Index, path: str, block_size: int, without: Iterable[int] = ()) -> bool:
    """Write the plan for a whole tree, if no file has holes: its extents are the index's own.

    The same plan that ``build_plan`` makes when every file is lacking, without a row passing
    through Python. Where some entries are left out there is padding instead.
    Returns False, having written nothing, where a file has holes.
    """
    if next(index.segments(), None) is not None:
        return False
    db = scratch(path)
    try:
        _create(db, index.path)
        db.execute("CREATE TEMP TABLE without (id INTEGER PRIMARY KEY)")
        db.executemany("INSERT INTO without VALUES (?)", ((entry_id,) for entry_id in without))
        sent = "FROM idx.entry WHERE kind = 'f' AND id NOT IN (SELECT id FROM temp.without)"
        db.execute(f"INSERT INTO extent SELECT offset, id, 0, size {sent} AND size > 0 ORDER BY id")
        db.execute(f"INSERT INTO bare SELECT id {sent} AND size = 0")
        length, total, files = db.execute(
            f"SELECT coalesce(max(offset + size), 0), coalesce(sum(size), 0), count(*) {sent}"
        ).fetchone()
        _finish(db, index, block_size, length=length, total=total, files=files)
    finally:
        db.close()
    return True


class _Layer:
    """Lays the data of files end to end."""

    def __init__(self, db: sqlite3.Connection, index: Index, part: Part) -> None:
        self._db = db
        self._part = part
        self._segments = Segments(index)
        self.length = 0
        self.bytes = 0
        self.files = 0

    def extents(self, lacking: Iterable[Entry]) -> Iterator[Extent]:
        for entry in lacking:
            self.files += 1
            ranges = self._part(entry)
            if ranges is None:
                ranges = self._segments.of(entry)
            if not ranges:
                self._db.execute("INSERT INTO bare VALUES (?)", (entry.id,))
            for start, stop in ranges:
                offset = place(self.length, stop - start)
                self.length = offset + stop - start
                self.bytes += stop - start
                yield Extent(offset, entry.id, start, stop)
