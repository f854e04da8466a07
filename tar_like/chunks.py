"""Chunks: pieces of a file that are cut where its content says so, each named by a digest.

    ranges that hold data > windows > FastCDC > one record for each chunk: length, digest

Bytes that are put in or taken out move the chunks behind them and change none. A chunk's digest
says where to look; it proves nothing: whoever uses a chunk has the file's own digest to compare in
the end.

Where the list of an older version is at hand, the new version is read along it: a chunk that is
what came next in the old version has only to be compared, and is not cut. So has the one that
follows on bytes which others have taken the place of. The record then is one reference for all of
such a run; ``expand`` has it as it would have been cut.

Source of the cuts: FastCDC as in Xia et al., "The Design of Fast Content-Defined Chunking for
Data Deduplication Based Storage Systems", 2020, as fastcdc-rs's v2020 cuts them.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, Protocol

from xxhash import xxh3_64_digest, xxh3_128_digest

from tar_like import digest
from tar_like.beside import Lagging

SMALLEST_FILE = 1 << 20
"""Files below this are sent whole: their chunks would save little."""
LARGEST_FILE = 512 << 30
"""Files above this are sent whole, too: their lists would be too long."""
WINDOW = 8 << 20
"""The most bytes that are read and cut at a time: so many where reading has to be waited for."""
_NEAR_WINDOW = 2 << 20
_LEAST, _MOST = 16 << 10, 1 << 20
_RECORD = struct.Struct("<I12s")
_NAMES = struct.Struct("<4x12s")
RECORD = _RECORD.size
_NAME = 12
_REFERENCE = struct.Struct("<IIII")
"""No length; the first chunk of a run, by its number in the older version's list; how many; 0."""
_STRETCH = 128
"""Chunks that are compared in a row, about what a window holds."""
_COUNT, _RANGE = struct.Struct("<Q"), struct.Struct("<QQ")
_SEAL = 8

Read = Callable[[int, int], memoryview]
"""Given a range of a file, no longer than a window: its bytes, valid until the next call; for
``measure`` until the one after that."""
Ranges = Iterable[tuple[int, int]]


class ChunkList:
    """The chunks of a file by number: the ranges that hold data, and a record for each chunk."""

    def __init__(self, ranges: Ranges, records: bytes) -> None:
        self.ranges = tuple(ranges)
        self.records = records

    def __len__(self) -> int:
        return len(self.records) // RECORD

    @cached_property
    def lengths(self) -> array[int]:
        """Of each chunk."""
        words = array("I", self.records)
        if sys.byteorder == "big":
            words.byteswap()
        return words[:: RECORD // 4]

    @cached_property
    def _before(self) -> list[int]:
        """How many bytes all chunks before each have, and at last how many all have."""
        return list(accumulate(self.lengths, initial=0))

    @cached_property
    def _firsts(self) -> list[int]:
        """The first chunk of each range."""
        found, position = [], 0
        for start, stop in self.ranges:
            found.append(bisect_left(self._before, position))
            position += stop - start
        return found

    def start(self, number: int) -> int:
        """Where a chunk begins in the file."""
        before = self._before
        if len(self.ranges) == 1:
            return self.ranges[0][0] + before[number]
        at = bisect_right(self._firsts, number) - 1
        return self.ranges[at][0] + before[number] - before[self._firsts[at]]

    def size(self, first: int, stop: int) -> int:
        """The bytes of chunks in a row."""
        return self._before[stop] - self._before[first]

    @cached_property
    def names(self) -> list[bytes]:
        """The digest of each chunk."""
        return [name for (name,) in _NAMES.iter_unpack(self.records)]

    @cached_property
    def numbers(self) -> dict[bytes, int]:
        """The chunks by digest; of several that are the same, one."""
        return dict(zip(self.names, range(len(self)), strict=True))

    def fits(self, average_size: int) -> bool:
        """Whether the records cover just the ranges, with no chunk longer than may be."""
        if len(self.records) % RECORD:
            return False
        if not self.records:
            return not self.ranges
        if min(self.lengths) < 1 or max(self.lengths) > longest(average_size):
            return False
        if len(self.ranges) == 1:
            ((start, stop),) = self.ranges
            return sum(self.lengths) == stop - start
        before = self._before
        position = last = 0
        for start, stop in self.ranges:
            position += stop - start
            last = bisect_left(before, position)
            if last == len(before) or before[last] != position:
                return False
        return last == len(self)

    def to_bytes(self) -> bytes:
        """count:u64 (start:u64 stop:u64)... records, and 8 bytes of XXH3-64 over that."""
        head = _COUNT.pack(len(self.ranges)) + b"".join(_RANGE.pack(*one) for one in self.ranges)
        return head + self.records + xxh3_64_digest(head + self.records)

    @staticmethod
    def sealed(data: bytes) -> bytes:
        """The same bytes, if they are what ``to_bytes`` gave once. Raises ValueError."""
        body = memoryview(data)[:-_SEAL]
        if len(body) < _COUNT.size or xxh3_64_digest(body) != data[-_SEAL:]:
            raise ValueError("The list of chunks is damaged.")
        return data

    @classmethod
    def from_bytes(cls, data: bytes, average_size: int) -> ChunkList:
        """Raises ValueError for what is no such list, of chunks of that average size."""
        body = cls.sealed(data)[:-_SEAL]
        first = _COUNT.size + _RANGE.size * _COUNT.unpack_from(body)[0]
        found = cls(
            [(start, stop) for start, stop in _RANGE.iter_unpack(body[_COUNT.size : first])],
            body[first:],
        )
        edges = [edge for one in found.ranges for edge in one]
        if first > len(body) or edges != sorted(set(edges)) or not found.fits(average_size):
            raise ValueError("The list of chunks does not fit its file.")
        return found


class Measured(NamedTuple):
    """A file's digest, and its chunks as records, or references to those of an older version."""

    digest: bytes
    chunks: bytes


class Span(NamedTuple):
    """Chunks in a row that two files share."""

    new: int
    """The number of the first one in the new file."""
    old: int
    many: int


class Move(NamedTuple):
    """Bytes of an old file that are the new one's."""

    start: int
    """In the new file."""
    source: int
    length: int


def average(size: int) -> int:
    """The chunk size to aim at: 16 KiB, and above 1 GiB as much as keeps the list short."""
    found = _LEAST
    while found < _MOST and 4 * found * found < size:
        found *= 2
    return found


def longest(average_size: int) -> int:
    """The length that no chunk exceeds."""
    return 4 * average_size


def near_window(average_size: int) -> int:
    """Bytes to read at a time from here: they are in the cache still when they are hashed."""
    return max(_NEAR_WINDOW, 2 * longest(average_size))


def most_records(size: int, ranges: int, average_size: int) -> int:
    """A bound for the records of a file of this size, in so many ranges."""
    return size // (average_size // 4) + ranges + 1


def measure(
    read: Read,
    ranges: Ranges,
    size: int,
    average_size: int,
    algorithm: str = digest.DEFAULT,
    known: ChunkList | None = None,
    window: int = WINDOW,
) -> Measured:
    """Read a file once: its digest, holes between the ranges as zeros, and its chunks.

    ``known`` are those of an older version, in chunks of the same average; ``window`` is how much
    to read at a time. Raises what ``read`` raises.
    """
    cutter: _Cutter = _Free(average_size) if known is None else _Led(average_size, known)
    position = 0
    with Lagging(digest.hasher(algorithm)) as hasher:
        for start, stop in ranges:
            digest.add_zeros(hasher, start - position)
            for view in _windows(read, start, stop, cutter, window):
                hasher.update(view)
            position = stop
        digest.add_zeros(hasher, size - position)
        return Measured(hasher.digest(), b"".join(cutter.records()))


def cut(read: Read, ranges: Ranges, average_size: int) -> bytes:
    """The records of the chunks of a file that lies here. Raises what ``read`` raises."""
    cutter = _Free(average_size)
    for start, stop in ranges:
        for _ in _windows(read, start, stop, cutter, near_window(average_size)):
            pass
    return b"".join(cutter.records())


def _windows(read: Read, start: int, stop: int, cutter: _Cutter, size: int) -> Iterator[memoryview]:
    """A range that holds data, cut; as it is read."""
    while start < stop:
        end = min(start + size, stop)
        window = read(start, end)
        used = cutter.cut(window, last=end == stop)
        yield window[:used]
        start += used


class _Cutter(Protocol):
    def cut(self, window: memoryview, *, last: bool) -> int:
        """Cut bytes that follow on the last ones; returns how many were cut.

        Unless they are the last ones of a range: where the window ends is no cut, so what is
        left over comes again.
        """

    def records(self) -> list[bytes]:
        """Of all that was cut."""


class _Free:
    """Cuts where the content says so."""

    def __init__(self, average_size: int) -> None:
        from pyfastcdc import FastCDC

        self._cutter = FastCDC(average_size)
        self._records: list[bytes] = []

    def cut(self, window: memoryview, *, last: bool) -> int:
        lengths = [chunk.length for chunk in self._cutter.cut_buf(window)]
        if not last:
            lengths.pop()
        used = 0
        for length in lengths:
            name = of_chunk(window[used : used + length])
            self._records.append(_RECORD.pack(length, name))
            used += length
        return used

    def records(self) -> list[bytes]:
        return self._records


class _Led:
    """Compares with what came next in an older version; cuts only where that is not there."""

    def __init__(self, average_size: int, known: ChunkList) -> None:
        from pyfastcdc import FastCDC

        self._cutter = FastCDC(average_size)
        self._longest = longest(average_size)
        self._known = known
        self._records: list[bytes] = []
        self._first = self._next = 0
        """The run of known chunks that was found last; the next one is looked for first."""
        self._into = 0
        """Bytes of that one that have passed: others are in their place."""

    def cut(self, window: memoryview, *, last: bool) -> int:
        size, used = len(window), 0
        while used < size:
            used = self._follow(window, used)
            if size - used < self._longest and not last:
                break
            if used < size:
                used += self._cut(window[used : used + self._longest])
        return used

    def _follow(self, window: memoryview, used: int) -> int:
        """Compare with chunk after chunk; returns where the first one is that is not there."""
        lengths, names, size = self._known.lengths, self._known.names, len(window)
        while not self._into:
            number = self._next
            row = zip(
                lengths[number : number + _STRETCH], names[number : number + _STRETCH], strict=True
            )
            for length, name in row:
                stop = used + length
                if stop > size or xxh3_128_digest(window[used:stop])[:_NAME] != name:
                    self._next = number
                    return used
                used, number = stop, number + 1
            if self._next == number:
                break
            self._next = number
        return used

    def _cut(self, view: memoryview) -> int:
        """Cut one chunk, and see whether it is known."""
        self._close()
        length: int = next(self._cutter.cut_buf(view)).length
        name = of_chunk(view[:length])
        number = self._known.numbers.get(name)
        if number is None or self._known.lengths[number] != length:  # or a list that is wrong
            self._records.append(_RECORD.pack(length, name))
            self._pass(length)
        else:
            self._first, self._next, self._into = number, number + 1, 0
        return length

    def _pass(self, length: int) -> None:
        """Go by as many bytes of the older version: what follows on them may follow here, too."""
        lengths, number, into = self._known.lengths, self._next, self._into + length
        while number < len(lengths) and into >= lengths[number]:
            into -= lengths[number]
            number += 1
        self._first = self._next = number
        self._into = into

    def _close(self) -> None:
        if self._first < self._next:
            self._records.append(_REFERENCE.pack(0, self._first, self._next - self._first, 0))
        self._first = self._next

    def records(self) -> list[bytes]:
        self._close()
        return self._records


def of_chunk(data: memoryview) -> bytes:
    """The digest that a record has of its chunk."""
    return xxh3_128_digest(data)[:_NAME]


def expand(records: bytes, known: ChunkList | None, most: int) -> tuple[bytes, list[Span]]:
    """Records without references, and the runs of chunks that these stood for.

    Raises ValueError for references to what is not known, and for more than ``most`` records.
    """
    if len(records) % RECORD:
        raise ValueError("The records are cut short.")
    old = b"" if known is None else known.records
    found: list[bytes] = []
    spans: list[Span] = []
    total = kept = 0
    for at in range(0, len(records), RECORD):
        length, first, count, _ = _REFERENCE.unpack_from(records, at)
        if length:
            total += 1
            continue
        if not count or RECORD * (first + count) > len(old) or total + count > most:
            raise ValueError("A reference is to what is not known.")
        found += (records[kept:at], old[RECORD * first : RECORD * (first + count)])
        spans.append(Span(total, first, count))
        total, kept = total + count, at + RECORD
    found.append(records[kept:])
    if total > most:
        raise ValueError("There are more chunks than can be.")
    return b"".join(found), spans


def shared(new: ChunkList, old: ChunkList) -> list[Span]:
    """The runs of chunks of one file that another has, too."""
    spans: list[Span] = []
    numbers = old.numbers
    for at, name in enumerate(new.names):
        number = numbers.get(name)
        if number is None:
            continue
        if spans:
            first, source, count = spans[-1]
            if (first + count, source + count) == (at, number):
                spans[-1] = Span(first, source, count + 1)
                continue
        spans.append(Span(at, number, 1))
    return spans


def moves(spans: Iterable[Span], new: ChunkList, old: ChunkList) -> Iterator[Move]:
    """The ranges of bytes that runs of chunks come to; holes divide them."""
    if len(new.ranges) == len(old.ranges) == 1:
        for first, source, many in spans:
            yield Move(new.start(first), old.start(source), new.size(first, first + many))
        return
    for span in spans:
        start, source = new.start(span.new), old.start(span.old)
        last = span.many - 1
        before = new.size(span.new, span.new + last)
        if (new.start(span.new + last), old.start(span.old + last)) == (
            start + before,
            source + before,
        ):
            yield Move(start, source, before + new.lengths[span.new + last])
        else:
            half = span.many // 2
            rest = Span(span.new + half, span.old + half, span.many - half)
            yield from moves((span._replace(many=half), rest), new, old)
