"""Reading a plan: which pieces make up a block."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import groupby, starmap

from tar_like.database import attach, connect_readonly
from tar_like.errors import IndexInvalid
from tar_like.layout import Entry, Extent, Piece, block_count, block_range, clip
from tar_like.plan import schema

_PIECES = """
SELECT x.offset, x.entry_id, e.path, x.start, x.stop, e.size, e.mtime, e.token, e.ctime
FROM extent x JOIN idx.entry e ON e.id = x.entry_id
WHERE x.offset >= coalesce((SELECT max(offset) FROM extent WHERE offset <= ?1), 0)
  AND x.offset < ?2
ORDER BY x.offset
"""


_FILES = """
SELECT x.offset, x.start, x.stop, e.id, e.path, e.kind, e.size, e.offset, e.mode, e.mtime, e.uid,
  e.gid, e.target, e.link, e.hash, e.ctime, e.ino, e.token
FROM extent x JOIN idx.entry e ON e.id = x.entry_id
WHERE x.offset >= ?1 AND x.offset < ?2
ORDER BY x.offset
"""
_EXTENTS = """
SELECT offset, entry_id, start, stop FROM extent
WHERE offset >= coalesce((SELECT max(offset) FROM extent WHERE offset <= ?1), 0) AND offset < ?2
ORDER BY offset
"""

_TOUCHED = """
SELECT x.offset, x.entry_id, x.start, x.stop
FROM extent x
JOIN idx.entry e ON e.id = x.entry_id
JOIN begun.entry b ON b.id = x.entry_id
WHERE e.ctime != b.ctime ORDER BY x.offset
"""
SEEN = 100
"""Names that are enough to tell whether an index is of a folder."""


class Plan:
    """A plan next to its index, read-only. One object a thread."""

    def __init__(self, path: str, index_path: str) -> None:
        """Raises IndexInvalid when the two files do not belong together."""
        try:
            self._db = connect_readonly(path)
            attach(self._db, index_path, "idx")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            application = self._db.execute("PRAGMA application_id").fetchone()[0]
            meta = dict(self._db.execute("SELECT key, value FROM meta"))
            index_id = self._db.execute("SELECT value FROM idx.meta WHERE key = 'id'").fetchone()
        except sqlite3.Error as error:
            raise IndexInvalid(f"The plan {path} cannot be read ({error}).") from None
        if (application, version) != (schema.APPLICATION_ID, schema.VERSION):
            raise IndexInvalid(f"{path} is no plan of this version.")
        if index_id is None or meta.get("index") != index_id[0]:
            raise IndexInvalid(f"The plan {path} belongs to another index.")
        self.id: str = meta.get("id", "")
        """Another one for each plan, also of the same index."""
        self.index_id: str = meta["index"]
        self.block_size = int(meta["block_size"])
        self.length = int(meta["length"])
        """Bytes of the virtual archive, padding included."""
        self.bytes = int(meta["bytes"])
        """Bytes to send."""
        self.files = int(meta["files"])
        """Files that the receiver lacks."""

    @property
    def block_count(self) -> int:
        """How many blocks there are."""
        return block_count(self.length, self.block_size)

    def blocks_of(self, extent: Extent) -> range:
        """The numbers of the blocks that an extent lies in."""
        last = extent.offset + extent.stop - extent.start - 1
        return range(extent.offset // self.block_size, last // self.block_size + 1)

    def pieces(self, block_no: int) -> list[Piece]:
        """The pieces of one block, in order; block ``n`` is in ``[0, block_count)``."""
        start, stop = block_range(block_no, self.block_size, self.length)
        return list(self.pieces_between(start, stop))

    def pieces_between(self, start: int, stop: int) -> Iterator[Piece]:
        """The pieces that lie in ``[start, stop)`` of the plan, cut where needed."""
        rows = self._db.execute(_PIECES, (start, stop))
        new = tuple.__new__  # half the time of Piece(...), for every file there is
        for offset, entry_id, path, first, last, size, mtime, token, ctime in rows:
            if offset < start:
                first, offset = first + start - offset, start
                if first >= last:
                    continue
            if last - first > stop - offset:
                last = first + stop - offset
            yield new(Piece, (entry_id, path, first, last, size, mtime, token, ctime))

    def seen(self) -> Iterator[tuple[bytes, int]]:
        """(path, ctime) of some names, as the index saw them."""
        return self._db.execute("SELECT path, ctime FROM idx.entry ORDER BY id LIMIT ?", (SEEN,))

    def touched_since(self, begun: str) -> Iterator[tuple[int, list[int]]]:
        """Files in several blocks whose ctime is not that in another index of the same tree.

        As (entry id, numbers of its blocks), in order.
        """
        attach(self._db, begun, "begun")
        rows = self._db.execute(_TOUCHED)
        for entry_id, extents in groupby(rows, key=lambda row: int(row[1])):
            blocks = sorted({n for row in extents for n in self.blocks_of(Extent._make(row))})
            if len(blocks) > 1:
                yield entry_id, blocks

    def extents(self, block_no: int) -> list[Extent]:
        """The parts of extents that lie in one block: what ``pieces`` gives, without the files."""
        start, stop = block_range(block_no, self.block_size, self.length)
        return list(self.extents_between(start, stop))

    def extents_between(self, start: int, stop: int) -> Iterator[Extent]:
        """The parts of extents that lie in ``[start, stop)`` of the plan."""
        new = tuple.__new__  # half the time of Extent._make, for every file there is
        for row in self._db.execute(_EXTENTS, (start, stop)):
            offset, _, first, last = row
            extent: Extent | None = new(Extent, row)
            if offset < start or offset + last - first > stop:
                extent = clip(new(Extent, row), start, stop)
            if extent is not None:
                yield extent

    def extents_of(self, entry_id: int) -> Iterator[tuple[int, int]]:
        """The ranges of one file, in order. Goes through all of the plan."""
        query = "SELECT start, stop FROM extent WHERE entry_id = ? ORDER BY start"
        return self._db.execute(query, (entry_id,))

    def files_between(self, start: int, stop: int) -> Iterator[tuple[Entry, list[Extent]]]:
        """Files with their extents, for a range that begins and ends with a file."""
        new = tuple.__new__  # half the time of Entry._make, for every file there is
        entry: Entry | None = None
        entry_id = -1
        extents: list[Extent] = []
        for offset, first, last, *row in self._db.execute(_FILES, (start, stop)):
            if row[0] != entry_id:
                if entry is not None:
                    yield entry, extents
                entry, extents = new(Entry, row), []
                entry_id = row[0]
            extents.append(new(Extent, (offset, entry_id, first, last)))
        if entry is not None:
            yield entry, extents

    def lacking(self) -> Iterator[int]:
        """Entry ids of the files that the receiver lacks, ascending."""
        rows = self._db.execute(
            "SELECT entry_id FROM extent UNION SELECT entry_id FROM bare ORDER BY 1"
        )
        return (row[0] for row in rows)

    def bare(self) -> Iterator[int]:
        """Entry ids of lacking files that have no bytes to send, ascending."""
        return (row[0] for row in self._db.execute("SELECT entry_id FROM bare ORDER BY 1"))

    def bare_pieces(self) -> Iterator[Piece]:
        """The same files as pieces without bytes, in order."""
        rows = self._db.execute(
            "SELECT e.id, e.path, 0, 0, e.size, e.mtime, e.token FROM bare b "
            "JOIN idx.entry e ON e.id = b.entry_id ORDER BY b.entry_id"
        )
        return starmap(Piece, rows)

    def file_starts(self, step: int) -> Iterator[int]:
        """Offsets where a file begins, about ``step`` bytes or 2,000 files apart, from 0."""
        rows = self._db.execute("SELECT offset, entry_id FROM extent ORDER BY offset")
        last_offset, last_entry, count = -step, -1, 0
        for offset, entry_id in rows:
            if entry_id == last_entry:
                continue
            last_entry = entry_id
            count += 1
            if offset - last_offset >= step or count >= 2000:
                yield offset
                last_offset, count = offset, 0

    def close(self) -> None:
        """Close both files."""
        self._db.close()
