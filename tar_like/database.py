"""Opening SQLite files, by any path: also one that is not UTF-8, or has ``?`` in it.

A scratch file is written at once and published by sync and rename, so it needs no journal.
A file that others made is opened read-only, and nothing in its schema is trusted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from urllib.parse import quote

from tar_like.errors import cause, shown

_FDS = "/proc/self/fd"

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
    """A connection without implicit transactions. Raises sqlite3.Error."""
    with _guarded(path, mode):
        return sqlite3.connect(
            uri(path, "rw" if mode == "rwc" else mode),
            uri=True, isolation_level=None, check_same_thread=False,
        )  # fmt: skip


def attach(db: sqlite3.Connection, path: str, name: str) -> None:
    """Have a connection read a second file, as the schema ``name``. Raises sqlite3.Error."""
    with _guarded(path, "ro"):
        db.execute(f"ATTACH ? AS {name}", (uri(path, "ro"),))


@contextlib.contextmanager
def _guarded(path: str, mode: str) -> Iterator[None]:
    """See that SQLite opens the file that ``path`` names now, and no FIFO, which it would wait for.

    SQLite puts the names that symlinks stand for in their place before it opens a file, those in
    /proc/self/fd as well. Somebody may rename a folder on the way meanwhile.
    """
    flags = os.O_RDONLY if mode == "ro" else os.O_RDWR
    flags |= os.O_CREAT if mode == "rwc" else 0
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _as_sqlite(error) from None
    try:
        wanted = os.fstat(fd)
        if not stat.S_ISREG(wanted.st_mode):
            raise sqlite3.OperationalError("it is no regular file")
        yield
        newest = sorted(map(int, os.listdir(_FDS)), reverse=True)
        if not any(_is(number, wanted) for number in newest if number != fd):
            raise sqlite3.OperationalError("another file has taken its place")
    finally:
        os.close(fd)


def _as_sqlite(error: OSError) -> sqlite3.Error:
    """As SQLite says it; a full disk keeps its name."""
    found = sqlite3.OperationalError(cause(error))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        found.sqlite_errorcode = sqlite3.SQLITE_FULL
    return found


def _is(number: int, wanted: os.stat_result) -> bool:
    try:
        st = os.fstat(number)
    except OSError:
        return False
    return (st.st_dev, st.st_ino) == (wanted.st_dev, wanted.st_ino)


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


def trouble(error: sqlite3.Error) -> str:
    """What kind of error it is, without the paths that SQLite may name."""
    return getattr(error, "sqlite_errorname", None) or damage(error)


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
    # SQLite says of a full disk that it cannot open the file; the system says why.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
    return rewriting(path)


def rewriting(path: str) -> sqlite3.Connection:
    """The same of a file that is there, a copy of another: of no use any more where that fails."""
    db = connect(path)
    db.execute("PRAGMA journal_mode=OFF")
    db.execute("PRAGMA synchronous=OFF")
    db.execute("PRAGMA cache_size=-8192")
    db.execute("BEGIN")
    return db
