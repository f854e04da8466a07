"""EIO at every I/O call of an offer, a block with its checkpoint, and commits; ENOSPC at every
call that writes; and writes that are all short.

    then: what was acknowledged has a receipt and is staged as sent; nothing is called durable or
    complete of which a sync failed; the error is one of ours; the same again completes
"""

from __future__ import annotations

import errno
import gc
import os
import random
import socket
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import Pool
from pathlib import Path
from unittest import mock

from tar_like.errors import TarLikeError
from tar_like.proxy.commit import run_commit
from tar_like.proxy.outcome import COMMIT, read_outcome
from tar_like.proxy.receipts import Receipts
from tests.chaos import scene
from tests.chaos.calls import BLOCK, Scenery
from tests.chaos.scene import Broken, void
from tests.chaos.traced import READS, WRITES, Hit, traced
from tests.trees import remove
from tests.unit.receiver import Job

DONE = {"negotiated", "durable", "complete 0"}
"""What a work says last, where nothing stopped it."""
PROCESSES = 2
"""That try, each in a folder of its own."""
ENOUGH = 20
"""Faults that are found, to look no further."""
SYNCS = ("fsync", "fdatasync", "syncfs")


def run(count: int, dice: random.Random) -> dict[str, object]:
    """Up to so many errors, chosen at random. Raises Broken; PermissionError where none can be."""
    seed = dice.random()
    with tempfile.TemporaryDirectory(prefix="tar-like-errors-", dir=scene.memory()) as name:
        places = [Path(name, str(number)) for number in range(PROCESSES)]
        every = Errors(places[0], random.Random(seed)).every()
        chosen = dice.sample(every, min(count, len(every)))
        shorts = min(50, max(1, count // 100))
        with Pool(PROCESSES) as pool:
            parts = [
                (place, seed, chosen[number::PROCESSES], len(range(number, shorts, PROCESSES)))
                for number, place in enumerate(places)
            ]
            tallies = list(pool.imap_unordered(_part, parts))
    broken = [text for tally in tallies for text in tally.broken]
    if broken:
        raise Broken(f"{len(broken)} of {len(chosen)}:\n" + "\n".join(broken))
    met = sum(tally.met for tally in tallies)
    if met < len(chosen) * 0.98:
        raise Broken(f"only {met} of {len(chosen)} calls came that were to fail: it shows little")
    return {"calls": len(every), "tried": len(chosen), "met": met,
            "stopped_the_work": sum(tally.stopped for tally in tallies),
            "transfers_of_short_writes": shorts}  # fmt: skip


@dataclass(slots=True)
class Tally:
    """What came of some trials."""

    met: int = 0
    """Trials in which the call came that was to fail."""
    stopped: int = 0
    """Trials in which the work did not come to its end."""
    broken: list[str] = field(default_factory=list)
    """What does not hold."""


def _part(part: tuple[Path, float, list[Fault], int]) -> Tally:
    """Try these."""
    place, seed, faults, shorts = part
    gc.freeze()
    errors = Errors(place, random.Random(seed))
    for _ in range(shorts):
        errors.short()
    for number, fault in enumerate(faults, 1):
        errors.one(fault)
        if number % 100 == 0:
            print(f"errors: {number} of {len(faults)} in process {place.name}", flush=True)
        if len(errors.tally.broken) == ENOUGH:
            break
    return errors.tally


@dataclass(frozen=True, slots=True)
class Work:
    """Something that is done to a transfer, saying what it got done."""

    name: str
    old: bool
    prepare: Callable[[Job], object]
    do: Callable[[Job, Callable[[str], object]], object]


def _offer(job: Job, say: Callable[[str], object]) -> None:
    job.offer()
    say("offered")
    job.open()
    job.transfer.negotiate(BLOCK)
    say("negotiated")


def _put(job: Job, say: Callable[[str], object]) -> None:
    digest, body = job.made
    job.transfer.receive(0, memoryview(body), digest)
    say("received")
    job.transfer.checkpoint()
    say("durable")


def _commit(job: Job, say: Callable[[str], object]) -> None:
    run_commit(job.destination, job.id, "token", 1)
    if job.transfer.alive:
        return  # its folder goes last: while it is there, a receiver calls nothing complete
    report = job.destination.read_report(job.id)
    if report is not None:
        say(f"complete {len(report.failures)}")


WORKS = (
    Work("offer", True, lambda job: job.withdraw(), _offer),
    Work("put", False, lambda job: job.make(0), _put),
    Work("commit", False, lambda job: job.send(), _commit),
    Work("commit over an older tree", True, lambda job: job.send(), _commit),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One call of one kind of work, which fails."""

    work: int
    """Which one of WORKS."""
    call: str
    number: int
    """The how many-th of these calls, from 1."""
    error: str

    def __str__(self) -> str:
        work = WORKS[self.work].name
        return f"{work}, {self.error} of {self.call} number {self.number}"


class Errors(Scenery):
    """The trials, in one folder, which is made anew."""

    def __init__(self, work: Path, dice: random.Random) -> None:
        if work.exists():
            remove(work)
        work.mkdir()
        super().__init__(work, dice)
        self.tally = Tally()

    def every(self) -> list[Fault]:
        """Every fault that there can be."""
        return [
            Fault(which, call, number, error)
            for which, work in enumerate(WORKS)
            for call, total in self._calls(work).items()
            for number in range(1, total + 1)
            for error in (("EIO", "ENOSPC") if call in WRITES else ("EIO",))
        ]

    def _calls(self, work: Work) -> dict[str, int]:
        job = self._prepared(work)
        done = traced(lambda: self._try(work, job, void), log=self.log, which=WRITES + READS)
        job.close()
        if done.code:
            raise Broken(f"{work.name} fails by itself: {self.log.read_text()[-2000:]}")
        return done.calls

    @staticmethod
    def _try(work: Work, job: Job, say: Callable[[str], object]) -> int:
        """In the traced process: 0 when it went through, 1 when it failed with an error of ours."""
        try:
            work.do(job, say)
        except (OSError, sqlite3.Error, TarLikeError) as error:
            print(type(error).__name__, error)
            return 1
        return 0

    def one(self, fault: Fault) -> None:
        """Have one call fail; the tally says what came of it."""
        job = self._prepared(WORKS[fault.work])
        self.log.unlink(missing_ok=True)
        hit = Hit(fault.call, fault.number, getattr(errno, fault.error))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with ours, theirs:
            done = traced(
                lambda: self._try(WORKS[fault.work], job, lambda text: theirs.send(text.encode())),
                log=self.log, hit=hit,
            )  # fmt: skip
            theirs.send(b"")
            said = list(iter(lambda: ours.recv(100).decode(), ""))
        job.close()
        self.tally.met += done.met
        self.tally.stopped += not DONE & set(said)
        try:
            if done.code not in (0, 1):
                raise Broken(f"it crashed: {self.log.read_text()[-2000:]}")
            self._judge(job, said, synced=fault.call not in SYNCS or not done.met)
        except Broken as broken:
            self.tally.broken.append(f"{fault}: {broken}")

    def _prepared(self, work: Work) -> Job:
        job = self.prepared(old=work.old)
        work.prepare(job)
        gc.collect()  # closes what earlier works had open: each begins with the same descriptors
        return job

    def _judge(self, job: Job, said: list[str], *, synced: bool) -> None:
        scene.no_partial_files(self.dest, *self.allowed)
        folder = self.dest / ".tar_like/transfers" / job.id
        outcome = read_outcome(str(folder), COMMIT)
        if outcome is not None and "unexpected" in outcome.error:
            raise Broken(f"an error that is none of ours: {self.log.read_text()[-2000:]}")
        if "received" in said:
            receipts = Receipts(str(folder / "receipts"))
            receipts.refresh()
            if synced and not receipts.received:
                raise Broken("a block was acknowledged, and has no receipt")
            if "durable" in said and not (synced and receipts.durable):
                raise Broken("it was called durable though a sync failed")
            scene.staged_as_sent(folder, receipts.blocks(), self.source, self.dest)
        if "complete 0" in said:
            if not synced:
                raise Broken("it was called complete though a sync failed")
            self.same()
        self.again()

    def short(self) -> None:
        """A transfer whose every write is cut short."""
        pwrite, write = os.pwrite, os.write

        def part(data: bytes | memoryview) -> memoryview:
            view = memoryview(data).cast("B")
            return view[: self.dice.randint(1, max(1, len(view)))]

        job = self.prepared(old=True)
        with (
            mock.patch.object(os, "pwrite", lambda fd, data, at: pwrite(fd, part(data), at)),
            mock.patch.object(os, "write", lambda fd, data: write(fd, part(data))),
        ):
            failures = job.complete()
        job.close()
        if failures:
            raise Broken(f"short writes: {failures}")
        scene.same(self.source, self.dest)
