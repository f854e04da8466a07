"""A look at the destination: is everything as the last commit left it?

    ledger, entry by entry > stat of its name > the same fingerprint, or metadata > looks/TOKEN.json
                                              > files that have another           > looks/TOKEN.db

A sender has it begun before it scans its tree, so both go on side by side. When the tree turns out
to be the one of the last commit, and this found nothing changed since, there is nothing to do: no
index is sent, no plan made. When it is another, its survey need not look at every file again. It
says nothing about changes made after it began: no more than a sync that compares names one after
the other can. What a commit keeps, it looks at once more.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from tar_like.database import connect, connect_readonly, scratch
from tar_like.dirfd import Walker, open_file
from tar_like.index import Index
from tar_like.index.schema import SELECT_ENTRY
from tar_like.layout import DIRECTORY, FILE, HARDLINK, SYMLINK, Entry
from tar_like.proxy.ledger import Ledger
from tar_like.proxy.metadata import Metadata
from tar_like.proxy.place import HOME, Destination, held
from tar_like.rules import Rules
from tar_like.wire import COMPLETE, Look, Status

_TOKEN = re.compile(r"[0-9a-f]{16}")
_OLD = 86400.0
"""Seconds after which a look is nobody's any more."""
_QUERY = """
SELECT e.id, CAST(e.path AS BLOB), e.kind, e.size, e.mtime, l.ino, l.ctime
FROM entry e LEFT JOIN landed l ON l.entry_id = e.id ORDER BY e.id
"""
TOUCHED = "CREATE {}TABLE touched (entry_id INTEGER PRIMARY KEY)"
_INSERT = "INSERT INTO touched VALUES (?)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a look found."""

    index: str
    """The id of the last commit's index; empty when there is none that can be believed."""
    ledger: str
    """Which file of the ledger was looked at."""
    same: bool = False
    """Every entry is as that commit left it."""
    extra: bool = False
    """There are names besides."""
    files: bool = False
    """All files were seen; those that are not as that commit left them are listed beside."""


def run_look(destination: Destination, token: str) -> None:
    """Look, and leave in files what was seen."""
    final = _path(destination, token)
    _forget_old(destination)
    with held(_lock(destination, token)):
        seen = _look(destination, _path(destination, token, "db"))
        with open(f"{final}.tmp", "w", encoding="ascii") as file:
            json.dump(asdict(seen), file)
        os.replace(f"{final}.tmp", final)


def find_touched(destination: Destination, token: str) -> str:
    """The file with the table ``touched``: the ledger's files that a look saw changed.

    Waits for a look that has begun. Empty when there is none, or the ledger is another by now.
    """
    if not _TOKEN.fullmatch(token) or not os.path.exists(_lock(destination, token)):
        return ""
    with held(_lock(destination, token), shared=True):
        seen = read_look(destination, token)
    if seen is None or not seen.files or seen.ledger != _version(destination):
        return ""
    return _path(destination, token, "db")


def read_look(destination: Destination, token: str) -> Seen | None:
    """What was seen; None when that is not known yet, or nobody looks with this token."""
    if not _TOKEN.fullmatch(token):
        return None
    try:
        with open(open_file(_path(destination, token), os.O_RDONLY), "rb") as file:
            return Seen(**json.loads(file.read()))
    except (OSError, ValueError, TypeError):
        return None


def last_index(destination: Destination) -> str:
    """The id of the tree that was committed last, if that can be looked at; else empty."""
    return begin(destination).index


def begin(destination: Destination) -> Look:
    """A look that is to be taken (run_look); its ``index`` is empty where it would be of no use."""
    token = secrets.token_hex(8)
    if destination.unfinished():
        return Look(token=token, index="")
    ledger = Ledger(destination.ledger)
    ledger.close()
    if ledger.snapshot:
        return Look(token=token, index="")
    return Look(token=token, index=ledger.index_id, newest=ledger.newest)


def is_current(destination: Destination, seen: Seen) -> bool:
    """Whether there was no commit since, and none is on its way."""
    return seen.ledger == _version(destination) and not destination.unfinished()


def touched_now(ledger_path: str, root: str, into: sqlite3.Connection) -> bool:
    """Fill a temporary table ``touched`` with a ledger's files that are not as it says.

    Returns whether everything is as it says, and there is nothing besides.
    Raises OSError, sqlite3.Error.
    """
    into.execute(TOUCHED.format("TEMP "))
    db = connect_readonly(ledger_path)
    with contextlib.closing(db), Walker(root) as walker:
        look = _Look(db, walker, same=True)
        into.executemany(_INSERT, ((number,) for number in look.touched(_QUERY)))
        return look.same and not look.extra()


def _path(destination: Destination, token: str, kind: str = "json") -> str:
    return os.path.join(destination.looks, f"{token}.{kind}")


def _lock(destination: Destination, token: str) -> str:
    return _path(destination, token, "lock")


def _version(destination: Destination) -> str:
    try:
        st = os.stat(destination.ledger)
    except OSError:
        return ""
    return f"{st.st_ino}-{st.st_mtime_ns}-{st.st_size}"


def _forget_old(destination: Destination) -> None:
    now = destination.now()
    with os.scandir(destination.looks) as files:
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                if now - file.stat().st_mtime > _OLD:
                    os.unlink(file.path)


def _look(destination: Destination, touched: str) -> Seen:
    version, index_id = _version(destination), last_index(destination)
    if not index_id:
        return Seen(index="", ledger=version)
    try:
        db = connect(destination.ledger, "ro")
        with contextlib.closing(db), Walker(destination.root) as walker:
            kinds = db.execute("SELECT value FROM meta WHERE key = 'xattrs'").fetchone()
            # Attributes are not looked at here.
            look = _Look(db, walker, same=kinds is None or not kinds[0])
            with contextlib.suppress(FileNotFoundError):
                os.unlink(touched)
            found = scratch(touched)
            with contextlib.closing(found):
                found.execute(TOUCHED.format(""))
                found.executemany(_INSERT, ((number,) for number in look.touched(_QUERY)))
                found.execute("COMMIT")
            extra = look.same and look.extra()
            same = look.same
            return Seen(index=index_id, ledger=version, same=same, extra=extra, files=True)
    except (OSError, sqlite3.Error):
        return Seen(index=index_id, ledger=version)


def report(destination: Destination, transfer_id: str, rules: Rules) -> Status:
    """Say that a tree is complete, since it was seen in its place. Raises OSError."""
    db = connect(destination.ledger, "ro")
    try:
        query = "SELECT value FROM meta WHERE key = 'entries'"
        entries = int(db.execute(query).fetchone()[0])
    finally:
        db.close()
    status = Status(
        id=transfer_id,
        state=COMPLETE,
        entries=entries,
        committed=entries,
        rules=rules.to_json(),
    )
    folder = destination.temporary()
    path = os.path.join(folder, "report.json")
    with open(path, "wb") as file:
        file.write(status.to_json())
    destination.durability.publish(path, destination.report(transfer_id))
    destination.discard(folder)
    return status


class _Look:
    def __init__(self, db: sqlite3.Connection, walker: Walker, *, same: bool) -> None:
        self._db = db
        self._walker = walker
        self._metadata = Metadata(frozenset())
        self._extra: dict[bytes, int] = {}
        """How many names each directory has besides those of the index that came by."""
        self._unlisted: set[bytes] = set()
        """Directories that none of the index's names has led into."""
        self.same = same
        """Whether every entry was found in its place, as far as anybody wants to know."""

    def touched(self, query: str) -> Iterator[int]:
        """Files that are not as they were left, or not to be found. Raises sqlite3.Error."""
        lstat = os.lstat
        parent, fd, count = b"/", -1, 0  # in no directory yet
        for number, path, kind, size, mtime, ino, ctime in self._db.execute(query):
            folder, _, name = path.rpartition(b"/")
            if folder != parent:
                self._leave(parent, count)
                parent, fd, count = folder, self._enter(folder), 0
            count += 1
            try:
                st = lstat(name or b".", dir_fd=fd)
            except OSError:
                st = None
            if kind == FILE:
                if (
                    st is None
                    or st.st_ino != ino
                    or st.st_ctime_ns != ctime
                    or st.st_mtime_ns != mtime
                    or st.st_size != size
                ):
                    self.same = False
                    yield number
            elif self.same:
                self.same = st is not None and self._holds(self._entry(number), st, fd, name)
                if kind == DIRECTORY and path:
                    self._unlisted.add(path)
        self._leave(parent, count)

    def _enter(self, folder: bytes) -> int:
        """A folder's fd; one that no name is found by, when there is none."""
        try:
            fd = self._walker.dirfd(folder)
        except OSError:
            self.same = False
            return -1
        if self.same and folder not in self._extra:
            self._list(folder, fd)
        return fd

    def _leave(self, folder: bytes, count: int) -> None:
        """So many of a folder's names came by."""
        if folder in self._extra:
            self._extra[folder] -= count

    def _list(self, folder: bytes, fd: int) -> None:
        """Count a directory's names, while its fd is at hand."""
        try:
            names = len(os.listdir(b"/proc/self/fd/%d/" % fd))
        except OSError:
            self.same = False
            return
        if not folder:
            names += 1 - _has_home(self._walker)  # the root comes by as a name of its own
        self._extra[folder] = names
        self._unlisted.discard(folder)

    def _entry(self, number: int) -> Entry:
        row = self._db.execute(f"{SELECT_ENTRY} WHERE id = ?", (number,)).fetchone()
        return Entry._make(row)

    def _holds(self, entry: Entry, st: os.stat_result, parent: int, name: bytes) -> bool:
        """Whether a directory, a symlink or a further name is as its entry says."""
        if entry.kind == HARDLINK:
            query = "SELECT ino FROM landed WHERE entry_id = ?"
            row = self._db.execute(query, (entry.link,)).fetchone()
            return row is not None and bool(row[0] == st.st_ino)
        if entry.kind == SYMLINK:
            try:
                if os.readlink(name, dir_fd=parent) != entry.target:
                    return False
            except OSError:
                return False
        elif not stat.S_ISDIR(st.st_mode):
            return False
        return self._metadata.matches(entry, st)

    def extra(self) -> bool:
        """Whether a directory has names that the index lacks, where all that it has are there."""
        for folder in list(self._unlisted):
            self._enter(folder)
        return any(self._extra.values())


def _has_home(walker: Walker) -> bool:
    try:
        os.stat(HOME, dir_fd=walker.root, follow_symlinks=False)
    except OSError:
        return False
    return True


def reopened(destination: Destination, folder: str) -> str:
    """Write the last commit's index to ``folder/index.db``, as it was offered; returns its path.

    Raises OSError, sqlite3.Error, IndexInvalid.
    """
    import shutil

    path = os.path.join(folder, "index.db")
    shutil.copyfile(destination.ledger, path)
    db = connect(path, "rw")
    try:
        db.execute("PRAGMA journal_mode=OFF")
        db.execute("PRAGMA synchronous=OFF")
        db.execute("BEGIN")
        db.execute("DROP TABLE landed")
        db.execute(
            "DELETE FROM meta WHERE key IN ('landed', 'newest', 'plan', 'snapshot', 'unsynced')"
        )
        db.execute("COMMIT")
    finally:
        db.close()
    Index(path).close()
    return path
