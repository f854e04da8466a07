"""A look at the destination: is everything as the last commit left it?

    ledger, entry by entry > stat of its name > the same fingerprint, or metadata > looks/TOKEN.json
                                              > files that have another           > looks/TOKEN.db

Of a directory that a look before has found as the ledger says it only sees that it is still so
(sights); the ledger's entries are gone through where it is not.

A sender has it begun before it scans its tree, so both go on side by side. When the tree turns out
to be the one of the last commit, and this found nothing changed since, there is nothing to do: no
index is sent, no plan made. When it is another, its survey need not look at every file again. It
says nothing about changes made after it began: no more than a sync that compares names one after
the other can. What a commit keeps, it looks at once more, but for what a patch does not name.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import sqlite3
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass

from tar_like.database import connect, connect_readonly, scratch
from tar_like.dirfd import Walker, open_file
from tar_like.index import Index
from tar_like.index.schema import SELECT_ENTRY
from tar_like.layout import DIRECTORY, FILE, HARDLINK, SYMLINK, Entry, place
from tar_like.proxy.ledger import LEAF, LEAVES, OF_LEDGER, OFFSETS, Ledger
from tar_like.proxy.metadata import Metadata
from tar_like.proxy.patch import is_patch
from tar_like.proxy.place import HOME, Destination, held
from tar_like.proxy.rows import Rows
from tar_like.proxy.sights import (
    STRETCH,
    Remembered,
    Sight,
    Taking,
    Writing,
    is_same,
    state,
)
from tar_like.rules import Rules
from tar_like.wire import COMPLETE, Look, Status

_TOKEN = re.compile(r"[0-9a-f]{16}")
_OLD = 86400.0
"""Seconds after which a look is nobody's any more."""
_SETTLING = 2.0
"""Seconds in which times may be too coarse to tell two symlinks apart."""
_SIGHTS = "sights"
_SELECT = """
SELECT e.id, CAST(e.path AS BLOB), e.kind, l.ino, l.ctime, e.mtime, e.size
FROM entry e LEFT JOIN landed l ON l.entry_id = e.id
"""
_QUERY = f"{_SELECT} ORDER BY e.id"
FEW = 8
"""Of so many directories that are known one may be looked at by its own rows; else all are read."""
_Row = tuple[int, bytes, str, int | None, int | None, int, int]
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
    now = destination.now()
    _forget_old(destination, now)
    with held(_lock(destination, token)):
        seen = _look(destination, token, now)
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
    if seen is None or not seen.files or seen.ledger != version_of_ledger(destination):
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


def is_taken(destination: Destination, token: str) -> bool:
    """Whether a look is being taken just now: it may have been killed, or not have begun."""
    if not _TOKEN.fullmatch(token) or not os.path.exists(_lock(destination, token)):
        return False
    try:
        with held(_lock(destination, token), shared=True, wait=0.0):
            return False
    except BlockingIOError:
        return True


def last_index(destination: Destination) -> str:
    """The id of the tree that was committed last, if that can be looked at; else empty."""
    return begin(destination).index


def begin(destination: Destination) -> Look:
    """A look that is to be taken (run_look); its ``index`` is empty where it would be of no use."""
    token = secrets.token_hex(8)
    if not all(map(is_patch, destination.unfinished())):
        return Look(token=token, index="")  # a patch may be the one that a sender goes on with
    ledger = Ledger(destination.ledger)
    ledger.close()
    if ledger.snapshot:
        return Look(token=token, index="")
    return Look(token=token, index=ledger.index_id, newest=ledger.newest)


def is_current(destination: Destination, seen: Seen, but: str = "") -> bool:
    """Whether there was no commit since, and none is on its way but of this transfer (folder)."""
    others = any(path != but for path in destination.unfinished())
    return seen.ledger == version_of_ledger(destination) and not others


def touched_now(ledger_path: str, root: str, into: sqlite3.Connection) -> bool:
    """Fill a temporary table ``touched`` with a ledger's files that are not as it says.

    Returns whether everything is as it says, and there is nothing besides.
    Raises OSError, sqlite3.Error.
    """
    into.execute(TOUCHED.format("TEMP "))
    db = connect_readonly(ledger_path)
    with contextlib.closing(db), Walker(root) as walker:
        look = _Look(db, walker, same=True)
        into.executemany(_INSERT, ((number,) for number in look.touched()))
        return look.same and not look.extra


def _path(destination: Destination, token: str, kind: str = "json") -> str:
    return os.path.join(destination.looks, f"{token}.{kind}")


def _lock(destination: Destination, token: str) -> str:
    return _path(destination, token, "lock")


def version_of_ledger(destination: Destination) -> str:
    """Which file of the ledger there is; empty for none."""
    try:
        st = os.stat(destination.ledger)
    except OSError:
        return ""
    return f"{st.st_ino}-{st.st_mtime_ns}-{st.st_size}"


def _forget_old(destination: Destination, now: float) -> None:
    with os.scandir(destination.looks) as files:
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                if now - file.stat().st_mtime > _OLD and file.name != _SIGHTS:
                    os.unlink(file.path)


def _look(destination: Destination, token: str, now: float) -> Seen:
    version, index_id = version_of_ledger(destination), last_index(destination)
    if not index_id:
        return Seen(index="", ledger=version)
    sights, new = os.path.join(destination.looks, _SIGHTS), _path(destination, token, _SIGHTS)
    try:
        with (
            contextlib.closing(connect(destination.ledger, "ro")) as db,
            contextlib.closing(Remembered(sights, version)) as remembered,
            contextlib.closing(Writing(new, version)) as writing,
            contextlib.closing(_new_list(_path(destination, token, "db"))) as touched,
            Walker(destination.root) as walker,
        ):
            look = _Look(db, walker, same=not _has_attributes(db))
            changed = _changed(remembered, walker) if look.same else set[bytes]()
            if changed or not remembered.whole:
                known = {one.path for one in remembered if one.path not in changed}
                look.learn(writing, known if look.same else (), round((now - _SETTLING) * 1e9))
                found = look.touched_but(known) if look.same else look.touched()
                touched.executemany(_INSERT, ((number,) for number in found))
                if look.same and not writing.empty:
                    for one in remembered:
                        if one.path in known:
                            writing.add(one)
                    writing.publish(sights, whole=look.whole)
            touched.execute("COMMIT")
            same, extra = look.same, look.same and look.extra
            return Seen(index=index_id, ledger=version, same=same, extra=extra, files=True)
    except (OSError, sqlite3.Error):
        return Seen(index=index_id, ledger=version)


def carry_over(destination: Destination, before: str, folders: set[bytes]) -> None:
    """What was seen holds with a new ledger, too, but of these directories.

    ``before`` is the version of the ledger that it was seen with. Raises OSError.
    """
    sights, new = (os.path.join(destination.looks, name) for name in (_SIGHTS, f"{_SIGHTS}.new"))
    with (
        contextlib.closing(Remembered(sights, before)) as remembered,
        contextlib.closing(Writing(new, version_of_ledger(destination))) as writing,
    ):
        for sight in remembered:
            if sight.path not in folders:
                writing.add(sight)
        if not writing.empty:
            writing.publish(sights, whole=False)


def _has_attributes(ledger: sqlite3.Connection) -> bool:
    """Whether its entries have some: they are not looked at here."""
    kinds = ledger.execute("SELECT value FROM meta WHERE key = 'xattrs'").fetchone()
    return kinds is not None and bool(kinds[0])


def _new_list(path: str) -> sqlite3.Connection:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    db = scratch(path)
    db.execute(TOUCHED.format(""))
    return db


def _changed(sights: Iterable[Sight], walker: Walker) -> set[bytes]:
    """The directories that are not as they were."""
    changed = set()
    for sight in sights:
        try:
            same = is_same(sight, walker.dirfd(sight.path))
        except OSError:
            same = False
        if not same:
            changed.add(sight.path)
    return changed


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
        self._known: Collection[bytes] = ()
        self._writing: Writing | None = None
        self._settled = 0
        self._path: list[_Folder] = []
        """The directories on the way to the names that come by."""
        self.same = same
        """Whether every entry was found in its place, as far as anybody wants to know."""
        self.extra = False
        """Whether a directory has names that the index lacks, where all that it has are there."""
        self.whole = True
        """Whether there are sights of all directories now."""

    def learn(self, writing: Writing, known: Collection[bytes], settled: int) -> None:
        """Write the sights of directories, and leave out those that are ``known``.

        A symlink that is younger than ``settled`` (ns) may be another one by now, and look the
        same: its directory gets no sight.
        """
        self._writing, self._known, self._settled = writing, known, settled

    def touched(self) -> Iterator[int]:
        """Files that are not as they were left, or are gone. Raises sqlite3.Error, OSError."""
        others = self._db.execute(f"{SELECT_ENTRY} WHERE kind IS NOT ? ORDER BY id", (FILE,))
        at = self._enter(b"")
        names, rows = list[bytes](), list[_Row]()  # files that come one after the other
        for row in self._db.execute(_QUERY):
            folder, _, name = row[1].rpartition(b"/")
            if names and (folder != at.path or row[2] != FILE or len(names) == STRETCH):
                yield from self._see(at, names, rows)
                names, rows = [], []
            if folder != at.path:
                at = self._back_to(folder)
            if row[2] == FILE:
                names.append(name)
                rows.append(row)
            else:
                self._judge(Entry._make(next(others)), name or b".", at)
                if row[2] == DIRECTORY and folder != row[1]:
                    at = self._enter(row[1])
        yield from self._see(at, names, rows)
        while self._path:
            self._leave()

    def touched_but(self, known: Collection[bytes]) -> Iterator[int]:
        """The same, where so many directories are known that only the others' rows are read."""
        query = "SELECT path FROM entry WHERE kind = ? ORDER BY id"
        others = [one for (one,) in self._db.execute(query, (DIRECTORY,)) if one not in known]
        if len(others) * FEW > len(known):
            yield from self.touched()
            return
        rows = Rows(self._db, _SELECT)
        for folder in others:
            at = self._enter(folder)
            names, files = list[bytes](), list[_Row]()
            for row in rows.names(folder, b"", rows.count):
                name = row[1].rpartition(b"/")[2]
                if row[2] == FILE:
                    names.append(name)
                    files.append(row)
                if names and (row[2] != FILE or len(names) == STRETCH):
                    yield from self._see(at, names, files)
                    names, files = [], []
                if row[2] != FILE:
                    entry = self._db.execute(f"{SELECT_ENTRY} WHERE id = ?", (row[0],)).fetchone()
                    self._judge(Entry._make(entry), name or b".", at)
            yield from self._see(at, names, files)
            self._leave()

    def _see(self, at: _Folder, names: list[bytes], rows: list[_Row]) -> Iterator[int]:
        """Files of one folder that are not as they were left."""
        if at.known:
            return
        at.count += len(names)
        fd, lstat, found = at.fd, os.lstat, state
        try:
            states = [found(lstat(name, dir_fd=fd)) for name in names]
        except OSError:
            states = []
        if [one[:4] for one in states] != [row[3:] for row in rows]:
            self.same = False
            yield from (
                row[0]
                for name, row in zip(names, rows, strict=True)
                if _fingerprint(name, fd) != row[3:]
            )
        elif at.taking is not None:
            at.taking.add(names, states)

    def _enter(self, folder: bytes) -> _Folder:
        """Go into a folder; without an fd, by which no name is found, when there is none."""
        at = _Folder(folder, known=folder in self._known)
        self._path.append(at)
        if not at.known:
            self._open(at)
            if self.same:
                self._list(at)
                at.taking = Taking() if self._writing is not None else None
        return at

    def _back_to(self, folder: bytes) -> _Folder:
        """Out of the folders that are below it. Raises sqlite3.Error when it is none of them."""
        while self._path[-1].path != folder:
            self._leave()
            if not self._path:
                raise sqlite3.DatabaseError("a name lacks its folder")
        at = self._path[-1]
        if not at.known:
            self._open(at)
        return at

    def _leave(self) -> None:
        """All names of the innermost folder, and what is below them, came by."""
        at = self._path.pop()
        if at.known or not self.same:
            return
        if at.count != at.listed:
            self.extra = True
        elif at.taking is not None and self._writing is not None:
            self._writing.add(at.taking.sight(at.path))
            return
        self.whole = False

    def _open(self, at: _Folder) -> None:
        try:
            at.fd = self._walker.dirfd(at.path)
        except OSError:
            at.fd = -1
            self.same = False

    def _list(self, at: _Folder) -> None:
        """Count a directory's names, while its fd is at hand."""
        try:
            at.listed = len(os.listdir(b"/proc/self/fd/%d/" % at.fd))
        except OSError:
            self.same = False
        if not at.path:
            at.listed += 1 - _has_home(self._walker)  # the root comes by as a name of its own

    def _judge(self, entry: Entry, name: bytes, at: _Folder) -> None:
        """See whether what is no file is in its place."""
        if at.known:
            return
        at.count += 1
        if not self.same:
            return
        try:
            st = os.lstat(name, dir_fd=at.fd)
            self.same = self._holds(entry, st, at.fd, name)
        except OSError:
            self.same = False
        if not self.same or at.taking is None:
            return
        if entry.kind == SYMLINK and st.st_ctime_ns > self._settled:
            at.taking = None
        elif entry.kind == DIRECTORY:
            at.taking.add_folder(name, state(st))
        else:
            at.taking.add([name], [state(st)])

    def _holds(self, entry: Entry, st: os.stat_result, parent: int, name: bytes) -> bool:
        """Whether a directory, a symlink or a further name is as its entry says. Raises OSError."""
        if entry.kind == HARDLINK:
            query = "SELECT ino FROM landed WHERE entry_id = ?"
            row = self._db.execute(query, (entry.link,)).fetchone()
            return row is not None and bool(row[0] == st.st_ino)
        if entry.kind == SYMLINK:
            if os.readlink(name, dir_fd=parent) != entry.target:
                return False
        elif not stat.S_ISDIR(st.st_mode):
            return False
        return self._metadata.matches(entry, st)


@dataclass(slots=True)
class _Folder:
    """A directory whose names come by."""

    path: bytes
    known: bool
    """It need not be looked at."""
    fd: int = -1
    listed: int = 0
    """How many names it has, the receiver's own folder aside."""
    count: int = 0
    """How many came by."""
    taking: Taking | None = None
    """Its sight, as long as all is as the ledger says."""


def _fingerprint(name: bytes, folder: int) -> tuple[int, ...]:
    try:
        return state(os.lstat(name, dir_fd=folder))[:4]
    except OSError:
        return ()


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
