"""Receiving in process: blocks, receipts, conflicts, what rots in staging."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tar_like import codec
from tar_like.errors import (
    BlockInvalid,
    Conflict,
    IndexInvalid,
    NotFound,
    ReceiverFailed,
    UsageError,
)
from tar_like.index import Index
from tar_like.layout import PAGE, Entry
from tar_like.proxy import durable, verify
from tar_like.proxy.commit import Outcome, run_commit
from tar_like.proxy.place import Destination
from tar_like.proxy.staging import Staging
from tar_like.proxy.transfer import Transfer
from tar_like.proxy.transfers import Transfers
from tests import trees
from tests.unit import indexes
from tests.unit.receiver import Job, in_child, sync


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{seed} {size}").randbytes(size)


@pytest.fixture
def source(work: Path) -> Path:
    """Small files that share a block, and large ones that have several."""
    root = work / "src"
    (root / "dir/empty").mkdir(parents=True)
    (root / "large").write_bytes(noise(5 * PAGE + 7))
    (root / "dir/second").write_bytes(noise(3 * PAGE, 1))
    for number in range(6):
        (root / f"dir/{number}").write_bytes(noise(100 + number))
    (root / "nothing").touch()
    (root / "link").symlink_to("large")
    os.link(root / "dir/2", root / "dir/linked")
    with open(root / "sparse", "wb") as file:
        os.pwrite(file.fileno(), noise(PAGE), 10 * PAGE)
        file.truncate(20 * PAGE)
    with open(root / "hole", "wb") as file:
        file.truncate(3 * PAGE)
    return root


@pytest.fixture
def dest(work: Path) -> Path:
    return work / "dst"


@pytest.fixture
def job(source: Path, dest: Path) -> Iterator[Job]:
    made = Job(source, dest)
    yield made
    made.close()


def assert_same(source: Path, dest: Path) -> None:
    assert trees.differences(trees.look(source), trees.look(dest)) == []


@pytest.mark.parametrize("algorithm", ["blake3", "md5", "none"])
@pytest.mark.parametrize("block_size", [PAGE, 3 * PAGE, 1 << 20])
def test_a_tree_arrives(source: Path, dest: Path, algorithm: str, block_size: int) -> None:
    assert sync(source, dest, algorithm=algorithm, block_size=block_size) == {}
    assert_same(source, dest)
    assert sorted(os.listdir(dest / ".tar_like/transfers")) == []
    assert sorted(os.listdir(dest / ".tar_like/tmp")) == []


@pytest.mark.parametrize("seed", [11, 12])
def test_a_hostile_tree_arrives(work: Path, dest: Path, seed: int) -> None:
    tree = trees.build(work / "src", seed, xattrs=True)
    assert sync(tree.root, dest, block_size=1 << 18, xattrs=True) == {}
    lines = trees.differences(trees.look(tree.root, xattrs=True), trees.look(dest, xattrs=True))
    assert lines == []


def test_an_empty_tree_arrives(work: Path, dest: Path) -> None:
    (work / "src").mkdir(mode=0o750)
    assert sync(work / "src", dest) == {}
    assert_same(work / "src", dest)


def test_the_same_block_again_is_no_news(job: Job) -> None:
    assert job.put(0)
    before = job.staged()
    stamps = trees.stamps(job.path / "stage")
    assert not job.put(0)
    again = Transfer(job.destination, job.id)  # another process of the receiver
    assert not again.receive(0, memoryview(job.block(0)[1]), job.block(0)[0])
    again.close()
    assert job.staged() == before
    assert trees.stamps(job.path / "stage") == stamps


def test_blocks_may_come_in_any_order_and_twice(source: Path, job: Job) -> None:
    numbers = list(range(job.transfer.plan().block_count)) * 2
    random.Random(1).shuffle(numbers)
    assert sum(job.put(number) for number in numbers) == len(numbers) / 2
    assert job.complete() == {}
    assert_same(source, job.dest)


@pytest.mark.parametrize("compress", ["lz4", "none"])
def test_a_block_that_is_not_what_it_claims_leaves_no_trace(
    source: Path, dest: Path, compress: str
) -> None:
    job = Job(source, dest, compress=compress)
    claimed, body = job.block(0)
    before = trees.stamps(job.path)
    wrong: list[tuple[bytes, bytes]] = [
        (bytes(32), body),
        (job.block(1)[0], body),
        (claimed, job.block(1)[1]),
        (claimed, body[:-1]),
        (claimed, body + b"\0"),
        (claimed, b""),
        (claimed, b"".join(codec.encode(bytes(PAGE), [], compress=True))),
        (claimed, b"".join(codec.encode(b"", [], compress=False))),
    ]
    dice = random.Random(2)
    for _ in range(200):
        flipped = bytearray(body)
        flipped[dice.randrange(len(body))] ^= 1 << dice.randrange(8)
        wrong.append((claimed, bytes(flipped)))
    refused = 0
    for one, data in wrong:
        try:
            assert job.transfer.receive(0, memoryview(data), one)
        except BlockInvalid:
            refused += 1
            assert trees.stamps(job.path) == before
        else:  # a flip that decodes to the very same bytes: start again
            shutil.rmtree(dest)
            job.close()
            job = Job(source, dest, compress=compress)
            before = trees.stamps(job.path)
    assert refused >= 200
    job.close()


def test_other_bytes_for_a_block_are_a_conflict_that_marks_the_files(
    source: Path, job: Job
) -> None:
    numbers = {
        piece.path: number for number in job.missing for piece in job.transfer.plan().pieces(number)
    }
    job.send()
    before = job.staged()
    changed = source / "dir/3"
    stat = changed.stat()
    changed.write_bytes(b"y" * stat.st_size)
    os.utime(changed, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    with pytest.raises(Conflict, match="1 source files have changed"):
        job.put(numbers[b"dir/3"])
    assert job.staged() == before
    assert job.missing == []
    assert job.complete() == {"dir/3": "changed"}
    assert not (job.dest / "dir/3").exists()
    changed.unlink()
    os.utime(job.dest / "dir", ns=((source / "dir").stat().st_mtime_ns,) * 2)
    assert_same(source, job.dest)


def test_a_file_that_the_source_could_not_give_is_named_and_harms_no_other(
    source: Path, dest: Path
) -> None:
    job = Job(source, dest)
    (source / "dir/0").unlink()
    with open(source / "large", "ab") as file:
        file.write(b"more")
    (source / "dir/2").write_bytes(b"shrunk")
    expected = {
        "dir/0": "vanished",
        "large": "changed",
        "dir/2": "changed",
        "dir/linked": "is a hard link to dir/2, which did not arrive",
    }
    assert job.complete() == expected
    there = trees.look(dest)
    assert set(trees.look(source)) - set(there) == {b"large", b"dir/2", b"dir/linked"}
    assert (dest / "dir/1").read_bytes() == (source / "dir/1").read_bytes()
    assert sorted(os.listdir(dest / ".tar_like/transfers")) == []
    job.close()
    assert sync(source, dest) == {}
    assert_same(source, dest)


def flip(path: Path) -> None:
    """Change the last byte; the others may be a hole, which nobody sends or reads."""
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 4]))


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "shortened": shorten,
    "emptied": lambda path: os.truncate(path, 0),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("algorithm", ["blake3", "sha256", "none"])
@pytest.mark.parametrize("damage", sorted(DAMAGE))
@pytest.mark.parametrize("name", ["large", "dir/second", "dir/2", "sparse"])
def test_what_rots_in_staging_is_sent_again(
    source: Path, dest: Path, name: str, damage: str, algorithm: str
) -> None:
    job = Job(source, dest, algorithm=algorithm)
    total = len(job.send())
    entry_id = next(e.id for e in job_entries(job) if e.path == name.encode())
    mine = {
        number
        for number in range(total)
        if any(extent.entry_id == entry_id for extent in job.transfer.plan().extents(number))
    }
    DAMAGE[damage](job.path / "stage" / f"{entry_id >> 10:x}/{entry_id:x}")
    outcome = job.commit()
    assert isinstance(outcome, Outcome)
    assert not outcome.error
    missing = job.missing
    assert len(missing) == outcome.revoked > 0
    assert set(missing) <= mine
    assert not (dest / name).exists()
    assert job.complete() == {}
    assert_same(source, dest)
    job.close()


def job_entries(job: Job) -> list[Entry]:
    with Index(str(job.index)) as index:
        return list(index.entries())


@pytest.mark.parametrize("unit", [1, PAGE, 5 * PAGE])
def test_units_of_verification_that_share_blocks_judge_them_together(
    source: Path, dest: Path, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "UNIT", unit)
    job = Job(source, dest, block_size=4 * PAGE)
    job.send()
    flip(max(path for path in (job.path / "stage").rglob("*") if path.is_file()))
    outcome = job.commit()
    assert isinstance(outcome, Outcome) and outcome.revoked == 1, outcome
    assert len(job.missing) == 1
    assert job.complete() == {}
    assert_same(source, dest)
    job.close()


def test_a_block_may_be_larger_than_a_unit_of_verification(
    source: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "UNIT", 2 * PAGE)
    assert sync(source, dest, block_size=1 << 20) == {}
    assert_same(source, dest)


@pytest.mark.skipif(not trees.ROOT, reason="needs root to become nobody")
def test_a_plain_user_can_have_a_block_of_a_read_only_file_sent_again(work: Path) -> None:
    root, dest = work / "src", work / "dst"
    root.mkdir()
    for name in ("a", "b"):
        (root / name).write_bytes(noise(3 * PAGE))
        (root / name).chmod(0o444)
    (root / "empty").touch()
    (root / "empty").chmod(0o400)
    dest.mkdir()
    for path in (work, root, dest, *root.iterdir()):
        os.chown(path, 65534, 65534)

    def receive() -> None:
        job = Job(root, dest)
        job.send()
        flip(next(path for path in (job.path / "stage").rglob("*") if path.is_file()))
        outcome = job.commit()
        assert isinstance(outcome, Outcome), outcome
        assert outcome.revoked == 1, outcome
        assert job.complete() == {}

    assert in_child(receive, user=65534) == 0
    assert_same(root, dest)


@pytest.mark.skipif(not trees.ROOT, reason="needs root to become nobody")
def test_a_plain_user_can_have_attributes_of_read_only_files(work: Path) -> None:
    root, dest = work / "src", work / "dst"
    (root / "closed").mkdir(parents=True)
    dest.mkdir()
    for path in (root / "a", root / "b", root / "closed"):
        if path.name != "closed":
            path.write_bytes(noise(PAGE))
        os.setxattr(path, "user.x", b"first")
        path.chmod(0o555)
        if path.name != "b":
            os.setxattr(path, "system.posix_acl_access", trees.acl(65534, 0o555))
    for path in (work, root, dest, *root.iterdir()):
        os.chown(path, 65534, 65534)

    def same() -> bool:
        one, other = (trees.look(tree, xattrs=True) for tree in (root, dest))
        return trees.differences(one, other) == []

    def receive() -> None:
        assert sync(root, dest, xattrs=True) == {}  # ACLs, too

    assert in_child(receive, user=65534) == 0
    assert same()
    for path in root.iterdir():
        os.setxattr(path, "user.x", b"second")
    assert in_child(receive, user=65534) == 0
    assert same()


def test_a_failed_sync_takes_receipts_back(
    source: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.put(0)
    job.transfer.checkpoint()
    job.put(1)

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable, "sync_filesystem", fail)
    with pytest.raises(ReceiverFailed, match="sent again"):
        job.transfer.checkpoint()
    monkeypatch.undo()
    status = job.transfer.status()
    assert (status.received, status.durable) == (1, 1)
    assert 1 in job.missing
    assert job.complete() == {}
    assert_same(source, job.dest)


def test_only_a_checkpoint_makes_receipts_durable(job: Job) -> None:
    count = len(job.send())
    assert (job.transfer.status().received, job.transfer.status().durable) == (count, 0)
    job.transfer.checkpoint()
    assert job.transfer.status().durable == count


@pytest.mark.parametrize("size", [0, -4096, 1, 4095, 4097, (1 << 30) + 4096, 1 << 70])
def test_a_block_size_that_cannot_be_is_a_usage_error(source: Path, dest: Path, size: int) -> None:
    job = Job(source, dest, negotiate=False)
    with pytest.raises(UsageError):
        job.transfer.negotiate(size)
    assert job.transfer.status().state == "open"
    job.close()


def test_the_plan_that_is_there_stays(job: Job) -> None:
    before = (job.path / "plan.db").read_bytes()
    assert job.transfer.negotiate(1 << 20).block_size == PAGE
    assert (job.path / "plan.db").read_bytes() == before


def test_an_invalid_index_leaves_nothing(source: Path, dest: Path) -> None:
    job = Job(source, dest, negotiate=False)
    shutil.rmtree(job.path)
    with indexes.edit(job.index) as db:
        db.execute("UPDATE entry SET path = x'2e2e' WHERE id = 1")
    with pytest.raises(IndexInvalid):
        job.offer()
    assert os.listdir(dest / ".tar_like/transfers") == []
    with pytest.raises(NotFound):
        Transfer(job.destination, job.id)
    job.close()


def test_an_index_offered_again_keeps_what_arrived(job: Job) -> None:
    job.put(0)
    job.offer()
    assert 0 not in job.missing
    assert job.transfer.alive


@pytest.mark.parametrize(
    "transfer_id",
    ["", ".", "..", "../tmp", "x" * 64, "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n"],
)
def test_what_is_no_id_is_not_found(dest: Path, transfer_id: str) -> None:
    destination = Destination(str(dest))
    destination.prepare()
    with pytest.raises(NotFound):
        destination.transfer(transfer_id)


def test_a_commit_without_all_blocks_says_so(job: Job) -> None:
    job.put(0)
    outcome = job.commit()
    assert isinstance(outcome, Outcome)
    assert outcome.http_status == 409
    assert f"{len(job.missing)} blocks are missing" in outcome.error
    assert trees.visible_files(job.dest) == {}


def test_a_commit_of_nothing_is_quiet(dest: Path) -> None:
    destination = Destination(str(dest))
    destination.prepare()
    run_commit(destination, "0" * 64, "token", 1)
    assert os.listdir(dest) == [".tar_like"]


def test_a_file_that_is_not_what_the_index_says_is_named(source: Path, dest: Path) -> None:
    """The source changed after it was hashed, and before it was read, unseen by its mtime."""
    job = Job(source, dest)
    for name in ("large", "dir/4"):
        stat = (source / name).stat()
        (source / name).write_bytes(noise(stat.st_size, 9))
        os.utime(source / name, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    assert job.complete() == {"large": "changed", "dir/4": "changed"}
    assert not (dest / "large").exists() and not (dest / "dir/4").exists()
    job.close()


def test_a_hole_that_the_index_has_another_digest_of_is_named(work: Path, dest: Path) -> None:
    root = work / "src"
    root.mkdir()
    with open(root / "hole", "wb") as file:
        file.truncate(3 * PAGE)
    job = Job(root, dest, negotiate=False)
    job.close()
    shutil.rmtree(dest)
    with indexes.edit(job.index) as db:
        db.execute("UPDATE entry SET hash = ? WHERE kind = 'f'", (bytes(32),))
    job.id = indexes.seal(job.index)
    job.destination.prepare()
    job.offer()
    job.transfer = Transfer(job.destination, job.id)
    job.transfer.negotiate(PAGE)
    assert job.complete() == {"hole": "changed"}
    job.close()


def test_closing_gives_every_descriptor_back(source: Path, dest: Path) -> None:
    job = Job(source, dest)
    job.send()
    assert open_below(dest), "nothing was open: this test could not fail"
    job.close()
    assert open_below(dest) == [f"{dest}/.tar_like"], "the destination is not closed"


def open_below(folder: Path) -> list[str]:
    """What this process has open below a folder."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if name.startswith(f"{folder}/")]


def test_what_rots_in_a_hole_before_the_commit_is_mended(source: Path, dest: Path) -> None:
    job = Job(source, dest)
    job.send()
    with Index(str(job.index)) as index:
        entry_id = next(entry.id for entry in index.entries() if entry.path == b"sparse")
    with open(job.path / "stage" / Staging.name(entry_id), "r+b") as file:
        os.pwrite(file.fileno(), b"rot", 3 * PAGE)
        os.pwrite(file.fileno(), b"rot", 15 * PAGE + 5)
    assert job.complete() == {}
    assert_same(source, dest)
    job.close()


def test_a_completed_transfer_is_let_go_of(source: Path, dest: Path) -> None:
    job = Job(source, dest)
    job.send()
    job.close()
    before = len(open_below(dest))
    transfers = Transfers(job.destination, lambda *_: None)
    transfers.get(job.id).status()
    assert len(open_below(dest)) > before, "nothing was open: this test could not fail"
    assert in_child(job.commit) == 0
    transfers.checkpoint_due()
    assert len(open_below(dest)) <= before


@pytest.mark.parametrize("harm", ["flipped", "longer", "shorter"])
def test_what_was_staged_of_local_content_is_read_back_in_the_commit(work: Path, harm: str) -> None:
    root, dest = work / "src", work / "dst"
    for tree in (root, dest):
        tree.mkdir()
    (root / "a").write_bytes(noise(3 * PAGE))
    assert sync(root, dest) == {}
    (root / "a").rename(root / "b")
    job = Job(root, dest)
    assert job.missing == []
    (staged,) = (path for path in (job.path / "stage").rglob("*") if path.is_file())
    if harm == "flipped":
        flip(staged)
    else:
        os.truncate(staged, staged.stat().st_size + (1 if harm == "longer" else -1))
    assert list(job.complete()) == ["b"]
    assert not (dest / "b").exists()
    assert sync(root, dest) == {}
    assert (dest / "b").read_bytes() == noise(3 * PAGE)


@pytest.mark.skipif(not trees.ROOT, reason="needs root to become nobody")
def test_a_plain_user_opens_what_was_closed(work: Path) -> None:
    """Nothing is sent, and so nothing read: only modes are other ones."""
    root, dest = work / "src", work / "dst"
    root.mkdir()
    dest.mkdir()
    for name in ("file", "empty"):
        (root / name).write_bytes(name[:4].encode() * (name != "empty"))
    for path in (work, root, dest, *root.iterdir()):
        os.chown(path, 65534, 65534)

    def receive() -> None:
        assert sync(root, dest, algorithm="none") == {}

    for mode in (0o644, 0, 0o640, 0o200, 0o111, 0o755):
        for path in root.iterdir():
            path.chmod(mode)
        assert in_child(receive, user=65534) == 0
        assert_same(root, dest)


@pytest.mark.parametrize("algorithm", ["none", "blake3"])
def test_a_hole_is_nobodys_source(work: Path, algorithm: str) -> None:
    """Nothing of it is sent: another file with the same zeros cannot have them from it."""
    root, dest = work / "src", work / "dst"
    root.mkdir()
    for name, data in (
        ("a", b""),
        ("b", b""),
        ("c", bytes(70_000)),
        ("d", bytes(70_000)),
        ("e", b""),
    ):
        (root / name).write_bytes(data)
        os.truncate(root / name, 70_000)

    def complete() -> None:
        job = Job(root, dest, algorithm=algorithm, negotiate=False)
        try:
            job.transfer.negotiate(4096)
            assert job.complete() == {}
        finally:
            job.close()

    complete()
    assert_same(root, dest)
    (root / "f").write_bytes(bytes(70_000))
    (root / "g").touch()
    os.truncate(root / "g", 70_000)
    complete()
    assert_same(root, dest)
