"""Sending block ranges on local processes.

    parent: missing blocks > a stretch for each process > ranges of it, large first
    child:  RangeSender.send > one message a block

A child that dies has its range given to another; three deaths in a row for each child end the run.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, cast

from tar_like.errors import TarLikeError
from tar_like.process import keep_memory, start_pool_worker
from tar_like.upload.range import BlockOutcome, RangeSender

if TYPE_CHECKING:  # which takes its time, and mostly no process is needed when little has changed
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkContext
    from multiprocessing.process import BaseProcess
    from multiprocessing.synchronize import Event

MAX_RANGE = 64
MAX_DEATHS = 3

SenderFactory = Callable[[int], RangeSender]
"""Given a process's number: its sender. Called in the process."""


class Pool:
    """Processes that send blocks."""

    def __init__(self, make_sender: SenderFactory, processes: int, *, few: int = 1) -> None:
        """``few`` blocks, or less, are sent by this process itself."""
        self._make_sender = make_sender
        self._few = few
        self._processes = processes
        self._children: dict[Connection, _Child] = {}
        self._deaths = 0
        self._stopped = False

    def send(self, missing: Sequence[int]) -> Iterator[BlockOutcome]:
        """Send missing blocks; outcomes as they come. Ends early after ``stop``.

        Raises TarLikeError when processes keep dying.
        """
        if 0 < len(missing) <= self._few:
            yield from self._send_here(missing)
            return
        from multiprocessing.connection import Connection, wait

        processes = min(self._processes, max(1, len(missing)))
        work = _Work(missing, processes)
        for number in range(processes):
            self._start(number)
        for connection, child in self._children.items():
            child.give(connection, work.next(child.number))
        try:
            while any(child.busy for child in self._children.values()):
                for connection in cast(list[Connection], wait(list(self._children))):
                    yield from self._hear(connection, work)
        finally:
            self._end()

    def stop(self) -> None:
        """Let each process finish its block, and give out no more."""
        self._stopped = True
        for child in self._children.values():
            child.stop.set()

    def _send_here(self, missing: Sequence[int]) -> Iterator[BlockOutcome]:
        """Without a process: one after the other, until all are sent, one is fatal, or ``stop``."""
        try:
            sender = self._make_sender(0)
        except TarLikeError as error:
            yield BlockOutcome(block_no=missing[0], error=str(error), fatal=True)
            return
        left = deque(missing)
        with contextlib.closing(sender):
            try:
                for outcome in sender.send(list(missing), stop=lambda: self._stopped):
                    left.popleft()
                    yield outcome
            except (MemoryError, OSError) as error:  # which would be the end of a process
                what = f"Sending failed ({type(error).__name__}): run it again."
                yield BlockOutcome(block_no=(left or missing)[0], error=what, fatal=True)

    def _hear(self, connection: Connection, work: _Work) -> Iterator[BlockOutcome]:
        child = self._children[connection]
        try:
            message = connection.recv()
        except (EOFError, ConnectionResetError):
            self._replace(connection, work)
            return
        if message is None:  # the range is done
            child.blocks, child.busy = [], False
            if not self._stopped:
                child.give(connection, work.next(child.number))
            return
        self._deaths = 0
        child.blocks = [block for block in child.blocks if block != message.block_no]
        if message.fatal:
            self.stop()
        yield message

    def _replace(self, connection: Connection, work: _Work) -> None:
        child = self._children.pop(connection)
        connection.close()
        child.process.join()
        self._deaths += 1
        if self._deaths > MAX_DEATHS * self._processes:  # each may meet a death of its own
            code = child.process.exitcode
            raise TarLikeError(f"Sending processes keep dying (exit {code}): run it again.")
        work.give_back(child.blocks)
        if not self._stopped:
            new = self._start(child.number)
            self._children[new].give(new, work.next(child.number))

    @cached_property
    def _context(self) -> ForkContext:
        import multiprocessing

        return multiprocessing.get_context("fork")

    def _start(self, number: int) -> Connection:
        ours, theirs = self._context.Pipe()
        stop = self._context.Event()
        process = self._context.Process(
            target=_run, args=(self._make_sender, number, theirs, ours, stop, os.getpid())
        )
        process.start()
        theirs.close()
        self._children[ours] = _Child(process, number, stop)
        return ours

    def _end(self) -> None:
        for connection, child in self._children.items():
            if child.busy:
                child.process.kill()
            else:
                _tell(connection, [])
        for connection, child in self._children.items():
            child.process.join()
            connection.close()
        self._children.clear()


class _Child:
    """A process and the blocks that it has still to send."""

    def __init__(self, process: BaseProcess, number: int, stop: Event) -> None:
        self.process = process
        self.number = number
        self.stop = stop
        self.blocks: list[int] = []
        self.busy = False

    def give(self, connection: Connection, blocks: list[int]) -> None:
        self.blocks, self.busy = blocks, bool(blocks)
        if blocks:
            _tell(connection, blocks)


def _tell(connection: Connection, blocks: list[int]) -> None:
    """Give a child blocks; none is its end. That it was killed is heard when it is listened to."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.send(blocks)


class _Work:
    """Missing blocks, each process's own stretch of them: two that write into one file wait for
    each other. Ranges are cut off its front, large ones first, so that all end together; who is
    done with a stretch takes over the second half of the longest.
    """

    def __init__(self, missing: Sequence[int], processes: int) -> None:
        self._missing = missing
        cuts = [len(missing) * number // processes for number in range(processes + 1)]
        self._own = [list(stretch) for stretch in pairwise(cuts)]
        """Begin and end of each process's stretch."""
        self._returned: deque[list[int]] = deque()

    def next(self, number: int) -> list[int]:
        """The next range of a process; empty when there is none."""
        if self._returned:
            return self._returned.popleft()
        own = self._own[number]
        if own[0] == own[1]:
            longest = max(self._own, key=lambda stretch: stretch[1] - stretch[0])
            own[:] = sum(longest) // 2, longest[1]
            longest[1] = own[0]
        start, stop = own
        own[0] = min(stop, start + max(1, min(MAX_RANGE, (stop - start) // 2)))
        return list(self._missing[start : own[0]])

    def give_back(self, blocks: list[int]) -> None:
        """Blocks of a process that died."""
        if blocks:
            self._returned.append(blocks)


def _run(
    make_sender: SenderFactory,
    number: int,
    connection: Connection,
    parents: Connection,
    stop: Event,
    parent: int,
) -> None:
    """A child's life."""
    start_pool_worker(parent)
    keep_memory()
    parents.close()
    try:
        sender = make_sender(number)
    except TarLikeError as error:  # the source is gone by now, say: no process fares better
        _decline(connection, str(error))
        return
    try:
        while blocks := connection.recv():
            for outcome in sender.send(blocks, stop=stop.is_set):
                connection.send(outcome)
            connection.send(None)
        if stop.is_set():  # nothing is committed then: what has arrived shall last
            sender.close()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent needs no more


def _decline(connection: Connection, why: str) -> None:
    """Say of the first block that is given why none can be sent."""
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        if blocks := connection.recv():
            connection.send(BlockOutcome(block_no=blocks[0], error=why, fatal=True))
