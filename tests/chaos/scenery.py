"""A tree that is to come over an older one, again and again, for what one call more or less does.

Scenery    blocks of 16 KiB; what is new, other, or of another kind, and what is kept
Snapshots  the same as two snapshots, of which the second shares with the first
Adopted    over nothing, but the older one was sent as far as its commit
Found      --delete --backup-dir; a changed large file, a moved one, two that are the same:
           the receiver asks, and assembles what it can from what it has
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

from tar_like.index import Index
from tar_like.plan.questions import Question, Questions
from tar_like.proxy.outcome import Outcome
from tar_like.rules import Rules
from tar_like.source.folder import FolderSource
from tar_like.upload.answer import Answering
from tar_like.wire import Status
from tests.chaos import scene
from tests.chaos.scene import Broken
from tests.trees import Node, differences, look, remove, visible_files
from tests.unit.receiver import Job


class Scenery:
    """A tree, an older one, and a destination that is made anew each time."""

    block_size = 16384
    kept = "d1/deep/f1"
    """A file that is the same in both."""
    rules = first_rules = Rules()

    def __init__(self, work: Path, dice: random.Random) -> None:
        """``work`` is a folder, or will be one."""
        work.mkdir(exist_ok=True)
        self.dice = dice
        self.source, self.old, self.dest = work / "src", work / "old", work / "dst"
        self.make_old()
        shutil.copytree(self.old, self.source, symlinks=True, copy_function=_copy)
        self.change()
        self.allowed = [visible_files(self.source), visible_files(self.old)]
        self.wanted = look(self.source, xattrs=True)

    def make_old(self) -> None:
        """The older tree."""
        scene.make_tree(self.old, self.dice, files=14, most=30_000)

    def change(self) -> None:
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

    def _job(self, tree: Path, *, negotiate: bool) -> Job:
        size = self.block_size
        return Job(tree, self.dest, block_size=size, algorithm="none", negotiate=negotiate)

    def offered(self, *, old: bool) -> Job:
        """A transfer without a plan, of the new tree over nothing or over the old one."""
        if self.dest.exists():
            remove(self.dest)
        self.dest.mkdir()
        if old:
            before = self._job(self.old, negotiate=False)
            before.transfer.negotiate(self.block_size, self.first_rules)
            before.complete()
            before.close()
        return self._job(self.source, negotiate=False)

    def root(self, transfer: Path) -> Path:
        """Where what a transfer commits gets its names; given the transfer's folder."""
        return self.dest

    def prepared(self, *, old: bool) -> Job:
        """A transfer that was negotiated, of the new tree over nothing or over the old one."""
        job = self.offered(old=old)
        self.negotiate(job)
        return job

    def negotiate(self, job: Job) -> None:
        """Have it planned."""
        job.transfer.negotiate(self.block_size, self.rules)

    def again(self) -> None:
        """The same again completes."""
        for _ in range(4):  # as often as a sender tries, where blocks were wrong
            report = self._complete()
            if isinstance(report, Status) and not report.again:
                break
        else:
            raise Broken(f"the same again does not complete: {report}")
        if report.failures:
            raise Broken(f"the same again fails: {report.failures}")
        self.same()

    def _complete(self) -> Status | Outcome:
        job = self._job(self.source, negotiate=False)
        try:
            self.negotiate(job)
            job.send()
            return job.commit()
        finally:
            job.close()

    def no_partial_files(self) -> None:
        """Whatever bears a name is of one of the two trees."""
        scene.no_partial_files(self.dest, *self.allowed)

    def same(self) -> None:
        """By our own eye, which is ten times as fast as rsync's."""
        if lines := differences(self.wanted, look(self.dest, xattrs=True)):
            raise Broken(f"the destination differs: {lines[:20]}")


class Snapshots(Scenery):
    """Two snapshots, of which the second shares with the first."""

    first_rules = Rules(snapshot="old")

    def __init__(self, work: Path, dice: random.Random) -> None:
        super().__init__(work, dice)
        new, old = self.allowed
        self.allowed = [_below("new", new), _below("old", old), _below("newer", new)]
        self._first = look(self.old, xattrs=True)

    def offered(self, *, old: bool) -> Job:
        self.rules = Rules(snapshot="new")
        return super().offered(old=old)

    def root(self, transfer: Path) -> Path:
        tree = transfer / "tree"
        return tree if tree.exists() else self.dest / self.rules.snapshot

    def again(self) -> None:
        """One that was completed has its name, with what failed in it or not: the next is whole."""
        if not any((self.dest / ".tar_like/transfers").iterdir()) and self._current() == "new":
            self.rules = Rules(snapshot="newer")
        super().again()

    def _current(self) -> str:
        return os.readlink(self.dest / "current")

    def no_partial_files(self) -> None:
        super().no_partial_files()
        if lines := differences(self._first, self._snapshot("old")):
            raise Broken(f"the snapshot before is another: {lines[:20]}")

    def _snapshot(self, name: str) -> dict[bytes, Node]:
        """Names that a file has in other snapshots do not count."""
        found = look(self.dest / name, xattrs=True)
        return {path: replace(node, outside=0) for path, node in found.items()}

    def same(self) -> None:
        if self._current() != self.rules.snapshot:
            raise Broken(f"current is {self._current()} instead of {self.rules.snapshot}")
        if lines := differences(self.wanted, self._snapshot(self.rules.snapshot)):
            raise Broken(f"the snapshot differs: {lines[:20]}")


def _below(name: str, tree: dict[bytes, str]) -> dict[bytes, str]:
    return {f"{name}/".encode() + path: sum_ for path, sum_ in tree.items()}


class Adopted(Scenery):
    """The older tree was sent, and not committed: a newer transfer has what it staged."""

    def offered(self, *, old: bool) -> Job:
        job = super().offered(old=False)
        if old:
            before = self._job(self.old, negotiate=True)
            before.send()
            before.close()
            job.destination.give(before.transfer.path, job.id)
        return job


class Found(Scenery):
    """Much of the tree is at the destination already, which keeps what it replaces and deletes."""

    block_size = 1 << 18
    rules = Rules(delete=True, backup_dir="before")

    def __init__(self, work: Path, dice: random.Random) -> None:
        super().__init__(work, dice)
        kept = visible_files(self.old)
        self.allowed.append({b"before/" + path: sum_ for path, sum_ in kept.items()})
        self._answers: dict[tuple[Question, ...], bytes] = {}

    def make_old(self) -> None:
        for name, size in (("d/large", 1_200_000), ("d/was here", 30_000), ("gone/file", 5000)):
            (self.old / name).parent.mkdir(parents=True, exist_ok=True)
            (self.old / name).write_bytes(self.dice.randbytes(size))
        (self.old / "gone/deeper").mkdir()
        (self.old / "gone/link").symlink_to("file")

    def change(self) -> None:
        source = self.source
        shutil.rmtree(source / "gone")
        (source / "d/was here").rename(source / "is here")
        with (source / "d/large").open("r+b") as file:
            file.seek(600_000)
            file.write(b"other bytes")
        twins = self.dice.randbytes(80_000)
        for name in ("one", "the same"):
            (source / name).write_bytes(twins)

    def ask(self, job: Job) -> None:
        """Up to the questions."""
        job.transfer.negotiate(self.block_size, self.rules, ask=True)

    def tell(self, job: Job) -> None:
        """Have the answers at hand; to the same questions they are made once."""
        self._told = Path(job.destination.temporary()) / "answers.db"
        with contextlib.closing(Questions(job.transfer.questions_path, job.id)) as questions:
            asked = tuple(questions)
            if asked not in self._answers:
                self._write_answers(job, questions, self._told)
                self._answers[asked] = self._told.read_bytes()
        self._told.write_bytes(self._answers[asked])

    def answer(self, job: Job) -> None:
        """Give the answers that are at hand, as they came over the wire."""
        job.transfer.answer(str(self._told))
        job.destination.discard(str(self._told.parent))

    def _write_answers(self, job: Job, questions: Questions, path: Path) -> None:
        with (
            contextlib.closing(FolderSource(str(self.source))) as source,
            Index(str(job.index)) as index,
        ):
            told = Answering(questions, index, source, jobs=1, stopped=lambda: False)
            told.write(str(path))

    def negotiate(self, job: Job) -> None:
        self.ask(job)
        if job.transfer.open_questions:
            self.tell(job)
            self.answer(job)
            self.ask(job)

    def same(self) -> None:
        found = look(self.dest, xattrs=True)
        rest = {p: node for p, node in found.items() if p.partition(b"/")[0] != b"before"}
        if lines := differences(self.wanted, rest):
            raise Broken(f"the destination differs: {lines[:20]}")


def _copy(source: str, target: str) -> None:
    """With its times to the nanosecond, so that what is unchanged is kept."""
    shutil.copy2(source, target)
    st = os.stat(source)
    os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))
