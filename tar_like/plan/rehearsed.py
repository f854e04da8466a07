"""Reading what a receiver says it would do (proxy.rehearsal)."""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Iterator
from typing import Any

from tar_like.database import connect_readonly
from tar_like.errors import IndexInvalid


class Change(enum.IntFlag):
    """What of a name would be set, besides its content."""

    MODE = 1
    MTIME = 2
    OWNER = 4
    XATTRS = 8


class Rehearsed:
    """A rehearsal, read-only. Methods raise IndexInvalid for what is none."""

    def __init__(self, path: str) -> None:
        self._db = connect_readonly(path)

    def sent(self) -> Iterator[tuple[int, int]]:
        """(entry id, bytes of it to be sent), by entry."""
        return self._rows("SELECT entry_id, bytes FROM sent ORDER BY 1")

    def local(self) -> Iterator[int]:
        """Entries that are made from content that is there."""
        return (row[0] for row in self._rows("SELECT entry_id FROM local ORDER BY 1"))

    def passed(self) -> Iterator[int]:
        """Entries that are passed over."""
        return (row[0] for row in self._rows("SELECT entry_id FROM passed ORDER BY 1"))

    def folders(self) -> Iterator[int]:
        """Directories to be made."""
        return (row[0] for row in self._rows("SELECT entry_id FROM folder ORDER BY 1"))

    def symlinks(self) -> Iterator[int]:
        """Symlinks to be made, or to be made anew."""
        return (row[0] for row in self._rows("SELECT entry_id FROM symlink ORDER BY 1"))

    def links(self) -> Iterator[int]:
        """Further names of files to be made, or to be made anew."""
        return (row[0] for row in self._rows("SELECT entry_id FROM link ORDER BY 1"))

    def changed(self) -> Iterator[tuple[int, Change]]:
        """Entries of which nothing but this is to be set."""
        query = "SELECT entry_id, CAST(what AS INTEGER) & 15 FROM changed ORDER BY 1"
        return ((entry_id, Change(what)) for entry_id, what in self._rows(query))

    def extra(self) -> Iterator[bytes]:
        """Paths to be deleted, in canonical order."""
        return (bytes(row[0]) for row in self._rows("SELECT path FROM extra ORDER BY rowid"))

    def trouble(self) -> Iterator[tuple[str, str]]:
        """(path, why it cannot be deleted)."""
        return self._rows("SELECT path, reason FROM trouble ORDER BY rowid")

    def held(self) -> str:
        """Why nothing would be deleted; empty where it would."""
        return "".join(row[0] for row in self._rows("SELECT reason FROM held LIMIT 1"))

    def _rows(self, query: str) -> Iterator[Any]:
        try:
            yield from self._db.execute(query)
        except sqlite3.Error as error:
            raise IndexInvalid(
                f"What the receiver says it would do is damaged ({error})."
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()
