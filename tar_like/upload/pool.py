"""Sending block ranges on local processes.

    parent: missing blocks > ranges, large first > whichever process is free
    child:  RangeSender.send > one message a block

A child that dies has its range given to another; three deaths in a row end the run.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import cast

from tar_like.errors import TarLikeError
from tar_like.process import keep_memory, start_pool_worker
from tar_like.upload.range import BlockOutcome, RangeSender

MAX_RANGE = 64
MAX_DEATHS = 3

SenderFactory = Callable[[int], RangeSender]
"""Given a process's number: its sender. Called in the process."""


class Pool:
    """Processes that send blocks."""

    def __init__(self, make_sender: SenderFactory, processes: int) -> None:
        self._make_sender = make_sender
        self._processes = processes
        self._context = multiprocessing.get_context("fork")
        self._children: dict[Connection, _Child] = {}
        self._deaths = 0
        self._stopped = False

    def send(self, missing: Iterable[int], count: int) -> Iterator[BlockOutcome]:
        """Send ``count`` missing blocks; outcomes as they come. Ends early after ``stop``.

        Raises TarLikeError when processes keep dying.
        """
        work = _Work(missing, count, self._processes)
        for number in range(min(self._processes, max(1, count))):
            self._start(number)
        for connection, child in self._children.items():
            child.give(connection, work.next())
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
                child.give(connection, work.next())
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
        if self._deaths > MAX_DEATHS:
            code = child.process.exitcode
            raise TarLikeError(f"Sending processes keep dying (exit {code}): run it again.")
        work.give_back(child.blocks)
        if not self._stopped:
            new = self._start(child.number)
            self._children[new].give(new, work.next())

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
    """Missing blocks, cut into ranges: large ones first, so that all end together."""

    def __init__(self, missing: Iterable[int], count: int, processes: int) -> None:
        self._missing = iter(missing)
        self._left = count
        self._processes = processes
        self._returned: deque[list[int]] = deque()

    def next(self) -> list[int]:
        """The next range; empty when there is none."""
        if self._returned:
            return self._returned.popleft()
        size = max(1, min(MAX_RANGE, self._left // (2 * self._processes)))
        blocks = [block for _, block in zip(range(size), self._missing, strict=False)]
        self._left -= len(blocks)
        return blocks

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
    sender = make_sender(number)
    try:
        while blocks := connection.recv():
            for outcome in sender.send(blocks, stop=stop.is_set):
                connection.send(outcome)
            connection.send(None)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent needs no more
