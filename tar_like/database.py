"""Opening SQLite files, by any path: also one that is not UTF-8, or has ``?`` in it.

A scratch file is written at once and published by sync and rename, so it needs no journal.
A file that others made is opened read-only, and nothing in its schema is trusted.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from urllib.parse import quote

from tar_like.errors import shown

DatabaseError = sqlite3.Error
"""What any of these connections may raise."""
Damaged = (sqlite3.Error, UnicodeDecodeError, MemoryError)
"""What a file that somebody else made may have them raise: its texts need not be UTF-8, and it may
claim to need any amount of memory."""
MAX_VALUE = 1 << 24
"""Bytes of the largest value that is read from such a file."""


def uri(path: str, mode: str) -> str:
    """A path as SQLite's URI; ``mode`` is ``ro`` (and immutable), ``rw`` or ``rwc``."""
    name = quote(os.fsencode(os.path.abspath(path)))
    return f"file:{name}?mode={mode}" + ("&immutable=1" if mode == "ro" else "")


def connect(path: str, mode: str = "rwc") -> sqlite3.Connection:
    """A connection without implicit transactions. Raises sqlite3.Error, also for a FIFO, say."""
    with contextlib.suppress(OSError):
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for a writer
            raise sqlite3.OperationalError("it is no regular file")
    return sqlite3.connect(uri(path, mode), uri=True, isolation_level=None, check_same_thread=False)


def connect_readonly(path: str) -> sqlite3.Connection:
    """A connection that trusts nothing in the file's schema and cannot write."""
    db = connect(path, "ro")
    try:
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
        db.execute("PRAGMA trusted_schema=OFF")
        db.execute("PRAGMA cell_size_check=ON")
        db.execute("PRAGMA cache_size=-4096")
    except BaseException:
        db.close()
        raise
    return db


def damage(error: Exception | str) -> str:
    """What is wrong with a file, in a few printable words: its own texts may be in there."""
    if isinstance(error, UnicodeDecodeError):
        return "a text is not UTF-8"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    lines = [line for line in str(error).splitlines() if not line.startswith("***")]
    return shown(" ".join(lines).encode("utf-8", "surrogateescape"))[:100]


def temporary() -> sqlite3.Connection:
    """A database of its own, in memory as long as it is small; gone when it is closed."""
    db = sqlite3.connect("", isolation_level=None)
    db.execute("PRAGMA journal_mode=OFF")
    return db


def scratch(path: str) -> sqlite3.Connection:
    """A file that is written in one transaction, which is open, and then published."""
    db = connect(path)
    db.execute("PRAGMA journal_mode=OFF")
    db.execute("PRAGMA synchronous=OFF")
    db.execute("PRAGMA cache_size=-8192")
    db.execute("BEGIN")
    return db
