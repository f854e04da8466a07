"""The ledger that a commit leaves: what is at the destination from then on.

    index + leaves + what has landed             > ledger.db     (a whole tree)
    the ledger that there is + patch             > draft-*.db    (the same but for what differs)
    draft + what has landed                      > ledger.db

A draft can be made at any time before: a small patch's is made while its blocks are coming.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading

from blake3 import blake3

from tar_like.chunks import LARGEST_FILE, SMALLEST_FILE
from tar_like.database import connect, rewriting
from tar_like.dirfd import open_file
from tar_like.proxy.chunkcache import ChunkCache
from tar_like.proxy.durable import machine
from tar_like.proxy.ledger import LINKED, TIMES, UNSYNCED, add_indexes, version_of, whole_ledger
from tar_like.proxy.patch import Patch, land, patch_of
from tar_like.proxy.place import Destination, held

_NOTE_LINKS = """
INSERT OR REPLACE INTO meta SELECT ?, EXISTS (SELECT 1 FROM entry WHERE kind = 'h')
"""

_ROOMY = 3
"""Sizes of the ledger that must be free where a draft is made before room is made."""
_LOCK = "draft.lock"
_PATIENCE = 30.0
"""Seconds that a commit waits for a draft that somebody else makes."""
_HELD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def begin_draft(
    destination: Destination, path: str, *, spare: int = 0, wait: float
) -> threading.Thread | None:
    """Begin to make a draft for the transfer of a patch (its folder), on a thread.

    ``spare``: bytes that are needed for other things. Whatever goes wrong there, or where another
    one makes it for longer than ``wait`` seconds, it is tried once more when it is needed. None
    where that is not begun.
    """
    thread = threading.Thread(
        target=_make_draft, args=(destination, path), kwargs={"spare": spare, "wait": wait},
        daemon=True,
    )  # fmt: skip
    try:
        thread.start()
    except RuntimeError:  # more threads than there may be
        return None
    return thread


def _make_draft(destination: Destination, path: str, *, spare: int = 0, wait: float) -> None:
    """Make a draft, unless there is one; where one is being made, wait for it so many seconds."""
    lock = os.path.join(path, _LOCK)
    with contextlib.suppress(OSError, MemoryError, sqlite3.Error), held(lock, wait=wait):
        patch, ledger = patch_of(path), destination.ledger
        final = _draft(destination, path)
        if os.path.exists(final) or patch is None or not patch.fits(ledger):
            return
        _remove_drafts(path)
        room = os.statvfs(path)
        if room.f_bavail * room.f_frsize < _ROOMY * os.path.getsize(ledger) + spare:
            return  # names that are replaced or deleted may free some before it is needed
        new = os.path.join(path, f"draft.{secrets.token_hex(8)}")
        here = os.stat(lock)
        try:
            patch.draft(ledger, new)
            add_indexes(new)
            if os.path.samestat(here, os.stat(lock)):  # this very transfer still
                os.rename(new, final)
        finally:
            _remove(new)  # others need the room


def _remove_drafts(path: str) -> None:
    """Of other ledgers, other boots, and those that were killed in the making."""
    for name in os.listdir(path):
        if name.startswith("draft") and name != _LOCK:
            _remove(os.path.join(path, name))


def _draft(destination: Destination, path: str) -> str:
    """The file of a transfer's draft: another one for each ledger, and each boot of this host.

    It is not synced: after a power cut it counts for nothing.
    """
    key = blake3(version_of(destination.ledger).encode() + b"\0" + machine()).hexdigest(8)
    return os.path.join(path, f"draft-{key}.db")


class NextLedger:
    """Written in the transfer's folder, and then published."""

    def __init__(
        self, destination: Destination, path: str, patch: Patch | None, meta: dict[str, str]
    ) -> None:
        """``path`` is the transfer's folder; ``meta`` is what the ledger is to say of itself."""
        self._destination = destination
        self._path = path
        self._file = os.path.join(path, "next.db")
        self._patch = patch
        self._meta = meta
        self._drafting: threading.Thread | None = None
        self._former = -1

    def begin(self) -> None:
        """Have a draft made beside, where there can be one.

        No process may be forked before it is published or closed.
        """
        if self._patch is not None:
            self._drafting = begin_draft(self._destination, self._path, wait=_PATIENCE)

    def publish(self, landed: str) -> None:
        """Say what is at the destination from now on; ``landed`` is a file with that table.

        Raises OSError, sqlite3.Error.
        """
        self._fill(landed)
        try:
            add_indexes(self._file)
        except sqlite3.Error:  # no room to sort, say: they are there for speed alone
            self._fill(landed)
        with contextlib.closing(connect(self._file, "ro")) as db:
            self._forget_chunks(db)
        with contextlib.suppress(OSError):  # to free it takes time: not now
            self._former = os.open(self._destination.ledger, _HELD)
        self._destination.durability.publish(self._file, self._destination.ledger)

    def close(self) -> None:
        """Give up what is not published. Idempotent."""
        self._give_up()
        if self._former != -1:
            os.close(self._former)
            self._former = -1

    def _give_up(self) -> None:
        """Wait until nothing is being written any more, and remove it."""
        if self._drafting is not None:
            self._drafting.join()
            self._drafting = None
        _remove(self._file)

    def _fill(self, landed: str) -> None:
        self._give_up()
        if self._patch is None:
            whole_ledger(self._file, self._path, landed)
        else:
            _make_draft(self._destination, self._path, wait=_PATIENCE)
            if not self._has_draft():
                _remove(self._file)
                _remove_drafts(self._path)
                self._patch.draft(self._destination.ledger, self._file)
        with contextlib.closing(rewriting(self._file)) as db:
            self._complete(db, landed)
            db.execute("COMMIT")

    def _has_draft(self) -> bool:
        """Whether there was a draft, which has become the file."""
        try:
            os.rename(_draft(self._destination, self._path), self._file)
            os.close(open_file(self._file, os.O_RDONLY))
        except OSError:
            return False
        return True

    def _complete(self, db: sqlite3.Connection, landed: str) -> None:
        """Write the rest, and what it says of itself, and an index does not (ledger.OF_LEDGER)."""
        meta = dict(self._meta)
        if self._patch is not None:
            land(db, landed)
            meta[LINKED] = "0"  # else it would have been offered whole
        if not self._destination.durability.lasts:
            meta[UNSYNCED] = machine().hex()
        db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
        if self._patch is None:
            db.execute(_NOTE_LINKS, (LINKED,))
            times = db.execute("SELECT max(mtime), max(ctime) FROM entry").fetchone()
            known = (
                (key, time) for key, time in zip(TIMES, times, strict=True) if time is not None
            )
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", known)

    def _forget_chunks(self, ledger: sqlite3.Connection) -> None:
        """Keep the lists of chunks of files that are in place."""
        query = (
            "SELECT lower(hex(digest)) FROM entry CROSS JOIN landed ON entry_id = id "
            "WHERE kind = 'f' AND size BETWEEN ? AND ?"
        )
        rows = ledger.execute(query, (SMALLEST_FILE, LARGEST_FILE))
        ChunkCache(self._destination.chunks).keep(row[0] for row in rows)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
