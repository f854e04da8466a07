"""EIO at every I/O call of an offer, questions, answers, plans, a block with its checkpoint,
commits, a look and an expiry; ENOSPC at every call that writes; and writes that are all short.

    then: what was acknowledged has a receipt and is staged as sent; nothing is called durable or
    complete of which a sync failed; the error is one of ours; the same again completes
"""

from __future__ import annotations

import contextlib
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
from typing import Any
from unittest import mock

from tar_like.database import connect_readonly
from tar_like.errors import TarLikeError
from tar_like.proxy.commit import run_commit
from tar_like.proxy.expire import expire
from tar_like.proxy.look import begin as begin_look
from tar_like.proxy.look import find_touched, read_look, run_look
from tar_like.proxy.outcome import COMMIT, read_outcome
from tar_like.proxy.receipts import Receipts
from tests.chaos import scene
from tests.chaos.scene import Broken
from tests.chaos.scenery import Adopted, Found, Scenery, Snapshots
from tests.chaos.traced import READS, WRITES, Hit, Traced, traced
from tests.trees import remove
from tests.unit.receiver import Job

DONE = {"negotiated", "durable", "complete 0", "asked", "looked", "expired"}
"""What a work says last, where nothing stopped it."""
OURS = (OSError, sqlite3.Error, TarLikeError)
"""Errors that a work may end with."""
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
    if met < int(len(chosen) * 0.98):
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


Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Work:
    """Something that is done to a transfer, saying what it got done."""

    name: str
    scenery: type[Scenery]
    prepare: Callable[[Any], Job]
    do: Callable[[Any, Job, Say], object]
    """Both get the scenery."""


def _not_offered(scenery: Scenery) -> Job:
    job = scenery.offered(old=True)
    job.withdraw()
    return job


def _offer(scenery: Scenery, job: Job, say: Say) -> None:
    job.offer()
    say("offered")
    job.open()
    scenery.negotiate(job)
    say("negotiated")


def _made(scenery: Scenery) -> Job:
    job = scenery.prepared(old=False)
    job.make(0)
    return job


def _put(_: Scenery, job: Job, say: Say) -> None:
    digest, body = job.made
    job.transfer.receive(0, memoryview(body), digest)
    say("received")
    job.transfer.checkpoint()
    say("durable")


def _sent(scenery: Scenery) -> Job:
    job = scenery.prepared(old=False)
    job.send()
    return job


def _sent_over(scenery: Scenery) -> Job:
    job = scenery.prepared(old=True)
    job.send()
    return job


def _commit(_: Scenery, job: Job, say: Say) -> None:
    run_commit(job.destination, job.id, "token", 1)
    if job.transfer.alive:
        return  # its folder goes last: while it is there, a receiver calls nothing complete
    report = job.destination.read_report(job.id)
    if report is not None:
        say(f"complete {len(report.failures)}")


def _offered(scenery: Scenery) -> Job:
    return scenery.offered(old=True)


def _ask(scenery: Found, job: Job, say: Say) -> None:
    scenery.ask(job)
    say("asked")


def _asked(scenery: Found) -> Job:
    job = scenery.offered(old=True)
    scenery.ask(job)
    scenery.tell(job)
    return job


def _plan(scenery: Found, job: Job, say: Say) -> None:
    scenery.answer(job)
    say("answered")
    scenery.ask(job)
    say("negotiated")


def _negotiate(scenery: Scenery, job: Job, say: Say) -> None:
    scenery.negotiate(job)
    say("negotiated")


def _touched(scenery: Scenery) -> Job:
    job = scenery.offered(old=True)
    os.utime(scenery.dest / scenery.kept, ns=(0, 0))
    return job


def _look(scenery: Scenery, job: Job, say: Say) -> None:
    begun = begin_look(job.destination)
    run_look(job.destination, begun.token)
    seen = read_look(job.destination, begun.token)
    if seen is not None and seen.same:
        raise Broken("it was called unchanged, and was touched")
    if touched := find_touched(job.destination, begun.token):
        with contextlib.closing(connect_readonly(touched)) as found:
            if not found.execute("SELECT count(*) FROM touched").fetchone()[0]:
                raise Broken("what was touched was not seen")
    say("looked")


def _abandoned(scenery: Scenery) -> Job:
    job = _sent_over(scenery)
    for path in (job.path, *job.path.rglob("*")):
        os.utime(path, (0, 0), follow_symlinks=False)
    return job


def _expire(_: Scenery, job: Job, say: Say) -> None:
    expire(job.destination, 3600.0)
    say("expired")


WORKS = (
    Work("offer", Scenery, _not_offered, _offer),
    Work("put", Scenery, _made, _put),
    Work("commit", Scenery, _sent, _commit),
    Work("commit over an older tree", Scenery, _sent_over, _commit),
    Work("questions", Found, _offered, _ask),
    Work("answers and a plan", Found, _asked, _plan),
    Work("commit of what was found", Found, _sent_over, _commit),
    Work("plan with what was staged before", Adopted, _offered, _negotiate),
    Work("commit with what was staged before", Adopted, _sent_over, _commit),
    Work("commit of a snapshot", Snapshots, _sent_over, _commit),
    Work("look", Scenery, _touched, _look),
    Work("expiry", Scenery, _abandoned, _expire),
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


class Errors:
    """The trials, in one folder, which is made anew."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        if folder.exists():
            remove(folder)
        folder.mkdir()
        self._dice = dice
        self._log = folder / "log"
        kinds = (Scenery, Found, Adopted, Snapshots)
        self._sceneries = {kind: kind(folder / kind.__name__, dice) for kind in kinds}
        for scenery in self._sceneries.values():  # imports what is imported late
            scenery.offered(old=True).close()
            scenery.again()
        self.tally = Tally()

    def _scenery(self, work: Work) -> Scenery:
        return self._sceneries[work.scenery]

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
        done, _ = self._traced(work, job, None)
        if done.code:
            raise Broken(f"{work.name} fails by itself: {self._log.read_text()[-2000:]}")
        return done.calls

    def _prepared(self, work: Work) -> Job:
        job = work.prepare(self._scenery(work))
        gc.collect()  # closes what earlier works had open: each begins with the same descriptors
        return job

    def _traced(self, work: Work, job: Job, hit: Hit | None) -> tuple[Traced, list[str]]:
        """How the work went, and what it said that it got done."""
        self._log.unlink(missing_ok=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with ours, theirs:
            done = traced(
                lambda: self._try(work, job, lambda text: theirs.send(text.encode())),
                log=self._log, which=WRITES + READS, hit=hit,
            )  # fmt: skip
            theirs.send(b"")
            said = list(iter(lambda: ours.recv(100).decode(), ""))
        job.close()
        return done, said

    def _try(self, work: Work, job: Job, say: Say) -> int:
        """In the traced process: 0 when it went through, 1 when it failed with an error of ours."""
        try:
            work.do(self._scenery(work), job, say)
        except OURS as error:
            print(type(error).__name__, error)
            return 1
        return 0

    def one(self, fault: Fault) -> None:
        """Have one call fail; the tally says what came of it."""
        work = WORKS[fault.work]
        job = self._prepared(work)
        hit = Hit(fault.call, fault.number, getattr(errno, fault.error))
        done, said = self._traced(work, job, hit)
        self.tally.met += done.met
        self.tally.stopped += not DONE & set(said)
        try:
            if done.code not in (0, 1):
                raise Broken(f"it crashed: {self._log.read_text()[-2000:]}")
            self._judge(
                work, job, said, failed=fault.call if done.met and fault.call in SYNCS else ""
            )
        except (AssertionError, *OURS) as broken:
            self.tally.broken.append(f"{fault}: {broken!r}")
            print(f"errors: {self.tally.broken[-1]}", flush=True)

    def _judge(self, work: Work, job: Job, said: list[str], *, failed: str) -> None:
        """``failed`` is the sync that did, if one did."""
        scenery = self._scenery(work)
        scenery.no_partial_files()
        folder = scenery.dest / ".tar_like/transfers" / job.id
        outcome = read_outcome(str(folder), COMMIT)
        if outcome is not None and "unexpected" in outcome.error:
            raise Broken(f"an error that is none of ours: {self._log.read_text()[-2000:]}")
        if failed and {"durable", "complete 0"} & set(said):
            raise Broken("it was called durable or complete though a sync failed")
        if (folder / "plan.db").exists():
            self._judge_receipts(scenery, folder, said, failed=failed)
        if "complete 0" in said:
            scenery.same()
        scenery.again()

    @staticmethod
    def _judge_receipts(scenery: Scenery, folder: Path, said: list[str], *, failed: str) -> None:
        receipts = Receipts(str(folder / "receipts"))
        receipts.refresh()
        if "durable" in said and not receipts.durable:
            raise Broken("a block was called durable, and is not")
        if failed == "syncfs" or (failed and "received" in said):
            if receipts.received and not (folder / "verified.db").exists():
                raise Broken("a sync failed, and what it would have covered is trusted")
        elif "received" in said and not receipts.received:
            raise Broken("a block was acknowledged, and has no receipt")
        scene.staged_as_sent(folder, receipts.blocks(), scenery.source, scenery.root(folder))

    def short(self) -> None:
        """Transfers whose every write is cut short."""
        pwrite, write = os.pwrite, os.write

        def part(data: bytes | memoryview) -> memoryview:
            view = memoryview(data).cast("B")
            return view[: self._dice.randint(1, max(1, len(view)))]

        for scenery in self._sceneries.values():
            job = scenery.prepared(old=True)
            with (
                mock.patch.object(os, "pwrite", lambda fd, data, at: pwrite(fd, part(data), at)),
                mock.patch.object(os, "write", lambda fd, data: write(fd, part(data))),
            ):
                failures = job.complete()
            job.close()
            if failures:
                raise Broken(f"short writes: {failures}")
            scenery.same()
        plain = self._sceneries[Scenery]
        scene.same(plain.source, plain.dest)
