"""Samples: the two ends of files of one size, which tell most files apart without reading them.

    take(each file) > shared(file): whether another of its size has the same ends

Kept on disk, not in memory.
"""

from __future__ import annotations

from tar_like import digest
from tar_like.database import temporary
from tar_like.layout import PAGE, Entry, Piece
from tar_like.source import Source


class Samples:
    """What the ends of files are. A temporary file that goes with the object."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._buffer = memoryview(bytearray(2 * PAGE))
        self._db = temporary()
        self._db.execute("CREATE TABLE sample (entry_id INTEGER PRIMARY KEY, ends BLOB)")
        self._db.execute("CREATE TABLE seen (ends BLOB PRIMARY KEY, count INTEGER) WITHOUT ROWID")

    def take(self, entry: Entry) -> None:
        """Look at a file. One that cannot be read has no ends."""
        ends = self._ends(entry)
        if ends is not None:
            self._db.execute("INSERT INTO sample VALUES (?, ?)", (entry.id, ends))
            self._db.execute(
                "INSERT INTO seen VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1",
                (ends,),
            )

    def shared(self, entry: Entry) -> bool:
        """Whether another file that was looked at has the same size and the same ends."""
        query = "SELECT count FROM sample JOIN seen ON seen.ends = sample.ends WHERE entry_id = ?"
        row = self._db.execute(query, (entry.id,)).fetchone()
        return row is not None and row[0] > 1

    def _ends(self, entry: Entry) -> bytes | None:
        size = entry.size
        ranges = [(0, size)] if size <= 2 * PAGE else [(0, PAGE), (size - PAGE, size)]
        pieces = [
            Piece(entry.id, entry.path, start, stop, size, entry.mtime, entry.token)
            for start, stop in ranges
        ]
        reading = self._source.read(pieces, self._buffer)
        if reading.omissions:
            return None
        ends = digest.of_piece(self._buffer[: reading.length])
        return size.to_bytes(8, "little") + ends[:16]

    def close(self) -> None:
        """Remove the file."""
        self._db.close()
