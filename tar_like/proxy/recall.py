"""What looks have seen of DEST's directories (sights), put to use by those who come later.

a look > which directories are still so (Recall)
a patch > what the ledger says of the names in a directory (exact_sights)
the commit of a patch > the sights hold for the next ledger, too (carry_over)
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Collection, Iterator

from tar_like.dirfd import Walker
from tar_like.proxy.filesystem import PLAIN, kind_of
from tar_like.proxy.ledger import version_of
from tar_like.proxy.place import Destination
from tar_like.proxy.sights import (
    NOTHING,
    Changes,
    Comparing,
    Remembered,
    Sight,
    Writing,
    renewed,
)

SIGHTS = "sights"
"""The file, among those of looks."""
_ROOM = 64 << 20
"""Bytes of sights that are held in memory for a patch."""


class Recall:
    """What a look before this one has remembered, and what of it is still so."""

    def __init__(self, remembered: Remembered, walker: Walker, settled: int) -> None:
        """Times before ``settled`` (ns) are not those of a change that is still to come."""
        self._remembered = remembered
        self._walker = walker
        self._root = os.fstat(walker.root).st_dev
        self._plain = kind_of(walker.root) in PLAIN
        self._owns = array("q")
        """Of each sight: the ctime that its directory has, where it is to be noted; else 0."""
        self.settled = settled
        self.changed: set[bytes] = set()
        """The directories that are not as they were."""
        self.count = self.slow = 0
        """How many there are, and how many were listed that need not be again."""

    def compare(self) -> None:
        """See what is still so."""
        comparing = Comparing()
        self.changed = comparing.changed
        for sight in self._remembered:
            self.count += 1
            own, listed = 0, False
            try:
                fd = self._walker.dirfd(sight.path)
                own = self.own(fd)
                listed = own != 0 and own == sight.own
                comparing.see(sight, fd, listed=listed)
            except OSError:
                self.changed.add(sight.path)
            self._owns.append(0 if listed else own)
            self.slow += self._owns[-1] != 0
        comparing.end()

    def own(self, fd: int) -> int:
        """The ctime of a directory, if it will be another one when its names change; else 0."""
        if not self._plain:
            return 0
        st = os.fstat(fd)
        return st.st_ctime_ns if st.st_ctime_ns < self.settled and st.st_dev == self._root else 0

    def sights(self) -> Iterator[Sight]:
        """Those that hold, as they are now."""
        for sight, own in zip(self._remembered, self._owns, strict=False):
            if sight.path not in self.changed:
                yield sight._replace(own=own) if own else sight


def exact_sights(
    destination: Destination, ledger: str, wanted: Collection[bytes]
) -> dict[bytes, Sight]:
    """By path: what is remembered that says of its names just what a ledger (its version) does.

    Of the directories that are wanted, as many as may be held in memory, and can be read.
    """
    found, room = dict[bytes, Sight](), _ROOM
    path = os.path.join(destination.looks, SIGHTS)
    with (
        contextlib.suppress(OSError),
        contextlib.closing(Remembered(path, ledger)) as remembered,
    ):
        for sight in remembered:
            if sight.exact and sight.path in wanted:
                room -= len(sight.names) + sum(map(len, sight.columns))
                if room < 0:
                    break
                found[sight.path] = sight
    return found


def carry_over(destination: Destination, before: str, changes: Changes) -> None:
    """What was seen holds with a new ledger, too, but for what its commit has changed.

    ``before`` is the version of the ledger that it was seen with. Raises OSError.
    """
    sights, new = (os.path.join(destination.looks, name) for name in (SIGHTS, f"{SIGHTS}.new"))
    with (
        contextlib.closing(Remembered(sights, before)) as remembered,
        contextlib.closing(Writing(new, version_of(destination.ledger))) as writing,
    ):
        lost, lacking = False, set(changes.folders)
        for sight in remembered:
            change = changes.of.get(sight.path, NOTHING)
            if change is None:
                lost = lost or sight.path not in changes.gone
            else:
                lacking.discard(sight.path)
                writing.add(renewed(sight, *change) if change is not NOTHING else sight)
        if writing.count:
            writing.publish(sights, whole=remembered.whole and not (lost or lacking))
