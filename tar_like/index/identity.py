"""The index's id: BLAKE3 over its canonical rows.

What tells one tree from another is in: kind, path, size, mode, times, owners, targets, links,
hashes, extended attributes; and what was seen but not taken up, since a tree that was read in
part is not the tree that was read whole. What depends on where the tree lies (inode, ctime, holes,
ETags) is not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from blake3 import blake3

_ROW = struct.Struct("<cIqqIIqIII")
_XATTR = struct.Struct("<qII")
_SKIPPED = -1
"""In the place of an entry's id."""


class Identity:
    """Collects the rows of an index, entries in canonical order, then extended attributes."""

    def __init__(self, algorithm: str) -> None:
        self._hasher = blake3(b"tar-like index 1\0" + algorithm.encode() + b"\0")

    def add(self, entries: Iterable[tuple[Any, ...]]) -> None:
        """Take up the next entries, or their rows. Raises struct.error for too large numbers."""
        pack = _ROW.pack
        parts = []
        for _, path, kind, size, _, mode, mtime, uid, gid, target, link, digest, _, _, _ in entries:
            parts.append(
                pack(
                    kind.encode(), mode, size, mtime, uid, gid, link,
                    len(path), len(target), len(digest),
                )
            )  # fmt: skip
            parts += (path, target, digest)
        self._hasher.update(b"".join(parts))

    def add_xattr(self, entry_id: int, name: bytes, value: bytes) -> None:
        """Take up an extended attribute, in order of entry id and name."""
        self._hasher.update(_XATTR.pack(entry_id, len(name), len(value)) + name + value)

    def add_skipped(self, path: bytes, kind: str) -> None:
        """Take up a name that is not in the tree, after the extended attributes."""
        name = kind.encode()
        self._hasher.update(_XATTR.pack(_SKIPPED, len(path), len(name)) + path + name)

    def id(self) -> str:
        """The id: 64 hexadecimal digits."""
        return self._hasher.hexdigest()
