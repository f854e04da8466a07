"""Lanes: all numbers of a packed column at once, as one number of theirs in a row.

    column, little-endian > int.from_bytes > one calculation for all of them

What is mostly the same for all is found so without a step in Python for each.
"""

from __future__ import annotations

from collections.abc import Iterator

_TOP = bytes(7) + b"\x80"


def tops(count: int) -> int:
    """So many lanes of 64 bits, of each of which only the topmost bit is set."""
    return int.from_bytes(_TOP * count, "little")


def any_less(one: int, other: int, top: int) -> bool:
    """Whether any lane is less than the other's. None of both has a bit of ``top`` (see tops)."""
    return (one + top - other) & top != top


def differing(one: bytes, other: bytes, bits: int) -> Iterator[int]:
    """Which numbers, of so many bits each, differ in two columns. Few do, mostly."""
    rest = int.from_bytes(one, "little") ^ int.from_bytes(other, "little")
    at = 0
    while rest:
        skip = ((rest & -rest).bit_length() - 1) // bits
        at += skip
        yield at
        rest >>= bits * (skip + 1)
        at += 1
