"""SIGKILL at every system call of the writing kind, of one block's PUT and of commits.

a commit into an empty destination, one over an older tree (kept, replaced and other kinds of
names), one of what was assembled, which deletes and keeps backups; each call once, on entering it
then: what has a receipt is staged as sent, what bears a name is whole, the same again completes
"""

from __future__ import annotations

import gc
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tar_like.proxy.commit import run_commit
from tar_like.proxy.receipts import Receipts
from tests.chaos import scene
from tests.chaos.scene import Broken
from tests.chaos.scenery import Found, Scenery
from tests.chaos.traced import WRITES, Hit, traced
from tests.unit.receiver import Job


def run(count: int, dice: random.Random) -> dict[str, object]:
    """Up to so many calls, chosen at random. Raises Broken; PermissionError where none can be."""
    with tempfile.TemporaryDirectory(prefix="tar-like-calls-", dir=scene.memory()) as name:
        return Kills(Path(name), dice).run(count)


@dataclass(frozen=True, slots=True)
class Work:
    """Something that is done to a transfer."""

    name: str
    scenery: type[Scenery]
    old: bool
    """Whether the destination has an older tree."""
    prepare: Callable[[Job], object]
    do: Callable[[Job], object]


def _put(job: Job) -> None:
    job.put(0)
    job.transfer.checkpoint()


def _commit(job: Job) -> None:
    run_commit(job.destination, job.id, "token", 1)


WORKS = (
    Work("put", Scenery, False, lambda job: None, _put),
    Work("commit", Scenery, False, lambda job: job.send(), _commit),
    Work("commit over an older tree", Scenery, True, lambda job: job.send(), _commit),
    Work("commit of what was found", Found, True, lambda job: job.send(), _commit),
)


class Kills:
    """The trials, in one folder."""

    def __init__(self, work: Path, dice: random.Random) -> None:
        self._dice = dice
        self._log = work / "log"
        kinds = {work.scenery for work in WORKS}
        self._sceneries = {kind: kind(work / kind.__name__, dice) for kind in kinds}

    def run(self, count: int) -> dict[str, object]:
        every = [
            (work, name, number)
            for work in WORKS
            for name, total in self._calls(work).items()
            for number in range(1, total + 1)
        ]
        chosen = every if count >= len(every) else self._dice.sample(every, count)
        killed = sum(self._one(*each) for each in chosen)
        if killed < int(len(chosen) * 0.9):
            raise Broken(f"only {killed} of {len(chosen)} were killed: it shows nothing")
        return {"calls": len(every), "tried": len(chosen), "killed": killed}

    def _prepared(self, work: Work) -> Job:
        job = self._sceneries[work.scenery].prepared(old=work.old)
        work.prepare(job)
        gc.collect()  # closes what earlier works had open
        return job

    def _calls(self, work: Work) -> dict[str, int]:
        job = self._prepared(work)
        done = traced(lambda: work.do(job), log=self._log, which=WRITES)
        job.close()
        if done.code:
            raise Broken(f"{work.name} fails by itself: {self._log.read_text()[-2000:]}")
        return done.calls

    def _one(self, work: Work, call: str, number: int) -> bool:
        job = self._prepared(work)
        done = traced(lambda: work.do(job), log=self._log, hit=Hit(call, number))
        job.close()
        try:
            self._judge(self._sceneries[work.scenery])
        except AssertionError as error:
            raise Broken(f"{work.name}, killed at {call} number {number}: {error}") from None
        return done.code == -9

    @staticmethod
    def _judge(scenery: Scenery) -> None:
        scenery.no_partial_files()
        for folder in (scenery.dest / ".tar_like/transfers").iterdir():
            receipts = Receipts(str(folder / "receipts"))
            receipts.refresh()
            scene.staged_as_sent(folder, receipts.blocks(), scenery.source, scenery.dest)
        scenery.again()
