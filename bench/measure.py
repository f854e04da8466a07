"""Paired, interleaved runs of several tools on one work.

for each round: for each tool, starting one further every round:
    make an empty destination, timed run, (disk) timed `sync -f`, verify once, (tmpfs) remove
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.command import BenchError, remove_tree, run
from bench.data import Inventory
from bench.tools import Index, Job, Tool

VERIFY_SECONDS = 300
SHOWN_DIFFERENCES = 5


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that destinations are made in, which the daemon serves under `url`.

    A durable place keeps its destinations until the whole benchmark ends: ext4 without a journal
    does not reuse an inode for up to five minutes after its removal, and looking past a tree of
    removed ones makes every copy ten times slower. Its owner removes them.
    """

    root: Path
    url: str
    durable: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """Wall seconds of one run, and of the `sync -f` after it (0 on tmpfs)."""

    seconds: float
    flush: float

    @property
    def flushed(self) -> float:
        return self.seconds + self.flush


@dataclass(frozen=True, slots=True)
class Measured:
    """Samples by tool name, one a round; what could not be measured, by tool name."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurer:
    """Measures tools copying `source` to `place`."""

    source: Path
    inventory: Inventory
    place: Place
    timeout: float

    def rounds(self, tools: list[Tool], *, runs: int) -> Measured:
        """Run every tool `runs` times; one that fails or copies wrongly is left out from then."""
        measured = Measured()
        for tool in tools:
            if reason := tool.missing():
                measured.skipped[tool.name] = reason
        able = [tool for tool in tools if tool.name not in measured.skipped]
        for number in range(runs):
            for tool in able[number % len(able) :] + able[: number % len(able)] if able else []:
                self._one(tool, measured)
        return measured

    def _one(self, tool: Tool, measured: Measured) -> None:
        if tool.name in measured.failed:
            return
        first = tool.name not in measured.samples
        try:
            sample = self._timed(tool, verify=first)
        except BenchError as error:
            measured.failed[tool.name] = str(error)
            measured.samples.pop(tool.name, None)
            say(f"  {tool.name}: FAILED: {error}")
            return
        measured.samples.setdefault(tool.name, []).append(sample)
        flush = f" + {sample.flush:.2f} s to flush" if self.place.durable else ""
        say(f"  {tool.name}: {sample.seconds:.2f} s{flush}")

    def _timed(self, tool: Tool, *, verify: bool) -> Sample:
        with self._destination() as dest, tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            url = f"{self.place.url}/{dest.name}"
            job = Job(self.source, dest, url, Path(scratch), self.timeout)
            seconds = tool.run(job)
            flush = self._flush(dest)
            if verify:
                self._verify(tool, dest)
            return Sample(seconds, flush)

    @contextmanager
    def _destination(self) -> Iterator[Path]:
        dest = Path(tempfile.mkdtemp(prefix="bench-dest-", dir=self.place.root))
        self._flush(dest)
        try:
            yield dest
        finally:
            if not self.place.durable:
                remove_tree(dest)

    def _flush(self, path: Path) -> float:
        return run(["sync", "-f", str(path)], timeout=self.timeout) if self.place.durable else 0.0

    def _verify(self, tool: Tool, dest: Path) -> None:
        if isinstance(tool, Index):
            verify_index(dest / "db", self.inventory)
        elif tool.verify is not None:
            verify_tree(self.source, dest, options=tool.verify)


def verify_tree(source: Path, dest: Path, *, options: tuple[str, ...]) -> None:
    """Raise BenchError unless rsync, comparing contents, finds nothing to do or to delete."""
    argv = ["rsync", "-anic", *options, f"{source}/", f"{dest}/"]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=VERIFY_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"Verifying took longer than {VERIFY_SECONDS} s.") from error
    differences = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    if done.returncode or differences:
        shown = differences[:SHOWN_DIFFERENCES]
        raise BenchError(
            "\n    ".join([f"the destination differs in {len(differences)} entries:", *shown])
        )


def verify_index(db: Path, inventory: Inventory) -> None:
    """Raise BenchError unless the index has a digest for each file with bytes."""
    try:
        with closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as connection:
            (hashed,) = connection.execute("SELECT count(hash) FROM tar").fetchone()
    except sqlite3.Error as error:
        raise BenchError(f"the index cannot be read: {error}") from error
    if hashed < inventory.contents:
        raise BenchError(f"the index has {hashed} digests for {inventory.contents} files")


def say(text: str) -> None:
    """Progress, on standard error; the table alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)
