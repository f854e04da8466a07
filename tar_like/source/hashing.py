"""Hash many files on several processes, in the order they are given.

    batches of files > pool of processes > source.read > digests, in order, a bounded window ahead

A large file is a batch of its own, read in steps. Order is kept, so one huge file can hold
back others once the window is full: memory is bounded, speed is not promised there.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tar_like import digest
from tar_like.codec import Omission
from tar_like.errors import TarLikeError
from tar_like.layout import Piece
from tar_like.process import large_buffer, start_pool_worker
from tar_like.source.contract import Source

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

STEP = 4 << 20
BATCH_FILES = 512
WINDOW_FILES = 32768

T = TypeVar("T")


class Hashed(NamedTuple):
    """A file's digest, or (empty) the reason why there is none (codec.REASONS)."""

    digest: bytes
    reason: int


def hash_files(
    source: Source,
    algorithm: str,
    items: Iterable[T],
    file_of: Callable[[T], Piece | None],
    *,
    jobs: int,
) -> Iterator[tuple[T, Hashed | None]]:
    """Each item in order, with the digest of its file; None where ``file_of`` gives none."""
    hasher = _BatchHasher(source, algorithm)
    batches: Iterator[_Batch] = _batches(items, file_of)
    first = list(islice(batches, 2))
    batches = chain(first, batches)
    if jobs <= 1 or len(first) < 2:
        for batch in batches:
            yield from _joined(batch, hasher(batch.files))
        return
    from concurrent.futures import BrokenExecutor

    try:
        yield from _on_processes(hasher, batches, jobs)
    except BrokenExecutor:
        raise TarLikeError(
            "A hashing process was killed, for want of memory maybe: run it again."
        ) from None


def _on_processes(
    hasher: _BatchHasher, batches: Iterator[_Batch], jobs: int
) -> Iterator[tuple[Any, Hashed | None]]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("fork"), _start_worker, (hasher, os.getpid())
    ) as pool:
        yield from _windowed(pool, batches)


class _Batch(NamedTuple):
    items: list[Any]
    positions: list[int]
    """Which of the items are files to hash."""
    files: list[Piece]


class _BatchHasher:
    """Hashes whole files of one source into a buffer that is kept."""

    def __init__(self, source: Source, algorithm: str) -> None:
        self._source = source
        self._algorithm = algorithm
        self._buffer: memoryview | None = None

    def __call__(self, files: list[Piece]) -> list[Hashed]:
        if self._buffer is None:
            self._buffer = large_buffer(STEP)
        if len(files) == 1 and files[0].size > STEP:
            return [self._hash_large(files[0], self._buffer)]
        return self._hash_small(files, self._buffer)

    def _hash_small(self, files: list[Piece], buffer: memoryview) -> list[Hashed]:
        reading = self._source.read(files, buffer)
        reasons = dict(reading.omissions)
        found = []
        position = 0
        for number, file in enumerate(files):
            if number in reasons:
                found.append(Hashed(b"", reasons[number]))
                continue
            end = position + file.size
            found.append(Hashed(digest.of(self._algorithm, buffer[position:end]), 0))
            position = end
        return found

    def _hash_large(self, file: Piece, buffer: memoryview) -> Hashed:
        hasher = digest.hasher(self._algorithm)
        for start in range(0, file.size, STEP):
            piece = file._replace(start=start, stop=min(start + STEP, file.size))
            reading = self._source.read([piece], buffer)
            if reading.omissions:
                return Hashed(b"", _first_reason(reading.omissions))
            hasher.update(buffer[: reading.length])
        return Hashed(hasher.digest(), 0)


def _first_reason(omissions: list[Omission]) -> int:
    return omissions[0].reason


_worker: _BatchHasher


def _start_worker(hasher: _BatchHasher, parent: int) -> None:
    """In a pool's process: keep the hasher, which owns the buffer and the source."""
    global _worker
    start_pool_worker(parent)
    _worker = hasher


def _work(files: list[Piece]) -> list[Hashed]:
    return _worker(files)


def _batches(items: Iterable[T], file_of: Callable[[T], Piece | None]) -> Iterator[_Batch]:
    batch = _Batch([], [], [])
    room = STEP
    for item in items:
        file = file_of(item)
        if file is not None:
            if batch.files and (file.size > room or len(batch.files) >= BATCH_FILES):
                yield batch
                batch, room = _Batch([], [], []), STEP
            batch.positions.append(len(batch.items))
            batch.files.append(file)
            room -= file.size
        batch.items.append(item)
        if len(batch.items) >= 8 * BATCH_FILES:
            yield batch
            batch, room = _Batch([], [], []), STEP
    if batch.items:
        yield batch


def _joined(batch: _Batch, hashes: list[Hashed]) -> Iterator[tuple[T, Hashed | None]]:
    found: list[Hashed | None] = [None] * len(batch.items)
    for position, hashed in zip(batch.positions, hashes, strict=True):
        found[position] = hashed
    return zip(batch.items, found, strict=True)


def _windowed(
    pool: ProcessPoolExecutor, batches: Iterator[_Batch]
) -> Iterator[tuple[T, Hashed | None]]:
    window: deque[tuple[_Batch, Future[list[Hashed]] | None]] = deque()
    pending = 0
    for batch in batches:
        window.append((batch, pool.submit(_work, batch.files) if batch.files else None))
        pending += len(batch.items)
        while window and (pending > WINDOW_FILES or _ready(window[0][1])):
            done, future = window.popleft()
            pending -= len(done.items)
            yield from _joined(done, future.result() if future else [])
    for done, future in window:
        yield from _joined(done, future.result() if future else [])


def _ready(future: Future[list[Hashed]] | None) -> bool:
    return future is None or future.done()
