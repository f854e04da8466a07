"""What a patch gives of a tree: leaves, as they come over the wire.

length, leaf (index.leaf) + ctimes, inodes + segments > GivenLeaf > at a position: Given
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

from blake3 import blake3

from tar_like.errors import IndexInvalid
from tar_like.index.leaf import Leaf
from tar_like.proxy.ledger import LeafRow
from tar_like.source import Found
from tar_like.source.stretch import BITS, FORMAT, KINDS
from tar_like.wire import MOST_PATCHED, SEGMENT

_LENGTH = struct.Struct("<I")
_MOST = 4 << 20
"""Bytes of a leaf."""
_U32, _I64 = struct.Struct("<I"), struct.Struct("<q")
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


class GivenLeaf(NamedTuple):
    """A leaf of the tree."""

    leaf: Leaf
    row: LeafRow
    versions: bytes
    """ctimes and inodes (i64): columns, packed."""
    segments: dict[int, list[tuple[int, int]]]
    """By position: the ranges of a sparse file that hold data."""

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
        kind = KINDS.get(mode & FORMAT)
        if kind is None:
            raise IndexInvalid(_ONLY_WHOLE)
        target = leaf.targets.get(position, b"")
        values = kind, size, mode & BITS, mtime, uid, gid, target
        return Given(values, ctime, ino, None, segments=self.segments.get(position, ()))


def read_leaf(file: BinaryIO) -> GivenLeaf:
    """The next leaf. Raises IndexInvalid."""
    try:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > _MOST:
            raise ValueError
        data = file.read(length)
        leaf = Leaf.unpack(data)
        count = len(leaf.names)
        if b"/" in b"".join(leaf.names) or leaf.names != sorted(set(leaf.names)):
            raise ValueError
        rest = file.read(16 * count + _LENGTH.size)
        (many,) = _LENGTH.unpack_from(rest, 16 * count)
        if many > MOST_PATCHED:
            raise ValueError
        segments: dict[int, list[tuple[int, int]]] = {}
        for _ in range(many):
            position, start, stop = SEGMENT.unpack(file.read(SEGMENT.size))
            segments.setdefault(position, []).append((start, stop))
    except (ValueError, struct.error):
        raise IndexInvalid("The patch is damaged.") from None
    if leaf.firsts or leaf.hashes:
        raise IndexInvalid(_ONLY_WHOLE)
    row = LeafRow(leaf.directory, leaf.names[0], count, blake3(data).digest())
    return GivenLeaf(leaf, row, rest[: 16 * count], segments)
