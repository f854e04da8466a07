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

from tar_like.errors import Conflict, TarLikeError
from tar_like.index import Recorded
from tar_like.index.leaf import Leaf
from tar_like.index.recorded import LEAF, LEAF_NAME, PART
from tar_like.rules import PATCHED, Rules
from tar_like.source.stretch import Stretch, newest_of
from tar_like.upload.client import Client
from tar_like.upload.told import Telling
from tar_like.wire import MOST_PATCHED, REVISED, SEGMENT, Look, PatchHead, Status

FEW = 1000
"""Names that a patch may have of any tree."""
_LENGTH = struct.Struct("<I")
_NO_LENGTH = _LENGTH.pack(0)
_POSITION = struct.Struct("<H")
Order = list[tuple[int, int] | int]
Giving = tuple[Stretch, int | None]
"""What is given, and the number of the receiver's leaf that it may have been."""


class Patching:
    """Finds out what of a tree the receiver's last one lacks."""

    def __init__(self, client: Client, rules: Rules, look: Look) -> None:
        """``look`` is one of the receiver that has begun."""
        self._client = client
        self._rules = rules
        self._look = look
        self.digests: dict[bytes, bytes] = {}
        """Of files that are newer than all that the receiver has, by path, if they are few: once
        the patch was offered."""

    @cached_property
    def base(self) -> bytes:
        """The leaves of the receiver's last tree, by the starts of their digests, in order.

        Empty where nothing is to be a difference to it, or the receiver does not say.
        """
        if self._rules.canonical not in PATCHED:
            return b""
        try:
            return self._client.leaves(self._look.index)
        except TarLikeError:
            return b""

    def offer(self, rows: Recorded, path: str) -> Status | None:
        """Have a transfer of what differs; its index goes to ``path``.

        None where the whole index is to be offered. New files are read meanwhile: see ``digests``.
        """
        if not rows.regular or not self.base:
            return None
        order = compare(self.base, bytes(rows.leaves))
        room = min(max(FEW, rows.summary.entries // PART), MOST_PATCHED)
        given = list[Giving]()
        for number, base in given_by(order, len(self.base) // LEAF_NAME):
            stretch, _ = rows.stretch(number)
            room -= len(stretch.names)
            if room < 0:
                return None
            given.append((stretch, base))
        revised = revisions(self._look, given)
        for revising in (True, False) if any(revised) else (False,):
            try:
                parts = _parts(given, revised if revising else [[]] * len(given))
                return self._offer(rows, path, order, given, parts)
            except Conflict:
                continue  # maybe a leaf is not what it was taken for
            except TarLikeError:
                return None
        return None

    def _offer(
        self, rows: Recorded, path: str, order: Order, given: list[Giving], parts: Iterable[bytes]
    ) -> Status:
        """Raises TarLikeError."""
        head = PatchHead(
            base=self._look.index, look=self._look.token, source=rows.url, order=tuple(order)
        )
        newest = self._look.newest
        newer = [one for one, _ in given if newest is not None and newest_of([one]) > newest]
        with tempfile.NamedTemporaryFile() as file:
            text = head.to_json()
            file.write(_LENGTH.pack(len(text)) + text)
            file.writelines(parts)
            file.flush()
            with Telling(rows.url, newer, newest or 0) as telling:
                status = self._client.patch(rows.summary.id, file.name, telling.begin)
                self._client.fetch(status.id, "db", path)
        self.digests = telling.digests
        return status


def revisions(look: Look, given: list[Giving]) -> list[list[int]]:
    """The positions in each stretch that alone need be given; none where it is to be as a whole.

    It is a guess that the others are as they were: a name that was changed has a later ctime than
    all that was seen then, and a directory whose names are others was changed itself. Were it
    wrong, the leaves would not lead to the tree.
    """
    if look.changed is None or look.newest is None:
        return [[]] * len(given)
    changed = [_changed(stretch, look.newest, look.changed) for stretch, _ in given]
    folders = set[bytes]()
    for (stretch, _), positions in zip(given, changed, strict=True):
        if stretch.files < len(stretch.names):
            folders.update(stretch.folders_at(positions))
    return [
        positions if base is not None and _are_few(positions, stretch, folders) else []
        for (stretch, base), positions in zip(given, changed, strict=True)
    ]


def _changed(stretch: Stretch, newest: int, changed: int) -> list[int]:
    """The positions of names with times that are not before these."""
    count = len(stretch.names)
    ctimes = struct.unpack_from(f"<{count}q", stretch.kept)
    mtimes = struct.unpack_from(f"<{count}q", stretch.told, 12 * count)
    if max(ctimes) < changed and max(mtimes) < newest:
        return []
    times = zip(ctimes, mtimes, strict=True)
    return [at for at, (one, other) in enumerate(times) if one >= changed or other >= newest]


def _are_few(positions: list[int], stretch: Stretch, folders: set[bytes]) -> bool:
    return (
        2 * len(positions) <= len(stretch.names)
        and stretch.directory not in folders
        and stretch.targets.keys().isdisjoint(positions)
    )


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


def _parts(given: list[Giving], revised: list[list[int]]) -> Iterator[bytes]:
    """The stretches as a patch has them."""
    for (stretch, base), positions in zip(given, revised, strict=True):
        if base is not None and positions:
            yield from _revision(stretch, base, positions)
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
