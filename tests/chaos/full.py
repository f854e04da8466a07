"""A disk that fills up: at so many levels from nothing free to just enough, bytes and inodes.

for each level: negotiate > leave so much free > send, commit > 507 in words, exit code 1
then: what has a receipt is staged as sent; what bears a name is whole; with room again the same
    upload completes. Every fifth level the early refusal is left in its place: not one block
    is sent then.

Then the same from before the index is offered, up to what the index and the plan take, with nothing
or an older tree at the destination.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

from tar_like.proxy import room
from tar_like.proxy.receipts import Receipts
from tar_like.upload.client import Client
from tests.chaos import scene
from tests.chaos.scene import Broken, Receiver, Sender
from tests.trees import visible_files

BLOCK = 16384
ROOM = "size=256m,nr_inodes=100000"
INODES = 20
"""That an index and a plan take, and some more."""
SURELY = 0.5
"""Up to this level what is free is less than the lower bound that is asked for."""
WORDS = r"disk is full|too little space|too few inodes"


def run(count: int, dice: random.Random) -> dict[str, object]:
    """So many levels. Raises Broken; PermissionError where nothing can be mounted."""
    return scene.apart(lambda: _run(count, dice))


def _run(count: int, dice: random.Random) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="tar-like-full-", ignore_cleanup_errors=True) as name:
        levels = _Levels(Path(name), dice)
        for number in range(count):
            levels.one((number + dice.random()) / count, number)
        for number in range(count):
            levels.before((number + dice.random()) / count, number)
        return dict(levels.figures)


class _Levels:
    def __init__(self, work: Path, dice: random.Random) -> None:
        self._source, self._index = work / "src", work / "index.db"
        self._mount, self._log = work / "mnt", work / "log"
        self._dest = self._mount / "dst"
        self._mount.mkdir()
        scene.make_tree(self._source, dice, files=60, most=100_000)
        self._wanted = visible_files(self._source)
        self._id = scene.make_index(self._source, self._index)
        self._bytes = sum(path.lstat().st_size for path in self._source.rglob("*"))
        self._names = sum(1 for _ in self._source.rglob("*"))
        self._old, self._old_index = work / "old", work / "old.db"
        scene.make_tree(self._old, dice, files=30, most=20_000)
        scene.make_index(self._old, self._old_index)
        self._allowed = (self._wanted, visible_files(self._old))
        self.figures: Counter[str] = Counter()

    def before(self, level: float, number: int) -> None:
        """Offer and plan with so much free, then with room."""
        self._log.unlink(missing_ok=True)
        with scene.mounted("-t", "tmpfs", "-o", ROOM, "none", self._mount):
            with self._receiver() as receiver:
                if number % 2:
                    self._sent(receiver.url, self._old, self._old_index)
                if number % 3 == 2:
                    self._allow(inodes=round(level * INODES))
                else:
                    self._allow(nbytes=round(level * 5 * self._index.stat().st_size))
                self._meet_early(receiver.url)
            scene.no_partial_files(self._dest, *self._allowed)
            self._remount(ROOM)
            with self._receiver() as receiver:
                self._sent(receiver.url, self._source, self._index)
            scene.same(self._source, self._dest)
        self.figures["early_levels"] += 1

    def _meet_early(self, url: str) -> None:
        sender = self._sender(url)
        if sender.end() == 0:
            raise Broken("it went through with room for nothing but an index and a plan")
        if not re.search(WORDS, sender.said()):
            raise Broken(f"it is full, and says: {sender.said()}")
        client = Client(url)
        found = client.status(self._id)
        client.close()
        self.figures[f"early_{found.state if found else 'not_offered'}"] += 1

    def _sent(self, url: str, source: Path, index: Path) -> None:
        with Sender(source, index, (url,), log=self._log, block_size=BLOCK) as sender:
            if sender.end() != 0:
                raise Broken(f"there is room: {sender.said()}")

    def one(self, level: float, number: int) -> None:
        """Send with so much free, then with room."""
        self._log.unlink(missing_ok=True)
        early = number % 5 == 4
        check = room.check if early else lambda *_: None
        with scene.mounted("-t", "tmpfs", "-o", ROOM, "none", self._mount):
            with mock.patch.object(room, "check", check), self._receiver() as receiver:
                self._negotiate(receiver.url)
                self._leave(level, inodes=number % 3 == 2)
                self._meet(receiver.url, level, early=early)
            scene.no_partial_files(self._dest, self._wanted)
            self._remount(ROOM)
            with self._receiver() as receiver:
                self._sent(receiver.url, self._source, self._index)
            scene.same(self._source, self._dest)
        self.figures["levels"] += 1

    def _receiver(self) -> Receiver:
        return Receiver(self._dest, log=self._log)

    def _sender(self, url: str) -> Sender:
        return Sender(self._source, self._index, (url,), log=self._log, block_size=BLOCK)

    def _negotiate(self, url: str) -> None:
        client = Client(url)
        client.offer(self._id, str(self._index))
        client.negotiate(self._id, client.wish(BLOCK))
        client.close()

    def _leave(self, level: float, *, inodes: bool) -> None:
        if inodes:
            self._allow(inodes=round(level * 1.2 * self._names))
        else:
            self._allow(nbytes=round(level * (self._bytes * 1.2 + 3 * self._index.stat().st_size)))

    def _allow(self, *, nbytes: int | None = None, inodes: int | None = None) -> None:
        """Have no more than that free."""
        found = os.statvfs(self._mount)
        if inodes is not None:
            self._remount(f"nr_inodes={found.f_files - found.f_ffree + inodes}")
        if nbytes is not None:
            used = (found.f_blocks - found.f_bfree) * found.f_frsize
            self._remount(f"size={max(4096, used + nbytes // 4096 * 4096)}")  # 0 is without end

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self._mount], check=True)

    def _meet(self, url: str, level: float, *, early: bool) -> None:
        """The sender meets the limit, or gets through."""
        client = Client(url)
        sender = self._sender(url)
        if sender.end() == 0:
            scene.same(self._source, self._dest)
            return
        if not re.search(WORDS, sender.said()):
            raise Broken(f"it is full, and says: {sender.said()}")
        status = client.status(self._id)
        client.close()
        assert status is not None
        folder = self._dest / ".tar_like/transfers" / self._id
        receipts = Receipts(str(folder / "receipts"))
        receipts.refresh()
        scene.staged_as_sent(folder, receipts.blocks(), self._source, self._dest)
        self.figures["full"] += 1
        self.figures["full_in_the_commit"] += status.received == status.blocks
        if early and not receipts.received:
            self.figures["refused_early"] += 1
        elif early and level < SURELY:
            raise Broken(f"it cannot fit, and was not refused at once: {sender.said()}")
