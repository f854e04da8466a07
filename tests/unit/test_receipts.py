"""Receipt logs: whatever happens to them, no block has a receipt that nobody wrote."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tar_like.codec import CHANGED, UNREADABLE
from tar_like.proxy import receipts
from tar_like.proxy.receipts import NO_PIECE, Omitted, Receipt, ReceiptLog, Receipts

BLOCKS = 4


def digest(number: int) -> bytes:
    return bytes([number]) * 32


@contextmanager
def folder() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="tar-like-receipts-")
    try:
        yield path
    finally:
        shutil.rmtree(path)


def read(directory: str | Path) -> Receipts:
    """A reader that starts afresh, as a new process does."""
    found = Receipts(str(directory))
    found.refresh()
    return found


def state(found: Receipts) -> tuple[object, ...]:
    """All that a reader answers."""
    return (
        {block: found.find(block) for block in sorted(found.blocks())},
        {block: found.digests(block) for block in range(BLOCKS)},
        {block: found.epoch(block) for block in range(BLOCKS)},
        sorted(found.durable_blocks()),
        found.omitted_entries(),
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    log = ReceiptLog(str(tmp_path))
    log.add_block(3, 0, digest(3), [Omitted(3, 0, 17, 4096, UNREADABLE)])
    log.omit([Omitted(5, 0, 18, NO_PIECE, CHANGED)])
    found = read(tmp_path)
    assert (found.received, found.durable) == (1, 0)
    assert found.find(3) == Receipt(0, digest(3))
    assert found.find(5) is None
    assert found.digests(3) == {digest(3)}
    assert found.omitted_entries() == {17: UNREADABLE, 18: CHANGED}
    assert found.omitted_piece(3, 17, 4096) == UNREADABLE
    assert found.omitted_piece(3, 17, 0) == found.omitted_piece(3, 16, 4096) == 0
    log.checkpoint(log.mark())
    found.refresh()
    assert found.durable_blocks() == [3]
    log.close()


def test_a_checkpoint_covers_what_was_there_when_the_sync_began(tmp_path: Path) -> None:
    log = ReceiptLog(str(tmp_path))
    log.add_block(0, 0, digest(0), [])
    mark = log.mark()
    log.add_block(1, 0, digest(1), [])
    log.checkpoint(mark)
    assert log.dirty
    assert read(tmp_path).durable_blocks() == [0]
    log.checkpoint(log.mark())
    assert not log.dirty
    assert sorted(read(tmp_path).durable_blocks()) == [0, 1]
    log.close()


def test_two_digests_of_one_block_are_both_known(tmp_path: Path) -> None:
    one, other = ReceiptLog(str(tmp_path)), ReceiptLog(str(tmp_path))
    one.add_block(0, 0, digest(1), [])
    other.add_block(0, 0, digest(2), [])
    assert read(tmp_path).digests(0) == {digest(1), digest(2)}
    one.close()
    other.close()


class Machine(RuleBasedStateMachine):
    """Two logs, readers that look often, seldom or once, and a model of what is true.

    A block has a receipt when one of a later epoch than the last revoked was appended; it is
    durable when a checkpoint of its log covers such a one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="tar-like-receipts-")
        self.logs = [ReceiptLog(self.directory), ReceiptLog(self.directory)]
        self.reader, self.late = Receipts(self.directory), Receipts(self.directory)
        self.void = dict.fromkeys(range(BLOCKS), -1)
        # what each log holds since its last checkpoint, and what is covered by one
        self.pending: list[list[tuple[int, int, bytes]]] = [[], []]
        self.covered: list[tuple[int, int, bytes]] = []
        self.omitted: list[list[Omitted]] = [[], [], []]  # the last: covered by a checkpoint

    def teardown(self) -> None:
        for log in self.logs:
            log.close()
        shutil.rmtree(self.directory)

    @rule(
        which=st.integers(0, 1),
        block=st.integers(0, BLOCKS - 1),
        content=st.integers(1, 2),
        omit=st.booleans(),
    )
    def add(self, which: int, block: int, content: int, omit: bool) -> None:
        self.reader.refresh()
        epoch = self.reader.epoch(block)
        omitted = [Omitted(block, epoch, 10 * block + which, 0, UNREADABLE)] if omit else []
        self.logs[which].add_block(block, epoch, digest(content), omitted)
        self.pending[which].append((block, epoch, digest(content)))
        self.omitted[which] += omitted

    @rule(which=st.integers(0, 1), block=st.integers(0, BLOCKS - 1))
    def add_late(self, which: int, block: int) -> None:
        """By a process that does not know yet that the block was revoked."""
        epoch = max(0, self.void[block])
        self.logs[which].add_block(block, epoch, digest(3), [])
        self.pending[which].append((block, epoch, digest(3)))

    @rule(which=st.integers(0, 1))
    def checkpoint(self, which: int) -> None:
        self.logs[which].checkpoint(self.logs[which].mark())
        self.covered += self.pending[which]
        self.omitted[2] += self.omitted[which]
        self.pending[which], self.omitted[which] = [], []

    @rule(which=st.integers(0, 1))
    def distrust(self, which: int) -> None:
        self.logs[which].distrust()
        self.pending[which], self.omitted[which] = [], []

    @rule(block=st.integers(0, BLOCKS - 1))
    def revoke(self, block: int) -> None:
        """As a commit does it: in a log of its own, which may sort anywhere."""
        self.reader.refresh()
        receipt = self.reader.find(block)
        if receipt is None:
            return
        log = ReceiptLog(self.directory)
        log.revoke([(block, receipt.epoch)])
        log.close()
        self.void[block] = max(self.void[block], receipt.epoch)

    @rule()
    def look_late(self) -> None:
        self.compare(self.late)

    @invariant()
    def every_reader_sees_what_is_true(self) -> None:
        self.compare(self.reader)
        self.compare(Receipts(self.directory))

    def compare(self, found: Receipts) -> None:
        receipts_ = self.covered + self.pending[0] + self.pending[1]
        valid = [one for one in receipts_ if one[1] > self.void[one[0]]]
        durable = {block for block, epoch, _ in self.covered if epoch > self.void[block]}
        digests = {block: {d for b, _, d in valid if b == block} for block in range(BLOCKS)}
        omitted = {
            one.entry_id: one.reason
            for one in itertools.chain(*self.omitted)
            if one.epoch > self.void[one.block_no]
        }
        found.refresh()
        assert set(found.blocks()) == {block for block, _, _ in valid}
        assert {block: found.digests(block) for block in range(BLOCKS)} == digests
        assert set(found.durable_blocks()) == durable
        assert {b: found.epoch(b) - 1 for b in range(BLOCKS)} == self.void
        assert found.omitted_entries() == omitted


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestMachine = Machine.TestCase


def test_a_block_sent_again_after_it_was_revoked_counts_for_every_reader(tmp_path: Path) -> None:
    """Whichever log comes first in the folder."""
    server, commit = ReceiptLog(str(tmp_path)), ReceiptLog(str(tmp_path))
    server.add_block(0, 0, digest(1), [])
    commit.revoke([(0, 0)])
    server.add_block(0, 1, digest(1), [])
    for name in ("a.log", "z.log"):
        os.rename(commit.path, tmp_path / name)
        commit.path = str(tmp_path / name)
        found = read(tmp_path)
        assert found.find(0) == Receipt(1, digest(1)), name
        assert found.received == 1
    server.close()
    commit.close()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with one log that has every kind of record."""
    (tmp_path / "log").mkdir()
    log = ReceiptLog(str(tmp_path / "log"))
    log.add_block(0, 0, digest(1), [])
    log.add_block(1, 0, digest(2), [Omitted(1, 0, 7, 0, UNREADABLE)])
    log.checkpoint(log.mark())
    log.revoke([(0, 0)])
    log.add_block(0, 1, digest(3), [])
    log.add_block(2, 0, digest(4), [])
    log.close()
    os.rename(log.path, tmp_path / "log/x.log")
    return tmp_path / "log"


def ends(data: bytes) -> list[int]:
    """Where the records of a log end."""
    return [end for _, _, end in receipts._records(data)]


def test_a_torn_log_has_the_records_that_are_whole(written: Path) -> None:
    log = written / "x.log"
    data = log.read_bytes()
    whole = {}
    for end in [0, *ends(data)]:
        log.write_bytes(data[:end])
        whole[end] = state(read(written))
    for length in range(len(data) + 1):
        log.write_bytes(data[:length])
        reader = Receipts(str(written))
        reader.refresh()
        assert state(reader) == whole[max(end for end in whole if end <= length)]
        log.write_bytes(data)  # the rest arrives
        reader.refresh()
        assert state(reader) == whole[len(data)]


def test_a_flipped_bit_ends_the_log_there(written: Path) -> None:
    log = written / "x.log"
    data = bytearray(log.read_bytes())
    whole = {}
    for end in [0, *ends(bytes(data))]:
        log.write_bytes(data[:end])
        whole[end] = state(read(written))
    for bit in range(8 * len(data)):
        data[bit >> 3] ^= 1 << (bit & 7)
        log.write_bytes(data)
        data[bit >> 3] ^= 1 << (bit & 7)
        assert state(read(written)) == whole[max(end for end in whole if end <= bit >> 3)]


@given(st.binary(max_size=100), st.integers(0, 60))
def test_whatever_is_at_the_end_of_a_log_is_no_receipt(rest: bytes, torn: int) -> None:
    with folder() as directory:
        log = ReceiptLog(directory)
        log.add_block(0, 0, digest(1), [])
        path = Path(log.path)
        log.close()
        data = path.read_bytes()
        path.write_bytes(data + data[:torn] + rest)
        found = read(directory)
        assert found.blocks() == [0]
        path.write_bytes(rest)
        assert read(directory).received == 0


def test_other_files_in_the_folder_are_no_logs(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty.log").touch()
    assert read(tmp_path).received == 0


def test_after_a_crash_of_this_machine_only_what_is_synced_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _, boot = receipts.machine().partition(b"\0")
    log = ReceiptLog(str(tmp_path))
    log.add_block(0, 0, digest(0), [])
    log.checkpoint(log.mark())
    log.add_block(1, 0, digest(1), [])
    log.close()
    monkeypatch.setattr(receipts, "machine", lambda: here + b"\0another boot")
    found = read(tmp_path)
    assert found.blocks() == found.durable_blocks() == [0]
    monkeypatch.setattr(receipts, "machine", lambda: b"another host\0another boot")
    assert sorted(read(tmp_path).blocks()) == [0, 1]
    monkeypatch.setattr(receipts, "machine", lambda: here + b"\0" + boot)
    assert sorted(read(tmp_path).blocks()) == [0, 1]


def test_a_revocation_holds_after_a_crash_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, commit = ReceiptLog(str(tmp_path)), ReceiptLog(str(tmp_path))
    log.add_block(0, 0, digest(0), [])
    log.checkpoint(log.mark())
    commit.revoke([(0, 0)])
    log.close()
    commit.close()
    here = receipts.machine().partition(b"\0")[0]
    monkeypatch.setattr(receipts, "machine", lambda: here + b"\0another boot")
    assert read(tmp_path).received == 0


def test_distrust_forgets_what_no_checkpoint_covers(tmp_path: Path) -> None:
    log = ReceiptLog(str(tmp_path))
    log.add_block(0, 0, digest(0), [])
    log.checkpoint(log.mark())
    log.add_block(1, 0, digest(1), [])
    reader = read(tmp_path)
    assert sorted(reader.blocks()) == [0, 1]
    log.distrust()
    reader.refresh()
    for found in (reader, read(tmp_path)):
        assert found.blocks() == found.durable_blocks() == [0]
    log.add_block(2, 0, digest(2), [])
    log.checkpoint(log.mark())
    reader.refresh()
    for found in (reader, read(tmp_path)):
        assert sorted(found.blocks()) == sorted(found.durable_blocks()) == [0, 2]
    log.close()


def test_distrust_is_seen_by_a_reader_that_looks_late(tmp_path: Path) -> None:
    """The log is as long as before by then, with other records in it."""
    log = ReceiptLog(str(tmp_path))
    log.add_block(0, 0, digest(0), [])
    reader = read(tmp_path)
    log.distrust()
    log.add_block(1, 0, digest(1), [])
    log.add_block(2, 0, digest(2), [])
    reader.refresh()
    assert sorted(reader.blocks()) == [1, 2]
    assert sorted(read(tmp_path).blocks()) == [1, 2]
    log.close()


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ReceiptLog(str(tmp_path))
    log.add_block(0, 0, digest(0), [])
    size = os.path.getsize(log.path)

    def half(fd: int, data: bytes, offset: int) -> None:
        os.pwrite(fd, data[: len(data) // 2], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(receipts, "write_all", half)
    with pytest.raises(OSError):
        log.add_block(1, 0, digest(1), [])
    monkeypatch.undo()
    assert os.path.getsize(log.path) == size
    log.add_block(2, 0, digest(2), [])
    assert sorted(read(tmp_path).blocks()) == [0, 2]
    log.close()
