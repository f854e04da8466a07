"""A local record of what this sender sent (``-dbp``): an SQLite file for people to look at.

The receiver's receipts are the truth; nothing is decided by this record.
"""

from __future__ import annotations

import sqlite3
import time

from tar_like.database import connect
from tar_like.errors import TarLikeError
from tar_like.upload.range import BlockOutcome

_TABLE = """CREATE TABLE IF NOT EXISTS sent (
  transfer TEXT NOT NULL,
  block_size INTEGER NOT NULL,
  block_no INTEGER NOT NULL,
  digest BLOB NOT NULL,
  raw INTEGER NOT NULL,
  wire INTEGER NOT NULL,
  time INTEGER NOT NULL,
  PRIMARY KEY (transfer, block_size, block_no)
) WITHOUT ROWID"""
COMMIT_EVERY = 1.0


class Record:
    """Collects outcomes in a file."""

    def __init__(self, path: str, transfer_id: str, block_size: int) -> None:
        """Raises TarLikeError when the file is something else."""
        self._key = (transfer_id, block_size)
        self._path = path
        self._last = time.monotonic()
        try:
            self._db = connect(path)
            self._db.execute(_TABLE)
            self._db.execute("BEGIN")
        except sqlite3.Error as error:
            raise TarLikeError(f"The record {path} cannot be used ({error}).") from None

    def add(self, outcome: BlockOutcome) -> None:
        """Take note of a block that arrived."""
        row = (*self._key, outcome.block_no, outcome.digest, outcome.raw, outcome.wire)
        try:
            self._db.execute(
                "INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, time.time_ns())
            )
            if time.monotonic() - self._last > COMMIT_EVERY:
                self._last = time.monotonic()
                self._db.execute("COMMIT")
                self._db.execute("BEGIN")
        except sqlite3.Error as error:
            raise TarLikeError(f"The record {self._path} cannot be written ({error}).") from None

    def close(self) -> None:
        """Write what is left."""
        self._db.execute("COMMIT")
        self._db.close()
