"""Which entry has an inode first: how hard links are told. Kept on disk, not in memory."""

from __future__ import annotations

from tar_like.database import temporary


class Inodes:
    """Inodes seen so far. A temporary file that goes with the object."""

    def __init__(self) -> None:
        self._db = temporary()
        self._db.execute(
            "CREATE TABLE inode (dev INTEGER, ino INTEGER, entry_id INTEGER, "
            "PRIMARY KEY (dev, ino)) WITHOUT ROWID"
        )

    def known(self, dev: int, ino: int) -> int:
        """The entry that has this inode; -1 if there is none."""
        row = self._db.execute(
            "SELECT entry_id FROM inode WHERE dev = ? AND ino = ?", (_signed(dev), _signed(ino))
        ).fetchone()
        return -1 if row is None else int(row[0])

    def first(self, dev: int, ino: int, entry_id: int) -> int:
        """The entry that has this inode; this one, from now on, if there was none."""
        known = self.known(dev, ino)
        if known >= 0:
            return known
        row = (_signed(dev), _signed(ino), entry_id)
        self._db.execute("INSERT INTO inode VALUES (?, ?, ?)", row)
        return entry_id

    def close(self) -> None:
        """Remove the file."""
        self._db.close()


def _signed(number: int) -> int:
    """As SQLite's signed 64 bits; inode numbers are unsigned."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
