"""A sender and a receiver in one process, for tests that look into both.

job = Job(source, destination)      # index built and offered, plan negotiated
job.put(0)                          # one block, as it comes over the wire
job.send()                          # all that is missing
job.commit()                        # Status when complete, else Outcome
"""

from __future__ import annotations

import codecs
import os
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tar_like.index import BuildOptions, build_index
from tar_like.proxy.commit import run_commit
from tar_like.proxy.durable import FULL, Durability
from tar_like.proxy.offer import offer
from tar_like.proxy.outcome import COMMIT, Outcome, read_outcome
from tar_like.proxy.place import Destination
from tar_like.proxy.transfer import Transfer
from tar_like.source import Wanted
from tar_like.source.folder import FolderSource
from tar_like.upload.block import BlockMaker, Compressor
from tar_like.wire import Status, bits_missing

TOKEN = "a token"


@dataclass(frozen=True)
class Former:
    """What a receiver says of the tree that it has (index.recorded.Other)."""

    newest: int | None = None
    base: bytes = b""
    most: int | None = 0


class Job:
    """One tree on its way to one destination."""

    def __init__(
        self,
        source: Path,
        dest: Path,
        *,
        block_size: int = 4096,
        algorithm: str = "blake3",
        compress: str = "lz4",
        xattrs: bool = False,
        negotiate: bool = True,
        durability: Durability = FULL,
    ) -> None:
        self.source, self.dest, self.compress = source, dest, compress
        self.index = source.with_name(f"{source.name}.db")
        reader = FolderSource(str(source))
        options = BuildOptions(
            algorithm=algorithm, fresh=True, wanted=Wanted(xattrs=xattrs, acls=xattrs)
        )
        self.id = build_index(reader, str(self.index), options).id
        reader.close()
        self.destination = Destination(str(dest), durability)
        self.destination.prepare()
        self.offer()
        self.open()
        if negotiate:
            self.transfer.negotiate(block_size)

    @property
    def path(self) -> Path:
        """The transfer's folder."""
        return Path(self.transfer.path)

    def reopen(self) -> None:
        """Go on with what lies at the destination's path now."""
        self.transfer.close()
        self.destination = Destination(str(self.dest), self.destination.durability)
        self.destination.prepare()
        self.transfer = Transfer(self.destination, self.id)

    def offer(self) -> None:
        folder = self.destination.temporary()
        shutil.copyfile(self.index, os.path.join(folder, "index.db"))
        offer(self.destination, self.id, folder)
        self.destination.discard(folder)

    def open(self) -> None:
        """Look at what was offered, as a process that has just started."""
        self.transfer = Transfer(self.destination, self.id)

    def withdraw(self) -> None:
        """As if it had never been offered."""
        self.transfer.close()
        self.destination.discard(self.transfer.path)

    def block(self, number: int) -> tuple[bytes, bytes]:
        """A block's digest and body, made from the source as it is now."""
        plan = self.transfer.plan()
        source = FolderSource(str(self.source))
        try:
            maker = BlockMaker(source, plan.block_size)
            made = maker.make(plan.pieces(number), Compressor(self.compress))
            return made.digest, b"".join(bytes(part) for part in made.body)
        finally:
            source.close()

    def make(self, number: int) -> None:
        """Make a block for later."""
        self.made = self.block(number)

    def put(self, number: int) -> bool:
        """Send one block; whether it was new."""
        digest, body = self.block(number)
        return self.transfer.receive(number, memoryview(body), digest)

    @property
    def missing(self) -> list[int]:
        """Blocks without a receipt, as a process sees it that has just started."""
        transfer = Transfer(self.destination, self.id)
        try:
            count = transfer.plan().block_count
            return list(bits_missing(transfer.bitmaps()[: (count + 7) // 8], count))
        finally:
            transfer.close()

    def send(self) -> list[int]:
        """Send what is missing; returns the numbers."""
        missing = self.missing
        for number in missing:
            assert self.put(number)
        return missing

    def commit(self) -> Status | Outcome:
        run_commit(self.destination, self.id, TOKEN, 1)
        if self.transfer.alive:
            outcome = read_outcome(self.transfer.path, COMMIT)
            assert outcome is not None and outcome.token == TOKEN
            return outcome
        report = self.destination.read_report(self.id)
        assert report is not None
        return report

    def complete(self) -> dict[str, str]:
        """Send and commit; the transfer must be complete. Returns path -> reason of failures."""
        self.send()
        report = self.commit()
        assert isinstance(report, Status), report
        assert report.state == "complete"
        assert report.committed == report.entries - len(report.failures)
        return {failure.path: failure.reason for failure in report.failures}

    def staged(self) -> dict[str, bytes]:
        """The staged files' content by their names below the staging folder."""
        stage = self.path / "stage"
        return {
            str(path.relative_to(stage)): path.read_bytes()
            for path in sorted(stage.rglob("*"))
            if path.is_file()
        }

    def close(self) -> None:
        self.transfer.close()


def sync(source: Path, dest: Path, **options: object) -> dict[str, str]:
    """A whole transfer; returns path -> reason of failures."""
    job = Job(source, dest, **options)  # type: ignore[arg-type]
    try:
        return job.complete()
    finally:
        job.close()


def in_child(work: Callable[[], object], *, user: int | None = None) -> int:
    """Do something in a forked process, as another user perhaps; returns its exit code."""
    codecs.lookup("ascii")  # Python's own files may be closed to that user
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
