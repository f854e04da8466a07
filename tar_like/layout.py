"""Entry, Extent, Piece, Block: pure arithmetic of byte ranges.

    virtual archive:  |entry 3......|e7|e8|  (page) |entry 9 ..................|
    blocks:           |0          |1          |2          |3          |4      |
    a block's pieces: the parts of extents that lie in it, in order

Ranges are half-open, sizes are bytes, times are integer nanoseconds, paths are raw bytes
relative to the root (the root itself is ``b""``).

An extent of a page (4 KiB) or more starts at a multiple of a page; a smaller one starts at a
multiple of a grain (256 bytes) and never crosses a page. Block sizes are multiples of a page, so no
page of any file is ever in two blocks, and a file smaller than a page lies in one block. A block
has no more pieces than grains, however small the files: that bounds what handling it takes. The
padding this costs is never sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

PAGE = 4096
GRAIN = 256
MAX_BLOCK_SIZE = 1 << 30
DEFAULT_BLOCK_SIZE = 8 << 20

FILE = "f"
DIRECTORY = "d"
SYMLINK = "l"
HARDLINK = "h"


class Entry(NamedTuple):
    """One name in a tree. A NamedTuple, since millions are made: a frozen dataclass costs 4x."""

    id: int
    """Position in canonical order; the root is 0."""
    path: bytes
    kind: str
    """FILE, DIRECTORY, SYMLINK or HARDLINK (a further name of entry ``link``)."""
    size: int
    """Bytes of a file; 0 for all other kinds."""
    offset: int
    """Where the file's bytes start in the virtual archive of the whole tree."""
    mode: int
    """Permission bits, setuid, setgid and sticky included; no file type."""
    mtime: int
    uid: int
    gid: int
    target: bytes
    """Text of a symlink; empty for all other kinds."""
    link: int
    """Entry id of the first name of a hard link; -1 for all other kinds."""
    hash: bytes
    """Digest of the file's bytes by the index's algorithm; empty when not known."""
    ctime: int
    """With ``ino``: how the source tells that a file is unchanged. Not part of the tree."""
    ino: int
    token: bytes
    """The source's own name of this version (an ETag, say); empty for a folder."""


class Extent(NamedTuple):
    """The bytes ``[start, stop)`` of an entry's file, placed at ``offset`` of the plan."""

    offset: int
    entry_id: int
    start: int
    stop: int


class Piece(NamedTuple):
    """The part of an extent that lies in one block, with what a reader must know of the file."""

    entry_id: int
    path: bytes
    start: int
    stop: int
    size: int
    mtime: int
    token: bytes
    ctime: int | None = None
    """With a part of a file only: tells its version where size and mtime do not. None: unknown."""


def sort_key(path: bytes) -> bytes:
    """Canonical order compares paths name by name: ``a``, ``a/b``, ``a.b``."""
    return path.replace(b"/", b"\0")


def round_up(number: int, multiple: int = PAGE) -> int:
    """The least multiple of ``multiple`` that is not less than ``number``."""
    return -(-number // multiple) * multiple


def place(cursor: int, length: int) -> int:
    """The first offset at or after ``cursor`` where ``length`` bytes may start (see above)."""
    if length < PAGE:
        start = (cursor + GRAIN - 1) // GRAIN * GRAIN
        if start % PAGE + length <= PAGE:
            return start
    return (cursor + PAGE - 1) // PAGE * PAGE


def block_count(length: int, block_size: int) -> int:
    """How many blocks a plan of ``length`` bytes (padding included) is cut into."""
    return -(-length // block_size)


def block_range(block_no: int, block_size: int, length: int) -> tuple[int, int]:
    """The plan's bytes ``[start, stop)`` that block ``block_no`` covers."""
    start = block_no * block_size
    return start, min(start + block_size, length)


def clip(extent: Extent, start: int, stop: int) -> Extent | None:
    """The part of an extent within the plan's ``[start, stop)``, if there is one."""
    first = max(extent.offset, start)
    last = min(extent.offset + extent.stop - extent.start, stop)
    if first >= last:
        return None
    shift = extent.start - extent.offset
    return Extent(first, extent.entry_id, first + shift, last + shift)


def lay(lengths: Iterator[int], cursor: int = 0) -> Iterator[int]:
    """Offsets for extents of the given lengths, laid end to end."""
    for length in lengths:
        offset = place(cursor, length)
        yield offset
        cursor = offset + length


def runs(numbers: Iterator[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as half-open runs.

    >>> list(runs(iter([1, 2, 3, 7])))
    [(1, 4), (7, 8)]
    """
    start = stop = -1
    for number in numbers:
        if number != stop:
            if start != stop:
                yield start, stop
            start = number
        stop = number + 1
    if start != stop:
        yield start, stop
