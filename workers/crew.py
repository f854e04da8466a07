"""The processes of one ``tar-like worker``.

    start N > one that dies is replaced, after a while > SIGTERM: pass it on, wait for all

A dead one is reported at once: nobody waits for the end of its lease.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from redis.exceptions import RedisError
from rq.exceptions import StopRequested

from tar_like.errors import TarLikeError
from tar_like.process import die_with_parent, keep_memory
from workers import records
from workers.link import connect, greet
from workers.runtime import WorkerOptions
from workers.worker import RangeWorker, Say, relay_rq

AGAIN = 1.0
"""Seconds before a process that died is replaced; twice as many each time, at most MAX_AGAIN."""
MAX_AGAIN = 15.0
LONG = 60.0
"""Seconds of life after which a death is a first one again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrewSummary:
    """How a worker command went."""

    processes: int
    replaced: int


class Crew:
    """Worker processes. ``stop`` may be called from a signal handler."""

    def __init__(self, options: WorkerOptions, say: Say) -> None:
        """Raises UsageError for a Redis URL that is none."""
        self._options = options
        self._say = say
        self._context = multiprocessing.get_context("fork")
        self._processes: dict[int, _Process] = {}
        self._stopped = threading.Event()
        self._replaced = 0
        self._connection = connect(options.redis_url)

    def stop(self) -> None:
        """Have every process finish its block and leave; again: leave at once."""
        self._stopped.set()
        for process in list(self._processes.values()):
            process.handle.terminate()

    def run(self) -> CrewSummary:
        """Work until all have left. Raises RedisGone when Redis does not answer at the start."""
        greet(self._connection, self._options.redis_url)
        os.makedirs(self._options.cache, mode=0o700, exist_ok=True)
        for number in range(self._options.processes):
            self._start(number, AGAIN)
        while self._processes:
            wait([process.handle.sentinel for process in self._processes.values()], timeout=1.0)
            for number, process in list(self._processes.items()):
                if not process.handle.is_alive():
                    self._ended(number, process)
        return CrewSummary(processes=self._options.processes, replaced=self._replaced)

    def _start(self, number: int, again: float) -> None:
        handle = self._context.Process(
            target=_live, args=(self._options, number, self._say, os.getpid())
        )
        # A signal between fork and the child's own handlers must not run this object's.
        mask = (signal.SIGTERM, signal.SIGINT)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, mask)
        try:
            handle.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._processes[number] = _Process(handle, time.monotonic(), again)

    def _ended(self, number: int, process: _Process) -> None:
        process.handle.join()
        del self._processes[number]
        self._forget(process.handle.pid)
        if self._stopped.is_set() or process.handle.exitcode == 0:
            return
        again = AGAIN if time.monotonic() - process.started > LONG else process.again
        self._say(
            f"A worker process ended (exit {process.handle.exitcode}); the next starts in "
            f"{again:.0f} s."
        )
        if not self._stopped.wait(again):
            self._replaced += 1
            self._start(number, min(MAX_AGAIN, 2 * again))

    def _forget(self, pid: int | None) -> None:
        """Tell that a process is gone."""
        try:
            for record in records.workers(self._connection):
                if record.pid == pid and record.host == os.uname().nodename:
                    records.forget_worker(self._connection, record.name)
        except RedisError:
            return  # its lease ends by itself


@dataclass(frozen=True, slots=True)
class _Process:
    handle: BaseProcess
    started: float
    again: float


def _live(options: WorkerOptions, number: int, say: Say, parent: int) -> None:
    """A process's life; its exit code says whether it should be replaced."""
    stopping = threading.Event()

    def early(*_: object) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, early)
    signal.signal(signal.SIGINT, early)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    die_with_parent(parent)
    keep_memory()
    relay_rq(say)
    try:
        if RangeWorker(options, number, say, stopping).live():
            os._exit(0)
    except StopRequested:
        os._exit(0)
    except TarLikeError as error:
        say(str(error))
    os._exit(1)
