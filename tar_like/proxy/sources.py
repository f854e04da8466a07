"""Sources: files of the destination that have, or had, some content; found by its digest."""

from __future__ import annotations

from collections.abc import Iterable

from tar_like.database import temporary
from tar_like.proxy.ledger import Row

MOST = 4
"""Files with the wanted content that are tried, should the first have been touched."""
_TABLE = "CREATE TABLE source (path, size, mtime, hash, digest, ino, ctime, token)"
_FIND = "SELECT * FROM source WHERE digest = ? ORDER BY rowid LIMIT ?"
_SIEVE = 1 << 20


def _place(digest: bytes) -> int:
    return int.from_bytes(digest[:4], "little") % _SIEVE


class Sources:
    """Files by digest, those first that were given first. In memory as long as they are few."""

    def __init__(self, *rows: Iterable[Row]) -> None:
        self._sieve = bytearray(_SIEVE)
        self._db = temporary()
        self._db.execute(_TABLE)
        self._db.execute("BEGIN")
        for some in rows:
            self._db.executemany(
                "INSERT INTO source VALUES (?, ?, ?, ?, ?, ?, ?, ?)", map(self._noted, some)
            )
        self._db.execute("CREATE INDEX by_digest ON source (digest)")
        self._db.execute("COMMIT")

    def of(self, digest: bytes) -> tuple[Row, ...]:
        """A few files with this digest; none of an unknown one."""
        if not digest or not self._sieve[_place(digest)]:
            return ()
        return tuple(map(Row._make, self._db.execute(_FIND, (digest, MOST))))

    def _noted(self, row: Row) -> Row:
        self._sieve[_place(row.digest)] = 1
        return row

    def close(self) -> None:
        """Forget them."""
        self._db.close()
