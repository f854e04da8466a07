"""Indexes and plans that a worker has fetched, on its disk.

    CACHE/ID.index.db, CACHE/ID.DIGEST.plan.db: published by temp, sync, rename, once verified
    one process of a host fetches, the others wait for it

An index is verified as a receiver does it: every row, and the id computed again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator

from tar_like import digest
from tar_like.errors import IndexInvalid
from tar_like.index.validation import validate

KEEP = 7 * 86400
"""Seconds after their last use that files are kept."""

Fetch = Callable[[str, str], None]
"""Given ``db`` or ``plan`` and a path: get it there."""


class Cache:
    """A folder that workers of one host share."""

    def __init__(self, folder: str) -> None:
        """Raises OSError when the folder cannot be made."""
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._folder = folder

    def index(self, transfer: str, fetch: Fetch) -> str:
        """The path of the index. Raises IndexInvalid, and what ``fetch`` raises."""
        return self._get(f"{transfer}.index.db", "db", fetch, lambda path: validate(path, transfer))

    def plan(self, transfer: str, plan: str, fetch: Fetch) -> str:
        """The path of the plan that has this digest. Raises IndexInvalid for another one."""

        def check(path: str) -> None:
            if plan_digest(path) != plan:
                raise IndexInvalid("The receiver has another plan than the one to send by.")

        return self._get(f"{transfer}.{plan[:32]}.plan.db", "plan", fetch, check)

    def _get(self, name: str, what: str, fetch: Fetch, check: Callable[[str], None]) -> str:
        path = os.path.join(self._folder, name)
        with self._alone(name):
            if not os.path.exists(path):
                self._publish(path, what, fetch, check)
        os.utime(path)
        return path

    def _publish(self, path: str, what: str, fetch: Fetch, check: Callable[[str], None]) -> None:
        self._prune()
        handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".new")
        try:
            fetch(what, temporary)
            check(temporary)
            os.fsync(handle)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        finally:
            os.close(handle)

    def _prune(self) -> None:
        oldest = time.time() - KEEP
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                if entry.name.endswith((".db", ".new", ".lock")) and entry.stat().st_mtime < oldest:
                    os.unlink(entry.path)

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        handle = os.open(os.path.join(self._folder, f"{name}.lock"), flags, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def plan_digest(path: str) -> str:
    """What tells one plan file from another, 64 hexadecimal digits."""
    hasher = digest.hasher("blake3")
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            hasher.update(data)
    return hasher.digest().hex()
