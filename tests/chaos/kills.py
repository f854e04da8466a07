"""Random SIGKILLs over senders, workers, receivers, Redis and haproxy while transfers run.

a round: two receivers behind haproxy, a sender on its own or through Redis and two workers;
again and again one process of one of them is killed, and what is gone is started again
then: the sender says complete, rsync finds no difference, and no more blocks came twice than
    slots were in flight, for each kill
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from tar_like.config import Trust
from tar_like.proxy.place import Destination
from tar_like.proxy.transfer import Transfer
from tar_like.upload.dispatch import UploadOptions
from tar_like.upload.run import Upload
from tests.chaos import scene
from tests.chaos.scene import Broken, Fork, Quiet, Receiver
from tests.haproxy.balancer import CONFIGURATION, MAKE_CERTIFICATE, environment
from tests.processes import free_port, group
from tests.trees import visible_files
from workers.crew import Crew
from workers.queue import RedisDispatcher
from workers.runtime import WorkerOptions

BLOCK = 16384
SLOTS = 2
"""Blocks that are under way at a time: sending processes, or workers."""
RATE = 3_000_000
"""Bytes a second that a round may send: it shall last until it is killed."""
PATIENCE = 240.0


def run(count: int, dice: random.Random) -> dict[str, object]:
    """So many kills. Raises Broken; PermissionError where a server is missing."""
    for program in ("redis-server", "haproxy"):
        if shutil.which(program) is None:
            raise PermissionError(f"{program} is not installed")
    with tempfile.TemporaryDirectory(
        prefix="tar-like-kills-", dir=scene.memory(), ignore_cleanup_errors=True
    ) as name:
        world = World(Path(name), dice)
        figures: Counter[str] = Counter()
        while figures["kills"] < count:
            with contextlib.closing(Round(world, redis=figures["rounds"] % 4 == 0)) as one:
                figures += one.run(min(count - figures["kills"], dice.randint(4, 16)))
            figures["rounds"] += 1
        return dict(figures)


class World:
    """What all rounds share."""

    def __init__(self, work: Path, dice: random.Random) -> None:
        self.work, self.dice = work, dice
        self.source, self.index = work / "src", work / "index.db"
        scene.make_tree(self.source, dice, files=200, most=250_000)
        self.wanted = visible_files(self.source)
        self.id = scene.make_index(self.source, self.index)
        self.certificate = work / "haproxy"
        subprocess.run([MAKE_CERTIFICATE, self.certificate], check=True, stdout=subprocess.DEVNULL)
        self.ports = [free_port() for _ in range(5)]


class Server:
    """redis-server or haproxy; started again it is another process on the same port."""

    def __init__(self, words: list[str], port: int, env: dict[str, str]) -> None:
        self._words, self._port, self._env = words, port, env
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._words, env=self._env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        scene.wait_for(f"{self._words[0]} to listen", lambda: _listens(self._port))

    def ended(self) -> bool:
        return self.process.poll() is not None

    def pids(self) -> list[int]:
        return [self.process.pid]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Part:
    """A fork that is started again when it has ended."""

    def __init__(self, make: Callable[[], Fork]) -> None:
        self._make = make
        self.start()

    def start(self) -> None:
        self.fork = self._make()

    def ended(self) -> bool:
        return self.fork.ended()

    def pids(self) -> list[int]:
        return group(self.fork.pid)

    def kill(self) -> None:
        self.fork.kill()


class Round:
    """One transfer, and what is done to it."""

    def __init__(self, world: World, *, redis: bool) -> None:
        self._world, self._redis = world, redis
        self._work = Path(tempfile.mkdtemp(dir=world.work))
        self._dest = self._work / "dst"
        self._log = self._work / "log"
        self._taken = self._work / "taken"
        self._taken.touch()
        one, other, balancer, tls, self._redis_port = world.ports
        self._url = f"http://127.0.0.1:{balancer}/tar"
        self._redis_url = f"redis://127.0.0.1:{self._redis_port}/0"
        self._parts: dict[str, Part | Server] = {}
        self._parts["receiver 1"] = Part(lambda: self._receiver(one))
        self._parts["receiver 2"] = Part(lambda: self._receiver(other))
        names = environment(world.certificate / "certificate.pem", (one, other))
        names |= {"BIND_HTTP": f"127.0.0.1:{balancer}", "BIND_HTTPS": f"127.0.0.1:{tls}"}
        words = ["haproxy", "-db", "-f", str(CONFIGURATION)]
        self._parts["haproxy"] = Server(words, balancer, names)
        if redis:
            self._begin_redis()
        self._sender = Part(self._send)
        self._parts["sender"] = self._sender

    def _begin_redis(self) -> None:
        words = ["redis-server", "--port", str(self._redis_port), "--save", "", "--bind"]
        words += ["127.0.0.1", "--dir", str(self._work)]
        self._parts["redis"] = Server(words, self._redis_port, dict(os.environ))
        for number in range(SLOTS):
            self._parts[f"worker {number}"] = Part(self._worker)

    def _receiver(self, port: int) -> Receiver:
        """It counts the blocks whose bodies it gets whole."""
        receive = Transfer.receive
        taken = self._taken

        def counted(self: Transfer, number: int, body: memoryview, digest: bytes) -> bool:
            with taken.open("a") as file:
                file.write(f"{number}\n")
            return receive(self, number, body, digest)

        with mock.patch.object(Transfer, "receive", counted):
            return Receiver(self._dest, log=self._log, port=port)

    def _worker(self) -> Fork:
        options = WorkerOptions(
            redis_url=self._redis_url, cache=str(self._work / "cache"), processes=1,
            base=str(self._world.source), urls=(self._url,), trust=Trust(), trusted=(self._url,),
            burst=False, max_idle=None,
        )  # fmt: skip
        return Fork(lambda: scene.void(Crew(options, print).run()), log=self._log)

    def _send(self) -> Fork:
        options = UploadOptions(
            source=str(self._world.source), index_path=str(self._world.index), urls=(self._url,),
            block_size=BLOCK, processes=SLOTS, limit=RATE,
        )  # fmt: skip
        return Fork(lambda: self._upload(options), log=self._log)

    def _upload(self, options: UploadOptions) -> int:
        dispatcher = RedisDispatcher(options, self._redis_url) if self._redis else None
        summary = Upload(options, Quiet(), dispatcher).run()
        print(summary.state, *summary.errors[:3], *summary.failures[:3], sep="\n", flush=True)
        return 0 if summary.state == "complete" and not summary.failures else 1

    def run(self, kills: int) -> Counter[str]:
        """So many kills, unless it is complete before; then to the end."""
        done: Counter[str] = Counter()
        while done["kills"] < kills and not self._complete():
            time.sleep(self._world.dice.uniform(0.02, 0.5))
            if self._complete():
                break
            done[f"killed_{self._kill().split()[0]}"] += 1
            done["kills"] += 1
            self._tend()
            scene.no_partial_files(self._dest, self._world.wanted)
        end = time.monotonic() + PATIENCE
        while not self._complete():
            self._tend()
            if time.monotonic() > end:
                raise Broken(f"it does not get to its end: {self._sender.fork.said()}")
            time.sleep(0.01)
        self._judge(done)
        return done

    def _complete(self) -> bool:
        return self._sender.ended() and self._sender.fork.code == 0

    def _kill(self) -> str:
        """One process of one part, or all of it."""
        dice = self._world.dice
        name = dice.choice(sorted(self._parts))
        pids = self._parts[name].pids()
        chosen = pids if dice.random() < 0.3 else [dice.choice(pids)] if pids else []
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return name

    def _tend(self) -> None:
        """Start again what has ended, but for a sender that is done."""
        for part in self._parts.values():
            if part.ended() and not (part is self._sender and self._complete()):
                part.kill()
                part.start()

    def _judge(self, done: Counter[str]) -> None:
        scene.same(self._world.source, self._dest)
        report = Destination(str(self._dest)).read_report(self._world.id)
        if report is None or report.state != "complete":
            raise Broken(f"it is said to be complete, and the receiver says {report}")
        taken = self._taken.read_text().split()
        extra = len(taken) - len(set(taken))
        if extra > done["kills"] * SLOTS:
            raise Broken(f"{extra} blocks came twice in {done['kills']} kills of {SLOTS} slots")
        done["blocks"] += len(set(taken))
        done["blocks_sent_twice"] += extra
        done["rounds_through_redis"] += self._redis

    def close(self) -> None:
        """Leave nothing behind."""
        for part in self._parts.values():
            part.kill()
        shutil.rmtree(self._work, ignore_errors=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
