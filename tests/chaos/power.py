"""Power cuts: ext4 is shut down under running receivers, without writing anything more.

    for each cut: mount > two receivers, one sender > what is called durable is noted
        > at a random moment EXT4_IOC_SHUTDOWN without a flush > all are killed > mounted again,
          in another boot
    then: every block that was called durable has a receipt, and its bytes are those of the
        source; what bears a name is whole; the same upload completes

What it does not show: a disk that loses what it said it had flushed.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tar_like.errors import TarLikeError
from tar_like.proxy.durable import sync_filesystem
from tar_like.proxy.place import Destination
from tar_like.proxy.receipts import Receipts
from tar_like.upload.client import Client
from tests.chaos import disk, scene
from tests.chaos.disk import OPTIONS, Disk
from tests.chaos.scene import Broken, Receiver, Sender
from tests.trees import visible_files

BLOCK = 16384


@dataclass(slots=True)
class Called:
    """What was said before the cut."""

    durable: frozenset[int] = frozenset()
    complete: bool = False
    share: float = 0.0
    """Of the blocks that were received."""


def run(count: int, dice: random.Random) -> dict[str, object]:
    """So many cuts. Raises Broken; PermissionError where nothing can be mounted."""
    scene.checkpoints_every(0.03)
    return disk.run(count, "power", lambda work: _Cuts(work, dice))


def _numbers(bits: bytes) -> list[int]:
    return [number for number in range(8 * len(bits)) if bits[number // 8] >> number % 8 & 1]


class _Cuts:
    def __init__(self, work: Path, dice: random.Random) -> None:
        self._dice = dice
        self._work = work
        self._source = work / "src"
        scene.make_tree(self._source, dice, files=70, most=250_000)
        self._wanted = visible_files(self._source)
        self._index = work / "index.db"
        self._id = scene.make_index(self._source, self._index)
        self._disk = Disk(work, dice)
        self._disk.format()
        self._disk.keep()
        self._dest = self._disk.mount / "dst"
        self._log = work / "log"
        self._blocks = 0
        self._lasts = self._measure()
        self.figures = dict.fromkeys(
            ("cuts", "durable_blocks_checked", "cuts_before_the_first_checkpoint",
             "cuts_with_names_in_place", "cuts_after_completion"), 0,
        )  # fmt: skip

    def _measure(self) -> float:
        with self._disk.mounted():
            begun = time.monotonic()
            self._complete()
            report = Destination(str(self._dest)).read_report(self._id)
            assert report is not None
            self._blocks = report.blocks
            return time.monotonic() - begun

    def one(self) -> None:
        """One cut, and what came of it."""
        self._log.unlink(missing_ok=True)
        self._disk.restore()
        with self._disk.mounted(self._dice.choice(OPTIONS)):
            called = self._until_cut()
        self._disk.start_again()
        with self._disk.mounted():
            self._judge(called)
            self._complete()
        self.figures["cuts"] += 1

    def _until_cut(self) -> Called:
        """Transfer, and pull the plug at a random moment; returns what was said until then."""
        called = Called()
        over = self._moment(called)
        flushes = sorted(
            self._dice.uniform(0, 1) * self._lasts for _ in range(self._dice.choice((0, 0, 2)))
        )
        begun = time.monotonic()
        fd = self._disk.open()
        try:
            with (
                Receiver(self._dest, log=self._log) as one,
                Receiver(self._dest, log=self._log) as other,
                Sender(self._source, self._index, (one.url, other.url), log=self._log,
                       block_size=BLOCK) as sender,
            ):  # fmt: skip
                client = Client(other.url, attempts=1)
                while not over():
                    self._listen(client, sender, called)
                    if flushes and time.monotonic() - begun > flushes[0]:
                        sync_filesystem(fd)  # as the kernel does now and then
                        flushes.pop(0)
                client.close()
                self._disk.cut(fd)
        finally:
            os.close(fd)
        return called

    def _moment(self, called: Called) -> Callable[[], bool]:
        """When to pull the plug: at a time, while blocks come, or around the commit."""
        begun = time.monotonic()
        kind = self._dice.choice(("time", "blocks", "commit"))
        if kind == "time":
            end = begun + self._dice.uniform(0.05, 2) * self._lasts
            return lambda: time.monotonic() > end
        share = self._dice.random() if kind == "blocks" else 1.0
        later = self._dice.uniform(0, 0.03 if kind == "blocks" else 0.25)
        reached: list[float] = []

        def over() -> bool:
            if called.share >= share and not reached:
                reached.append(time.monotonic())
            now = time.monotonic()
            return now > begun + 10 * self._lasts or (bool(reached) and now > reached[0] + later)

        return over

    def _listen(self, client: Client, sender: Sender, called: Called) -> None:
        with contextlib.suppress(TarLikeError):
            bits = client.bitmaps(self._id)
            half = len(bits) // 2
            called.durable = frozenset(_numbers(bits[half:]))
            called.share = len(_numbers(bits[:half])) / self._blocks
        if sender.ended() and sender.code == 0:
            called.complete = True
        time.sleep(0.003)

    def _judge(self, called: Called) -> None:
        names = scene.no_partial_files(self._dest, self._wanted)
        self.figures["cuts_with_names_in_place"] += bool(names)
        self.figures["cuts_after_completion"] += called.complete
        self.figures["cuts_before_the_first_checkpoint"] += not called.durable
        if called.complete:
            scene.same(self._source, self._dest)
            return
        folder = self._dest / ".tar_like/transfers" / self._id
        if (folder / "plan.db").exists():
            self._check_blocks(folder, called)
        elif called.durable and not self._reported():
            raise Broken(f"{len(called.durable)} durable blocks, and no transfer")

    def _reported(self) -> bool:
        """Whether it was completed before the cut, though nobody heard of it."""
        return (self._dest / ".tar_like/completed" / f"{self._id}.json").exists()

    def _check_blocks(self, folder: Path, called: Called) -> None:
        receipts = Receipts(str(folder / "receipts"))
        receipts.refresh()
        durable = set(receipts.durable_blocks())
        verified = (folder / "verified.db").exists()
        if not verified and called.durable - durable:
            raise Broken(f"called durable, and forgotten: {sorted(called.durable - durable)}")
        scene.staged_as_sent(folder, called.durable | durable, self._source, self._dest)
        self.figures["durable_blocks_checked"] += len(called.durable | durable)

    def _complete(self) -> None:
        """The same upload again goes through, and everything is there."""
        with Receiver(self._dest, log=self._log) as receiver:
            sender = Sender(
                self._source, self._index, (receiver.url,), log=self._log, block_size=BLOCK
            )
            if sender.end() != 0:
                raise Broken(f"it cannot be gone on with: {sender.said()}")
        scene.same(self._source, self._dest)
