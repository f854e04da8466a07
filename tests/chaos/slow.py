"""Slow senders: honest ones keep their pace while so many sockets dawdle.

    for each kind: silence, a head that drips, a body that drips, a body that begins in earnest and
    drips then, an answer that nobody reads
    > a tree is sent again and again, with the dawdlers and without them, in turns that are longer
        than the receiver's patience
    then: with them it goes at 9/10 of the pace (where that is asked for), and the receiver's memory
        has a bound

Dawdlers come back as soon as they are thrown out. Those that begin in earnest take the room that
there is for bodies: with them only the memory is judged.
"""

from __future__ import annotations

import contextlib
import random
import re
import selectors
import socket
import tempfile
import threading
import time
from pathlib import Path

from tar_like.proxy.patience import FIRST, SLOWEST, UNREAD, WINDOW
from tar_like.wire import digest_header
from tests.chaos import scene
from tests.chaos.scene import Broken
from tests.e2e.harness import Proxy, payload, sync
from tests.processes import group
from tests.unit.receiver import Job

KINDS = ("silence", "head", "body", "unread", "earnest")
RUNS = 2
TURNS = dict.fromkeys(KINDS, FIRST + 2) | {"unread": UNREAD + 2}
"""Seconds; all dawdlers are thrown out and come back within them."""
PACE = 0.9
STRICT = 1000
"""From so many dawdlers on the pace is judged: below it is a test of what is said, not of time."""
MEMORY = 640 << 20
"""Bytes, of two processes that each have up to 256 MiB of bodies standing aside, and more."""
BLOCK = 4 << 20


def run(count: int, dice: random.Random) -> dict[str, object]:
    """So many dawdlers of each kind. Raises Broken."""
    figures: dict[str, object] = {}
    for kind in KINDS if count >= STRICT else ("body", "earnest"):
        with tempfile.TemporaryDirectory(prefix="tar-like-slow-", dir=scene.memory()) as folder:
            figures[kind] = _kind(Path(folder), kind, count, dice)
            print(f"slow: {kind}: {figures[kind]}", flush=True)
    return figures


def _kind(work: Path, kind: str, count: int, dice: random.Random) -> dict[str, float]:
    strict = count >= STRICT
    sources = [work / "src", work / "again"]
    for source in sources:  # in turns, so that all of it is sent again
        source.mkdir()
        size = (32 if strict else 1) << 20
        payload(source, files=8, size=size, seed=dice.randrange(1 << 30))
    (work / "other").mkdir()
    (work / "other/file").write_bytes(dice.randbytes(BLOCK))
    for _ in range(20_000 if strict else 100):  # so that an index is more than sockets hold
        (work / f"other/{dice.randbytes(16).hex()}").touch()
    with Proxy(work / "dst") as proxy:
        victim = Job(work / "other", work / "dst", block_size=BLOCK)
        paces: dict[bool, list[float]] = {False: [], True: []}
        most = 0
        judged = kind != "earnest"
        turn = TURNS[kind] if strict else 0.0
        runs = 1 if turn > 30 else RUNS
        for slow in (False, True) * (runs if strict and judged else 1):
            with contextlib.ExitStack() as stack:
                if slow:
                    stack.enter_context(Dawdlers(proxy.port, kind, count, victim.id))
                if judged:
                    paces[slow].append(_pace(sources, proxy.url, turn))
                else:
                    time.sleep(turn or 1)
                most = max(most, _memory(proxy.process.pid))
        victim.close()
    figures = {"MiB": most >> 20}
    if judged:
        alone, among = (max(paces[slow]) for slow in (False, True))  # others use the machine, too
        figures |= {"MiB/s": round(alone), "of it": round(among / alone, 2)}
    if strict and judged and among / alone < PACE:
        raise Broken(f"{kind}: {figures}")
    if most > MEMORY:
        raise Broken(f"{kind}: the receiver takes {most >> 20} MiB")
    return figures


def _pace(sources: list[Path], url: str, seconds: float) -> float:
    """MiB/s of an honest sender that sends one tree after the other for so long."""
    sent, begun = 0, time.monotonic()
    while not sent or time.monotonic() - begun < seconds:
        sources.reverse()
        done = sync(sources[0], url, "--compress", "none", "-p", "2")
        sent += int(done["bytes_sent"])
    return sent / (time.monotonic() - begun) / (1 << 20)


class Dawdlers:
    """Sockets that take their time, kept by one thread."""

    def __init__(self, port: int, kind: str, count: int, transfer: str) -> None:
        lines = [f"PUT /tar/{transfer}/{BLOCK}/0 HTTP/1.1", "Host: x", f"Content-Length: {BLOCK}"]
        lines += [f"Repr-Digest: {digest_header(bytes(32))}", "", ""]
        put = "\r\n".join(lines).encode()
        self._begin = {
            "silence": b"",
            "head": b"GET / HTTP/1.1\r\nX: ",
            "body": put,
            "earnest": put + bytes(SLOWEST),
            "unread": f"GET /tar/{transfer}/db HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        }[kind]
        self._drop = {"head": b"x", "body": b"x", "earnest": bytes(2 * SLOWEST // int(WINDOW))}.get(
            kind
        )
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
            for one in ready if self._begin[:3] != b"GET" or self._drop else ():
                self._selector.unregister(one)
                one.close()  # type: ignore[union-attr]
            for key in list(self._selector.get_map().values()):
                if self._drop:
                    with contextlib.suppress(OSError):
                        key.fileobj.send(self._drop)  # type: ignore[union-attr]
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


def _memory(leader: int) -> int:
    """Bytes that the processes of a group take, each page that they share counted once."""
    total = 0
    for pid in group(leader):
        with contextlib.suppress(OSError):
            found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
            total += int(found[1]) << 10 if found else 0
    return total
