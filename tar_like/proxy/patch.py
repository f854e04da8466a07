"""A patch: what a tree has that differs from the one that was committed last.

    patch.db = at(entry_id, ...)          where in the ledger the entries of the index belong
             + gone(base_id, path, kind)  names of the ledger that the tree has no more
             + leaf(...)                  the leaves of the tree that the ledger lacks
             + run(number, base, leaves)  the others: where they are in the tree, and in the ledger
             + meta                       version, tree, plan (of the base), entries

A transfer with a patch has an index of its own: the entries that are new or not as they were, and
the directories that lead to them. What it does not name stays as the ledger says, so it is a
transfer of the whole tree all the same: where the ledger becomes another, it is of no use.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator

from tar_like.database import attach, connect, rewriting, scratch
from tar_like.index import schema
from tar_like.layout import DIRECTORY, FILE
from tar_like.proxy.deletion import Extra
from tar_like.proxy.ledger import LANDED, LEAF, OFFSETS, plan_of
from tar_like.proxy.sights import Change, Changes, Numbers, numbers_of_folder

NAME, VERSION = "patch.db", "2"
AT = """CREATE TABLE at (
  entry_id INTEGER PRIMARY KEY,
  base_id INTEGER,
  after INTEGER,
  same INTEGER NOT NULL
)"""
"""``base_id`` is null for what is new: it comes after the entry ``after`` of the ledger. What is
``same`` only leads to others."""
GONE = "CREATE TABLE gone (base_id INTEGER PRIMARY KEY, path BLOB NOT NULL, kind TEXT NOT NULL)"
RUN = (
    "CREATE TABLE run (number INTEGER PRIMARY KEY, base INTEGER NOT NULL, leaves INTEGER NOT NULL)"
)
_META = "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
# What the ledger will have of the transfer's entries goes by its own numbers (mine).
# Where no name has come or gone: every entry has the number that it had.
_IN_PLACE = """
CREATE TABLE main.mine AS SELECT base_id AS id, entry_id FROM patch.at WHERE NOT same;
DELETE FROM main.landed WHERE entry_id IN (SELECT id FROM mine);
DELETE FROM main.segment WHERE entry_id IN (SELECT id FROM mine);
"""
# Else all are numbered anew, those that stay (old) and those that are new.
_MOVED = """
CREATE TEMP TABLE places AS
SELECT row_number() OVER (ORDER BY base, new) - 1 AS id, old, new FROM (
  SELECT id AS base, -1 AS new, id AS old FROM base.entry
  WHERE id NOT IN (SELECT base_id FROM patch.gone)
  UNION ALL SELECT after, entry_id, NULL FROM patch.at WHERE base_id IS NULL);
CREATE UNIQUE INDEX temp.place_of_old ON places (old);
INSERT INTO main.entry
SELECT p.id, path, kind, size, offset, mode, mtime, uid, gid, target, link, hash, ctime, ino, token
FROM places p CROSS JOIN base.entry b ON b.id = p.old ORDER BY p.id;
INSERT INTO main.entry
SELECT p.id, path, kind, size, offset, mode, mtime, uid, gid, target, link, hash, ctime, ino, token
FROM places p CROSS JOIN idx.entry e ON e.id = p.new WHERE p.old IS NULL;
CREATE TABLE main.mine AS
SELECT p.id, a.entry_id FROM patch.at a JOIN places p ON p.old = a.base_id WHERE NOT a.same
UNION ALL SELECT id, new FROM places WHERE old IS NULL;
INSERT INTO main.landed SELECT p.id, digest, ino, ctime
FROM base.landed t CROSS JOIN places p ON p.old = t.entry_id
WHERE p.id NOT IN (SELECT id FROM mine);
INSERT INTO main.segment SELECT p.id, start, stop
FROM base.segment t CROSS JOIN places p ON p.old = t.entry_id
WHERE p.id NOT IN (SELECT id FROM mine);
INSERT INTO main.leaf SELECT * FROM base.leaf;
INSERT INTO main.meta SELECT key, value FROM base.meta;
"""
_ENTRIES = """
CREATE UNIQUE INDEX main.mine_by_id ON mine (id);
UPDATE main.entry SET (kind, size, mode, mtime, uid, gid, target, ctime, ino, token) =
  (SELECT e.kind, e.size, e.mode, e.mtime, e.uid, e.gid, e.target, e.ctime, e.ino, e.token
   FROM mine m JOIN idx.entry e ON e.id = m.entry_id WHERE m.id = entry.id)
WHERE id IN (SELECT id FROM mine);
INSERT INTO main.segment SELECT m.id, s.start, s.stop
FROM idx.segment s JOIN mine m USING (entry_id)
"""
_HAS_LANDED = """
INSERT INTO main.landed SELECT m.id, l.digest, l.ino, l.ctime
FROM source.landed l JOIN main.mine m USING (entry_id) WHERE l.digest != x'';
DROP TABLE main.mine
"""

# The leaves are those of the base until now.
_LEAVES_STAY = """
SELECT NOT EXISTS (SELECT 1 FROM patch.run WHERE number != base)
AND (SELECT count(*) FROM main.leaf)
  = (SELECT count(*) FROM patch.leaf) + (SELECT coalesce(sum(leaves), 0) FROM patch.run)
"""
_LEAVES_IN_PLACE = "INSERT OR REPLACE INTO main.leaf SELECT * FROM patch.leaf"
_LEAVES_MOVED = """
CREATE TEMP TABLE former AS SELECT * FROM main.leaf;
CREATE UNIQUE INDEX temp.former_by_number ON former (number);
DELETE FROM main.leaf;
INSERT INTO main.leaf SELECT * FROM patch.leaf
UNION ALL SELECT r.number + l.number - r.base, l.directory, l.first, l.names, l.digest
FROM patch.run r CROSS JOIN temp.former l ON l.number >= r.base AND l.number < r.base + r.leaves
"""
_PLACED = """
SELECT e.path, e.kind, e.mode, e.mtime, e.size, e.uid, e.gid, l.ino, l.ctime
FROM main.at a JOIN idx.entry e ON e.id = a.entry_id
LEFT JOIN source.landed l ON l.entry_id = e.id WHERE NOT a.same
"""

_CHANGED = """
INSERT INTO main.meta
SELECT 'changed', last FROM (SELECT max(ctime) AS last FROM main.entry) WHERE last IS NOT NULL
"""
_NEWEST = """
UPDATE main.meta SET value = max(CAST(value AS INTEGER),
  (SELECT CASE key WHEN 'newest' THEN max(mtime) ELSE max(ctime) END FROM idx.entry))
WHERE key IN ('newest', 'changed')
"""
"""Not less than it was: nobody knows whether what was the newest is there still."""


def create(path: str) -> sqlite3.Connection:
    """A new file to be filled, in a transaction that is open."""
    db = scratch(path)
    for table in (_META, AT, GONE, LEAF, RUN):
        db.execute(table)
    return db


class Patch:
    """The patch of a transfer, read-only."""

    def __init__(self, path: str) -> None:
        """``path`` is the transfer's folder. Raises sqlite3.Error."""
        self.path = os.path.join(path, NAME)
        self.index = os.path.join(path, "index.db")
        """Of what is new or not as it was."""
        db = connect(self.path, "ro")
        try:
            meta = dict(db.execute("SELECT key, value FROM meta"))
            structural = bool(
                db.execute("SELECT EXISTS (SELECT 1 FROM at WHERE base_id IS NULL)").fetchone()[0]
                or db.execute("SELECT EXISTS (SELECT 1 FROM gone)").fetchone()[0]
            )
        finally:
            db.close()
        self.structural = structural
        """Whether a name has come or gone."""
        self.tree = meta["tree"]
        """The id of the index of the whole tree."""
        self.base = meta["plan"]
        """The plan that the ledger is of which this is a difference to."""
        self.entries = int(meta["entries"])
        """Of the whole tree."""
        self.usable = meta.get("version") == VERSION
        """Not left by another version of this program."""

    def fits(self, ledger: str) -> bool:
        """Whether this is a difference to a ledger."""
        return bool(plan_of(ledger) == self.base)

    def changes(self, landed: str) -> Callable[[], Changes]:
        """What its commit has changed in the directories of the tree, to be asked for once.

        The transfer may be gone by then. ``landed`` is a file with that table. Either raises
        sqlite3.Error.
        """
        db = connect(self.path, "ro")
        try:
            attach(db, self.index, "idx")
            attach(db, landed, "source")
        except BaseException:
            db.close()
            raise

        def read() -> Changes:
            with contextlib.closing(db):
                return _changes(db)

        return read

    def folders_there(self) -> set[int]:
        """Entries that only lead to others: directories as the ledger has them."""
        db = connect(self.path, "ro")
        try:
            return {row[0] for row in db.execute("SELECT entry_id FROM at WHERE same")}
        finally:
            db.close()

    def gone(self) -> Iterator[Extra]:
        """What is to be deleted, in canonical order."""
        db = connect(self.path, "ro")
        try:
            rows = db.execute("SELECT path, kind FROM gone ORDER BY base_id")
            yield from (Extra(path, kind == DIRECTORY) for path, kind in rows)
        finally:
            db.close()

    def draft(self, ledger: str, path: str) -> None:
        """Write the ledger of the whole tree, but for what has landed, to a new file.

        It is the same whatever becomes of the files. ``ledger`` is the one that this is a
        difference to; the offsets are those of it: they count for nothing.
        Raises OSError, sqlite3.Error.
        """
        if self.structural:
            db = schema.create(path)
        else:
            shutil.copyfile(ledger, path)
            db = rewriting(path)
        try:
            attach(db, self.path, "patch")
            attach(db, self.index, "idx")
            if self.structural:
                attach(db, ledger, "base")
                db.execute(LANDED)
                db.execute(LEAF)
            for statement in ((_MOVED if self.structural else _IN_PLACE) + _ENTRIES).split(";"):
                db.execute(statement)
            (stay,) = db.execute(_LEAVES_STAY).fetchone()
            for statement in (_LEAVES_IN_PLACE if stay else _LEAVES_MOVED).split(";"):
                db.execute(statement)
            self._describe(db)
            db.execute("COMMIT")
        finally:
            db.close()

    def _describe(self, db: sqlite3.Connection) -> None:
        """What the file says of itself, but for what a ledger says besides."""
        files, size = db.execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM main.entry WHERE kind = 'f'"
        ).fetchone()
        meta = {
            "id": self.tree,
            "entries": str(self.entries),
            "files": str(files),
            "bytes": str(size),
            OFFSETS: "stale",
        }
        db.executemany("INSERT OR REPLACE INTO main.meta VALUES (?, ?)", meta.items())
        if db.execute("SELECT 1 FROM main.meta WHERE key = 'changed'").fetchone() is None:
            db.execute(_CHANGED)  # an earlier version has not written it
        db.execute(_NEWEST)


def _changes(db: sqlite3.Connection) -> Changes:
    """See Patch.changes; ``db`` is the patch, with its index and what has landed."""
    gone: dict[bytes, list[bytes]] = {}
    placed: dict[bytes, dict[bytes, Numbers]] = {}
    untold, lost, folders = set[bytes](), set[bytes](), set[bytes]()
    for path, kind in db.execute("SELECT path, kind FROM main.gone"):
        folder, _, name = path.rpartition(b"/")
        gone.setdefault(folder, []).append(name)
        if kind == DIRECTORY:
            lost.add(path)
    for path, kind, mode, mtime, size, uid, gid, ino, ctime in db.execute(_PLACED):
        folder, _, name = path.rpartition(b"/")
        if kind == DIRECTORY:
            folders.add(path)
        else:
            lost.add(path)  # it may have been a directory
        if kind == DIRECTORY:
            numbers = numbers_of_folder(mtime, stat.S_IFDIR | mode, uid, gid)
        elif kind == FILE and ino is not None:
            numbers = ino, ctime, mtime, size, stat.S_IFREG | mode, uid, gid
        else:
            untold.add(folder)
            continue
        placed.setdefault(folder, {})[name or b"."] = numbers
    told = (gone.keys() | placed.keys()) - lost - untold
    of: dict[bytes, Change | None] = dict.fromkeys(untold | lost)
    of.update((one, (gone.get(one, ()), placed.get(one, {}))) for one in told)
    return Changes(of=of, gone=lost, folders=folders)


def land(ledger: sqlite3.Connection, landed: str) -> None:
    """Write what has landed into the draft of a ledger, in a transaction that is open.

    ``landed`` is a file with that table, for the entries of the transfer. Raises sqlite3.Error.
    """
    attach(ledger, landed, "source")
    for statement in _HAS_LANDED.split(";"):
        ledger.execute(statement)


def is_outdated(path: str) -> bool:
    """Whether a transfer has a patch that another version of this program has left.

    Raises sqlite3.Error.
    """
    found = patch_of(path)
    return found is not None and not found.usable


def is_patch(path: str) -> bool:
    """Whether a transfer, by its folder, has a patch."""
    return os.path.exists(os.path.join(path, NAME))


def patch_of(path: str) -> Patch | None:
    """The patch of a transfer, by its folder; None for a transfer that has all of its tree.

    Raises sqlite3.Error.
    """
    return Patch(path) if is_patch(path) else None
