"""Snapshots: each transfer makes a folder of its own, and shares with the one before it.

    transfers/ID/tree > DEST/NAME > DEST/current -> NAME

The tree is made where nobody looks, and gets its name whole, by one rename; ``current`` follows
last. A file that is as it was is a further link to the one in the snapshot before, so nothing is
ever written into a file of a snapshot: what differs in as little as its mode is a copy.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from typing import Any

from tar_like.errors import CommitFailed, Conflict
from tar_like.proxy.ledger import Ledger
from tar_like.proxy.place import Destination
from tar_like.rules import CURRENT, Rules
from tar_like.wire import Failure

_BASE = "base"
_MARK = "snapshot.json"


@dataclass(frozen=True, slots=True)
class Basis:
    """What a transfer is compared with."""

    ledger: str
    """Empty where there is none that speaks of ``root``."""
    root: str


def basis(destination: Destination, path: str, rules: Rules) -> Basis:
    """What the transfer in the folder ``path`` is compared with; settled when first asked for."""
    ledger = Ledger(destination.ledger)
    ledger.close()
    if not rules.snapshot:
        return Basis("" if ledger.snapshot else destination.ledger, destination.root)
    noted = os.path.join(path, _BASE)
    if not os.path.exists(noted):
        with open(f"{noted}.tmp", "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(ledger.snapshot)
        os.replace(f"{noted}.tmp", noted)
    name, root = _read(noted), base_of(destination.root, path)
    return Basis(destination.ledger if name and ledger.snapshot == name else "", root)


def base_of(dest: str, path: str) -> str:
    """The folder of the snapshot that a transfer shares with; an empty one where there is none."""
    name = _read(os.path.join(path, _BASE))
    root = os.path.join(dest, name)
    if name and os.path.isdir(root) and not os.path.islink(root):
        return root
    nothing = os.path.join(path, "nothing")
    os.makedirs(nothing, exist_ok=True)
    return nothing


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


class Snapshot:
    """The snapshot that one transfer makes."""

    def __init__(self, destination: Destination, path: str, name: str) -> None:
        """``path`` is the transfer's folder."""
        self._destination = destination
        self._path = path
        self._name = name
        self._final = os.path.join(destination.root, name)
        self.tree = os.path.join(path, "tree")

    def check(self) -> None:
        """Raises Conflict when the name is taken, or ``current`` cannot be switched."""
        if os.path.lexists(self._final) and not self.named:
            raise Conflict(f"The destination has {self._name} already: choose another name.")
        current = os.path.join(self._destination.root, CURRENT)
        if os.path.lexists(current) and not os.path.islink(current):
            raise Conflict(f"{CURRENT} in the destination is no symlink: it cannot be switched.")

    def begin(self) -> None:
        """Have a folder for the tree. Raises Conflict, OSError."""
        self.check()
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.tree, 0o700)

    @property
    def named(self) -> bool:
        """Whether the tree has its name already, by an attempt that did not come to its end."""
        mark = self._mark()
        if mark is None or os.path.lexists(self.tree):
            return False
        try:
            return bool(os.lstat(self._final).st_ino == mark["inode"])
        except FileNotFoundError:
            return False

    def failures(self) -> list[Failure]:
        """What was not in place when the tree got its name."""
        mark = self._mark()
        return [] if mark is None else [Failure(**one) for one in mark["failures"]]

    def _mark(self) -> dict[str, Any] | None:
        try:
            with open(os.path.join(self._path, _MARK), "rb") as file:
                found: dict[str, Any] = json.loads(file.read())
                return found
        except (OSError, ValueError):
            return None

    def publish(self, failures: list[Failure]) -> None:
        """Give the tree its name. Raises CommitFailed, OSError."""
        if os.path.lexists(self._final):
            raise CommitFailed(f"The destination has {self._name} by now: choose another name.")
        st = os.stat(self.tree)
        mark = os.path.join(self._path, _MARK)
        found = {
            "inode": st.st_ino,
            "mode": st.st_mode & 0o7777,
            "failures": [one._asdict() for one in failures],
        }
        with open(f"{mark}.tmp", "w", encoding="utf-8") as file:
            json.dump(found, file)
        self._destination.durability.publish(f"{mark}.tmp", mark)
        self._destination.note_snapshot(self._name)
        if st.st_mode & 0o200 == 0:  # a folder that its owner may not write to cannot be moved
            os.chmod(self.tree, st.st_mode | 0o200)
        os.rename(self.tree, self._final)

    def _close(self) -> None:
        """Give the tree its own mode; whoever put it in place may not have come to that."""
        mark = self._mark()
        fd = os.open(self._final, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if mark is not None and os.fstat(fd).st_ino == mark["inode"]:
                os.chmod(f"/proc/self/fd/{fd}", mark["mode"])
        finally:
            os.close(fd)

    def switch(self) -> None:
        """Let ``current`` lead here. Raises OSError."""
        self._close()
        folder = self._destination.temporary()
        link = os.path.join(folder, CURRENT)
        os.symlink(self._name, link)
        os.rename(link, os.path.join(self._destination.root, CURRENT))
        self._destination.discard(folder)
