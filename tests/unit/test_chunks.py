"""Chunks: cut by content, named by digest, and their lists checked."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tar_like import chunks, digest
from tar_like.chunks import (
    RECORD,
    WINDOW,
    ChunkList,
    Measured,
    average,
    cut,
    expand,
    measure,
    moves,
    shared,
)

AVERAGE = 16 << 10


def reader(data: bytes) -> Callable[[int, int], memoryview]:
    return lambda start, stop: memoryview(data)[start:stop]


def measured(data: bytes) -> Measured:
    return measure(reader(data), [(0, len(data))] if data else [], len(data), AVERAGE)


def listed(data: bytes, ranges: list[tuple[int, int]]) -> ChunkList:
    return ChunkList(ranges, measure(reader(data), ranges, len(data), AVERAGE).chunks)


@pytest.mark.parametrize("size", [0, 1, WINDOW - 1, 3 * WINDOW + 5])
def test_a_file_is_cut_the_same_with_and_without_its_digest(size: int, dice: random.Random) -> None:
    data = dice.randbytes(size)
    ranges = [(0, size)] if size else []
    assert cut(reader(data), ranges, AVERAGE) == measured(data).chunks


def starts(found: ChunkList) -> list[int]:
    return [found.start(number) for number in range(len(found))]


def names(data: bytes) -> list[bytes]:
    return listed(data, [(0, len(data))]).names


@pytest.mark.parametrize("window", [1 << 20, chunks.near_window(AVERAGE)])
def test_where_a_window_ends_is_no_cut(window: int) -> None:
    data = random.Random(1).randbytes(WINDOW + 3_000_000)
    whole = measured(data)
    steps = set()

    def read(start: int, stop: int) -> memoryview:
        steps.add(stop - start)
        return memoryview(data)[start:stop]

    ranges = [(0, len(data))]
    assert measure(read, ranges, len(data), AVERAGE, window=window) == whole
    assert max(steps) == window
    assert whole.digest == digest.of("blake3", data)


def test_a_window_holds_several_chunks_however_long_they_are() -> None:
    for bits in range(20, 60):
        size = average(1 << bits)
        assert 2 * chunks.longest(size) <= chunks.near_window(size) <= WINDOW


def test_bytes_in_the_place_of_others_are_cut_and_what_follows_is_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = random.Random(7).randbytes(8 << 20)
    known = listed(old, [(0, len(old))])
    new = bytearray(old)
    middles = [
        start + length // 2 for start, length in zip(starts(known), known.lengths, strict=True)
    ]
    for at in middles[10:-10:20]:
        new[at] ^= 1
    cuts = []
    cut_one = chunks._Led._cut

    def counted(self: chunks._Led, view: memoryview) -> int:
        cuts.append(1)
        return cut_one(self, view)

    monkeypatch.setattr(chunks._Led, "_cut", counted)
    found = measure(reader(bytes(new)), [(0, len(new))], len(new), AVERAGE, known=known)
    changed = len(middles[10:-10:20])
    assert changed > 15
    assert len(cuts) <= 1.3 * changed
    assert len(found.chunks) <= 2.6 * changed * RECORD


def test_bytes_put_in_change_few_chunks() -> None:
    data = random.Random(2).randbytes(4 << 20)
    before = names(data)
    after = names(data[:2_000_000] + b"inserted" + data[2_000_000:])
    assert len(set(after) - set(before)) <= 3
    after = names(b"first" + data)
    assert len(set(after) - set(before)) <= 3


def test_holes_are_zeros_in_the_digest_and_have_no_chunks() -> None:
    data = bytes(1 << 20) + random.Random(3).randbytes(1 << 20) + bytes(1 << 20)
    ranges = [(1 << 20, 2 << 20)]
    found = measure(reader(data), ranges, len(data), AVERAGE)
    assert found.digest == digest.of("blake3", data)
    rows = ChunkList(ranges, found.chunks)
    assert (rows.start(0), rows.start(len(rows) - 1) + rows.lengths[-1]) == ranges[0]


@given(st.lists(st.integers(0, 200_000), max_size=6), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_a_list_covers_its_ranges_and_fits(lengths: list[int], seed: int) -> None:
    ranges, position = [], 0
    for length in lengths:
        if length:
            ranges.append((position, position + length))
        position += length + 4096
    found = measure(reader(random.Random(seed).randbytes(position)), ranges, position, AVERAGE)
    covered = ChunkList(ranges, found.chunks)
    assert covered.fits(AVERAGE)
    assert sum(covered.lengths) == sum(lengths)
    assert len(covered) <= chunks.most_records(position, len(ranges), AVERAGE)
    again = ChunkList.from_bytes(covered.to_bytes(), AVERAGE)
    assert starts(again) == starts(covered)
    assert sorted(starts(again)) == starts(again)
    if lengths and sum(lengths):
        for wrong in (
            found.chunks[:-RECORD], found.chunks[:-1], found.chunks * 2,
            b"\0" * 4 + found.chunks[4:], b"",
        ):  # fmt: skip
            assert not ChunkList(ranges, wrong).fits(AVERAGE)


@given(st.integers(0, 9999), st.integers(0, 5), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_file_that_is_read_along_an_older_version_has_the_chunks_that_it_has_anyhow(
    seed: int, edits: int, sparse: bool
) -> None:
    dice = random.Random(seed)
    old = dice.randbytes(2 << 20)
    new = bytearray(old)
    for _ in range(edits):
        at, length = dice.randrange(len(new)), dice.randrange(1, 200_000)
        match dice.randrange(4):
            case 0:
                new[at : at + length] = dice.randbytes(length)[: len(new) - at]
            case 1:
                new[at:at] = dice.randbytes(length)
            case 2:
                del new[at : at + length]
            case 3:
                new[at:at] = new[:length]
    data = bytes(new)
    half = len(data) // 2 // 4096 * 4096
    ranges = [(0, half), (half + 4096, len(data))] if sparse else [(0, len(data))]
    known = listed(old, [(0, 1 << 20), (1 << 20, 2 << 20)])
    found = measure(reader(data), ranges, len(data), AVERAGE, known=known)
    assert found.digest == measure(reader(data), ranges, len(data), AVERAGE).digest
    records, spans = expand(found.chunks, known, chunks.most_records(len(data), 2, AVERAGE))
    along = ChunkList(ranges, records)
    assert along.fits(AVERAGE)
    assert along.names == [
        chunks.of_chunk(memoryview(data)[start : start + length])
        for start, length in zip(starts(along), along.lengths, strict=True)
    ]
    for start, source, length in moves(spans, along, known):
        assert data[start : start + length] == old[source : source + length]
    moved = sum(move.length for move in moves(spans, along, known))
    also = sum(move.length for move in moves(shared(along, known), along, known))
    assert moved == also
    if not edits and not sparse:
        assert len(found.chunks) == RECORD


def test_references_are_bounded() -> None:
    known = listed(random.Random(5).randbytes(1 << 20), [(0, 1 << 20)])
    count = len(known)

    def reference(*numbers: int) -> bytes:
        return b"".join(number.to_bytes(4, "little") for number in (0, *numbers, 0))

    every = reference(0, count)
    assert expand(every, known, count) == (known.records, [(0, 0, count)])
    for records, most in (
        (every + every, count), (reference(1, count), 2 * count), (reference(0, 0), count),
        (every[:-1], count), (known.records + every, count), (known.records, count - 1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"\.$"):
            expand(records, known, most)
    with pytest.raises(ValueError, match=r"\.$"):
        expand(every, None, count)


def test_a_damaged_list_is_none() -> None:
    data = listed(random.Random(6).randbytes(1 << 20), [(0, 1 << 20)]).to_bytes()
    assert ChunkList.from_bytes(data, AVERAGE).to_bytes() == data
    for wrong in (b"", data[:-1], data[1:], data[:40] + b"?" + data[41:]):
        with pytest.raises(ValueError, match="damaged"):
            ChunkList.from_bytes(wrong, AVERAGE)
    with pytest.raises(ValueError, match="fit"):
        ChunkList.from_bytes(data, AVERAGE // 8)
    for ranges in ([(0, 1 << 20), (0, 1 << 20)], [(1 << 20, 0)], [(0, 1 << 19)]):
        with pytest.raises(ValueError, match="fit"):
            ChunkList.from_bytes(ChunkList(ranges, data[24:-8]).to_bytes(), AVERAGE)


def test_the_average_grows_with_the_file_so_that_lists_stay_short() -> None:
    assert average(1 << 20) == average(1 << 30) == 16 << 10
    assert average(1 << 40) == 512 << 10
    assert average(1 << 60) == 1 << 20
    assert chunks.longest(average(1 << 60)) < WINDOW
