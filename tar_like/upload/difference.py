"""What of a tree differs from the receiver's last one, by leaves, and how a patch says so.

leaves of both, in order > which are given, and which of the receiver's they may have been
a stretch > the names in it that were changed > these alone, or all of it, as bytes
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tar_like.index.leaf import Leaf
from tar_like.index.recorded import LEAF, LEAF_NAME
from tar_like.source.stretch import Stretch, starts_of
from tar_like.wire import REVISED, SEGMENT, Look

_LENGTH = struct.Struct("<I")
_NO_LENGTH = _LENGTH.pack(0)
_POSITION = struct.Struct("<H")
Order = list[tuple[int, int] | int]
"""See wire.PatchHead."""


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
        form = f"<{len(stretch.names)}q"
        ctimes = struct.unpack_from(form, stretch.kept)
        mtimes = struct.unpack(form, stretch.mtimes)
        changed = list[int]()
        if look.changed is not None:
            changed = [
                at
                for at, (ctime, mtime) in enumerate(zip(ctimes, mtimes, strict=True))
                if ctime >= look.changed or mtime >= look.newest
            ]
        return cls(stretch, changed, max(mtimes) > look.newest)


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


def parts(given: list[Giving], revised: set[int]) -> Iterator[bytes]:
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
    _, sizes, mtimes, uids, gids = starts_of(count)
    for at in positions:
        four, eight = 4 * at, 8 * at
        size, mtime, uid, gid = sizes + eight, mtimes + eight, uids + four, gids + four
        ino = 8 * count + eight
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
