"""Making index files by hand, right and wrong ones.

path_id = write(path, [root(), file(b"a", 5000)])     # ids and offsets are filled in
with edit(path) as db: db.execute("UPDATE entry ...")
path_id = seal(path)                                  # the id and the count are right again
"""

from __future__ import annotations

import contextlib
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tar_like import digest
from tar_like.index import schema
from tar_like.index.identity import Identity
from tar_like.layout import DIRECTORY, FILE, HARDLINK, SYMLINK, Entry, place

Segment = tuple[int, int, int]
Xattr = tuple[int, bytes, bytes]

_BLANK = Entry(-1, b"", DIRECTORY, 0, -1, 0o644, 0, 0, 0, b"", -1, b"", 0, 0, b"")


def root() -> Entry:
    return folder(b"")


def folder(path: bytes) -> Entry:
    return _BLANK._replace(path=path, kind=DIRECTORY, mode=0o755)


def file(path: bytes, size: int = 0, hash_: bytes | None = None) -> Entry:
    content = digest.of("blake3", path) if hash_ is None else hash_
    return _BLANK._replace(path=path, kind=FILE, size=size, hash=content)


def symlink(path: bytes, target: bytes = b"target") -> Entry:
    return _BLANK._replace(path=path, kind=SYMLINK, mode=0o777, target=target)


def hardlink(path: bytes, link: int) -> Entry:
    return _BLANK._replace(path=path, kind=HARDLINK, link=link)


def numbered(entries: Sequence[Entry]) -> list[Entry]:
    """The entries with the ids and offsets that they should have, where they have none."""
    found = []
    cursor = 0
    for number, entry in enumerate(entries):
        offset = entry.offset
        if entry.offset == -1:
            offset = cursor
            if entry.size > 0:
                offset = place(cursor, entry.size)
                cursor = offset + entry.size
        found.append(entry._replace(id=number if entry.id == -1 else entry.id, offset=offset))
    return found


def write(
    path: Path,
    entries: Sequence[Entry],
    *,
    segments: Sequence[Segment] = (),
    xattrs: Sequence[Xattr] = (),
    algorithm: str = "blake3",
) -> str:
    """An index of these entries; returns its id."""
    rows = numbered(entries)
    db = schema.create(str(path))
    db.executemany(schema.INSERT_ENTRY, rows)
    db.executemany("INSERT INTO segment VALUES (?, ?, ?)", segments)
    db.executemany("INSERT INTO xattr VALUES (?, ?, ?)", xattrs)
    meta = {"id": "", "hash": algorithm, "entries": "", "length": "0", "bytes": "0", "xattrs": ""}
    db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    db.execute("COMMIT")
    db.close()
    return seal(path)


@contextmanager
def edit(path: Path) -> Iterator[sqlite3.Connection]:
    """Change an index as somebody with bad intentions does."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA synchronous=OFF")
    db.execute("PRAGMA journal_mode=OFF")
    try:
        yield db
    finally:
        db.close()


def seal(path: Path) -> str:
    """Set count and id to what the rows give; some id where the rows have none."""
    with edit(path) as db:
        algorithm = db.execute("SELECT value FROM meta WHERE key = 'hash'").fetchone()[0]
        rows = [Entry._make(row) for row in db.execute(f"{schema.SELECT_ENTRY} ORDER BY id")]
        identity = Identity(str(algorithm), lambda entry_id: rows[entry_id].path)
        index_id = "0" * 64
        with contextlib.suppress(
            struct.error, TypeError, AttributeError, LookupError, OverflowError
        ):
            identity.add(rows)
            for _, *xattr in db.execute(schema.SELECT_XATTR):
                identity.add_xattr(*xattr)
            for skipped in db.execute("SELECT path, kind FROM skipped ORDER BY id"):
                identity.add_skipped(*skipped)
            index_id = identity.id()
        for key, value in (("id", index_id), ("entries", str(len(rows)))):
            db.execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))
    return index_id
