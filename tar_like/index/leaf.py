"""Leaves: stretches of a directory's names, packed so that their digests make up an index's id.

directory  names  columns  what few names have > BLAKE3      (docs/protocol.md)
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from blake3 import blake3

from tar_like.source.stretch import STRETCH, starts_of

_HEAD = struct.Struct("<III")
_COUNT = struct.Struct("<I")
_NONE = _COUNT.pack(0)
_NO_TABLES = 3 * _NONE
_ROW = 28
"""Bytes that the columns take for each name."""


class Leaf(NamedTuple):
    """What a leaf is the digest of."""

    directory: bytes
    names: list[bytes]
    told: bytes
    """Columns: source.stretch.pack_told, with type 0 and size 0 for further names of hard links."""
    targets: dict[int, bytes]
    """By position: the texts of symlinks."""
    firsts: dict[int, bytes]
    """By position: the first paths of what is a hard link to them."""
    hashes: dict[int, bytes]

    def pack(self) -> bytes:
        """The bytes that the digest is of."""
        joined = b"\0".join(self.names)
        sizes = _HEAD.pack(len(self.directory), len(joined), len(self.names))
        few = _NO_TABLES  # mostly
        if self.targets or self.firsts or self.hashes:
            tables = (self.targets, self.firsts, self.hashes)
            few = b"".join(_table(one) if one else _NONE for one in tables)
        return b"".join((sizes, self.directory, joined, self.told, few))

    def digest(self) -> bytes:
        """32 bytes. What it is in the id."""
        return blake3(self.pack()).digest()

    @classmethod
    def unpack(cls, data: bytes) -> Leaf:
        """Raises ValueError or struct.error for what is none."""
        above, joined, count = _HEAD.unpack_from(data)
        if not 0 < count <= STRETCH:
            raise ValueError("No leaf has so many names.")
        at = _HEAD.size
        directory, at = data[at : at + above], at + above
        names, at = data[at : at + joined].split(b"\0"), at + joined
        told, at = data[at : at + _ROW * count], at + _ROW * count
        few: list[dict[int, bytes]] = [{}, {}, {}]
        if data[at:] == _NO_TABLES:  # mostly
            at = len(data)
        else:
            for number in range(3):
                few[number], at = _untable(data, at, count)
        if len(names) != count or len(told) != _ROW * count or at != len(data):
            raise ValueError("A leaf has another length than it says.")
        return cls(directory, names, told, *few)

    @property
    def starts(self) -> tuple[int, int, int, int, int]:
        """Where in ``told`` modes, sizes, mtimes, uids and gids begin."""
        return starts_of(len(self.names))


def _table(values: dict[int, bytes]) -> bytes:
    """How many there are; positions; lengths; the values end to end."""
    count = len(values)
    lengths = map(len, values.values())
    return struct.pack(f"<{2 * count + 1}I", count, *values, *lengths) + b"".join(values.values())


def _untable(data: bytes, at: int, most: int) -> tuple[dict[int, bytes], int]:
    """A table that begins there, and where it ends. Raises ValueError, struct.error."""
    (count,) = _COUNT.unpack_from(data, at)
    if count > most:
        raise ValueError("A leaf has more of something than names.")
    numbers = struct.unpack_from(f"<{2 * count}I", data, at + _COUNT.size)
    at += _COUNT.size * (2 * count + 1)
    values = {}
    for position, length in zip(numbers[:count], numbers[count:], strict=True):
        values[position] = data[at : at + length]
        at += length
    if len(values) != count or any(position >= most for position in values):
        raise ValueError("A leaf has something of no name.")
    return values, at
