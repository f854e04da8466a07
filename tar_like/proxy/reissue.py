"""The index of the last commit once more, out of the ledger: to be opened as if it were offered."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3

from tar_like.database import rewriting, scratch
from tar_like.index import Index
from tar_like.layout import place
from tar_like.proxy.ledger import INDEXES, LEAF, LEAVES, OF_LEDGER, OFFSETS
from tar_like.proxy.place import Destination


def reissue(destination: Destination, folder: str) -> str:
    """Write the last commit's index to ``folder/index.db``, as it was offered; returns its path.

    Raises OSError, sqlite3.Error, IndexInvalid.
    """
    path = os.path.join(folder, "index.db")
    shutil.copyfile(destination.ledger, path)
    db = rewriting(path)
    try:
        db.execute("DROP TABLE landed")
        for name in INDEXES:
            db.execute(f"DROP INDEX IF EXISTS {name}")
        _take_leaves(db, os.path.join(folder, LEAVES))
        (stale,) = db.execute("SELECT count(*) FROM meta WHERE key = ?", (OFFSETS,)).fetchone()
        if stale:
            _place_files(db)
        db.executemany("DELETE FROM meta WHERE key = ?", ((key,) for key in OF_LEDGER))
        db.execute("COMMIT")
    finally:
        db.close()
    Index(path).close()
    return path


def _take_leaves(ledger: sqlite3.Connection, path: str) -> None:
    """Put the table of the leaves into a file of its own, if there is one."""
    if ledger.execute("SELECT 1 FROM sqlite_schema WHERE name = 'leaf'").fetchone() is None:
        return
    leaves = scratch(path)
    with contextlib.closing(leaves):
        leaves.execute(LEAF)
        rows = ledger.execute("SELECT * FROM leaf ORDER BY number")
        leaves.executemany("INSERT INTO leaf VALUES (?, ?, ?, ?, ?)", rows)
        leaves.execute("COMMIT")
    ledger.execute("DROP TABLE leaf")


def _place_files(index: sqlite3.Connection) -> None:
    """Give the files of an index their offsets again."""
    length = 0
    rows = []
    for number, size in index.execute(
        "SELECT id, size FROM entry WHERE kind = 'f' ORDER BY id"
    ).fetchall():
        offset = length
        if size:
            offset = place(length, size)
            length = offset + size
        rows.append((offset, number))
    index.executemany("UPDATE entry SET offset = ? WHERE id = ?", rows)
    index.execute("UPDATE meta SET value = ? WHERE key = 'length'", (str(length),))
