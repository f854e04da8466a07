"""The ledger that a commit leaves: what is at the destination from then on.

    index + leaves + what has landed             > ledger.db     (a whole tree)
    the ledger that there is + patch + the same  > ledger.db     (the same but for what differs)

Of a patch most can be written beside the commit's work at the files, on a thread.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading

from tar_like.chunks import LARGEST_FILE, SMALLEST_FILE
from tar_like.database import connect, rewriting
from tar_like.proxy.chunkcache import ChunkCache
from tar_like.proxy.durable import machine
from tar_like.proxy.ledger import LINKED, UNSYNCED, add_indexes, whole_ledger
from tar_like.proxy.patch import Draft, Patch
from tar_like.proxy.place import Destination

_NOTE_LINKS = """
INSERT OR REPLACE INTO meta SELECT ?, EXISTS (SELECT 1 FROM entry WHERE kind = 'h')
"""

_ROOMY = 3
"""Sizes of the ledger that must be free where it is begun before room is made."""


class NextLedger:
    """Written in the transfer's folder, and then published."""

    def __init__(
        self, destination: Destination, path: str, patch: Patch | None, meta: dict[str, str]
    ) -> None:
        """``path`` is the transfer's folder; ``meta`` is what the ledger is to say of itself."""
        self._destination = destination
        self._path = path
        self._file = os.path.join(path, "next.db")
        self._patch = patch
        self._meta = meta
        self._draft: Draft | None = None
        self._drafting: threading.Thread | None = None

    def begin(self) -> None:
        """Begin to write it, if that can be before anything has landed, and there is room for it.

        No process may be forked before it is published or closed.
        """
        ledger = self._destination.ledger
        if self._patch is None or not self._patch.fits(ledger):
            return
        room = os.statvfs(self._path)
        if room.f_bavail * room.f_frsize < _ROOMY * os.path.getsize(ledger):
            return  # names that are replaced or deleted may free some before it is needed
        self._remove()
        self._draft = self._patch.draft(ledger, self._file)
        drafting = threading.Thread(target=self._begin_draft, daemon=True)
        with contextlib.suppress(RuntimeError):  # more threads than there may be: it is done later
            drafting.start()
            self._drafting = drafting

    def publish(self, landed: str) -> None:
        """Say what is at the destination from now on; ``landed`` is a file with that table.

        Raises OSError, sqlite3.Error.
        """
        self._fill(landed)
        try:
            add_indexes(self._file)
        except sqlite3.Error:  # no room to sort, say: they are there for speed alone
            self.close()
            self._fill(landed)
        with contextlib.closing(connect(self._file, "ro")) as db:
            self._forget_chunks(db)
        self._destination.durability.publish(self._file, self._destination.ledger)

    def close(self) -> None:
        """Give up what is not published. Idempotent."""
        if self._drafting is not None:
            self._drafting.join()
            self._drafting = None
        if self._draft is not None:
            self._draft.close()
            self._draft = None
        self._remove()

    def _begin_draft(self) -> None:
        """On the thread. Whatever goes wrong, it is tried once more when it is needed."""
        assert self._draft is not None
        with contextlib.suppress(OSError, MemoryError, sqlite3.Error):
            self._draft.begin()
        if not self._draft.begun:
            self._draft.close()
            self._remove()  # others need the room

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._file)

    def _fill(self, landed: str) -> None:
        if self._drafting is not None:
            self._drafting.join()
        if self._draft is None or not self._draft.begun:
            self.close()
        if self._patch is None:
            whole_ledger(self._file, self._path, landed)
        else:
            self._finish_draft(self._patch, landed)
        self._describe()

    def _finish_draft(self, patch: Patch, landed: str) -> None:
        if self._draft is None:
            self._draft = patch.draft(self._destination.ledger, self._file)
            self._draft.begin()
        self._draft.end(landed)
        self._draft.close()

    def _describe(self) -> None:
        """Write what it says of itself, and an index does not (ledger.OF_LEDGER)."""
        meta = dict(self._meta)
        if self._patch is not None:
            meta[LINKED] = "0"  # else it would have been offered whole
        if not self._destination.durability.lasts:
            meta[UNSYNCED] = machine().hex()
        with contextlib.closing(rewriting(self._file)) as db:
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
            if self._patch is None:
                db.execute(_NOTE_LINKS, (LINKED,))
                db.execute("INSERT OR REPLACE INTO meta SELECT 'newest', max(mtime) FROM entry")
            db.execute("COMMIT")

    def _forget_chunks(self, ledger: sqlite3.Connection) -> None:
        """Keep the lists of chunks of files that are in place."""
        query = (
            "SELECT lower(hex(digest)) FROM entry CROSS JOIN landed ON entry_id = id "
            "WHERE kind = 'f' AND size BETWEEN ? AND ?"
        )
        rows = ledger.execute(query, (SMALLEST_FILE, LARGEST_FILE))
        ChunkCache(self._destination.chunks).keep(row[0] for row in rows)
