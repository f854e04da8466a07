"""Places below a destination: where the receiver keeps its state.

DEST/.tar_like/
    lock                  held shared by proxies, exclusively by a receiver for one run
    ledger.db             the index of the last committed state, with fingerprints
    donors/ID/OLD/        transfers whose tree has changed: what ID adopts (proxy/adopt.py)
    transfers/ID/         index.db plan.db kept.db verified.db receipts/ stage/ commit.lock
    chunks/               lists of the chunks of large files (chunkcache)
    looks/                what was seen of the destination (look)
    completed/ID.json     reports of finished transfers
    tmp/                  what is being written; nothing there is ever looked at
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import re
import secrets
import shutil
import time
import weakref
from collections.abc import Iterator

from tar_like.dirfd import open_file
from tar_like.errors import NotFound, TarLikeError, UsageError, cause
from tar_like.proxy.durable import FULL, Durability
from tar_like.rules import CURRENT
from tar_like.wire import Status

HOME = ".tar_like"
PLAN_LOCK = "plan.lock"
"""Of a transfer: shared by who takes in a block, exclusive for who makes the plan or removes it."""
COMMIT_LOCK = "commit.lock"
"""Of a transfer: exclusive for its commit. Of a destination: whose turn it is."""
LAYING_LOCK = "laying.lock"
"""Of a transfer: exclusive for who copies an older version to where blocks are put in meanwhile."""
KEEP_REPORTS = 16
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ID = re.compile(r"[0-9a-f]{64}")


@contextlib.contextmanager
def held(path: str, *, shared: bool = False, wait: float = math.inf) -> Iterator[None]:
    """Hold a lock file, across processes and hosts.

    Raises OSError: BlockingIOError when it is taken for longer than ``wait`` seconds.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline = time.monotonic() + wait
    fd = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        while True:
            try:
                fcntl.flock(fd, kind if wait == math.inf else kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def touch(path: str) -> None:
    """See that a file is there: a lock that a full disk would have no room for. Raises OSError."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


class Destination:
    """A destination's root folder and the receiver's own folder in it."""

    def __init__(self, root: str, durability: Durability = FULL, *, shadow: str = "") -> None:
        """With ``shadow``, that folder holds all that would be written, for a dry run."""
        self.root = os.path.abspath(root)
        self._shadow = shadow
        self.durability = durability
        self.home = os.path.join(self.root, HOME)
        """Once it is prepared, by the folder itself and not by its name."""

    def prepare(self) -> None:
        """Make the folders. Raises TarLikeError when the destination cannot be used."""
        try:
            if self._shadow and not os.path.exists(self.root):
                self.root = os.path.join(self._shadow, "nothing")
            os.makedirs(self.root, exist_ok=True)
            self._hold(self._own(os.path.join(self._shadow or self.root, HOME), HOME))
            for name in ("transfers", "donors", "completed", "chunks", "looks", "snapshots", "tmp"):
                os.close(self._own(os.path.join(self.home, name), f"{HOME}/{name}"))
            touch(os.path.join(self.home, COMMIT_LOCK))
        except FileExistsError:
            raise UsageError(f"The destination {self.root} is not a folder.") from None
        except OSError as error:
            raise TarLikeError(
                f"The destination {self.root} cannot be used: {cause(error)}."
            ) from None

    def _hold(self, fd: int) -> None:
        """From now on ``home`` is this folder, wherever its name in DEST may come to lead."""
        weakref.finalize(self, os.close, fd)
        self.home = f"/proc/self/fd/{fd}"

    def _own(self, path: str, name: str) -> int:
        """Make a folder of ours, or see that it is one. Raises UsageError, OSError.

        What is in it is removed without asking, so it must be no symlink to elsewhere, nor, for
        root, in the hands of another user.
        """
        named = os.path.join(self.root, name)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        try:
            fd = os.open(path, _FOLDER)
        except NotADirectoryError:
            raise UsageError(f"{named} is not a folder of tar-like's own: remove it.") from None
        if os.fstat(fd).st_uid != os.geteuid() and os.geteuid() == 0:
            os.close(fd)
            raise UsageError(f"{named} belongs to another user: run as that user, or remove it.")
        return fd

    def lock(self, *, exclusive: bool) -> int:
        """Hold the destination until the returned fd is closed. Raises TarLikeError if taken."""
        fd = open_file(os.path.join(self.home, "lock"), os.O_RDWR | os.O_CREAT)
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise TarLikeError(
                f"Another receiver is serving {self.root}: send to its URL, or wait until it ends."
            ) from None
        return fd

    @property
    def ledger(self) -> str:
        """The index of the last committed state."""
        home = os.path.join(self.root, HOME) if self._shadow else self.home
        return os.path.join(home, "ledger.db")

    @property
    def chunks(self) -> str:
        """Where the chunks of large files are remembered."""
        return os.path.join(self.home, "chunks")

    @property
    def looks(self) -> str:
        """What was seen of the destination, for senders that asked."""
        return os.path.join(self.home, "looks")

    def note_snapshot(self, name: str) -> None:
        """Remember a snapshot's name."""
        with open(os.path.join(self.home, "snapshots", name), "wb"):
            pass

    def snapshots(self) -> list[str]:
        """Names of the snapshots that were made, and of the symlink that leads to the newest."""
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(os.path.join(self.root, HOME, "snapshots"))
            return [*names, CURRENT] if names else []
        return []

    def transfer(self, transfer_id: str) -> str:
        """The folder of a transfer. Raises NotFound for what is no id."""
        if not _ID.fullmatch(transfer_id):
            raise NotFound("That is not the id of a transfer.")
        return os.path.join(self.home, "transfers", transfer_id)

    def transfers(self) -> list[str]:
        """Ids of the transfers that are not complete."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(os.listdir(os.path.join(self.home, "transfers")))
        return []

    def donors_folder(self, transfer_id: str) -> str:
        """Where the transfers are that a transfer supersedes, and adopts files from."""
        return os.path.join(self.home, "donors", transfer_id)

    def donors(self, transfer_id: str) -> list[str]:
        """The folders of the transfers that a transfer supersedes."""
        folder = self.donors_folder(transfer_id)
        with contextlib.suppress(FileNotFoundError):
            return [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
        return []

    def unfinished(self) -> list[str]:
        """The folders of all transfers that are not complete, superseded ones included."""
        owners = sorted(os.listdir(os.path.join(self.home, "donors")))
        found = [self.transfer(one) for one in self.transfers() if _ID.fullmatch(one)]
        return found + [path for owner in owners for path in self.donors(owner)]

    def give(self, path: str, transfer_id: str) -> None:
        """Make a transfer (its folder) a donor of another. Only for the exclusive lock's holder."""
        folder = self.donors_folder(transfer_id)
        if os.path.dirname(path) == folder:
            return
        os.makedirs(folder, mode=0o700, exist_ok=True)
        try:
            os.rename(path, os.path.join(folder, os.path.basename(path)))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self.discard(path)  # it is there already, begun anew

    def report(self, transfer_id: str) -> str:
        """The report of a finished transfer. Raises NotFound for what is no id."""
        self.transfer(transfer_id)
        return os.path.join(self.home, "completed", f"{transfer_id}.json")

    def read_report(self, transfer_id: str) -> Status | None:
        """How a finished transfer ended, if that is still known."""
        try:
            with open(open_file(self.report(transfer_id), os.O_RDONLY), "rb") as file:
                return Status.from_json(file.read())
        except FileNotFoundError:
            return None

    def drop_old_reports(self) -> None:
        """Keep the newest reports only."""
        folder = os.path.join(self.home, "completed")
        with os.scandir(folder) as entries:
            ages = sorted((entry.stat().st_mtime_ns, entry.path) for entry in entries)
        for _, path in ages[:-KEEP_REPORTS]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def temporary(self) -> str:
        """A new, empty folder to write in."""
        path = os.path.join(self.home, "tmp", secrets.token_hex(8))
        os.mkdir(path, 0o700)
        return path

    def now(self) -> float:
        """The time by the clock that the files' times are of: a server's, on shared storage."""
        path = self.temporary()
        try:
            return os.stat(path).st_mtime
        finally:
            os.rmdir(path)

    def mark(self, transfer_id: str) -> None:
        """Note that somebody asked for a transfer, so that it does not expire."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(os.path.join(self.transfer(transfer_id), "index.db"), follow_symlinks=False)

    def discard(self, path: str) -> None:
        """Remove a folder of ours, at once by name, then its content."""
        grave = os.path.join(self.home, "tmp", secrets.token_hex(8))
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, grave)
            shutil.rmtree(grave, ignore_errors=True)

    def sweep(self) -> None:
        """Remove leftovers: what is in tmp, and donors of no use. With the exclusive lock only."""
        folder = os.path.join(self.home, "tmp")
        for name in os.listdir(folder):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        for owner in os.listdir(os.path.join(self.home, "donors")):
            done = os.path.exists(self.report(owner)) and owner not in self.transfers()
            if done or not self.donors(owner):  # its commit ended before it got to that; given on
                self.discard(self.donors_folder(owner))
