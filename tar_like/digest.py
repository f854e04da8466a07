"""Digests by name, and the digest of a block.

A block's digest is BLAKE3 over the BLAKE3 digests of its pieces, in order; a piece that is
omitted counts as 31 zero bytes and the reason. So each byte is hashed once on either side, and
the digest of a file that lies in one block falls out on the way.

Sources: BLAKE3 spec 2020-11; xxh3 of xxHash 0.8; sha256 and md5 of hashlib.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Protocol

from blake3 import blake3
from xxhash import xxh3_128

from tar_like.errors import UsageError

DEFAULT = "blake3"

Buffer = bytes | bytearray | memoryview


class Hasher(Protocol):
    """What hashlib's objects are."""

    def update(self, data: Buffer, /) -> object: ...

    def digest(self) -> bytes: ...


def _md5() -> Hasher:
    return hashlib.md5(usedforsecurity=False)


HASHERS: dict[str, Callable[[], Hasher]] = {
    "blake3": blake3,
    "sha256": hashlib.sha256,
    "md5": _md5,
    "xxh3": xxh3_128,
}
SIZES = {"blake3": 32, "sha256": 32, "md5": 16, "xxh3": 16}
NAMES = tuple(HASHERS)


def hasher(name: str) -> Hasher:
    """A new hasher. Raises UsageError for a name that is none."""
    try:
        return HASHERS[name]()
    except KeyError:
        raise UsageError(f"{name!r} is no digest: use one of {', '.join(NAMES)}.") from None


def checked(name: str) -> str:
    """A digest's name. Raises UsageError for one that is none."""
    hasher(name)
    return name


def of(name: str, data: Buffer) -> bytes:
    """The digest of some bytes by the named algorithm."""
    if name == "blake3":
        return blake3(data).digest()
    h = hasher(name)
    h.update(data)
    return h.digest()


def of_zeros(name: str, count: int) -> bytes:
    """The digest of a file that is one hole of ``count`` bytes."""
    h = hasher(name)
    add_zeros(h, count)
    return h.digest()


def add_zeros(h: Hasher, count: int) -> None:
    """Feed a hole of ``count`` bytes to a hasher."""
    zeros = memoryview(bytes(min(count, 1 << 20)))
    while count > 0:
        h.update(zeros[:count])
        count -= len(zeros)


def of_piece(data: Buffer) -> bytes:
    """The 32-byte digest of one piece."""
    return blake3(data).digest()


def piece_hasher() -> Hasher:
    """A hasher that comes to ``of_piece``."""
    return blake3()


def of_omission(reason: int) -> bytes:
    """What stands for the digest of a piece that is omitted for this reason (1 to 255)."""
    return bytes(31) + bytes([reason])


def of_block(pieces: Iterable[bytes]) -> bytes:
    """The 32-byte digest of a block, from its pieces' digests."""
    return blake3(b"".join(pieces)).digest()
