"""Hashing on a thread beside the reading."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tar_like import beside, digest
from tar_like.beside import STEP, Beside, Lagging

SIZE = 9 * STEP + 5


@pytest.fixture
def data(dice: random.Random) -> bytes:
    return dice.randbytes(SIZE)


@pytest.fixture
def fd(work: Path, data: bytes) -> Iterator[int]:
    (work / "file").write_bytes(data)
    found = os.open(work / "file", os.O_RDONLY)
    yield found
    os.close(found)


@pytest.mark.parametrize("algorithm", digest.NAMES)
def test_the_digest_is_that_of_the_bytes(fd: int, data: bytes, algorithm: str) -> None:
    rooms = beside.rooms()
    for _ in range(3):
        with Beside(algorithm, rooms) as hasher:
            read = [bytes(view) for view in hasher.read(fd, 0, SIZE - 100)]
            digest.add_zeros(hasher, 30 * STEP)
            read += map(bytes, hasher.read(fd, SIZE - 100, SIZE))
            found = hasher.digest()
        assert b"".join(read) == data
        assert found == digest.of(algorithm, data[:-100] + bytes(30 * STEP) + data[-100:])


def test_what_cannot_be_read_is_an_error_and_leaves_no_thread(fd: int, data: bytes) -> None:
    before = set(threading.enumerate())
    rooms = beside.rooms()
    for _ in range(2 * len(rooms)):
        with pytest.raises(OSError, match="shorter"), Beside("blake3", rooms) as hasher:
            list(hasher.read(fd, SIZE - STEP, SIZE + 1))
    with Beside("blake3", rooms) as hasher:
        list(hasher.read(fd, 0, SIZE))
        assert hasher.digest() == digest.of("blake3", data)
    assert set(threading.enumerate()) <= before


def test_what_is_hashed_may_change_at_the_update_after_the_next(data: bytes) -> None:
    buffers = [bytearray(STEP) for _ in range(2)]
    with Lagging(digest.hasher("blake3")) as hasher:
        for number, start in enumerate(range(0, SIZE, STEP)):
            part = data[start : start + STEP]
            buffer = buffers[number % 2]
            buffer[: len(part)] = part
            hasher.update(memoryview(buffer)[: len(part)])
        assert hasher.digest() == digest.of("blake3", data)


def test_an_error_beside_is_an_error_here() -> None:
    class Broken:
        def update(self, _: object, /) -> None:
            raise MemoryError

        def digest(self) -> bytes:
            return b""

    with Lagging(Broken()) as hasher:
        hasher.update(b"1")
        with pytest.raises(MemoryError):
            hasher.update(b"2")
        hasher.update(b"3")
        with pytest.raises(MemoryError):
            hasher.digest()
