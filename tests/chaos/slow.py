"""Slow senders: honest ones keep their pace while so many sockets dawdle.

    for each kind: silence, a head that drips, a body that drips, an answer that nobody reads
    > a tree is sent again and again, with the dawdlers and without them, in turns
    then: with them it takes at most 10/9 of the time (where that is asked for), and the receiver's
        memory has a bound

Dawdlers come back as soon as they are thrown out.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import socket
import tempfile
import threading
import time
from pathlib import Path

from tar_like.wire import digest_header
from tests.chaos.scene import Broken
from tests.e2e.harness import Proxy, payload, sync
from tests.unit.receiver import Job

RUNS = 5
PACE = 0.9
STRICT = 1000
"""From so many dawdlers on the pace is judged: below it is a test of what is said, not of time."""
MEMORY = 512 << 20
KINDS = ("silence", "head", "body", "unread")


def run(count: int, dice: random.Random) -> dict[str, object]:
    """So many dawdlers of each kind. Raises Broken."""
    figures: dict[str, object] = {}
    for kind in KINDS if count >= STRICT else ("body",):
        with tempfile.TemporaryDirectory(prefix="tar-like-slow-") as folder:
            figures[kind] = _kind(Path(folder), kind, count, dice)
    return figures


def _kind(work: Path, kind: str, count: int, dice: random.Random) -> dict[str, float]:
    size = (64 << 20) if count >= STRICT else 1 << 20
    (work / "src").mkdir()
    payload(work / "src", files=8, size=size // 8, seed=dice.randrange(1000))
    (work / "other").mkdir()
    (work / "other/file").write_bytes(bytes(20000))
    with Proxy(work / "dst") as proxy:
        victim = Job(work / "other", work / "dst")
        times: dict[bool, list[float]] = {False: [], True: []}
        most = 0
        for number in range(2 * (RUNS if count >= STRICT else 1)):
            slow = bool(number % 2)
            with contextlib.ExitStack() as stack:
                if slow:
                    stack.enter_context(Dawdlers(proxy.port, kind, count, victim.id))
                for path in (work / "src").rglob("*.bin"):
                    os.utime(path)  # all of it is sent again
                begun = time.monotonic()
                sync(work / "src", proxy.url, "--compress", "none", "-p", "2")
                times[slow].append(time.monotonic() - begun)
                most = max(most, _memory(proxy.process.pid))
        victim.close()
    alone, among = (min(times[slow]) for slow in (False, True))  # others use the machine, too
    if count >= STRICT and alone / among < PACE:
        raise Broken(f"{kind}: {alone:.2f} s alone, {among:.2f} s among {count}")
    if most > MEMORY:
        raise Broken(f"{kind}: the receiver takes {most >> 20} MiB")
    return {"pace": round(alone / among, 2), "MiB": most >> 20}


class Dawdlers:
    """Sockets that take their time, kept by one thread."""

    def __init__(self, port: int, kind: str, count: int, transfer: str) -> None:
        lines = [f"PUT /tar/{transfer}/4096/0 HTTP/1.1", "Host: x", "Content-Length: 4000"]
        lines += [f"Repr-Digest: {digest_header(bytes(32))}", "", ""]
        self._begin = {
            "silence": b"",
            "head": b"GET / HTTP/1.1\r\nX: ",
            "body": "\r\n".join(lines).encode(),
            "unread": 4 * f"GET /tar/{transfer}/db HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        }[kind]
        self._drips = kind in ("head", "body")
        self._address = ("127.0.0.1", port)
        self._count = count
        self._stopped = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._live)

    def _open(self) -> None:
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.settimeout(5)
        try:
            one.connect(self._address)
            one.sendall(self._begin)
        except OSError:
            one.close()
            return
        one.setblocking(False)
        self._selector.register(one, selectors.EVENT_READ)

    def _live(self) -> None:
        while not self._stopped.wait(1.0):
            ready = [key.fileobj for key, _ in self._selector.select(0)]
            for one in ready if self._begin[:3] != b"GET" or self._drips else ():
                self._selector.unregister(one)
                one.close()  # type: ignore[union-attr]
            for key in list(self._selector.get_map().values()):
                if self._drips:
                    with contextlib.suppress(OSError):
                        key.fileobj.send(b"x")  # type: ignore[union-attr]
            for _ in range(self._count - len(self._selector.get_map())):
                self._open()

    def __enter__(self) -> Dawdlers:
        for _ in range(self._count):
            self._open()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


def _memory(group: int) -> int:
    """Bytes that the processes of a group have for themselves."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group:
                    resident, shared = (entry / "statm").read_text().split()[1:3]
                    total += (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    return total
