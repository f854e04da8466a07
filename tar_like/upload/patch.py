"""Offering only what of a tree is not as it was when it was committed last.

    leaves that the receiver has > those of this tree, against them > a patch: the others

The receiver makes an index of what differs, which is then sent like any other. Where it cannot, or
where much of the tree is new, the whole index is offered instead.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import NamedTuple

from tar_like.errors import Conflict, TarLikeError
from tar_like.index import Recorded
from tar_like.index.leaf import Leaf
from tar_like.index.recorded import LEAF, LEAF_NAME
from tar_like.rules import PATCHED, Rules
from tar_like.source.stretch import Stretch
from tar_like.upload.client import Client
from tar_like.upload.dispatch import Offered
from tar_like.upload.told import Telling
from tar_like.wire import MOST_PATCHED, REVISED, SEGMENT, Look, PatchHead

LATE = 16
"""Where all but one of so many leaves are done it is late in the scan."""
PART = 4
"""Where the receiver lacks one leaf for so many that it has, it is offered the whole index."""
FEW = 1000
"""Names that a patch may have of any tree."""
_LENGTH = struct.Struct("<I")
_NO_LENGTH = _LENGTH.pack(0)
_POSITION = struct.Struct("<H")
Order = list[tuple[int, int] | int]


class Patching:
    """Finds out what of a tree the receiver's last one lacks."""

    def __init__(self, client: Client, rules: Rules, look: Look) -> None:
        """``look`` is one of the receiver that has begun."""
        self._client = client
        self._rules = rules
        self._look = look
        self._seen = 0
        """Leaves that are foreign and were looked at."""
        self._candidates: dict[int, Candidate] = {}
        """Leaves that the receiver is likely to lack, by number."""
        self._room = MOST_PATCHED

    @property
    def newest(self) -> int | None:
        """The last mtime (ns) in the receiver's tree; None where that is not known."""
        return self._look.newest

    @property
    def most(self) -> int | None:
        """How many leaves the receiver may lack: where they are more the whole index is offered.

        None where it is always.
        """
        return len(self.base) // LEAF_NAME // PART if self._may_be else None

    @property
    def _may_be(self) -> bool:
        """Whether a patch may be offered by these rules."""
        return self._rules.canonical in PATCHED

    @cached_property
    def base(self) -> bytes:
        """The leaves of the receiver's last tree, by the starts of their digests, in order.

        Empty where the receiver does not say.
        """
        try:
            return self._client.leaves(self._look.index)
        except TarLikeError:
            return b""

    def gather(self, rows: Recorded) -> None:
        """Look at what will be offered, as far as it was scanned, where that is almost all.

        Then the receiver's look is over, and a processor free.
        """
        if not rows.foreign or self.most is None or len(rows.foreign) > self.most:
            return
        done, base = len(rows.leaves) // LEAF, len(self.base) // LEAF_NAME
        if done * LATE < base * (LATE - 1):
            return
        for number in islice(rows.foreign, self._seen, None):
            self._room -= len(self._candidate(rows, number).stretch.names)
            if self._room < 0:
                return
        self._seen = len(rows.foreign)

    def _candidate(self, rows: Recorded, number: int) -> Candidate:
        found = self._candidates.get(number)
        if found is None:
            stretch, _ = rows.stretch(number)
            found = self._candidates[number] = Candidate.of(stretch, self._look)
        return found

    def offer(self, rows: Recorded, path: str) -> Offered | None:
        """Have a transfer of what differs; its index goes to ``path``.

        None where the whole index is to be offered. Files that are newer than all that the
        receiver has are read meanwhile, if they are few.
        """
        if not (self._may_be and rows.regular and self.base):
            return None
        order = compare(self.base, bytes(rows.leaves))
        room = min(max(FEW, rows.summary.entries // PART), MOST_PATCHED)
        given = list[Giving]()
        for number, base in given_by(order, len(self.base) // LEAF_NAME):
            one = self._candidate(rows, number)
            room -= len(one.stretch.names)
            if room < 0:
                return None
            given.append((one, base))
        revised = revisions(given)
        try:
            try:
                return self._offer(rows, path, order, given, revised)
            except Conflict:  # maybe a leaf is not what it was taken for
                return self._offer(rows, path, order, given, set()) if revised else None
        except TarLikeError:
            return None

    def _offer(
        self, rows: Recorded, path: str, order: Order, given: list[Giving], revised: set[int]
    ) -> Offered:
        """Raises TarLikeError."""
        head = PatchHead(
            base=self._look.index, look=self._look.token, source=rows.url, order=tuple(order)
        )
        newer = [one.stretch for one, _ in given if one.newer]
        with tempfile.NamedTemporaryFile() as file:
            text = head.to_json()
            file.write(_LENGTH.pack(len(text)) + text)
            file.writelines(_parts(given, revised))
            file.flush()
            with Telling(rows.url, newer, self.newest or 0) as telling:
                status = self._client.patch(rows.summary.id, file.name, telling.begin)
                self._client.fetch(status.id, "db", path)
        return Offered(status, telling.files)


class Candidate(NamedTuple):
    """A stretch of which the receiver is likely to lack the leaf."""

    stretch: Stretch
    changed: list[int]
    """Positions of names with times that are not before those that were seen for the receiver's
    tree; none where these are not known."""
    newer: bool
    """A name is newer than all of that tree."""

    @classmethod
    def of(cls, stretch: Stretch, look: Look) -> Candidate:
        """What is to be known of a stretch, against what a look says of the receiver's tree."""
        if look.newest is None:
            return cls(stretch, [], newer=False)
        count = len(stretch.names)
        ctimes = struct.unpack_from(f"<{count}q", stretch.kept)
        mtimes = struct.unpack_from(f"<{count}q", stretch.told, 12 * count)
        changed = list[int]()
        if look.changed is not None:
            changed = [at for at, one in enumerate(ctimes) if one >= look.changed]
        if (newest := max(mtimes)) >= look.newest and look.changed is not None:
            late = {at for at, one in enumerate(mtimes) if one >= look.newest}
            changed = changed if late.issubset(changed) else sorted(late.union(changed))
        return cls(stretch, changed, newest > look.newest)


Giving = tuple[Candidate, int | None]
"""What is given, and the number of the receiver's leaf that it may have been."""


def revisions(given: list[Giving]) -> set[int]:
    """By position: of which it is enough to give what was changed.

    It is a guess that the other names are as they were: one that was changed has a later ctime than
    all that was seen then, and a directory whose names are others was changed itself. Were it
    wrong, the leaves would not lead to the tree.
    """
    folders = set[bytes]()
    for (stretch, changed, _), _ in given:
        if stretch.files < len(stretch.names):
            folders.update(stretch.folders_at(changed))
    return {
        at
        for at, ((stretch, changed, _), base) in enumerate(given)
        if base is not None
        and 0 < 2 * len(changed) <= len(stretch.names)
        and stretch.directory not in folders
        and stretch.targets.keys().isdisjoint(changed)
    }


def given_by(order: Order, leaves: int) -> Iterator[tuple[int, int | None]]:
    """Which of the tree's leaves the receiver lacks, and which of its (so many) may be the former.

    Where as many are given as it has between those that stay, they are taken to be those.
    """
    at = last = waiting = 0
    for step in [*order, (leaves, leaves)]:
        if isinstance(step, int):
            waiting = step
            continue
        first, stop = step
        same = waiting == first - last
        for number in range(waiting):
            yield at + number, last + number if same else None
        at += waiting + stop - first
        last, waiting = stop, 0


def _parts(given: list[Giving], revised: set[int]) -> Iterator[bytes]:
    """The stretches as a patch has them; of those ``revised`` only what was changed."""
    for at, ((stretch, changed, _), base) in enumerate(given):
        if base is not None and at in revised:
            yield from _revision(stretch, base, changed)
        else:
            yield from _packed(stretch)


def _revision(stretch: Stretch, base: int, positions: list[int]) -> Iterator[bytes]:
    """What changed of a leaf of the other side (its number), as a patch has it."""
    segments = _segments(stretch, positions)
    yield _NO_LENGTH + REVISED.pack(base, len(positions), len(segments))
    told, kept, count = stretch.told, stretch.kept, len(stretch.names)
    for at in positions:
        four, eight = 4 * at, 8 * at
        size, mtime, uid = 4 * count + eight, 12 * count + eight, 20 * count + four
        gid, ino = 24 * count + four, 8 * count + eight
        yield b"".join((
            _POSITION.pack(at), told[four : four + 4],
            told[size : size + 8], told[mtime : mtime + 8], told[uid : uid + 4],
            told[gid : gid + 4], kept[eight : eight + 8], kept[ino : ino + 8],
        ))  # fmt: skip
    yield from segments


def _packed(stretch: Stretch) -> Iterator[bytes]:
    """All of a stretch, as a patch has it."""
    leaf = Leaf(stretch.directory, stretch.names, stretch.told, stretch.targets, {}, {}).pack()
    segments = _segments(stretch, stretch.segments)
    yield from (
        _LENGTH.pack(len(leaf)), leaf, stretch.versions, _LENGTH.pack(len(segments)), *segments
    )  # fmt: skip


def _segments(stretch: Stretch, positions: Iterable[int]) -> list[bytes]:
    if not stretch.segments:
        return []
    return [
        SEGMENT.pack(position, *one)
        for position in positions
        for one in stretch.segments.get(position, ())
    ]


def compare(base: bytes, leaves: bytes) -> Order:
    """A tree's leaves in order (wire.PatchHead), against those of another, as Patching.base."""
    numbers = {base[at : at + LEAF_NAME]: at // LEAF_NAME for at in range(0, len(base), LEAF_NAME)}
    order: Order = []
    last = 0
    for at in range(0, len(leaves), LEAF):
        number = numbers.get(leaves[at : at + LEAF_NAME], -1)
        step = order[-1] if order else None
        if number < last:
            if isinstance(step, int):
                order[-1] = step + 1
            else:
                order.append(1)
            continue
        if isinstance(step, tuple) and step[1] == number:
            order[-1] = step[0], number + 1
        else:
            order.append((number, number + 1))
        last = number + 1
    return order
