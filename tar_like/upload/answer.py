"""Answering a receiver's questions: digests of files, and the chunks of large ones.

    questions.db > read the files, on several processes > answers.db

What cannot be read is left open: the receiver has it sent then, which says what is wrong.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cached_property

from tar_like import chunks
from tar_like.database import MAX_VALUE
from tar_like.errors import Interrupted, TarLikeError
from tar_like.index import Index
from tar_like.layout import FILE, Entry, Piece
from tar_like.plan.questions import Answer, Question, Questions, write_answers
from tar_like.plan.segments import Segments
from tar_like.process import large_buffer, start_pool_worker
from tar_like.source import ReadsAhead, Source
from tar_like.source.hashing import Hashed, hash_files
from tar_like.upload.samples import Samples


class Answering:
    """Answers one set of questions."""

    def __init__(
        self,
        questions: Questions,
        index: Index,
        source: Source,
        *,
        jobs: int,
        stopped: Callable[[], bool],
    ) -> None:
        self._questions = questions
        self._index = index
        self._source = source
        self._jobs = jobs
        self._stopped = stopped

    def write(self, path: str) -> None:
        """Write the answers to a new file. Raises Interrupted, TarLikeError."""
        from concurrent.futures import BrokenExecutor

        try:
            write_answers(path, self._index.id, self._answers())
        except BrokenExecutor:
            raise TarLikeError(
                "A reading process was killed, for want of memory maybe: run it again."
            ) from None

    def _answers(self) -> Iterator[Answer]:
        yield from self._digests()
        yield from self._chunked()

    def _asked(self, *, large: bool) -> Iterator[tuple[Question, Entry]]:
        """Questions with their entries; a receiver that asks about no file is not heard."""
        for question in self._questions:
            if self._stopped():
                raise Interrupted("Stopped.")
            if bool(question.average) == large and question.entry_id < self._index.entry_count:
                entry = self._index.entry(question.entry_id)
                if entry.kind == FILE and entry.size:
                    yield question, entry

    def _digests(self) -> Iterator[Answer]:
        pairs = hash_files(
            self._source, self._questions.algorithm, self._worth_reading(), _whole, jobs=self._jobs
        )
        for (question, _), hashed in pairs:
            found = hashed or Hashed(b"", 0)
            yield Answer(question.entry_id, found.digest, b"")

    def _worth_reading(self) -> Iterator[tuple[Question, Entry]]:
        """What is asked, less files that differ from all others of their size at either end.

        Else a tree of files of one size would be read in full before its first byte is sent.
        """
        if not any(question.twin for question in self._questions):
            yield from self._asked(large=False)
            return
        with closing(Samples(self._source)) as samples:
            for _, entry in self._asked(large=False):
                samples.take(entry)
            for question, entry in self._asked(large=False):
                if not question.twin or samples.shared(entry):
                    yield question, entry

    def _chunked(self) -> Iterator[Answer]:
        segments = Segments(self._index)
        asked = [
            (entry, question, segments.of(entry)) for question, entry in self._asked(large=True)
        ]
        worker = _Measurer(self._source, self._questions.path, self._index.id)
        if self._jobs <= 1 or len(asked) <= 1:
            yield from map(worker, asked)
            return
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(
            min(self._jobs, len(asked)), context, _start_worker, (worker, os.getpid())
        ) as pool:
            for answer in pool.map(_measure, asked):
                if self._stopped():
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise Interrupted("Stopped.")
                yield answer


Asked = tuple[Entry, Question, list[tuple[int, int]]]
"""A file, what is asked, and the ranges that hold its data."""


def _whole(item: tuple[Question, Entry]) -> Piece:
    return _piece(item[1], 0, item[1].size)


def _piece(entry: Entry, start: int, stop: int) -> Piece:
    return Piece(entry.id, entry.path, start, stop, entry.size, entry.mtime, entry.token)


class _Measurer:
    """Finds the chunks of large files. Opens what it needs in the process that it works in."""

    def __init__(self, source: Source, path: str, index_id: str) -> None:
        """``path`` is that of the questions."""
        self._source = source
        self._path = path
        self._index_id = index_id

    @cached_property
    def _questions(self) -> Questions:
        return Questions(self._path, self._index_id)

    @cached_property
    def _buffers(self) -> Iterator[memoryview]:
        """One is hashed while another is filled."""
        return itertools.cycle([large_buffer(chunks.WINDOW) for _ in range(2)])

    def __call__(self, asked: Asked) -> Answer:
        entry, question, ranges = asked
        algorithm, known = self._questions.algorithm, self._questions.known(question)
        average, waits = question.average, isinstance(self._source, ReadsAhead)
        window = chunks.WINDOW if waits else chunks.near_window(average)

        def read(start: int, stop: int) -> memoryview:
            buffer = next(self._buffers)
            reading = self._source.read([_piece(entry, start, stop)], buffer)
            if reading.omissions:
                raise EOFError
            return buffer[: reading.length]

        try:
            found = chunks.measure(read, ranges, entry.size, average, algorithm, known, window)
        except EOFError:
            return Answer(entry.id, b"", b"")
        fits = len(found.chunks) <= MAX_VALUE
        return Answer(entry.id, found.digest, found.chunks if fits else b"")


_worker: _Measurer


def _start_worker(worker: _Measurer, parent: int) -> None:
    global _worker
    start_pool_worker(parent)
    _worker = worker


def _measure(asked: Asked) -> Answer:
    return _worker(asked)
