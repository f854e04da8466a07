"""The index's tables, and how its file is opened."""

from __future__ import annotations

import os
import sqlite3

from tar_like.database import Damaged, connect_readonly, damage, scratch
from tar_like.errors import IndexInvalid

APPLICATION_ID = 0x544C494B  # "TLIK"
VERSION = 3

TABLES = (
    """CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID""",
    """CREATE TABLE entry (
  id INTEGER PRIMARY KEY,
  path BLOB NOT NULL,
  kind TEXT NOT NULL,
  size INTEGER NOT NULL,
  offset INTEGER NOT NULL,
  mode INTEGER NOT NULL,
  mtime INTEGER NOT NULL,
  uid INTEGER NOT NULL,
  gid INTEGER NOT NULL,
  target BLOB NOT NULL,
  link INTEGER NOT NULL,
  hash BLOB NOT NULL,
  ctime INTEGER NOT NULL,
  ino INTEGER NOT NULL,
  token BLOB NOT NULL
)""",
    """CREATE TABLE segment (
  entry_id INTEGER NOT NULL,
  start INTEGER NOT NULL,
  stop INTEGER NOT NULL,
  PRIMARY KEY (entry_id, start)
) WITHOUT ROWID""",
    """CREATE TABLE xattr (
  entry_id INTEGER NOT NULL,
  name BLOB NOT NULL,
  value BLOB NOT NULL,
  PRIMARY KEY (entry_id, name)
) WITHOUT ROWID""",
    """CREATE TABLE skipped (
  id INTEGER PRIMARY KEY,
  path BLOB NOT NULL,
  kind TEXT NOT NULL,
  detail TEXT NOT NULL
)""",
    """CREATE VIEW tar AS
  SELECT id, CAST(path AS TEXT) AS path, size, offset, offset + size - 1 AS offset_end,
    lower(hex(hash)) AS hash
  FROM entry WHERE kind = 'f'""",
)
INSERT_ENTRY = "INSERT INTO entry VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
INSERT_SKIPPED = "INSERT INTO skipped (path, kind, detail) VALUES (?, ?, ?)"
SELECT_ENTRY = (
    "SELECT id,path,kind,size,offset,mode,mtime,uid,gid,target,link,hash,ctime,ino,token FROM entry"
)
SELECT_XATTR = (
    "SELECT x.entry_id, e.path, x.name, x.value FROM xattr x LEFT JOIN entry e "
    "ON e.id = x.entry_id ORDER BY x.entry_id, x.name"
)


def create(path: str) -> sqlite3.Connection:
    """A new, empty index for writing; not durable until it is synced and published."""
    db = scratch(path)
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={VERSION}")
    for table in TABLES:
        db.execute(table)
    return db


def open_readonly(path: str, name: str) -> sqlite3.Connection:
    """An index for reading, its schema compared to the letter. Raises IndexInvalid.

    ``name`` is what the error calls the file.
    """
    if not os.path.exists(path):
        raise IndexInvalid(f"The index {path} does not exist: make it with 'tar-like index'.")
    try:
        db = connect_readonly(path)
        try:
            _compare_schema(db, name)
        except BaseException:
            db.close()
            raise
    except Damaged as error:
        raise IndexInvalid(f"{name} is not an index of tar-like ({damage(error)}).") from None
    return db


def is_index(path: str) -> bool:
    """Whether a file is an index of tar-like, of whatever version."""
    try:
        db = connect_readonly(path)
        try:
            return bool(db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID)
        finally:
            db.close()
    except Damaged:
        return False


def _compare_schema(db: sqlite3.Connection, name: str) -> None:
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise IndexInvalid(f"{name} is not an index of tar-like.")
    if version != VERSION:
        raise IndexInvalid(
            f"{name} is an index of version {version}, this is version {VERSION}: "
            "make it again with 'tar-like index -c'."
        )
    found = [row[0] for row in db.execute("SELECT sql FROM sqlite_schema LIMIT 100")]
    if len(found) != len(TABLES) or set(found) != set(TABLES):
        raise IndexInvalid(f"{name} has other tables than an index of tar-like has.")
