"""A network that flips bits: between a real sender and a real receiver, over HTTP.

    sender > Flipper (one bit of some of the bodies: of blocks, of the index) > receiver

then: what was flipped is refused (a rare one may decode to what was sent); the same command again
    and again comes to its end; rsync finds no difference
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import tempfile
from collections import Counter
from pathlib import Path

from tests.chaos import scene
from tests.chaos.scene import Broken, Fork, Receiver, Sender
from tests.trees import visible_files

BLOCK = 16384
SHARES = {"block": 0.2, "index": 0.6}
"""Of the bodies that get a flipped bit."""
RUNS = 60
"""Of one sender, at most; one whose index is flipped ends at once."""


def run(count: int, dice: random.Random) -> dict[str, object]:
    """So many flips or more. Raises Broken."""
    figures: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="tar-like-network-", dir=scene.memory()) as name:
        while figures["flips"] < count:
            work = Path(tempfile.mkdtemp(dir=name))
            figures += _transfer(work, dice, min(count - figures["flips"], 200))
            figures["transfers"] += 1
    if figures["harmless"] > 1 + figures["flips"] // 20:
        raise Broken(f"bodies with a flipped bit were taken: {dict(figures)}")
    return dict(figures)


def _transfer(work: Path, dice: random.Random, flips: int) -> Counter[str]:
    """One tree, however often the sender has to begin again."""
    source, index, dest = work / "src", work / "index.db", work / "dst"
    scene.make_tree(source, dice, files=100, most=200_000)
    scene.make_index(source, index)
    wanted = visible_files(source)
    done: Counter[str] = Counter()
    with Receiver(dest, log=work / "log") as receiver:
        with Flipper(receiver.port, work, dice.random(), flips) as network:
            for _ in range(RUNS):
                done["runs"] += 1
                with Sender(
                    source, index, (network.url,), log=work / "log", block_size=BLOCK
                ) as it:
                    if it.end() == 0:
                        break
                scene.no_partial_files(dest, wanted)
            else:
                raise Broken(f"it does not come to its end: {it.said()}")
        scene.same(source, dest)
    return done + network.figures()


class Flipper(Fork):
    """A forward proxy that counts what became of the bodies that it flipped a bit of."""

    def __init__(self, port: int, work: Path, seed: float, flips: int) -> None:
        self._receiver = port
        self._dice = random.Random(seed)
        self._flips = flips
        self._answers = work / "answers"
        self._answers.touch()
        reader, writer = os.pipe()
        super().__init__(lambda: asyncio.run(self._serve(writer)), log=work / "log")
        os.close(writer)
        with open(reader) as file:
            self.url = f"http://127.0.0.1:{int(file.readline())}/tar"

    def figures(self) -> Counter[str]:
        """How many bits were flipped, and of what; how many bodies were right in spite of it."""
        lines = self._answers.read_text().splitlines()
        found = Counter(line.split()[0] for line in lines)
        found["flips"] = len(lines)
        found["harmless"] = sum(line.split()[1].startswith("2") for line in lines)
        return found

    async def _serve(self, ready: int) -> None:
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        os.write(ready, f"{server.sockets[0].getsockname()[1]}\n".encode())
        await server.serve_forever()

    async def _pass_on(self, theirs: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        """Request by request; nobody here sends one before the last was answered."""
        ours, onward = await asyncio.open_connection("127.0.0.1", self._receiver)
        flipped: list[str] = []
        back = asyncio.create_task(self._pass_back(ours, answers, flipped))
        try:
            while True:
                head = await theirs.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                body = await theirs.readexactly(int(length[1]) if length else 0)
                found = re.match(rb"PUT /tar/[0-9a-f]+/(db|\d+/\d+) ", head)
                what = ("index" if found[1] == b"db" else "block") if found and body else ""
                if self._flips and self._dice.random() < SHARES.get(what, 0):
                    self._flips -= 1
                    body = self._flip(body)
                    flipped.append(what)
                onward.write(head + body)
                await onward.drain()
        except (asyncio.IncompleteReadError, OSError):
            onward.close()
        await back

    async def _pass_back(
        self, ours: asyncio.StreamReader, answers: asyncio.StreamWriter, flipped: list[str]
    ) -> None:
        try:
            while data := await ours.read(1 << 16):
                if flipped:  # what comes first after it is its answer
                    with self._answers.open("a") as file:
                        file.write(f"{flipped.pop()} {data.split(b' ', 2)[1].decode()}\n")
                answers.write(data)
                await answers.drain()
        except OSError:
            pass  # the sender is gone
        answers.close()

    def _flip(self, body: bytes) -> bytes:
        place = self._dice.randrange(len(body))
        return (
            body[:place] + bytes([body[place] ^ 1 << self._dice.randrange(8)]) + body[place + 1 :]
        )
