"""What a transfer would do: its plan, and what it would delete, as a file for the sender.

rehearsal.db = sent(entry_id, bytes)      files to send, and how many of their bytes
             + local(entry_id)            files to be made from content that is here
             + passed(entry_id)           what the rules leave as it is
             + extra(path)                names to delete
             + trouble(path, reason)      names that could not be deleted, looked at or put in place
             + held(reason)               why nothing would be deleted
             + folder, symlink, link(entry_id), changed(entry_id, what)      (foreseen)
"""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Iterable

from tar_like.database import attach, scratch
from tar_like.dirfd import Walker
from tar_like.index import Index
from tar_like.proxy import foreseen
from tar_like.proxy.deletion import Extras, Spare, in_the_way, reason_to_hold
from tar_like.proxy.foreseen import Foreseen
from tar_like.rules import Rules
from tar_like.wire import Failure

_TABLES = (
    "CREATE TABLE sent (entry_id INTEGER PRIMARY KEY, bytes INTEGER NOT NULL)",
    "CREATE TABLE local (entry_id INTEGER PRIMARY KEY)",
    "CREATE TABLE passed (entry_id INTEGER PRIMARY KEY)",
    "CREATE TABLE extra (path BLOB NOT NULL)",
    "CREATE TABLE trouble (path TEXT NOT NULL, reason TEXT NOT NULL)",
    "CREATE TABLE held (reason TEXT NOT NULL)",
)
_TROUBLE = "INSERT INTO trouble VALUES (?, ?)"
_FILL = (
    "INSERT INTO sent SELECT entry_id, sum(stop - start) FROM plan.extent GROUP BY entry_id",
    "INSERT INTO sent SELECT entry_id, 0 FROM plan.bare",
    "INSERT INTO local SELECT entry_id FROM kept.assembled WHERE whole",
    "INSERT INTO local SELECT entry_id FROM kept.twin",
    "INSERT INTO passed SELECT entry_id FROM kept.passed",
)


def write_rehearsal(transfer: str, root: str, snapshots: Iterable[str], path: str) -> None:
    """Write what the transfer in a folder would do to the destination ``root``.

    Changes nothing there. Raises OSError, sqlite3.Error.
    """
    db = scratch(path)
    try:
        db.execute("COMMIT")
        for name, file in (("plan", "plan"), ("kept", "kept"), ("idx", "index")):
            attach(db, os.path.join(transfer, f"{file}.db"), name)
        db.execute("BEGIN")
        for statement in (*_TABLES, *foreseen.TABLES, *_FILL):
            db.execute(statement)
        rules = Rules.read(transfer)
        with Index(os.path.join(transfer, "index.db")) as index:
            held = reason_to_hold(index, rules) if rules.delete else ""
            if held:
                db.execute("INSERT INTO held VALUES (?)", (held,))
            elif rules.delete:
                _note_deletions(db, root, index, Spare(index, rules, snapshots))
            if rules.snapshot:
                foreseen.whole_tree(db)
            else:
                _note_foreseen(db, root, index, whole=rules.delete and not held)
        db.execute("COMMIT")
    finally:
        db.close()


def _note_foreseen(db: sqlite3.Connection, root: str, index: Index, *, whole: bool) -> None:
    with Walker(root) as walker:
        for step in Foreseen(db, index, walker, whole=whole):
            db.execute(*step)


def _note_deletions(db: sqlite3.Connection, root: str, index: Index, spare: Spare) -> None:
    extras = Extras(root, index, spare, may_change=False)
    with Walker(root) as walker:
        for one in itertools.chain(in_the_way(root, index, spare, walker), extras):
            if isinstance(one, Failure):
                db.execute(_TROUBLE, (one.path, one.reason))
            else:
                db.execute("INSERT INTO extra VALUES (?)", (one.path,))
    db.executemany(_TROUBLE, ((one.path, one.reason) for one in extras.failures))
