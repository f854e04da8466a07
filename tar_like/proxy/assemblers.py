"""The processes of a planning: each keeps an assembler of one transfer.

tasks  > older versions read and laid aside > what of each file is had here
strays > their digests
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

from tar_like.chunks import SMALLEST_FILE
from tar_like.layout import Entry
from tar_like.process import start_pool_worker
from tar_like.proxy.assemble import Assembler, Provided, Task
from tar_like.proxy.laying import Laying
from tar_like.proxy.place import Destination
from tar_like.proxy.snapshot import basis
from tar_like.proxy.strays import Stray
from tar_like.rules import Rules

BATCH_FILES, BATCH_BYTES = 512, 16 << 20
"""What one process does in a row; what is no more than that is done without further processes."""
AHEAD = 4
"""Such batches that wait for each process: what is to be done may be millions of files."""

Item = TypeVar("Item", Task, Stray)
Result = TypeVar("Result")


class Assemblers:
    """In this process, and on several once there is much to do."""

    def __init__(self, jobs: int, destination: Destination, path: str) -> None:
        root = basis(destination, path, Rules.read(path)).root
        self._make: Callable[[], Assembler] = lambda: Assembler(destination, path, root)
        self._own: Assembler | None = None
        self._jobs = jobs
        self._executor: ProcessPoolExecutor | None = None

    def prepare(self, tasks: Iterable[Task]) -> None:
        """Read older versions, so that their chunks are known, and copy them.

        The last copy may go on beside: it is to be settled.
        """
        wanted = (task for task in tasks if task.at_size >= SMALLEST_FILE)
        for _ in self._each(_prepare, wanted):
            pass

    def begin(self, entry: Entry) -> None:
        """Begin to copy the older version of one file."""
        if self._own is None:
            self._own = self._make()
        self._own.lay(entry)

    @property
    def laying(self) -> Laying | None:
        """A copy that goes on beside, if there is one."""
        return None if self._own is None else self._own.laying

    def settle(self) -> None:
        """Wait for a copy that goes on beside and is not part of a plan."""
        if self._own is not None:
            self._own.settle()

    def read(self, found: Iterable[Stray]) -> Iterator[tuple[Stray, bytes]]:
        """Strays and their digests, as far as they can be read."""
        for some in self._each(_read, found):
            yield from some

    def assemble(self, tasks: Iterable[Task]) -> Iterator[Provided]:
        """What is to be had of files, in any order."""
        found = list[Provided]()
        for some in self._each(_assemble, self._not_laying(tasks, found)):
            yield from some
        yield from found

    def _stand_still(self) -> None:
        """See that no thread is at work: processes are forked."""
        self.settle()
        self.await_released()

    def await_released(self) -> None:
        """Wait for a copy that is part of a plan."""
        if self.laying is not None and self.laying.released:
            with contextlib.suppress(OSError):  # who asks for what came of it is told
                self.laying.wait()

    def _not_laying(self, tasks: Iterable[Task], found: list[Provided]) -> Iterator[Task]:
        """The tasks but for that whose copy goes on beside: what is had of it is found at once."""
        for task in tasks:
            if self._own is not None and self._own.is_laying(task.entry):
                found += _assemble(self._own, [task])
            else:
                yield task

    def _each(
        self, work: Callable[[Assembler, list[Item]], list[Result]], items: Iterable[Item]
    ) -> Iterator[list[Result]]:
        batches = _batches(items)
        first = list(itertools.islice(batches, 2))
        if self._jobs <= 1 or len(first) < 2:
            if self._own is None:
                self._own = self._make()
            for batch in itertools.chain(first, batches):
                yield work(self._own, batch)
            return
        if self._executor is None:
            self._stand_still()
            context = multiprocessing.get_context("fork")
            self._executor = ProcessPoolExecutor(
                self._jobs, context, _start_worker, (self._make, os.getpid())
            )
        waiting: deque[Future[list[Result]]] = deque()
        for batch in itertools.chain(first, batches):
            waiting.append(self._executor.submit(_work, work, batch))
            if len(waiting) > AHEAD * self._jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """End the processes."""
        if self._own is not None:
            self._own.close()
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Files for one process to work at in a row."""
    batch: list[Item] = []
    room = BATCH_BYTES
    for item in items:
        if batch and (room < item.size or len(batch) >= BATCH_FILES):
            yield batch
            batch, room = [], BATCH_BYTES
        batch.append(item)
        room -= item.size
    if batch:
        yield batch


def _prepare(assembler: Assembler, tasks: list[Task]) -> list[Provided]:
    assembler.hear()
    for task in tasks:
        assembler.prepare(task)
    return []


def _read(assembler: Assembler, found: list[Stray]) -> list[tuple[Stray, bytes]]:
    return [(one, digest) for one in found if (digest := assembler.read(one))]


def _assemble(assembler: Assembler, tasks: list[Task]) -> list[Provided]:
    assembler.hear()
    return [found for found in map(assembler, tasks) if found is not None]


_worker: Assembler


def _start_worker(make: Callable[[], Assembler], parent: int) -> None:
    global _worker
    start_pool_worker(parent)
    _worker = make()


def _work(work: Callable[[Assembler, list[Item]], list[Result]], items: list[Item]) -> list[Result]:
    try:
        return work(_worker, items)
    finally:
        _worker.settle()
