"""Chunks: pieces of a file that are cut where its content says so, each named by a digest.

    ranges that hold data > windows > FastCDC > one record for each chunk: length, digest

Bytes that are put in or taken out move the chunks behind them and change none. The list of a
file's chunks is its records end to end. A chunk's digest says where to look; it proves nothing:
whoever uses a chunk has the file's own digest to compare in the end.

Source of the cuts: FastCDC as in Xia et al., "The Design of Fast Content-Defined Chunking for
Data Deduplication Based Storage Systems", 2020, as fastcdc-rs's v2020 cuts them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from xxhash import xxh3_128_digest

from tar_like import digest

SMALLEST_FILE = 1 << 20
"""Files below this are sent whole: their chunks would save little."""
LARGEST_FILE = 512 << 30
"""Files above this are sent whole, too: their lists would be too long."""
WINDOW = 8 << 20
"""Bytes that are read and cut at a time."""
_LEAST, _MOST = 16 << 10, 1 << 20
_RECORD = struct.Struct("<I12s")
RECORD = _RECORD.size

Read = Callable[[int, int], memoryview]
"""Given a range of a file, no longer than a window: its bytes, valid until the next call."""
Ranges = Iterable[tuple[int, int]]


class Chunk(NamedTuple):
    """One chunk, where it lies in its file."""

    start: int
    stop: int
    digest: bytes


class Measured(NamedTuple):
    """A file's digest, and its chunks as records."""

    digest: bytes
    chunks: bytes


def average(size: int) -> int:
    """The chunk size to aim at: 16 KiB, and above 1 GiB as much as keeps the list short."""
    found = _LEAST
    while found < _MOST and 4 * found * found < size:
        found *= 2
    return found


def longest(average_size: int) -> int:
    """The length that no chunk exceeds."""
    return 4 * average_size


def most_records(size: int, ranges: int, average_size: int) -> int:
    """A bound for the records of a file of this size, in so many ranges."""
    return size // (average_size // 4) + ranges + 1


def measure(
    read: Read, ranges: Ranges, size: int, average_size: int, algorithm: str = digest.DEFAULT
) -> Measured:
    """Read a file once: its digest, holes between the ranges as zeros, and its chunks.

    Raises what ``read`` raises.
    """
    from pyfastcdc import FastCDC

    cutter = FastCDC(average_size)
    hasher = digest.hasher(algorithm)
    records: list[bytes] = []
    position = 0
    for start, stop in ranges:
        digest.add_zeros(hasher, start - position)
        position = start
        while position < stop:
            end = min(position + WINDOW, stop)
            window = read(position, end)
            lengths = [chunk.length for chunk in cutter.cut_buf(window)]
            if end < stop:
                lengths.pop()  # where the window ends is no cut: this one is read again
            used = 0
            for length in lengths:
                record = xxh3_128_digest(window[used : used + length])[:12]
                records.append(_RECORD.pack(length, record))
                used += length
            hasher.update(window[:used])
            position += used
    digest.add_zeros(hasher, size - position)
    return Measured(hasher.digest(), b"".join(records))


def of_chunk(data: memoryview) -> bytes:
    """The digest that a record has of its chunk."""
    return xxh3_128_digest(data)[:12]


def unpack(records: bytes, ranges: Ranges) -> Iterator[Chunk]:
    """The chunks of a file, from its records and the ranges that hold its data."""
    rows = _RECORD.iter_unpack(records)
    for start, stop in ranges:
        while start < stop:
            length, name = next(rows)
            yield Chunk(start, start + length, name)
            start += length


def fits(records: bytes, ranges: Ranges, average_size: int) -> bool:
    """Whether records that somebody else made cover just these ranges."""
    if len(records) % RECORD:
        return False
    lengths = [row[0] for row in _RECORD.iter_unpack(records)]
    if any(not 0 < length <= longest(average_size) for length in lengths):
        return False
    rows = iter(lengths)
    for start, stop in ranges:
        while start < stop:
            start += next(rows, stop - start + 1)  # too far, where there are none left
        if start != stop:
            return False
    return next(rows, None) is None
