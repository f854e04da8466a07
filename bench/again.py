"""python -m bench.again: syncing again, against rsync over a daemon.

    python -m bench.again --runs 3 --write

Each work brings a tree to two destinations, edits it, and has each tool bring them up to date:
``rsync -a --delete`` to a daemon, ``tar-like sync --delete`` to a proxy, both on loopback and
running already. Times are of runs without anything between, each begun when the receiver has
nothing left to do from before; bytes are those of one more run, counted in both directions by a
relay between the tool and its server. All lies on a tmpfs.
With --stores casync and restic do what they do of it on the same trees, where they are installed;
their stores take several times the tree's size on the tmpfs, and their time.
"""

from __future__ import annotations

import argparse
import random
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.command import REPOSITORY, BenchError, kill_group, output_of, run, spawn
from bench.daemon import free_port, rsync_daemon, wait_until_listening
from bench.machine import machine_line
from bench.measure import say, verify_tree
from bench.report import spread, write_between
from bench.stores import stored, versions
from bench.tools import tar_like_argv

DOCUMENT = REPOSITORY / "docs" / "benchmarks.md"
MIB = 1 << 20
TIMEOUT = 170.0
IDLE = 0.3
"""Seconds without work after which a receiver has nothing left to do."""

Edit = Callable[[Path, random.Random], None]


@dataclass(frozen=True, slots=True)
class Work:
    """A tree, an edit of it, and what is to be reached."""

    name: str
    text: str
    make: Edit
    edit: Edit
    ratio: float | None = None
    """Of the wall times."""
    wire_ratio: float | None = None
    wire_bytes: int | None = None


@dataclass(slots=True)
class Row:
    """What one work gave."""

    work: Work
    seconds: dict[str, list[float]] = field(default_factory=dict)
    wire: dict[str, int] = field(default_factory=dict)


def many(root: Path, dice: random.Random) -> None:
    """118,000 small files in 5,900 folders."""
    for number in range(5900):
        folder = root / f"{number // 40:03}" / f"{number % 40:02}"
        folder.mkdir(parents=True)
        for file in range(20):
            size = dice.choice((0, 100, 700, 2000, 3000, 6000))
            (folder / f"file-{file:03}.dat").write_bytes(dice.randbytes(size))


def one_percent(root: Path, dice: random.Random) -> None:
    """Write 1,180 of the files anew."""
    for number in dice.sample(range(118_000), 1180):
        folder, file = divmod(number, 20)
        path = root / f"{folder // 40:03}" / f"{folder % 40:02}" / f"file-{file:03}.dat"
        path.write_bytes(dice.randbytes(dice.randrange(1, 6000)))


def a_folder(root: Path, dice: random.Random) -> None:
    """A folder of 1,000 files of 1 MB."""
    (root / "folder").mkdir()
    for number in range(1000):
        (root / f"folder/{number}").write_bytes(dice.randbytes(1_000_000))


def rename(root: Path, dice: random.Random) -> None:
    """Give the folder another name."""
    next(iter(root.iterdir())).rename(root / f"renamed-{dice.randrange(1 << 40):x}")


def image(root: Path, dice: random.Random) -> None:
    """A file of 1 GiB."""
    with (root / "image").open("wb") as file:
        for _ in range(1024):
            file.write(dice.randbytes(MIB))


def scatter(root: Path, dice: random.Random) -> None:
    """1,000 pages written anew."""
    with (root / "image").open("r+b") as file:
        for page in dice.sample(range((1 << 30) // 4096), 1000):
            file.seek(page * 4096)
            file.write(dice.randbytes(4096))


def insert(root: Path, dice: random.Random) -> None:
    """1 MiB put in at the start, and as much cut off at the end."""
    with (root / "image").open("rb") as old, (root / "new").open("wb") as new:
        new.write(dice.randbytes(MIB))
        shutil.copyfileobj(old, new, MIB)
        new.truncate(1 << 30)
    (root / "new").rename(root / "image")


WORKS = (
    Work("same", "118,000 files, nothing changed", many, lambda *_: None, 0.8, None, 1_000_000),
    Work("percent", "118,000 files, 1 % of them changed", many, one_percent, 0.8),
    Work("renamed", "a folder of 1 GB renamed", a_folder, rename, None, None, 10_000_000),
    Work("scattered", "1 GiB, 1,000 pages changed", image, scatter, 0.7, 1.2),
    Work("inserted", "1 GiB, 1 MiB put in at its start", image, insert, None, None, 3 * MIB + MIB),
)


def main() -> int:
    options = parse()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="tar-like-again-") as folder:
        for work in WORKS:
            if not options.only or work.name in options.only:
                rows.append(measure(work, Path(folder), options.runs, stores=options.stores))
                shutil.rmtree(Path(folder) / work.name)
    text = render(rows, options)
    sys.stdout.write(text + "\n")
    if options.write:
        write_between(DOCUMENT, "bench-again", text)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.again", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", action="append", choices=[work.name for work in WORKS])
    parser.add_argument("--folder", default="/dev/shm", help="a folder on a tmpfs")
    parser.add_argument("--stores", action="store_true", help="also casync and restic")
    parser.add_argument(
        "--write", action="store_true", help="put the table into docs/benchmarks.md"
    )
    return parser.parse_args()


def measure(work: Work, folder: Path, runs: int, *, stores: bool) -> Row:
    dice = random.Random(work.name)
    row = Row(work)
    root = folder / work.name
    source, by_rsync, by_us = (root / name for name in ("source", "by-rsync", "by-us"))
    for path in (source, by_rsync, by_us):
        path.mkdir(parents=True)
    work.make(source, dice)
    with ExitStack() as stack:
        rsync = stack.enter_context(rsync_daemon({"d": by_rsync}, folder=root))
        ours = stack.enter_context(proxy(by_us))
        tools = {
            "rsync": lambda port: ["rsync", "-a", "--delete", f"{source}/", f"rsync://127.0.0.1:{port}/d/"],
            "tar-like": lambda port: [
                *tar_like_argv(), "sync", "--delete", str(source), f"http://127.0.0.1:{port}/tar",
            ],
        }  # fmt: skip
        ports = {"rsync": int(rsync.rpartition(":")[2]), "tar-like": ours.port}
        others = stored(source, root / "stores") if stores else []
        for name, argv in tools.items():
            run(argv(ports[name]), timeout=TIMEOUT)
        for other in others:
            other.run(TIMEOUT)
        for turn in range(runs + 1):
            work.edit(source, dice)
            for name, argv in sorted(tools.items(), reverse=bool(turn % 2)):
                if turn < runs:
                    wait_until_idle(ours.pid)
                    seconds = run(argv(ports[name]), timeout=TIMEOUT)
                    row.seconds.setdefault(name, []).append(seconds)
                else:
                    with relay(ports[name]) as relayed:
                        run(argv(relayed.port), timeout=TIMEOUT)
                    row.wire[name] = relayed.count
            for other in others:
                before = other.bytes()
                seconds = other.run(TIMEOUT)
                row.wire[other.name] = other.bytes() - before
                if turn < runs:
                    row.seconds.setdefault(other.name, []).append(seconds)
            say(f"{work.name} {turn}: { ({name: one[-1] for name, one in row.seconds.items()}) }")
        for dest in (by_rsync, by_us, *(other.dest for other in others if other.dest)):
            verify_tree(source, dest, options=("--delete", "--exclude=/.tar_like"))
    return row


class Receiver(NamedTuple):
    """A receiver that runs."""

    pid: int
    port: int


@contextmanager
def proxy(dest: Path) -> Iterator[Receiver]:
    """A receiver on loopback."""
    port = free_port()
    process = spawn([*tar_like_argv(), "proxy", "-b", str(dest), str(port)])
    try:
        wait_until_listening(port)
        yield Receiver(process.pid, port)
    finally:
        kill_group(process)


def wait_until_idle(group: int) -> None:
    """Wait until the processes of a group have used no processor for a while."""
    end, last = time.monotonic() + TIMEOUT, -1
    while (now := ticks(group)) != last:
        if time.monotonic() > end:
            raise BenchError("The receiver does not come to rest.")
        last = now
        time.sleep(IDLE)


def ticks(group: int) -> int:
    """What the processes of a group have used of a processor, and what those that ended had."""
    used = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                used += sum(map(int, fields[11:15]))
    return used


class relay:
    """Passes connections on to a port of this machine, and counts their bytes, both ways."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.count = 0

    def __enter__(self) -> relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self._to))
            for one, other in ((here, there), (there, here)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(1 << 18):
                with self._lock:
                    self.count += len(data)
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            return


def render(rows: list[Row], options: argparse.Namespace) -> str:
    lines = [
        "| again | rsync, s | tar-like, s | ratio | to reach "
        "| rsync, bytes | tar-like, bytes | to reach | |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        work, seconds, wire = row.work, row.seconds, row.wire
        ratios = [a / b for a, b in zip(seconds["tar-like"], seconds["rsync"], strict=True)]
        limit = work.wire_bytes
        if work.wire_ratio is not None:
            limit = int(work.wire_ratio * wire["rsync"])
        missed = [
            what
            for what, bad in (
                ("time", work.ratio is not None and median(ratios) > work.ratio),
                ("bytes", limit is not None and wire["tar-like"] > limit),
            )
            if bad
        ]
        lines.append(
            f"| {work.text} | {spread(seconds['rsync'])} | {spread(seconds['tar-like'])} "
            f"| {spread(ratios)} | {'' if work.ratio is None else f'≤ {work.ratio}'} "
            f"| {wire['rsync']:,} | {wire['tar-like']:,} "
            f"| {'' if limit is None else f'≤ {limit:,}'} "
            f"| {' '.join(f'**FAIL** ({one})' for one in missed)} |"
        )
    commit = output_of(["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]).strip()
    only = "".join(f" --only {name}" for name in options.only or ())
    only += " --stores" * options.stores
    lines += [
        "",
        f"{machine_line()}; tar-like {commit}.",
        "",
        f"Median (min–max) of {options.runs} runs; `rsync -a --delete` to a daemon, and "
        "`tar-like sync --delete` to a proxy, on loopback and tmpfs. Bytes are counted by a relay, "
        "both ways.",
        "",
        *(other_tools(rows) if options.stores else ()),
        f"Repeat with `python -m bench.again --runs {options.runs}{only}`.",
    ]
    return "\n".join(lines)


def other_tools(rows: list[Row]) -> list[str]:
    """The same works by tools that keep versions in a store; those that are missing are named."""
    lines = [
        "| again | tar-like, s | casync, s | restic, s "
        "| tar-like, bytes | casync, bytes | restic, bytes |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        names = ("tar-like", "casync", "restic")
        seconds = (spread(row.seconds[name]) if name in row.seconds else "—" for name in names)
        wire = (f"{row.wire[name]:,}" if name in row.wire else "—" for name in names)
        lines.append(f"| {row.work.text} | {' | '.join((*seconds, *wire))} |")
    return [
        *lines,
        "",
        f"The same runs on the same trees by tools ({versions()}) that keep versions in a store "
        "of chunks, here on the same tmpfs: `casync make` into a store and `casync extract` from "
        "it over what the destination had; `restic backup` into a repository, after which nothing "
        "is at a destination yet. Their bytes are what the store grew by, compressed, and with no "
        "server and no wire between.",
        "",
    ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench.again: {error}")
