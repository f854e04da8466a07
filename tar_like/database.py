"""Opening SQLite files, by any path: also one that is not UTF-8, or has ``?`` in it.

A scratch file is written at once and published by sync and rename, so it needs no journal.
A file that others made is opened read-only, and nothing in its schema is trusted.
"""

from __future__ import annotations

import os
import sqlite3
from urllib.parse import quote

DatabaseError = sqlite3.Error
"""What any of these connections may raise."""


def uri(path: str, mode: str) -> str:
    """A path as SQLite's URI; ``mode`` is ``ro`` (and immutable), ``rw`` or ``rwc``."""
    name = quote(os.fsencode(os.path.abspath(path)))
    return f"file:{name}?mode={mode}" + ("&immutable=1" if mode == "ro" else "")


def connect(path: str, mode: str = "rwc") -> sqlite3.Connection:
    """A connection without implicit transactions. Raises sqlite3.Error."""
    return sqlite3.connect(uri(path, mode), uri=True, isolation_level=None, check_same_thread=False)


def connect_readonly(path: str) -> sqlite3.Connection:
    """A connection that trusts nothing in the file's schema and cannot write."""
    db = connect(path, "ro")
    db.execute("PRAGMA trusted_schema=OFF")
    db.execute("PRAGMA cell_size_check=ON")
    db.execute("PRAGMA cache_size=-4096")
    return db


def scratch(path: str) -> sqlite3.Connection:
    """A file that is written in one transaction, which is open, and then published."""
    db = connect(path)
    db.execute("PRAGMA journal_mode=OFF")
    db.execute("PRAGMA synchronous=OFF")
    db.execute("PRAGMA cache_size=-8192")
    db.execute("BEGIN")
    return db
