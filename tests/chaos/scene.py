"""Real receivers and senders as forks of this process, which has everything imported already.

    with Receiver(dst) as receiver: ...     a supervisor and its serving processes; all are killed
    Sender(src, index, urls)                one upload, in a process group of its own
    apart(work)                             in a child with a mount namespace of its own

A fork starts in milliseconds where a command takes most of a second: so thousands of trials fit
into the time of a coffee.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import os
import pickle
import random
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from tar_like.index import BuildOptions, Index, build_index
from tar_like.plan import Plan
from tar_like.process import die_with_parent
from tar_like.proxy import intake, server
from tar_like.proxy.server import ServerOptions
from tar_like.proxy.staging import Staging
from tar_like.source.folder import FolderSource
from tar_like.upload.dispatch import UploadOptions
from tar_like.upload.run import Upload
from tests.processes import group

T = TypeVar("T")
PATIENCE = 120.0
"""Seconds; a deadline against hanging, not a measure of speed."""
_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x20000


class Broken(AssertionError):
    """A promise does not hold."""


class Quiet:
    """A Progress that nobody looks at."""

    def blocks(self, total: int, done: int) -> None:
        pass

    def advance(self, raw: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class Fork:
    """A function in a process of its own, with its children in a group of its own."""

    def __init__(self, work: Callable[[], object], *, log: Path) -> None:
        codecs.lookup("ascii")
        sys.stdout.flush()
        sys.stderr.flush()
        self.log = log
        self.code: int | None = None
        self._parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(work)
        with contextlib.suppress(PermissionError):
            os.setpgid(self.pid, self.pid)

    def _become(self, work: Callable[[], object]) -> None:
        code = 70
        try:
            die_with_parent(self._parent)
            with contextlib.suppress(PermissionError):
                os.setpgid(0, 0)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout = sys.stderr = os.fdopen(log, "w")  # they may be a test's own
            result = work()
            code = result if isinstance(result, int) else 0
        except BaseException:  # noqa: BLE001 the end of a process: say why, and end
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def end(self) -> int:
        """Wait for its end; its exit code."""
        if not self.ended():
            with open(os.pidfd_open(self.pid), "rb") as process:
                poll = select.poll()
                poll.register(process, select.POLLIN)
                if not poll.poll(PATIENCE * 1000):
                    raise Broken(f"a process does not end in {PATIENCE} s: {self.said()}")
            wait_for("a process that has ended", self.ended)
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        """SIGKILL to all of it."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            if self.ended():
                return
        self.end()
        wait_for("a process group to end", lambda: not group(self.pid))

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-20000:] if self.log.exists() else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Receiver(Fork):
    """A proxy; ``url`` once it serves."""

    def __init__(self, dest: Path, *, log: Path, port: int = 0, processes: int = 2) -> None:
        reader, writer = os.pipe()
        options = ServerOptions(
            destination=str(dest), port=port, processes=processes, jobs=1, no_auth=True
        )
        super().__init__(
            lambda: server.serve(options, lambda url: void(os.write(writer, url.encode()))), log=log
        )
        os.close(writer)
        ready, _, _ = select.select([reader], [], [], PATIENCE)
        self.url = os.read(reader, 200).decode() if ready else ""
        os.close(reader)
        if not self.url:
            raise Broken(f"the receiver does not start: {self.said()}")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].partition("/")[0])


class Sender(Fork):
    """One upload; its exit code is 0 when it says that the transfer is complete and verified."""

    def __init__(
        self, source: Path, index: Path, urls: tuple[str, ...], *, log: Path, block_size: int,
        processes: int = 2, record: Path | None = None,
    ) -> None:  # fmt: skip
        options = UploadOptions(
            source=str(source),
            index_path=str(index),
            urls=urls,
            block_size=block_size,
            processes=processes,
            record=str(record) if record else None,
        )
        super().__init__(lambda: _upload(options), log=log)


def _upload(options: UploadOptions) -> int:
    summary = Upload(options, Quiet()).run()
    print(summary.state, summary.blocks_sent, *summary.errors[:3], *summary.failures[:3], sep="\n")
    return 0 if summary.state == "complete" and not summary.failures else 1


def checkpoints_every(seconds: float) -> None:
    """In this process and its forks."""
    intake.CHECKPOINT_SECONDS = seconds
    intake.CHECKPOINT_POLL = seconds / 2


def make_tree(folder: Path, dice: random.Random, *, files: int = 40, most: int = 120_000) -> None:
    """Files of many sizes in nested folders, a hole, symlinks, hard links, empty ones."""
    for number in range(files):
        parent = folder / f"d{number % 4}" / ("deep" if number % 3 else "")
        parent.mkdir(parents=True, exist_ok=True)
        size = dice.choice((0, 1, dice.randrange(4096), dice.randrange(most)))
        (parent / f"f{number}").write_bytes(dice.randbytes(size))
    with (folder / "holes").open("wb") as file:
        file.write(b"x" * 5000)
        file.seek(200_000)
        file.write(b"y" * 5000)
    (folder / "link").symlink_to("d0/f0")
    (folder / "dangling").symlink_to("/nowhere")
    os.link(folder / "holes", folder / "d1/same")
    for path in sorted(folder.rglob("*"), reverse=True):
        when = dice.randrange(10**18)
        os.utime(path, ns=(when, when), follow_symlinks=False)


def make_index(source: Path, index: Path) -> str:
    """The index of a tree without hashes, as sync makes it; its id."""
    reader = FolderSource(str(source))
    try:
        options = BuildOptions(algorithm="none", fresh=True, jobs=1)
        return build_index(reader, str(index), options).id
    finally:
        reader.close()


def same(source: Path, dest: Path) -> None:
    """The oracle: rsync finds nothing to do, contents, times, owners, links and all."""
    done = subprocess.run(
        ["rsync", "-aHAXnic", "--delete", "--modify-window=-1", "--exclude=/.tar_like",
         f"{source}/", f"{dest}/"],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    if done.returncode or done.stdout.strip():
        raise Broken(f"the destination differs: {done.stdout[:2000]}{done.stderr[:500]}")


def no_partial_files(dest: Path, *wanted: dict[bytes, str]) -> int:
    """Whatever bears a name has one of the wanted contents; returns how many files do."""
    from tests.trees import visible_files

    found = visible_files(dest) if dest.exists() else {}
    wrong = [
        path for path, sum_ in found.items() if sum_ not in [tree.get(path) for tree in wanted]
    ]
    if wrong:
        raise Broken(f"partial files under final names: {wrong[:5]}")
    return len(found)


def staged_as_sent(folder: Path, blocks: Iterable[int], source: Path, dest: Path) -> None:
    """The bytes of these blocks are in staging, or after verification under their names."""
    verified = (folder / "verified.db").exists()
    plan = Plan(str(folder / "plan.db"), str(folder / "index.db"))
    with Index(str(folder / "index.db")) as index:
        for block in blocks:
            for extent in plan.extents(block):
                path = os.fsdecode(index.entry(extent.entry_id).path)
                staged = folder / "stage" / Staging.name(extent.entry_id)
                holder = dest / path if verified and not staged.exists() else staged
                _compare(holder, source / path, extent.start, extent.stop)
    plan.close()


def _compare(holder: Path, source: Path, start: int, stop: int) -> None:
    if not holder.exists():
        raise Broken(f"bytes that were acknowledged are gone: {holder}")
    with holder.open("rb") as one, source.open("rb") as other:
        found = os.pread(one.fileno(), stop - start, start)
        if found != os.pread(other.fileno(), stop - start, start):
            raise Broken(f"bytes that were acknowledged are others: {holder} at {start}")


def wait_for(what: str, condition: Callable[[], T], *, seconds: float = PATIENCE) -> T:
    """The first true value of the condition."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise Broken(f"waited {seconds} s in vain for {what}")
        time.sleep(0.002)
    return value


def memory() -> str | None:
    """Where temporary files do not wear out a disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def void(_: object) -> None:
    """For a lambda that must return nothing."""


def apart(work: Callable[[], T]) -> T:
    """Do it in a child with a mount namespace of its own: what it mounts goes with it.

    Raises PermissionError where that is not allowed; Broken with what the child raised.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _do_apart(work, writer)
    os.close(writer)
    with open(reader, "rb") as file:
        data = file.read()
    os.waitpid(child, 0)
    kind, value = pickle.loads(data) if data else ("broken", "the child died")
    if kind == "denied":
        raise PermissionError(value)
    if kind == "broken":
        raise Broken(value)
    result: T = value
    return result


def _do_apart(work: Callable[[], Any], writer: int) -> None:
    try:
        if _libc.unshare(_CLONE_NEWNS) or _libc.mount(b"none", b"/", None, 0x44000, None):
            answer: tuple[str, Any] = ("denied", os.strerror(ctypes.get_errno()))
        else:
            answer = ("done", work())
    except PermissionError as error:
        answer = ("denied", str(error))
    except BaseException:  # noqa: BLE001 the end of a process: its parent raises it again
        answer = ("broken", traceback.format_exc())
    with open(writer, "wb") as file:
        file.write(pickle.dumps(answer))
    os._exit(0)


@contextlib.contextmanager
def mounted(*words: object) -> Iterator[None]:
    """A mount for a while, in the namespace of ``apart``. Raises PermissionError."""
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(f"mount {' '.join(map(str, words))}: {done.stderr.strip()}")
    try:
        yield
    finally:
        unmount(words[-1])


def unmount(where: object) -> None:
    """Whatever still holds it, which is what was just killed."""

    def tried() -> bool:
        done = subprocess.run(["umount", str(where)], capture_output=True, text=True, check=False)
        return done.returncode == 0

    wait_for(f"{where} to be unmounted", tried)
