"""What a patch gives of a tree: leaves, as they come over the wire.

length, leaf (index.leaf) + ctimes, inodes + segments  > GivenLeaf > at a position: Given
a leaf of the ledger, and what some names of it are now > Revision  > the same
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

from blake3 import blake3

from tar_like.errors import Conflict, IndexInvalid
from tar_like.index.leaf import Leaf
from tar_like.proxy.ledger import LeafRow
from tar_like.source import Found
from tar_like.source.stretch import BITS, FORMAT, KINDS, STRETCH
from tar_like.wire import MOST_PATCHED, REVISED, REVISION, SEGMENT

_LENGTH = struct.Struct("<I")
_MOST = 4 << 20
"""Bytes of a leaf."""
_U32, _I64 = struct.Struct("<I"), struct.Struct("<q")
_DAMAGED = "The patch is damaged."
_ONLY_WHOLE = "The patch has what only a whole index may have."


class Given(NamedTuple):
    """An entry of the tree."""

    values: tuple[Any, ...]
    """kind, size, mode, mtime, uid, gid, target"""
    ctime: int
    ino: int
    base_id: int | None
    """Its id in the ledger, which says something else of it; None where it is new."""
    after: int | None = None
    """The last id in the ledger that is before it, where it is new."""
    segments: Sequence[tuple[int, int]] = ()
    """The ranges that hold data, of a file with holes."""
    same: bool = False
    """It only leads to others."""

    def found(self, path: bytes) -> Found:
        """As a scan finds it."""
        kind, size, mode, mtime, uid, gid, target = self.values
        return Found(
            path, kind, size, mode, mtime, uid, gid, target, self.ctime, self.ino,
            dev=0, links=1, token=b"", segments=tuple(self.segments) or None, xattrs=(),
        )  # fmt: skip


Segments = dict[int, list[tuple[int, int]]]
"""By position: the ranges of a sparse file that hold data."""


class GivenLeaf(NamedTuple):
    """A leaf of the tree."""

    leaf: Leaf
    row: LeafRow
    versions: bytes
    """ctimes and inodes (i64): columns, packed."""
    segments: Segments

    def at(self, position: int) -> Given:
        """What is at a position, as if it were new. Raises IndexInvalid."""
        leaf, count = self.leaf, self.row.names
        modes, sizes, mtimes, uids, gids = leaf.starts
        mode, uid, gid = (
            _U32.unpack_from(leaf.told, start + 4 * position)[0] for start in (modes, uids, gids)
        )
        size, mtime = (
            _I64.unpack_from(leaf.told, start + 8 * position)[0] for start in (sizes, mtimes)
        )
        ctime, ino = (
            _I64.unpack_from(self.versions, 8 * at)[0] for at in (position, count + position)
        )
        target = leaf.targets.get(position, b"")
        segments = self.segments.get(position, ())
        return _given(mode, size, mtime, uid, gid, target, ctime, ino, segments)


class Revision(NamedTuple):
    """A leaf that is another one but for some names."""

    base: int
    """The number of that one in the ledger."""
    positions: list[int]
    """Of these names, ascending."""
    rows: bytes
    """What they are now (wire.REVISION)."""
    segments: Segments

    def of(self, was: Leaf) -> Leaf:
        """What becomes of that leaf. Raises Conflict where it was taken for another one."""
        if self.positions[-1] >= len(was.names):
            raise Conflict("The patch makes a leaf of one that has not so many names.")
        told, rows = bytearray(was.told), self.rows
        modes, sizes, mtimes, uids, gids = was.starts
        for at, position in zip(range(2, len(rows), REVISION.size), self.positions, strict=True):
            four, eight = 4 * position, 8 * position
            told[modes + four : modes + four + 4] = rows[at : at + 4]
            told[sizes + eight : sizes + eight + 8] = rows[at + 4 : at + 12]
            told[mtimes + eight : mtimes + eight + 8] = rows[at + 12 : at + 20]
            told[uids + four : uids + four + 4] = rows[at + 20 : at + 24]
            told[gids + four : gids + four + 4] = rows[at + 24 : at + 28]
        targets = was.targets
        if targets:
            revised = frozenset(self.positions)
            targets = {at: one for at, one in targets.items() if at not in revised}
        return Leaf(was.directory, was.names, bytes(told), targets, {}, {})

    def given(self) -> Iterator[tuple[int, Given]]:
        """These names by position. Raises IndexInvalid."""
        for position, mode, size, mtime, uid, gid, ctime, ino in REVISION.iter_unpack(self.rows):
            segments = self.segments.get(position, ())
            yield position, _given(mode, size, mtime, uid, gid, b"", ctime, ino, segments)


def _given(
    mode: int, size: int, mtime: int, uid: int, gid: int, target: bytes,
    ctime: int, ino: int, segments: Sequence[tuple[int, int]],
) -> Given:  # fmt: skip
    """What is given, as if it were new. Raises IndexInvalid."""
    kind = KINDS.get(mode & FORMAT)
    if kind is None or mode & ~(FORMAT | BITS):
        raise IndexInvalid(_ONLY_WHOLE)
    values = kind, size, mode & BITS, mtime, uid, gid, target
    return Given(values, ctime, ino, None, segments=segments)


def read_leaf(file: BinaryIO) -> GivenLeaf | Revision:
    """The next leaf. Raises IndexInvalid."""
    try:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if not length:
            return _read_revision(file)
        if length > _MOST:
            raise ValueError
        data = file.read(length)
        leaf = Leaf.unpack(data)
        count = len(leaf.names)
        if b"/" in b"".join(leaf.names) or leaf.names != sorted(set(leaf.names)):
            raise ValueError
        rest = file.read(16 * count + _LENGTH.size)
        segments = _read_segments(file, *_LENGTH.unpack_from(rest, 16 * count))
    except (ValueError, struct.error):
        raise IndexInvalid(_DAMAGED) from None
    if leaf.firsts or leaf.hashes:
        raise IndexInvalid(_ONLY_WHOLE)
    row = LeafRow(leaf.directory, leaf.names[0], count, blake3(data).digest())
    return GivenLeaf(leaf, row, rest[: 16 * count], segments)


def _read_revision(file: BinaryIO) -> Revision:
    """Raises ValueError, struct.error."""
    base, count, many = REVISED.unpack(file.read(REVISED.size))
    if not 0 < count <= STRETCH:
        raise ValueError
    rows = file.read(REVISION.size * count)
    positions = [row[0] for row in REVISION.iter_unpack(rows)]
    if len(positions) != count or any(one >= two for one, two in pairwise(positions)):
        raise ValueError
    return Revision(base, positions, rows, _read_segments(file, many))


def _read_segments(file: BinaryIO, many: int) -> Segments:
    """Raises ValueError, struct.error."""
    if many > MOST_PATCHED:
        raise ValueError
    segments: Segments = {}
    for _ in range(many):
        position, start, stop = SEGMENT.unpack(file.read(SEGMENT.size))
        segments.setdefault(position, []).append((start, stop))
    return segments
