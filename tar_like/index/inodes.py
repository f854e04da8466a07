"""What has an inode first: how hard links are told. Kept on disk, not in memory."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T", int, bytes)


class Inodes(Generic[T]):
    """Inodes seen so far, each with its first entry's id or path. A temporary file that goes with
    the object, from the first one on."""

    @cached_property
    def _db(self) -> sqlite3.Connection:
        from tar_like.database import temporary

        db = temporary()
        db.execute(
            "CREATE TABLE inode (dev INTEGER, ino INTEGER, entry, PRIMARY KEY (dev, ino)) "
            "WITHOUT ROWID"
        )
        return db

    def known(self, dev: int, ino: int) -> T | None:
        """The entry that has this inode."""
        row = self._db.execute(
            "SELECT entry FROM inode WHERE dev = ? AND ino = ?", (_signed(dev), _signed(ino))
        ).fetchone()
        return None if row is None else row[0]

    def first(self, dev: int, ino: int, entry: T) -> T:
        """The entry that has this inode; this one, from now on, if there was none."""
        known = self.known(dev, ino)
        if known is not None:
            return known
        row = (_signed(dev), _signed(ino), entry)
        self._db.execute("INSERT INTO inode VALUES (?, ?, ?)", row)
        return entry

    def close(self) -> None:
        """Remove the file, if there is one."""
        if "_db" in self.__dict__:
            self._db.close()


def _signed(number: int) -> int:
    """As SQLite's signed 64 bits; inode numbers are unsigned."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
