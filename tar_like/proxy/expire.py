"""Remove what abandoned transfers have staged.

A transfer is abandoned when for so long no sender has offered it or was at work on its questions,
no block arrived, and no commit made progress, whichever proxy on whichever host it was. Who takes
in a block or negotiates holds the transfer's ``plan.lock``, who copies an older version its
``laying.lock``, a commit its ``commit.lock``; all are held here too, and the age is looked at again
under them, so what is alive is never removed. A sender that comes later starts anew.

Not guaranteed: anything for a sender that was silent longer than the age; its blocks are sent
again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass

from tar_like.errors import NotFound
from tar_like.proxy import room
from tar_like.proxy.place import COMMIT_LOCK, LAYING_LOCK, PLAN_LOCK, Destination, held

LEFTOVER = 86400.0
"""Seconds after which what a killed process left in tmp is removed, at the earliest."""


@dataclass(frozen=True, slots=True)
class Expired:
    """A transfer that was removed."""

    id: str
    idle: int
    """Seconds since something happened to it."""
    bytes: int
    """That its staged files took."""


def expire(destination: Destination, older: float) -> list[Expired]:
    """Remove transfers that were idle for ``older`` seconds. Raises OSError."""
    now = destination.now()
    _sweep(destination, now - max(older, LEFTOVER))
    removed = []
    for transfer_id in destination.transfers():
        with contextlib.suppress(NotFound, FileNotFoundError, BlockingIOError):
            one = _expire(destination, transfer_id, now, older)
            if one is not None:
                removed.append(one)
    return removed


def _expire(destination: Destination, transfer_id: str, now: float, older: float) -> Expired | None:
    """Raises NotFound, FileNotFoundError where there is none; BlockingIOError when it is in use."""
    folder = destination.transfer(transfer_id)
    if now - _last_sign(folder) < older:
        return None
    with contextlib.ExitStack() as locks:
        for name in (PLAN_LOCK, COMMIT_LOCK, LAYING_LOCK):
            locks.enter_context(held(os.path.join(folder, name), wait=0))
        idle = now - _last_sign(folder)
        if idle < older:
            return None
        found = Expired(transfer_id, int(idle), room.staged(os.path.join(folder, "stage")).bytes)
        destination.discard(folder)
        destination.discard(destination.donors_folder(transfer_id))
        return found


def _last_sign(folder: str) -> float:
    """When its index was last asked for, or a receipt or record was made."""
    names = [os.path.join(folder, "index.db")]
    for directory in (folder, os.path.join(folder, "receipts")):
        with os.scandir(directory) as entries:
            names += [one.path for one in entries if not one.name.endswith(".lock")]
    return max(os.stat(name).st_mtime for name in names if not os.path.isdir(name))


def _sweep(destination: Destination, before: float) -> None:
    """Remove leftovers in tmp that nobody has written to since."""
    with os.scandir(os.path.join(destination.home, "tmp")) as entries:
        for entry in list(entries):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                times = [entry.stat(follow_symlinks=False).st_mtime]
                with os.scandir(entry) as inside:
                    times += [one.stat(follow_symlinks=False).st_mtime for one in inside]
                if max(times) < before:
                    shutil.rmtree(entry, ignore_errors=True)
