"""A look at the destination: is everything as the last commit left it?

    ledger, entry by entry > stat of its name > the same fingerprint, or metadata > looks/TOKEN.json
                                              > files that have another           > looks/TOKEN.db

Of a directory that a look before has found as the ledger says it only sees that it is still so
(sights); the ledger's entries are gone through where it is not.

What a look notes down for the next one it writes when it has said what it saw. A receiver that goes
on also takes one when a whole tree was committed (learn), for the next one's sake.

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
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tar_like.database import connect, connect_readonly, scratch
from tar_like.dirfd import Walker, open_file
from tar_like.proxy.inspection import Inspection
from tar_like.proxy.ledger import Ledger, version_of
from tar_like.proxy.patch import is_patch
from tar_like.proxy.place import COMMIT_LOCK, Destination, held
from tar_like.proxy.recall import SIGHTS, Recall
from tar_like.proxy.sights import Remembered, Writing
from tar_like.rules import Rules
from tar_like.wire import COMPLETE, Look, Status

_TOKEN = re.compile(r"[0-9a-f]{16}")
_OLD = 86400.0
"""Seconds after which a look is nobody's any more."""
_SETTLING = 2.0
"""Seconds in which times may be too coarse to tell two states of a name apart."""
_NOTING = 1.0
"""Seconds that a look waits for a commit that may end at any moment."""
_LEARNED = 256 << 20
"""Bytes of a ledger: some 1.5 million names."""
_MANY = 8
"""Sights are written anew where one in so many would spare the next look a directory's listing."""
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
    commit = _commit_lock(destination)
    with contextlib.suppress(BlockingIOError), held(commit, shared=True, wait=_NOTING):
        pass  # one that has reported may still be noting down what is remembered
    with contextlib.ExitStack() as opened:
        with held(_lock(destination, token)):
            seen, remember = _look(destination, token, now, opened)
            with open(f"{final}.tmp", "w", encoding="ascii") as file:
                json.dump(asdict(seen), file)
            os.replace(f"{final}.tmp", final)
        remember()  # which nobody waits for


def learn(destination: Destination) -> None:
    """Look for the sake of the next look, where nothing is remembered of the last commit's tree.

    Not of a tree so large that it would keep the machine busy for long, nor of one that nothing
    would be remembered of.
    """
    remembered = Remembered(os.path.join(destination.looks, SIGHTS), version_of(destination.ledger))
    remembered.close()
    if remembered.usable:
        return
    found = begin(destination)
    if not found.tree or os.path.getsize(destination.ledger) > _LEARNED:
        return
    with contextlib.closing(connect(destination.ledger, "ro")) as db:
        if _has_attributes(db):
            return
    run_look(destination, found.token)
    for kind in ("json", "db", "lock"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_path(destination, found.token, kind))


def find_touched(destination: Destination, token: str) -> str:
    """The file with the table ``touched``: the ledger's files that a look saw changed.

    Waits for a look that has begun. Empty when there is none, or the ledger is another by now.
    """
    if not _TOKEN.fullmatch(token) or not os.path.exists(_lock(destination, token)):
        return ""
    with held(_lock(destination, token), shared=True):
        seen = read_look(destination, token)
    if seen is None or not seen.files or seen.ledger != version_of(destination.ledger):
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
    return begin(destination).tree


def begin(destination: Destination) -> Look:
    """A look that is to be taken (run_look); its ``tree`` is empty where it would be of no use."""
    token = secrets.token_hex(8)
    if not all(map(is_patch, destination.unfinished())):
        return Look(token=token, tree="")  # a patch may be the one that a sender goes on with
    ledger = Ledger(destination.ledger)
    ledger.close()
    if ledger.snapshot:
        return Look(token=token, tree="")
    return Look(token=token, tree=ledger.index_id, newest=ledger.newest, changed=ledger.changed)


def is_current(destination: Destination, seen: Seen, but: str = "") -> bool:
    """Whether there was no commit since, and none is on its way but of this transfer (folder)."""
    others = any(path != but for path in destination.unfinished())
    return seen.ledger == version_of(destination.ledger) and not others


def touched_now(ledger_path: str, root: str, into: sqlite3.Connection) -> bool:
    """Fill a temporary table ``touched`` with a ledger's files that are not as it says.

    Returns whether everything is as it says, and there is nothing besides.
    Raises OSError, sqlite3.Error.
    """
    into.execute(TOUCHED.format("TEMP "))
    db = connect_readonly(ledger_path)
    with contextlib.closing(db), Walker(root) as walker:
        look = Inspection(db, walker, same=True)
        into.executemany(_INSERT, ((number,) for number in look.touched()))
        return look.same and not look.extra


def _path(destination: Destination, token: str, kind: str = "json") -> str:
    return os.path.join(destination.looks, f"{token}.{kind}")


def _commit_lock(destination: Destination) -> str:
    return os.path.join(destination.home, COMMIT_LOCK)


def _lock(destination: Destination, token: str) -> str:
    return _path(destination, token, "lock")


def _forget_old(destination: Destination, now: float) -> None:
    with os.scandir(destination.looks) as files:
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                if now - file.stat().st_mtime > _OLD and file.name != SIGHTS:
                    os.unlink(file.path)


def _look(
    destination: Destination, token: str, now: float, opened: contextlib.ExitStack
) -> tuple[Seen, Callable[[], None]]:
    """What is seen, and what is to be done for the next look while files are ``opened``."""
    version, index_id = version_of(destination.ledger), last_index(destination)
    if not index_id:
        return Seen(index="", ledger=version), _nothing
    sights, new = os.path.join(destination.looks, SIGHTS), _path(destination, token, SIGHTS)
    try:
        db = opened.enter_context(contextlib.closing(connect(destination.ledger, "ro")))
        remembered = opened.enter_context(contextlib.closing(Remembered(sights, version)))
        writing = opened.enter_context(contextlib.closing(Writing(new, version)))
        walker = opened.enter_context(Walker(destination.root))
        with contextlib.closing(_new_list(_path(destination, token, "db"))) as touched:
            look = Inspection(db, walker, same=not _has_attributes(db))
            before = Recall(remembered, walker, round((now - _SETTLING) * 1e9))
            if look.same:
                before.compare()
            if before.changed or not remembered.whole:
                look.learn(writing, before)
                known = {one.path for one in before.sights()} if look.same else set[bytes]()
                found = look.touched_but(known) if look.same else look.touched()
                touched.executemany(_INSERT, ((number,) for number in found))
            touched.execute("COMMIT")
    except (OSError, sqlite3.Error):
        return Seen(index=index_id, ledger=version), _nothing

    def remember() -> None:
        """Where it is of use for the next look. Whatever goes wrong, that takes longer, no more."""
        with contextlib.suppress(OSError):
            for one in before.sights():
                writing.add(one)
            # A commit that is under way may carry over what was remembered before.
            with held(_commit_lock(destination), shared=True, wait=0.0):
                if version_of(destination.ledger) == version:
                    writing.publish(sights, whole=look.whole)

    useful = look.same and (writing.count or before.slow * _MANY > before.count)
    same, extra = look.same, look.same and look.extra
    seen = Seen(index=index_id, ledger=version, same=same, extra=extra, files=True)
    return seen, remember if useful else _nothing


def _nothing() -> None:
    pass


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
