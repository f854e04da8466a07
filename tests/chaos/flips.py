"""Symlink flips: folders of a destination become symlinks that lead out, again and again.

    for each round: a tree is offered, sent and committed, by one of RULES, while another process
    exchanges each of the destination's folders, .tar_like among them, with a symlink to a twin
    outside
    then: outside nothing was touched, not even a time; the transfer is complete, or says why not

renameat2 exchanges the two names at once, so there is always something to be found.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import random
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tar_like.errors import TarLikeError
from tar_like.rules import Rules
from tar_like.wire import Status
from tests import trees
from tests.chaos.scene import Broken, make_tree
from tests.unit.receiver import Job

_EXCHANGE = 2
"""RENAME_EXCHANGE. Source: renameat2(2)."""
_HERE = -100
"""AT_FDCWD."""
RULES = (
    Rules(),
    Rules(delete=True),
    Rules(delete=True, backup_dir="backup"),
    Rules(update=True),
    Rules(snapshot="new"),
)


def run(count: int, dice: random.Random) -> dict[str, object]:
    """So many flips. Raises Broken."""
    flips = rounds = complete = refused = 0
    while flips < count:
        with tempfile.TemporaryDirectory(prefix="tar-like-flips-") as folder:
            found, outcome, failures = _round(Path(folder), dice)
        flips += found
        rounds += 1
        complete += outcome
        refused += failures
    return {"flips": flips, "rounds": rounds, "complete": complete, "entries_refused": refused}


def _round(work: Path, dice: random.Random) -> tuple[int, bool, int]:
    """One transfer; returns flips, whether it was complete, and how many entries were refused."""
    dest, outside = work / "dst", work / "outside"
    (work / "src").mkdir()
    make_tree(work / "src", dice, files=60, most=6000)
    rules = dice.choice(RULES)
    with contextlib.redirect_stdout(io.StringIO()):
        first = Job(work / "src", dest, negotiate=False)
        first.transfer.negotiate(4096, Rules(snapshot="old" if rules.snapshot else ""))
        first.complete()
        first.close()
    _change(work / "src", dice)
    if rules.backup_dir:
        shutil.copytree(dest / "d1", dest / rules.backup_dir / "d1", symlinks=True)
    job = Job(work / "src", dest, negotiate=False)
    pairs = list(_twins(dest, outside))
    before = trees.stamps(outside), trees.look(outside, records=True)
    counter, flipper = _start(pairs)
    failures, complete = 0, False
    try:
        with silence():
            try:
                job.transfer.negotiate(4096, rules)
                job.send()
                report = job.commit()
                if isinstance(report, Status):
                    complete, failures = True, len(report.failures)
            except (TarLikeError, OSError, sqlite3.Error, AssertionError):
                complete = False
    finally:
        os.kill(flipper, signal.SIGKILL)
        os.waitpid(flipper, 0)
    if (trees.stamps(outside), trees.look(outside, records=True)) != before:
        raise Broken(f"touched outside: {trees.differences(before[1], trees.look(outside))}")
    job.close()
    return int.from_bytes(counter[:8], "little"), complete, failures


def _change(source: Path, dice: random.Random) -> None:
    """Other content for half of the files, and some are gone: so there is something to do."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and not path.is_symlink() and dice.random() < 0.6:
            path.unlink()
            if dice.random() < 0.8:
                path.write_bytes(dice.randbytes(dice.randrange(9000)))


def _twins(dest: Path, outside: Path) -> Iterator[tuple[bytes, bytes]]:
    """A symlink beside each folder, to a copy of it outside."""
    shutil.copytree(dest, outside, symlinks=True)
    folders = [path for path in dest.rglob("*") if path.is_dir() and not path.is_symlink()]
    wanted = [path for path in folders if ".tar_like" not in path.relative_to(dest).parts[1:]]
    for number, path in enumerate(sorted(wanted)):
        if ".tar_like" in path.relative_to(dest).parts[:-1]:
            continue  # nobody else comes to what is in there
        link = path.parent / f".twin-{number}"
        link.symlink_to(outside / path.relative_to(dest))
        yield os.fsencode(path), os.fsencode(link)


def _start(pairs: list[tuple[bytes, bytes]]) -> tuple[memoryview, int]:
    """Flip them from now on; returns where the flips are counted, and who does it."""
    import mmap

    counter = memoryview(mmap.mmap(-1, 8))
    pid = os.fork()
    if pid:
        return counter, pid
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        done = 0
        while os.getppid() != 1:
            for one, other in pairs:
                done += rename(_HERE, one, _HERE, other, _EXCHANGE) == 0
            counter[:8] = done.to_bytes(8, "little")
    finally:
        os._exit(1)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """A commit that fails unexpectedly says so on stderr; here that is no news."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
