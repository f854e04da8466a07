"""Bit flips: one bit is other than it was, and somebody must notice, or nothing may come of it.

    body      of a block, as it comes      refused, or the bytes are those that were sent
    index     as it comes, an LZ4 frame    refused, or the file is the one that was sent
    receipts  in a log                     no block has a receipt that it did not get
    staged    in a staged file             its block is revoked, and sent again
    stored    in a transfer's own files     the commit says so, or gives the right tree
    ledger    of the last commit           the next sync gives the right tree, or an error

The first three are tried by the functions that the receiver calls, the others by whole commits.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

from tar_like.errors import BlockInvalid, IndexInvalid, TarLikeError, TooLarge
from tar_like.index import validate
from tar_like.proxy.commit import run_commit
from tar_like.proxy.receipts import Receipts
from tar_like.wire import Inflater, Status, deflate_file
from tests import trees
from tests.chaos.flips import silence
from tests.chaos.scene import Broken, make_tree
from tests.unit.receiver import Job

SHARES = {"body": 50, "index": 20, "receipts": 29, "staged": 0.4, "stored": 0.4, "ledger": 0.2}
"""Of a hundred flips."""


def run(count: int, dice: random.Random) -> dict[str, object]:
    """So many flips. Raises Broken."""
    figures: dict[str, object] = {}
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    for name, share in SHARES.items():
        wanted = max(1, round(count * share / 100))
        with tempfile.TemporaryDirectory(prefix="tar-like-bits-", dir=shm) as folder:
            harmless = _KINDS[name](Path(folder), wanted, dice)
        figures[name] = {"flips": wanted, "harmless": harmless}
    return figures


def _flip(data: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]


def _flip_file(path: Path, dice: random.Random) -> None:
    with path.open("r+b") as file:
        place = dice.randrange(os.fstat(file.fileno()).st_size)
        byte = os.pread(file.fileno(), 1, place)[0] ^ 1 << dice.randrange(8)
        os.pwrite(file.fileno(), bytes([byte]), place)


def _job(work: Path, dice: random.Random, compress: str = "lz4") -> Job:
    if not (work / "src").exists():
        (work / "src").mkdir()
        make_tree(work / "src", dice, files=30, most=9000)
    return Job(work / "src", work / "dst", compress=compress)


def _bodies(work: Path, count: int, dice: random.Random) -> int:
    harmless = 0
    for compress in ("none", "lz4"):
        job = _job(work, dice, compress)
        blocks = {number: job.block(number) for number in job.missing}
        for _ in range(count // 2 + 1):
            number = dice.choice(list(blocks))
            digest, body = blocks[number]
            try:
                job.transfer.receive(number, memoryview(_flip(body, dice)), digest)
            except BlockInvalid:
                continue
            harmless += 1  # by its digest it is what was sent; the commit must find it so
        _finish(job)
        job.close()
        shutil.rmtree(work / "dst")
    return harmless


def _indexes(work: Path, count: int, dice: random.Random) -> int:
    job = _job(work, dice)
    frame = b"".join(deflate_file(str(job.index)))
    raw, path, harmless = job.index.read_bytes(), work / "flipped.db", 0
    for _ in range(count):
        file = io.BytesIO()
        with contextlib.suppress(IndexInvalid, TooLarge):
            inflater = Inflater(file, 1 << 24)
            inflater.feed(_flip(frame, dice))
            inflater.finish()
            path.write_bytes(file.getvalue())
            validate(str(path), job.id)
            harmless += 1
            if file.getvalue() != raw:
                raise Broken("an index that is not what was sent was taken")
    job.close()
    return harmless


def _receipts(work: Path, count: int, dice: random.Random) -> int:
    job = _job(work, dice)
    job.send()
    job.close()
    folder = job.path / "receipts"
    (log,) = folder.glob("*.log")
    whole, harmless = log.read_bytes(), 0
    known = Receipts(str(folder))
    known.refresh()
    truth = {number: known.find(number) for number in known.blocks()}
    tried = work / "tried"
    tried.mkdir()
    for _ in range(count):
        (tried / log.name).write_bytes(_flip(whole, dice))
        found = Receipts(str(tried))
        found.refresh()
        blocks = {number: found.find(number) for number in found.blocks()}
        if any(truth.get(number) != receipt for number, receipt in blocks.items()):
            raise Broken("a receipt that nobody wrote was believed")
        harmless += blocks == truth
    return harmless


def _staged(work: Path, count: int, dice: random.Random) -> int:
    for _ in range(count):
        job = _job(work, dice)
        job.send()
        staged = [path for path in (job.path / "stage").rglob("*") if path.is_file()]
        _flip_file(dice.choice([path for path in staged if path.stat().st_size]), dice)
        found = job.commit()
        if isinstance(found, Status):
            _right(job, found)  # a bit that a hole had in place of a zero, say
        elif found.revoked:
            _finish(job)
        else:
            raise Broken(f"a flipped bit in staging: {found.error}")
        job.close()
        shutil.rmtree(work / "dst")
    return 0


def _stored(work: Path, count: int, dice: random.Random) -> int:
    harmless = 0
    for _ in range(count):
        job = _job(work, dice)
        job.send()
        found = sorted(path for path in job.path.glob("*.db"))
        _flip_file(dice.choice(found), dice)
        with silence():
            run_commit(job.destination, job.id, "token", 1)
        outcome = job.destination.read_report(job.id)
        if outcome is not None:
            harmless += 1
            _right(job, outcome)
        elif not job.transfer.alive:  # it was thrown away: once more
            job.offer()
            job.reopen()
            job.transfer.negotiate(4096)
            _finish(job)
        job.close()
        shutil.rmtree(work / "dst")
    return harmless


def _ledgers(work: Path, count: int, dice: random.Random) -> int:
    first = _job(work, dice)
    _finish(first)
    first.close()
    kept, harmless = work / "kept", 0
    shutil.copytree(work / "dst/.tar_like", kept, symlinks=True)
    for number in range(count):
        shutil.rmtree(work / "dst/.tar_like")
        shutil.copytree(kept, work / "dst/.tar_like", symlinks=True)
        _flip_file(work / "dst/.tar_like/ledger.db", dice)
        (work / "src/new").write_text(str(number))
        try:
            job = _job(work, dice)
        except (TarLikeError, OSError, sqlite3.Error):
            continue
        with contextlib.suppress(TarLikeError, OSError, sqlite3.Error):
            _finish(job)
            harmless += 1
        job.close()
    return harmless


def _finish(job: Job) -> None:
    """Send what is missing and commit; the tree must be there then."""
    for _ in range(3):
        job.send()
        found = job.commit()
        if isinstance(found, Status):
            _right(job, found)
            return
    raise Broken(f"it does not come to an end: {found}")


def _right(job: Job, found: Status) -> None:
    lines = trees.differences(trees.look(job.source), trees.look(job.dest))
    named = tuple(f"{os.fsencode(failure.path)!r}:" for failure in found.failures)
    wrong = [line for line in lines if not line.startswith(named)]
    if wrong:
        raise Broken(f"complete, and wrong: {wrong[:5]}")


Kind = Callable[[Path, int, random.Random], int]
_KINDS: dict[str, Kind] = {
    "body": _bodies,
    "index": _indexes,
    "receipts": _receipts,
    "staged": _staged,
    "stored": _stored,
    "ledger": _ledgers,
}
