"""What a patch is a difference to: the ledger, if it is one that there can be a difference to."""

from __future__ import annotations

from tar_like.database import connect_readonly
from tar_like.errors import Conflict
from tar_like.proxy.ledger import LINKED, Ledger
from tar_like.proxy.rows import Rows

WHOLE = "offer the whole index"
_DIGESTS = 4096
"""Leaves whose digests are held in memory."""
_SELECT = (
    "SELECT e.id, e.path, e.kind, e.size, e.mode, e.mtime, e.uid, e.gid, e.target, e.ctime, e.ino "
    "FROM entry e"
)
VALUES, CTIME, INO = slice(2, 9), 9, 10
"""Where in a row is what given.Given has of it; rows.ID and PATH before that."""


class Base:
    """The ledger of the last commit, read-only."""

    def __init__(self, path: str, index_id: str) -> None:
        """Raises Conflict for a ledger that nothing can be a difference to, sqlite3.Error."""
        self._ledger = ledger = Ledger(path)
        self.plan = ledger.plan
        self.leaves_between, self.leaves_of = ledger.leaves_between, ledger.leaves_of
        self._digests: tuple[int, list[bytes]] = 0, []
        self._db = connect_readonly(path)
        self._meta = dict(self._db.execute("SELECT key, value FROM meta"))
        if (
            ledger.index_id != index_id
            or ledger.snapshot
            or self._meta.get("hash") != "none"
            or self._meta.get("xattrs")
            or self._has_links
            or self._any("SELECT 1 FROM skipped LIMIT 1")
        ):
            self.close()
            raise Conflict(f"To this tree there can be no difference: {WHOLE}.")
        self.rows = Rows(self._db, _SELECT)

    def digests(self, first: int, stop: int) -> list[bytes]:
        """The digests of leaves, or of the first ones of them; none after the last one.

        They are read many at a time, which is of use where numbers ascend.
        """
        start, digests = self._digests
        if not start <= first < start + len(digests):
            start, digests = first, self._ledger.digests(first, first + _DIGESTS)
            self._digests = start, digests
        return digests[first - start : stop - start]

    @property
    def _has_links(self) -> bool:
        said = self._meta.get(LINKED)  # an earlier version has not said so
        return said != "0" and self._any("SELECT 1 FROM entry WHERE kind = 'h' LIMIT 1")

    def _any(self, query: str) -> bool:
        return self._db.execute(query).fetchone() is not None

    def close(self) -> None:
        """Close the file."""
        self._db.close()
        self._ledger.close()
