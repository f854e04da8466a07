"""SIGKILL at every system call of the writing kind, of one block's PUT and of one commit.

a commit into an empty destination, one over an older tree (kept, replaced and other kinds of
names); each call once, on entering it
then: what has a receipt is staged as sent, what bears a name is whole, the same again completes
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tar_like.proxy.commit import run_commit
from tar_like.proxy.receipts import Receipts
from tar_like.wire import Status
from tests.chaos import scene
from tests.chaos.scene import Broken
from tests.chaos.traced import WRITES, Hit, traced
from tests.trees import differences, look, remove, visible_files
from tests.unit.receiver import Job

BLOCK = 16384


def run(count: int, dice: random.Random) -> dict[str, object]:
    """Up to so many calls, chosen at random. Raises Broken; PermissionError where none can be."""
    with tempfile.TemporaryDirectory(prefix="tar-like-calls-", dir=scene.memory()) as name:
        return Kills(Path(name), dice).run(count)


@dataclass(frozen=True, slots=True)
class Work:
    """Something that is done to a transfer."""

    name: str
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
    Work("put", False, lambda job: None, _put),
    Work("commit", False, lambda job: job.send(), _commit),
    Work("commit over an older tree", True, lambda job: job.send(), _commit),
)


class Scenery:
    """A tree that is to come over an older one, and a destination that is made anew each time."""

    def __init__(self, work: Path, dice: random.Random) -> None:
        self.dice = dice
        self.work = work
        self.source, self.dest = work / "src", work / "dst"
        self.old = work / "old"
        self.log = work / "log"
        scene.make_tree(self.old, dice, files=14, most=30_000)
        shutil.copytree(self.old, self.source, symlinks=True, copy_function=_copy)
        self._change()
        self.allowed = [visible_files(self.source), visible_files(self.old)]
        self.wanted = look(self.source, xattrs=True)

    def _change(self) -> None:
        """New, other, gone to another kind; the rest is kept."""
        source = self.source
        (source / "new").write_bytes(self.dice.randbytes(50_000))
        (source / "d0/f0").write_bytes(self.dice.randbytes(20_000))
        (source / "link").unlink()
        (source / "link").mkdir()
        (source / "link/inside").write_bytes(b"was a symlink")
        (source / "dangling").unlink()
        (source / "dangling").symlink_to("elsewhere")
        (source / "d1/link to a link").symlink_to("../dangling")

    def prepared(self, *, old: bool) -> Job:
        """A transfer that was negotiated, of the new tree over nothing or over the old one."""
        if self.dest.exists():
            remove(self.dest)
        self.dest.mkdir()
        if old:
            before = Job(self.old, self.dest, block_size=BLOCK, algorithm="none")
            before.complete()
            before.close()
        return Job(self.source, self.dest, block_size=BLOCK, algorithm="none")

    def again(self) -> None:
        """The same again completes."""
        job = Job(self.source, self.dest, block_size=BLOCK, algorithm="none")
        try:
            for _ in range(4):  # as often as a sender tries, where blocks were wrong
                job.send()
                report = job.commit()
                if isinstance(report, Status):
                    break
            else:
                raise Broken(f"the same again does not complete: {report}")
        finally:
            job.close()
        if report.failures:
            raise Broken(f"the same again fails: {report.failures}")
        self.same()

    def same(self) -> None:
        """By our own eye, which is ten times as fast as rsync's."""
        if lines := differences(self.wanted, look(self.dest, xattrs=True)):
            raise Broken(f"the destination differs: {lines[:20]}")


class Kills(Scenery):
    """The trials, in one folder."""

    def run(self, count: int) -> dict[str, object]:
        every = [
            (work, name, number)
            for work in WORKS
            for name, total in self._calls(work).items()
            for number in range(1, total + 1)
        ]
        chosen = every if count >= len(every) else self.dice.sample(every, count)
        killed = sum(self._one(*each) for each in chosen)
        if killed < len(chosen) * 0.9:
            raise Broken(f"only {killed} of {len(chosen)} were killed: it shows nothing")
        return {"calls": len(every), "tried": len(chosen), "killed": killed}

    def _prepared(self, work: Work) -> Job:
        job = self.prepared(old=work.old)
        work.prepare(job)
        return job

    def _calls(self, work: Work) -> dict[str, int]:
        job = self._prepared(work)
        done = traced(lambda: work.do(job), log=self.log, which=WRITES)
        job.close()
        if done.code:
            raise Broken(f"{work.name} fails by itself: {self.log.read_text()[-2000:]}")
        return done.calls

    def _one(self, work: Work, call: str, number: int) -> bool:
        job = self._prepared(work)
        done = traced(lambda: work.do(job), log=self.log, hit=Hit(call, number))
        job.close()
        try:
            self._judge()
        except Broken as error:
            raise Broken(f"{work.name}, killed at {call} number {number}: {error}") from None
        return done.code == -9

    def _judge(self) -> None:
        scene.no_partial_files(self.dest, *self.allowed)
        for folder in (self.dest / ".tar_like/transfers").iterdir():
            receipts = Receipts(str(folder / "receipts"))
            receipts.refresh()
            scene.staged_as_sent(folder, receipts.blocks(), self.source, self.dest)
        self.again()


def _copy(source: str, target: str) -> None:
    """With its times to the nanosecond, so that what is unchanged is kept."""
    shutil.copy2(source, target)
    st = os.stat(source)
    os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))
