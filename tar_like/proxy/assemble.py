"""Assemble: get a file's content from what lies in the destination, instead of having it sent.

    what lies at its path already > it is kept
    the same content elsewhere    > copied into staging (shared, where the filesystem can)
    an older version at its path  > the chunks that both have, copied; the others are sent

Whatever is used is proven by reading it: a whole file by its digest, a chunk by its own, and what
does not hold is sent. Only of a file that still has the ledger's fingerprint the chunks that are
known are *believed*: the commit reads all of the new version anyway, and if it is not right
the same run makes it once more, when the ledger knows nothing of it. Nothing but staging is ever
written to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tar_like import chunks, digest
from tar_like.chunks import ChunkList, Move, Span
from tar_like.dirfd import Walker, open_file
from tar_like.index import Index
from tar_like.layout import PAGE, Entry, round_up
from tar_like.plan.questions import Answer, Answers, Question, Questions
from tar_like.plan.segments import Segments
from tar_like.process import large_buffer
from tar_like.proxy.chunkcache import ChunkCache, cut_file, name_of_file
from tar_like.proxy.copying import copy_range
from tar_like.proxy.laying import Laying
from tar_like.proxy.ledger import Landed, Row
from tar_like.proxy.place import Destination
from tar_like.proxy.staging import Staging, mapped
from tar_like.proxy.strays import Stray
from tar_like.reading import fill
from tar_like.sparse import data_of

_STEP = 8 << 20


class Task(NamedTuple):
    """A lacking file, and where its content may be."""

    entry: Entry
    digest: bytes
    """Of its content; empty where that is not known."""
    at_size: int
    """Size of the file that lies at its path now; -1 for none."""
    basis: Row | None
    """What the ledger knows of that file."""
    read: Row | None
    """That file, as it was read for this transfer."""
    sources: tuple[Row, ...]
    """Files that have the same digest, or had it."""

    @property
    def size(self) -> int:
        """Of the file."""
        return self.entry.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Provided:
    """What of a file need not be sent."""

    entry_id: int
    digest: bytes
    kept: Landed | None = None
    """It is in its place."""
    missing: tuple[tuple[int, int], ...] | None = None
    """It is staged but for these ranges, in order, of whole pages; None when it is kept."""
    believed: bool = False
    """What is staged was not read."""
    laying: str = ""
    """The mark of a copy that is being made still (laying.Laying)."""


class Assembler:
    """Assembles files of one transfer. One a process."""

    def __init__(self, destination: Destination, path: str, root: str) -> None:
        """``path`` is the transfer's folder, ``root`` where older versions lie."""
        self._index = Index(os.path.join(path, "index.db"))
        self._staging = Staging(os.path.join(path, "stage"))
        self._walker = Walker(root)
        self._cache = ChunkCache(destination.chunks)
        self._algorithm = self._index.digest
        self._path = path
        self._questions: Questions | None = None
        self._answers: Answers | None = None
        self.hear()
        self._buffer = large_buffer(_STEP)
        self.laying: Laying | None = None
        """The copy that was begun last."""

    def close(self) -> None:
        """Close every file. What is being laid goes on."""
        for one in (self._index, self._staging, self._walker, self._questions, self._answers):
            if one is not None:
                one.close()

    def hear(self) -> None:
        """Take up questions and answers that have come since this was made."""
        asked, said = (os.path.join(self._path, name) for name in ("questions.db", "answers.db"))
        if self._questions is None and os.path.exists(asked):
            self._questions = Questions(asked, self._index.id)
        if self._answers is None and os.path.exists(said):
            self._answers = Answers(said)

    def prepare(self, task: Task) -> None:
        """Have an older version's chunks at hand, and begin a copy of it, while the new is read.

        What cannot be had beforehand is left for later. To be settled.
        """
        entry = task.entry
        question = self._asked(entry)
        if self._questions is None or question is None or self.is_laying(entry):
            return
        if self._questions.tells(question) or self._is_listed(entry, question.average):
            self.lay(entry)

    def _is_listed(self, entry: Entry, average: int) -> bool:
        """Whether the chunks of an older version are at hand now."""
        fd = self._open(entry.path)
        if fd is None:
            return False
        try:
            self._list_of(fd, average)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def lay(self, entry: Entry) -> None:
        """Begin a copy of an older version, if it can be of use. To be settled."""
        self.settle()
        fd = self._open(entry.path)
        if fd is None:
            return
        try:
            if self._is_solid(entry):
                self._lay(fd, entry)
        except (OSError, RuntimeError):
            self._staging.remove(entry.id)
        finally:
            os.close(fd)

    def _lay(self, source: int, entry: Entry) -> None:
        st = os.fstat(source)
        ranges = data_of(source, min(entry.size, st.st_size))
        staged = self._stage(entry)
        try:
            self.laying = Laying(entry.id, name_of_file(st), source, staged, ranges)
        finally:
            os.close(staged)

    def settle(self) -> None:
        """Wait for the copy that is being made, unless it is part of a plan, and lay it aside."""
        laying = self.laying
        if laying is None or laying.released:
            return
        self.laying = None
        try:
            if laying.wait():
                self._staging.lay_aside(laying.entry_id, laying.mark)
        except OSError:
            self._staging.remove(laying.entry_id)

    def _asked(self, entry: Entry) -> Question | None:
        """What was asked about a file's chunks."""
        if self._questions is None or entry.size < chunks.SMALLEST_FILE:
            return None
        question = self._questions.find(entry.id)
        return question if question is not None and question.average else None

    def _is_solid(self, entry: Entry) -> bool:
        """Whether a file has no holes: then no byte of a copy of something else can stay in it."""
        return Segments(self._index).of(entry) == [(0, entry.size)]

    def is_laying(self, entry: Entry) -> bool:
        """Whether its older version is being copied."""
        return self.laying is not None and self.laying.entry_id == entry.id

    def __call__(self, task: Task) -> Provided | None:
        """What can be had of a file here; None for nothing. Raises OSError, NoSpace."""
        entry, wanted = task.entry, task.digest
        answer = None
        if self._answers is not None and entry.size >= chunks.SMALLEST_FILE:
            answer = self._answers.find(entry.id)
        if self.is_laying(entry) and task.sources:
            self.settle()  # it is where their content goes to
        asked = self._asked(entry) is not None and not self.is_laying(entry)
        prepared = asked and self._take_prepared(entry)
        if not wanted:
            return None
        if task.at_size == entry.size:
            kept = self._keep(entry, task, wanted)
            if kept is not None:
                return Provided(entry_id=entry.id, digest=wanted, kept=kept)
        try:
            if any(self._copy(entry, row, wanted) for row in task.sources):
                return Provided(entry_id=entry.id, digest=wanted, missing=())
            prepared = prepared and self._staging.holds(entry.id)
            if answer is not None and answer.chunks:
                return self._patch(task, answer, prepared=prepared)
        except OSError as error:
            raise mapped(error) from None
        return None

    def _open(self, path: bytes) -> int | None:
        """A regular file; None for anything else."""
        try:
            parent, name = self._walker.split(path)
            return open_file(name, os.O_RDONLY, dir_fd=parent)
        except OSError:
            return None

    def _keep(self, entry: Entry, task: Task, wanted: bytes) -> Landed | None:
        """The file at the path, if it has the digest; the task may know that it has not."""
        fd = self._open(entry.path)
        if fd is None:
            return None
        try:
            before = os.fstat(fd)
            known = [one for one in (task.basis, task.read) if one is not None]
            if any(one.is_of(before) and one.digest != wanted for one in known):
                return None
            if task.read is not None and task.read.is_of(before):
                return Landed(entry.id, wanted, before.st_ino, before.st_ctime_ns)
            if before.st_size != entry.size or self._digest(fd, entry.size) != wanted:
                return None
            after = os.fstat(fd)
            if (after.st_ctime_ns, after.st_size) != (before.st_ctime_ns, before.st_size):
                return None
            return Landed(entry.id, wanted, after.st_ino, after.st_ctime_ns)
        finally:
            os.close(fd)

    def read(self, stray: Stray) -> bytes:
        """The digest of a file; empty when it cannot be read, or is not as it was seen."""
        fd = self._open(stray.path)
        if fd is None:
            return b""
        try:
            found = stray.read_as(self._digest(fd, stray.size))
            return found.digest if found.is_of(os.fstat(fd)) else b""
        except OSError:
            return b""
        finally:
            os.close(fd)

    def _copy(self, entry: Entry, row: Row, wanted: bytes) -> bool:
        """Stage a copy of a file that had the content once; whether it is what it should be."""
        source = self._open(row.path)
        if source is None:
            return False
        try:
            if os.fstat(source).st_size != entry.size:
                return False
            staged = self._stage(entry)
            try:
                for start, stop in data_of(source, entry.size):
                    copy_range(source, start, staged, start, stop - start)
                holds = self._digest(staged, entry.size) == wanted
            finally:
                os.close(staged)
        finally:
            os.close(source)
        if not holds:
            self._staging.remove(entry.id)
        return holds

    def _stage(self, entry: Entry) -> int:
        """A new staged file of the right size, all holes."""
        self._staging.remove(entry.id)
        os.close(self._staging.create(entry.id))
        fd = self._staging.reopen(entry.id)
        os.ftruncate(fd, entry.size)
        return fd

    def _take_prepared(self, entry: Entry) -> bool:
        """Whether what is staged is a copy of the file at the entry's path, as that is now."""
        old = self._open(entry.path)
        if old is None:
            return False
        try:
            return self._staging.take_aside(entry.id, name_of_file(os.fstat(old)))
        finally:
            os.close(old)

    def _patch(self, task: Task, answer: Answer, *, prepared: bool) -> Provided | None:
        """Stage what a new version shares with the file at its path."""
        entry, basis, wanted = task.entry, task.basis, task.digest
        old = self._open(entry.path)
        if old is None:
            return None
        try:
            common = self._in_common(entry, answer, wanted, old)
            if common is None:
                return None
            if self.is_laying(entry):
                found = self._release(task, common, os.fstat(old))
                if found is not None:
                    return found
                self.settle()
                prepared = self._take_prepared(entry)
            staged = self._staging.reopen(entry.id) if prepared else self._stage(entry)
            try:
                moves = common.moves
                for move in moves:
                    if not (prepared and move.start == move.source):
                        copy_range(old, move.source, staged, move.start, move.length)
                believed = basis is not None and basis.is_of(os.fstat(old))
                if not believed:
                    new = common.new
                    moves = list(chunks.moves(self._proven(staged, common.spans, new), new, new))
                missing = tuple(common.missing(moves))
                if not missing and not believed and self._digest(staged, entry.size) != wanted:
                    return None
            finally:
                os.close(staged)
        finally:
            os.close(old)
        return Provided(entry_id=entry.id, digest=wanted, missing=missing, believed=believed)

    def _release(self, task: Task, common: _Common, old: os.stat_result) -> Provided | None:
        """Have a copy that is being made go on beside the blocks, without what these will bring.

        None where that cannot be: where it must be read, or is not of use as it is.
        """
        laying, missing = self.laying, tuple(common.missing(common.moves))
        believed = task.basis is not None and task.basis.is_of(old)
        if laying is None or laying.mark != name_of_file(old):
            return None
        if not (believed and missing and common.is_in_place):
            return None
        laying.release(missing)
        return Provided(
            entry_id=task.entry.id,
            digest=task.digest,
            missing=missing,
            believed=True,
            laying=laying.mark,
        )

    def _in_common(self, entry: Entry, answer: Answer, wanted: bytes, old: int) -> _Common | None:
        """What a new version shares with the file at its path, which is open; None for nothing."""
        question = self._asked(entry)
        if self._questions is None or question is None:
            return None
        said = self._questions.known(question)
        known = said or self._list_of(old, question.average)
        ranges = Segments(self._index).of(entry)
        most = chunks.most_records(entry.size, len(ranges), question.average)
        records, spans = chunks.expand(answer.chunks, said, most)
        new = ChunkList(ranges, records)
        self._cache.write(wanted.hex(), question.average, new)
        if said is None:
            spans = chunks.shared(new, known)
        return _Common(entry, new, known, spans) if spans else None

    def _proven(self, fd: int, spans: list[Span], new: ChunkList) -> Iterator[Span]:
        """Those chunks of a staged file that are what they should be."""
        for span in spans:
            for number in range(span.new, span.new + span.many):
                view = self._buffer[: new.lengths[number]]
                if os.preadv(fd, [view], new.start(number)) == len(view) and (
                    chunks.of_chunk(view) == new.names[number]
                ):
                    yield Span(number, number, 1)

    def _list_of(self, fd: int, average: int) -> ChunkList:
        """The chunks of a file in the destination as it is now; none of one that is changing."""
        name = name_of_file(os.fstat(fd))
        found = self._cache.read(name, average)
        if found is None:
            try:
                found = cut_file(fd, average, self._buffer)
            except EOFError:
                return ChunkList((), b"")
            self._cache.write(name, average, found)
        return found

    def _digest(self, fd: int, size: int) -> bytes:
        hasher = digest.hasher(self._algorithm)
        position = 0
        try:
            for start, stop in data_of(fd, size):
                digest.add_zeros(hasher, start - position)
                for step in range(start, stop, _STEP):
                    hasher.update(self._read(fd, step, min(step + _STEP, stop)))
                position = stop
        except EOFError:
            return b""
        digest.add_zeros(hasher, size - position)
        return hasher.digest()

    def _read(self, fd: int, start: int, stop: int) -> memoryview:
        """Bytes of a file. Raises EOFError when it is shorter."""
        return fill(fd, self._buffer[: stop - start], start)


class _Common:
    """What a file and its older version share."""

    def __init__(self, entry: Entry, new: ChunkList, known: ChunkList, spans: list[Span]) -> None:
        self.entry, self.new, self.spans = entry, new, spans
        self.moves = list(chunks.moves(spans, new, known))

    @property
    def is_in_place(self) -> bool:
        """Whether all of it is where it was."""
        return all(move.start == move.source for move in self.moves)

    def missing(self, moves: Iterable[Move]) -> Iterator[tuple[int, int]]:
        """What is left of the file besides what these bring."""
        return _missing(self.new.ranges, moves, self.entry.size)


def _missing(
    ranges: Iterable[tuple[int, int]], present: Iterable[Move], size: int
) -> Iterator[tuple[int, int]]:
    """What is left of ranges, widened to pages: no page of a file is ever in two blocks."""
    first = last = -1
    for start, stop in _left(ranges, present):
        start, stop = start // PAGE * PAGE, min(round_up(stop), size)
        if start > last:
            if first < last:
                yield first, last
            first = start
        last = stop
    if first < last:
        yield first, last


def _left(ranges: Iterable[tuple[int, int]], present: Iterable[Move]) -> Iterator[tuple[int, int]]:
    rest = iter(present)
    move = next(rest, None)
    for start, stop in ranges:
        while move is not None and move.start < stop:
            if move.start > start:
                yield start, move.start
            start = move.start + move.length
            move = next(rest, None)
        if start < stop:
            yield start, stop
