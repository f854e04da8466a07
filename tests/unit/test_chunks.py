"""Chunks: cut by content, named by digest, and their lists checked."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tar_like import chunks, digest
from tar_like.chunks import RECORD, WINDOW, Measured, average, fits, measure, unpack

AVERAGE = 16 << 10


def reader(data: bytes) -> Callable[[int, int], memoryview]:
    return lambda start, stop: memoryview(data)[start:stop]


def measured(data: bytes) -> Measured:
    return measure(reader(data), [(0, len(data))] if data else [], len(data), AVERAGE)


def names(data: bytes) -> list[bytes]:
    return [chunk.digest for chunk in unpack(measured(data).chunks, [(0, len(data))])]


def test_where_a_window_ends_is_no_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(1).randbytes(WINDOW + 3_000_000)
    whole = measured(data)
    monkeypatch.setattr(chunks, "WINDOW", 1 << 20)
    assert measured(data) == whole
    assert whole.digest == digest.of("blake3", data)


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
    rows = list(unpack(found.chunks, ranges))
    assert (rows[0].start, rows[-1].stop) == ranges[0]


@given(st.lists(st.integers(0, 200_000), max_size=6), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_a_list_covers_its_ranges_and_fits(lengths: list[int], seed: int) -> None:
    ranges, position = [], 0
    for length in lengths:
        if length:
            ranges.append((position, position + length))
        position += length + 4096
    found = measure(reader(random.Random(seed).randbytes(position)), ranges, position, AVERAGE)
    assert fits(found.chunks, ranges, AVERAGE)
    covered = list(unpack(found.chunks, ranges))
    assert sum(one.stop - one.start for one in covered) == sum(lengths)
    assert len(covered) <= chunks.most_records(position, len(ranges), AVERAGE)
    if covered:
        assert not fits(found.chunks[:-RECORD], ranges, AVERAGE)
        assert not fits(found.chunks[:-1], ranges, AVERAGE)
        assert not fits(found.chunks * 2, ranges, AVERAGE)
        assert not fits(b"\0" * 4 + found.chunks[4:], ranges, AVERAGE)


def test_the_average_grows_with_the_file_so_that_lists_stay_short() -> None:
    assert average(1 << 20) == average(1 << 30) == 16 << 10
    assert average(1 << 40) == 512 << 10
    assert average(1 << 60) == 1 << 20
    assert chunks.longest(average(1 << 60)) < WINDOW
