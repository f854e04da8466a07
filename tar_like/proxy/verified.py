"""verified.db: what a commit has read back, and synced, before any name appears.

    verified(entry_id, digest)   files whose staged bytes are right
    changed(entry_id)            files that are not what the index has a digest of
    unsynced(machine)            one row where nothing was synced: gone with that boot of that host

Once it is there no receipt matters any more, and staging must not be written to: its files are
on their way to their names.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tar_like.database import connect_readonly, scratch
from tar_like.proxy.durable import Durability, machine, may_be_lost

NAME = "verified.db"
_SYNCED = "verified.synced"
"""Beside it once its name is synced too: until then a power cut may take it back."""
_TABLES = (
    "CREATE TABLE verified (entry_id INTEGER PRIMARY KEY, digest BLOB NOT NULL)",
    "CREATE TABLE changed (entry_id INTEGER PRIMARY KEY)",
    "CREATE TABLE unsynced (machine BLOB NOT NULL)",
)


class Verified:
    """The file of one transfer's folder."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, NAME)
        self._temporary = f"{self._path}.tmp"
        self._synced = os.path.join(folder, _SYNCED)

    def __bool__(self) -> bool:
        """Whether everything was read back."""
        return os.path.exists(self._path)

    @property
    def lasts(self) -> bool:
        """Whether it is known to be synced, and with it all that it speaks of."""
        return os.path.exists(self._synced) and bool(self)

    def forget_lost(self) -> None:
        """Remove it where the bytes that it speaks of may be gone. Raises OSError.

        For whoever opens the transfer: nobody has it open from before a power cut.
        """
        try:
            writer = self._machine() if self else None
        except sqlite3.DatabaseError:
            writer = b""  # nor does it say anything itself any more
        if writer is not None and (not writer or may_be_lost(writer, machine())):
            self._remove(self._synced)
            self._remove(self._path)

    def changed(self) -> list[int]:
        """Entry ids of files that are not what the index has a digest of. Raises sqlite3.Error."""
        return [row[0] for row in self._read("SELECT entry_id FROM changed ORDER BY 1")]

    @contextlib.contextmanager
    def known(self) -> Iterator[Callable[[int], bool]]:
        """Something that tells by its id whether a file was verified. Raises sqlite3.Error."""
        db = connect_readonly(self._path)
        query = "SELECT 1 FROM verified WHERE entry_id = ?"
        try:
            yield lambda entry_id: db.execute(query, (entry_id,)).fetchone() is not None
        finally:
            db.close()

    def begin(self) -> sqlite3.Connection:
        """A new one, to be filled. Raises OSError, sqlite3.Error."""
        self._remove(self._synced)
        self._remove(self._temporary)
        db = scratch(self._temporary)
        for table in _TABLES:
            db.execute(table)
        return db

    def end(self, db: sqlite3.Connection, changed: Iterable[int], durability: Durability) -> None:
        """It is filled, but not published. Raises sqlite3.Error."""
        db.executemany("INSERT INTO changed VALUES (?)", ((entry_id,) for entry_id in changed))
        if not durability.lasts:
            db.execute("INSERT INTO unsynced VALUES (?)", (machine(),))
        db.execute("COMMIT")
        db.close()

    def publish(self, durability: Durability) -> None:
        """From here on the transfer is verified. Raises OSError."""
        durability.publish(self._temporary, self._path)
        if durability.lasts:
            with contextlib.suppress(OSError), open(self._synced, "xb"):
                pass

    @staticmethod
    def _remove(path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def _machine(self) -> bytes | None:
        """Whose boot it goes with; None when it was synced."""
        rows = self._read("SELECT machine FROM unsynced")
        return bytes(rows[0][0]) if rows else None

    def _read(self, query: str) -> list[Any]:
        db = connect_readonly(self._path)
        try:
            return db.execute(query).fetchall()
        finally:
            db.close()
