"""What becomes of files that a destination lacks: kept, assembled, twins of others, or sent.

what was found here (Provided) + the rest, with their digests > kept.db > those to be sent
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator

from tar_like.layout import Entry
from tar_like.plan.segments import Segments
from tar_like.proxy import survey
from tar_like.proxy.assemble import Provided

_SEND = "INSERT OR IGNORE INTO sent VALUES (?, ?)"


class Sorter:
    """Sorts the lacking files of one transfer."""

    def __init__(self, db: sqlite3.Connection) -> None:
        """``db`` is its kept.db, which is being written."""
        self._db = db
        db.execute("CREATE TEMP TABLE sent (digest BLOB PRIMARY KEY, entry_id) WITHOUT ROWID")
        self._missing: dict[int, list[tuple[int, int]]] = {}
        self._done: set[int] = set()
        self.staged = False
        """Whether anything lies in staging that is believed to last."""

    def take(self, found: Provided) -> None:
        """A file that was found here, wholly or in part."""
        if found.kept is not None:
            self._db.execute("INSERT OR REPLACE INTO landed VALUES (?, ?, ?, ?)", found.kept)
            self._done.add(found.entry_id)
            return
        self.staged = self.staged or not found.laying
        whole = not found.missing
        self._db.execute(
            "INSERT INTO assembled VALUES (?, ?, ?, ?)",
            (found.entry_id, found.digest, whole, found.believed),
        )
        if found.laying:
            row = found.entry_id, found.laying
            self._db.execute("INSERT INTO laying VALUES (?, ?)", row)
        if whole:
            self._done.add(found.entry_id)
        elif found.missing is not None:
            self._missing[found.entry_id] = list(found.missing)
            self._first(found.entry_id, found.digest)

    def left(
        self, lacking: Iterable[Entry], digest_of: Callable[[Entry], bytes], segments: Segments
    ) -> Iterator[Entry]:
        """The files to be sent: of several that are the same, one, in part if that is enough.

        A file that is one hole is not sent, so no other one can have its bytes from it.
        """
        for entry in lacking:
            if entry.id in self._done:
                continue
            alone = entry.size < survey.LEAST_TWIN or entry.id in self._missing
            if not alone and segments.of(entry):
                first = self._first(entry.id, digest_of(entry))
                if first != entry.id:
                    row = (entry.id, first, digest_of(entry))
                    self._db.execute("INSERT INTO twin VALUES (?, ?, ?)", row)
                    continue
            yield entry

    def _first(self, entry_id: int, known: bytes) -> int:
        """The first entry with this digest that is sent: this one, if there was none."""
        if not known:
            return entry_id
        if self._db.execute(_SEND, (known, entry_id)).rowcount == 1:
            return entry_id
        row = self._db.execute("SELECT entry_id FROM sent WHERE digest = ?", (known,)).fetchone()
        return int(row[0])

    def part(self, entry: Entry) -> list[tuple[int, int]] | None:
        """The ranges of a file that must be sent; None for all of it."""
        return self._missing.get(entry.id)
