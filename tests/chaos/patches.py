"""Syncing again after small changes, cut off at any moment of it, most often in its commit.

    a disk with a tree on it that was committed > another tree is synced, as a patch of the first
        > at a random moment: the power is cut, or all are killed, or one process of the receiver
    then: whatever bears a name is of either tree; what was called complete is there; a tree of
        the three at hand, synced next, arrives, and once more finds nothing to do

One file is large: its older version is copied, slowly here, while the blocks of the newer one come.

What is cut is the ledger's way from one tree to the next: it must never say more than what lies
there, since the next sync believes it.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from tar_like.cli import main
from tar_like.proxy import laying
from tests.chaos import disk, scene
from tests.chaos.disk import OPTIONS, Disk
from tests.chaos.scene import Broken, Fork, Receiver
from tests.e2e.test_edits import EDITS, Edited
from tests.processes import group
from tests.trees import visible_files

_EDITS = sorted(EDITS.keys() - {"link"})
"""Trees with hard links are offered whole."""
_FILES = 60
_IMAGE, _STEP, _PAUSE = 6 << 20, 256 << 10, 0.02
"""The large file's bytes; how many are copied in a row, and the most seconds before each."""


def run(count: int, dice: random.Random) -> dict[str, object]:
    """So many faults. Raises Broken; PermissionError where nothing can be mounted."""
    return disk.run(count, "patches", lambda work: _Faults(work, dice))


class _Faults:
    def __init__(self, work: Path, dice: random.Random) -> None:
        self._dice = dice
        self._copy_slowly()
        self._trees = [work / f"tree {number}" for number in range(3)]
        self._make_trees(work)
        self._files = [visible_files(tree) for tree in self._trees]
        self._disk = Disk(work, dice)
        self._disk.format()
        self._dest = self._disk.mount / "dst"
        self._log = work / "log"
        self._lasts = self._begin()
        self.figures = dict.fromkeys(
            ("faults", "cuts", "kills", "kills_of_one", "at_a_step", "after_completion",
             "with_both_trees_names", "patches_that_followed"), 0,
        )  # fmt: skip

    def _make_trees(self, work: Path) -> None:
        """Each of them edited a little after the one before."""
        root = work / "edited"
        root.mkdir()
        edited = Edited(root, self._dice)
        for number in range(_FILES):
            folder = root / f"d{number % 7}" / ("deep" if number % 3 else "")
            folder.mkdir(parents=True, exist_ok=True)
            size = self._dice.choice((0, 1, self._dice.randrange(4096), 50_000))
            (folder / f"f{number}").write_bytes(self._dice.randbytes(size))
        for tree in self._trees:
            subprocess.run(["cp", "-a", root, tree], check=True)
            for _ in range(self._dice.randrange(2, 6)):
                EDITS[self._dice.choice(_EDITS)](edited)
        image = bytearray(self._dice.randbytes(_IMAGE))
        for tree in self._trees:
            (tree / "image").write_bytes(image)
            for _ in range(6):
                page = self._dice.randrange(_IMAGE // 4096) * 4096
                image[page : page + 4096] = self._dice.randbytes(4096)

    def _copy_slowly(self) -> None:
        """In the receivers, which are forks of this process."""
        copy, dice = laying.copy_range, random.Random(self._dice.random())

        def slowly(*args: int) -> None:
            time.sleep(dice.uniform(0, _PAUSE))
            copy(*args)

        laying.copy_range = slowly  # type: ignore[assignment]
        laying.clone_range = lambda *_: False
        laying._STEP = _STEP

    def _begin(self) -> float:
        """A disk with the first tree, and what a look saw; the seconds that the next takes."""
        with self._disk.mounted():
            for _ in range(2):
                self._sync(0)
        self._disk.keep()
        with self._disk.mounted():
            begun = time.monotonic()
            self._sync(1)
            return time.monotonic() - begun

    def _sync(self, number: int) -> None:
        """Sync a tree to its end."""
        with Receiver(self._dest, log=self._log) as receiver:
            sender = self._sender(number, receiver)
            if sender.end() != 0:
                raise Broken(f"it cannot be synced: {sender.said()}")
        scene.same(self._trees[number], self._dest)

    def _sender(self, number: int, receiver: Receiver) -> Fork:
        words = ["sync", "--delete", str(self._trees[number]), receiver.url]
        return Fork(lambda: main(words), log=self._log)

    def one(self) -> None:
        """One fault, and what came of it."""
        self._log.unlink(missing_ok=True)
        self._disk.restore()
        kind = self._dice.choice(("cuts", "kills", "kills_of_one"))
        with self._disk.mounted(self._dice.choice(OPTIONS)):
            complete = self._until(kind)
        if kind == "cuts":
            self._disk.start_again()
        with self._disk.mounted():
            self._judge(complete)
        self.figures[kind] += 1
        self.figures["faults"] += 1

    def _until(self, kind: str) -> bool:
        """Sync the second tree until that happens; whether it was called complete before."""
        over = self._moment()
        fd = self._disk.open()
        try:
            with Receiver(self._dest, log=self._log) as receiver:
                sender = self._sender(1, receiver)
                with sender:
                    while not (sender.ended() or over()):
                        time.sleep(0.0005)
                    if kind == "kills_of_one":
                        self._kill_one(receiver)
                        if sender.end() != 0:
                            raise Broken(f"it does not get over a death: {sender.said()}")
                    complete = sender.ended() and sender.code == 0
                    if kind == "cuts":
                        self._disk.cut(fd)
        finally:
            os.close(fd)
        return complete

    def _kill_one(self, receiver: Receiver) -> None:
        """Any process of the receiver but the one that looks after the others."""
        others = [pid for pid in group(receiver.pid) if pid != receiver.pid]
        if others:
            with suppress(ProcessLookupError):  # it has ended just now
                os.kill(self._dice.choice(others), signal.SIGKILL)

    def _moment(self) -> Callable[[], bool]:
        """At a time, or some time after one of the transfer's files has been begun."""
        begun = time.monotonic()
        if self._dice.random() < 0.3:
            end = begun + self._dice.uniform(0, 1.2) * self._lasts
            return lambda: time.monotonic() > end
        later = self._dice.uniform(0, self._dice.choice((0.003, 0.02, 0.1)))
        mark = self._dice.choice(
            (
                "questions.db",
                "kept.db",
                "plan.db",
                "laid",
                "draft*",
                "next.db",
                "verified.db",
                "landed.db",
            )
        )
        reached: list[float] = []

        def over() -> bool:
            if not reached and any(self._dest.glob(f".tar_like/transfers/*/{mark}")):
                reached.append(time.monotonic())
                self.figures["at_a_step"] += 1
            return bool(reached) and time.monotonic() > reached[0] + later

        return over

    def _judge(self, complete: bool) -> None:
        names = visible_files(self._dest)
        scene.no_partial_files(self._dest, *self._files[:2])
        first, second = (tree.items() for tree in self._files[:2])
        if names.items() & (first - second) and names.items() & (second - first):
            self.figures["with_both_trees_names"] += 1
        if complete:
            self.figures["after_completion"] += 1
            scene.same(self._trees[1], self._dest)
        for number in (self._dice.randrange(3), self._dice.randrange(3)):
            self._sync(number)
            if self._was_patched():
                self.figures["patches_that_followed"] += 1
            self._sync(number)

    def _was_patched(self) -> bool:
        """Whether the last commit was that of a patch."""
        with closing(
            sqlite3.connect(f"file:{self._dest}/.tar_like/ledger.db?mode=ro", uri=True)
        ) as db:
            return bool(db.execute("SELECT 1 FROM meta WHERE key = 'offsets'").fetchall())
