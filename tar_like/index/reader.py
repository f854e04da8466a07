"""Reading an index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from tar_like import digest
from tar_like.database import Damaged, damage
from tar_like.errors import IndexInvalid
from tar_like.index import schema
from tar_like.layout import Entry

_NUMBERS = ("entries", "length", "bytes")
_NUMBER = re.compile("[0-9]{1,19}")


_SAME_SIZE = """
WITH large AS (SELECT id, size FROM entry WHERE kind = 'f' AND size >= ?)
SELECT id FROM large WHERE size IN (SELECT size FROM large GROUP BY size HAVING count(*) > 1)
ORDER BY id
"""
_SAME_HASH = """
WITH large AS (SELECT id, hash FROM entry WHERE kind = 'f' AND size >= ?)
SELECT id FROM large WHERE hash IN (SELECT hash FROM large GROUP BY hash HAVING count(*) > 1)
ORDER BY id
"""


NEAR, AHEAD = 4, 64
"""Entries that are asked for by number, one after the other in steps of ``NEAR`` at most, are read
``AHEAD`` of that: a third of the time of a query for each."""
PATCH_OF = "patch of"
"""The key in ``meta`` of an index that has only what is to be changed of a tree: the tree's id."""
SEEN = 10
"""How many of source.Found's fields a fingerprint begins with."""


class SkippedRow(NamedTuple):
    """A name that was seen but is not in the tree (source.Skipped)."""

    path: bytes
    kind: str
    detail: str


class Index:
    """An index file, read-only. Rows stream in canonical order."""

    def __init__(self, path: str, name: str = "") -> None:
        """``name`` is what errors call it, if not by its path. Raises IndexInvalid."""
        self.path = path
        name = name or path
        self._db = schema.open_readonly(path, name)
        self._ahead: tuple[int, list[Entry]] = (0, [])
        """Entries in a row, and the number of the first one."""
        self._last = -NEAR - 1
        """The entry that was asked for last, or the last one of those in a row."""
        try:
            self._meta = self._read_meta(name)
        except BaseException:
            self._db.close()
            raise

    def _read_meta(self, name: str) -> dict[str, str]:
        try:
            found = dict(self._db.execute("SELECT key, value FROM meta LIMIT 100"))
        except Damaged as error:
            raise IndexInvalid(f"{name} is damaged ({damage(error)}).") from None
        if not {"id", "hash", *_NUMBERS} <= found.keys():
            raise IndexInvalid(f"{name} was not finished: make it again with 'tar-like index'.")
        texts = all(isinstance(value, str) for value in found.values())
        if not texts or not all(_NUMBER.fullmatch(found[key]) for key in _NUMBERS):
            raise IndexInvalid(f"{name} is damaged (it says of itself what cannot be).")
        return found

    @property
    def id(self) -> str:
        """The digest over what its rows say (identity.Identity), 64 hexadecimal digits."""
        return self._meta["id"]

    @property
    def algorithm(self) -> str:
        """The digest that ``hash`` holds: a name of tar_like.digest, or ``none``."""
        return self._meta["hash"]

    @property
    def digest(self) -> str:
        """The digest by which content is known: ``algorithm``, or the default where it is none."""
        return self.algorithm if self.algorithm != "none" else digest.DEFAULT

    @property
    def is_patch(self) -> bool:
        """Whether it has only what is to be changed: what it does not list is to stay."""
        return PATCH_OF in self._meta

    @property
    def length(self) -> int:
        """Bytes of the virtual archive of the whole tree, padding included."""
        return int(self._meta["length"])

    @property
    def source(self) -> str:
        """The folder or URL that was scanned, as text; nothing to rely on."""
        return self._meta.get("source", "")

    @property
    def entry_count(self) -> int:
        """How many entries there are, the root included."""
        return int(self._meta["entries"])

    @property
    def file_bytes(self) -> int:
        """Sum of the files' sizes."""
        return int(self._meta["bytes"])

    def entries(self, first: int = 0, stop: int | None = None) -> Iterator[Entry]:
        """Entries with ids in ``[first, stop)``, in canonical order."""
        rows = self._db.execute(
            f"{schema.SELECT_ENTRY} WHERE id >= ? AND id <= ? ORDER BY id",
            (first, (1 << 63) - 1 if stop is None else stop - 1),
        )
        new = tuple.__new__  # half the time of Entry._make, a million times
        return (new(Entry, row) for row in rows)

    def has_path(self, path: bytes) -> bool:
        """Whether there is an entry of this path; goes through all of them."""
        query = "SELECT 1 FROM entry WHERE path = ? LIMIT 1"
        return self._db.execute(query, (path,)).fetchone() is not None

    def has_file_of(self, least: int) -> bool:
        """Whether there is a file of at least so many bytes; goes through all of them."""
        query = "SELECT 1 FROM entry WHERE kind = 'f' AND size >= ? LIMIT 1"
        return self._db.execute(query, (least,)).fetchone() is not None

    def names(self) -> Iterator[tuple[bytes, str]]:
        """(path, kind) of every entry but the root, in canonical order."""
        return self._db.execute("SELECT path, kind FROM entry WHERE id > 0 ORDER BY id")

    def backwards(self, kind: str) -> Iterator[Entry]:
        """All entries of one kind, last first: a directory after everything in it."""
        rows = self._db.execute(f"{schema.SELECT_ENTRY} WHERE kind = ? ORDER BY id DESC", (kind,))
        return map(Entry._make, rows)

    def of_kind(self, kind: str) -> Iterator[Entry]:
        """All entries of one kind, in order."""
        rows = self._db.execute(f"{schema.SELECT_ENTRY} WHERE kind = ? ORDER BY id", (kind,))
        return map(Entry._make, rows)

    def linked(self) -> Iterator[int]:
        """Ids of the entries that have further names (hard links), ascending."""
        rows = self._db.execute("SELECT DISTINCT link FROM entry WHERE kind = 'h' ORDER BY 1")
        return (row[0] for row in rows)

    def entry(self, entry_id: int) -> Entry:
        """One entry. Raises KeyError."""
        first, rows = self._ahead
        if 0 <= entry_id - first < len(rows):
            return rows[entry_id - first]
        step, self._last = entry_id - self._last, entry_id
        if 0 < step <= NEAR:
            rows = list(self.entries(entry_id, entry_id + AHEAD))
            if (
                len(rows) == AHEAD
                and rows[0].id == entry_id
                and rows[-1].id == entry_id + AHEAD - 1
            ):
                self._ahead, self._last = (entry_id, rows), rows[-1].id
                return rows[0]
        row = self._db.execute(f"{schema.SELECT_ENTRY} WHERE id = ?", (entry_id,)).fetchone()
        if row is None:
            raise KeyError(entry_id)
        return Entry._make(row)

    def in_range(self, start: int, stop: int) -> Iterator[Entry]:
        """The files whose bytes lie in ``[start, stop)`` of the virtual archive, even partly."""
        rows = self._db.execute(
            f"{schema.SELECT_ENTRY} WHERE kind = 'f' AND offset < ? AND offset + size > ? "
            "ORDER BY id",
            (stop, start),
        )
        return map(Entry._make, rows)

    def twins(self, least: int) -> Iterator[int]:
        """Files of at least so many bytes that may be the same as another, by entry id.

        Those of one hash; of one size, where there are no hashes.
        """
        query = _SAME_SIZE if self.algorithm == "none" else _SAME_HASH
        rows = self._db.execute(query, (least,))
        return (row[0] for row in rows)

    def fingerprints(self) -> Iterator[tuple[Any, ...]]:
        """What a scan finds of each entry: the first SEEN fields of source.Found.

        Then the entry that a hard link goes to, the offset, and whether there is a hash.
        """
        return self._db.execute(
            "SELECT path, kind, size, mode, mtime, uid, gid, target, ctime, ino, link, offset, "
            "length(hash) > 0 FROM entry ORDER BY id"
        )

    def segments(self) -> Iterator[tuple[int, int, int]]:
        """(entry id, start, stop) of the data of files with holes, in order."""
        return self._db.execute("SELECT entry_id, start, stop FROM segment ORDER BY 1, 2")

    def xattrs(self, entry_id: int) -> list[tuple[bytes, bytes]]:
        """Extended attributes of one entry."""
        return self._db.execute(
            "SELECT name, value FROM xattr WHERE entry_id = ? ORDER BY name", (entry_id,)
        ).fetchall()

    def all_xattrs(self) -> Iterator[tuple[int, bytes | None, bytes, bytes]]:
        """(entry id, path, name, value) of every extended attribute, in order.

        No path where there is no such entry.
        """
        return self._db.execute(schema.SELECT_XATTR)

    @property
    def xattr_names(self) -> frozenset[str]:
        """Which kinds of extended attributes were taken up: ``xattrs``, ``acls``."""
        return frozenset(self._meta.get("xattrs", "").split())

    def skipped(self) -> Iterator[SkippedRow]:
        """What a scan saw but did not take up, in order."""
        rows = self._db.execute("SELECT path, kind, detail FROM skipped ORDER BY id")
        return map(SkippedRow._make, rows)

    def skipped_count(self, kind: str) -> int:
        """How many names of one kind (``special``, ``unreadable``) are not in the tree."""
        row = self._db.execute("SELECT count(*) FROM skipped WHERE kind = ?", (kind,)).fetchone()
        return int(row[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
