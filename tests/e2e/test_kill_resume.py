"""kill -9 at any moment, run the same command again: it finishes and sends only what is missing.

The moments are random; the seed is printed, and TAR_LIKE_TEST_SEED repeats it.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tar_like.proxy.doubt import distrust
from tar_like.proxy.place import Destination
from tar_like.upload.dispatch import Progress, Sending, UploadOptions
from tar_like.upload.local import LocalDispatcher
from tar_like.upload.range import BlockOutcome
from tar_like.upload.run import Upload
from tests import trees
from tests.chaos.scene import Quiet, make_index
from tests.e2e.harness import (
    Blocks,
    Job,
    Proxy,
    Watcher,
    assert_tidy,
    index,
    payload,
    sync,
    transfer_summary,
    upload,
    wait_for,
)
from tests.processes import free_port
from tests.trees import assert_same, build

BLOCK = 4096
FILES = 20


@pytest.fixture
def src(work: Path) -> Path:
    """A hostile tree with enough payload that a transfer can be met halfway (some 2500 blocks)."""
    build(work / "src", 50, files=10)
    payload(work / "src", files=FILES)
    return work / "src"


def start_upload(src: Path, db: Path, url: str, processes: int = 2) -> Job:
    options = ("-b", src, "-db", db, "-u", url, "-s", BLOCK, "-p", processes, "--json")
    return Job("upload", *options)


def met_at(job: Job, proxy: Proxy, transfer: str, share: float) -> Blocks:
    """The state of the transfer once `share` of its blocks is received."""

    def reached() -> Blocks | None:
        state = proxy.blocks(transfer)
        return state if state and state.received >= share * state.total > 0 else None

    state = wait_for(f"{share:.0%} of the blocks", reached, unless=job.ended)
    assert state
    return state


def run_for(job: Job, seconds: float) -> None:
    """Let it run that long, or to its end."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        job.process.wait(seconds)


def settled(proxy: Proxy, transfer: str) -> Blocks:
    """What is received once nothing is on the way any more: two equal looks."""
    looks: list[Blocks | None] = [None]

    def quiet() -> Blocks | None:
        looks.append(proxy.blocks(transfer))
        return looks[-1] if looks[-1] == looks[-2] else None

    state = wait_for("the proxy to settle", quiet)
    assert state
    return state


@pytest.mark.parametrize("alone", [False, True], ids=["group", "main-process"])
def test_a_killed_sender_goes_on(work: Path, src: Path, dice: random.Random, alone: bool) -> None:
    db, dst = work / "db", work / "dst"
    transfer = index(src, db)["id"]
    with Proxy(dst) as proxy:
        sent_before = 0
        for share in sorted((dice.uniform(0.0, 0.4), dice.uniform(0.4, 0.9))):
            with start_upload(src, db, proxy.url) as job:
                met_at(job, proxy, transfer, share)
                job.kill(alone=alone)
                job.wait_for_members()
            state = settled(proxy, transfer)
            assert state.received >= sent_before, "receipts were lost"
            sent_before = state.received
            if state.received < state.total:
                assert trees.visible_files(dst) == {}, "something appeared before commit"
        rest = upload(src, db, proxy.url, "-s", BLOCK, "-p", 2)
        assert rest["state"] == "complete"
        # At most: the receiver may have been taking in one more block of the dead sender's.
        assert rest["blocks_sent"] <= state.total - state.received
    assert_same(src, dst)
    assert_tidy(dst)


def test_a_killed_proxy_goes_on(work: Path, src: Path, dice: random.Random) -> None:
    db, dst = work / "db", work / "dst"
    transfer = index(src, db)["id"]
    port = free_port()
    with Proxy(dst, port=port) as proxy, start_upload(src, db, proxy.url) as job:
        before = met_at(job, proxy, transfer, dice.uniform(0.05, 0.9))
        proxy.kill()
        with Proxy(dst, port=port) as second:
            after = wait_for(
                "the second proxy to know the transfer", lambda: second.blocks(transfer)
            )
            assert after
            assert after.received >= before.received, "receipts did not survive kill -9"
            result = job.end().verify(0, 1)
            if result.code == 0:
                assert transfer_summary(result)["state"] == "complete"
            state = settled(second, transfer)
            rest = upload(src, db, second.url, "-s", BLOCK)
            assert rest["state"] == "complete"
            assert rest["blocks_sent"] <= state.total - state.received
    assert_same(src, dst)
    assert_tidy(dst)


def test_a_sender_gives_up_in_words_when_its_proxy_is_gone(
    work: Path, src: Path, dice: random.Random
) -> None:
    db, dst = work / "db", work / "dst"
    transfer = index(src, db)["id"]
    with Proxy(dst) as proxy, start_upload(src, db, proxy.url) as job:
        met_at(job, proxy, transfer, dice.uniform(0.05, 0.6))
        proxy.kill()
        result = job.end(90).verify(1)
        assert result.summary["state"] == "incomplete"
        result.sentence("proxy", "connect", "refused", "reach")
    with Proxy(dst) as proxy:
        before = proxy.blocks(transfer)
        assert before
        rest = upload(src, db, proxy.url, "-s", BLOCK)
        assert rest["blocks_sent"] == before.total - before.received
    assert_same(src, dst)


@pytest.mark.parametrize("alone", [False, True], ids=["group", "main-process"])
def test_a_killed_sync_goes_on(work: Path, src: Path, dice: random.Random, alone: bool) -> None:
    options = ("-s", BLOCK, "-p", 2)
    start = time.monotonic()
    whole = sync(src, work / "measure", *options)
    lasts = time.monotonic() - start
    dst = work / "dst"
    with Watcher(dst, src):
        for share in (dice.uniform(0.1, 0.5), dice.uniform(0.5, 1.0), dice.uniform(0.2, 1.0)):
            print(f"kill after {share:.3f} of {lasts:.2f} s")
            with Job("sync", src, dst, *options) as job:
                run_for(job, share * lasts)
                job.kill(alone=alone)
                job.wait_for_members()
        rest = sync(src, dst, *options)
    assert rest["state"] == "complete"
    assert rest["blocks_sent"] <= whole["blocks_total"]
    assert_same(src, dst)
    assert_tidy(dst)
    assert sync(src, dst, *options)["blocks_sent"] == 0


def test_a_sync_that_is_met_halfway_does_not_start_again(
    work: Path, src: Path, dice: random.Random
) -> None:
    options = ("-s", BLOCK, "-p", 2)
    dst = work / "dst"
    dst.mkdir()
    total = trees.allocated(src)
    share = dice.uniform(0.5, 0.8)
    print(f"kill when {share:.2f} is staged")
    with Job("sync", src, dst, *options) as job:
        wait_for(
            "staged bytes below the destination",
            lambda: trees.allocated(dst) >= share * total,
            unless=job.ended,
        )
        job.kill()
    rest = sync(src, dst, *options)
    slack = 3 << 20  # records, blocks in flight, and small files that fill a page of the disk
    assert rest["bytes_sent"] <= (1 - share) * total + slack, "it sent again what was there"
    assert_same(src, dst)
    assert_tidy(dst)


def test_a_kill_during_commit(work: Path, src: Path, dice: random.Random) -> None:
    db, dst = work / "db", work / "dst"
    transfer = index(src, db)["id"]
    with Proxy(dst) as proxy, Watcher(dst, src), start_upload(src, db, proxy.url) as job:
        met_at(job, proxy, transfer, 1.0)
        if dice.random() < 0.5:
            wait_for("a first name", lambda: trees.visible_files(dst), unless=job.ended)
        proxy.kill()
        job.kill()
    with Proxy(dst) as proxy, Watcher(dst, src):
        rest = upload(src, db, proxy.url, "-s", BLOCK)
        assert (rest["blocks_sent"], rest["state"]) == (0, "complete")
    assert_same(src, dst)
    assert_tidy(dst)


@pytest.mark.parametrize("command", ["upload", "sync"])
def test_ctrl_c_once_ends_with_130_and_can_be_resumed(
    work: Path, src: Path, dice: random.Random, command: str
) -> None:
    db, dst = work / "db", work / "dst"
    transfer = index(src, db)["id"]
    with Proxy(dst) as proxy:
        url = proxy.url
        options = ("-b", src, "-db", db, "-u", url) if command == "upload" else (src, url)
        with Job(command, *options, "-s", BLOCK, "-p", 2, "--limit", "1M") as job:
            if command == "upload":
                met_at(job, proxy, transfer, dice.uniform(0.05, 0.2))
            else:
                wait_for(
                    "staged bytes below the destination",
                    lambda: dst.exists() and trees.allocated(dst) > 1 << 20,
                    unless=job.ended,
                )
            job.interrupt()
            result = job.end().verify(130)
            assert b"resume" in result.err.lower() or b"again" in result.err.lower(), result
        assert trees.visible_files(dst) == {}
        if command == "upload":
            state = settled(proxy, transfer)
            rest = upload(src, db, url, "-s", BLOCK, "-p", 2)
            # At most: the receiver may have been taking in one more block of the dead sender's.
            assert rest["blocks_sent"] <= state.total - state.received
        else:
            rest = sync(src, url, "-s", BLOCK, "-p", 2)
            assert rest["blocks_sent"] < rest["blocks_total"] or rest["bytes_sent"] < FILES << 19
        assert rest["state"] == "complete"
    assert_same(src, dst)
    assert_tidy(dst)


def test_ctrl_c_of_a_sync_to_a_folder_ends_its_receiver_too(work: Path, src: Path) -> None:
    dst = work / "dst"
    with Job("sync", src, dst, "-s", BLOCK, "--limit", "1M") as job:
        wait_for(
            "staged bytes below the destination",
            lambda: dst.exists() and trees.allocated(dst) > 1 << 20,
            unless=job.ended,
        )
        job.interrupt()
        job.end().verify(130)
        job.wait_for_members()
    sync(src, dst, "-s", BLOCK)
    assert_same(src, dst)


def test_a_sync_that_a_script_runs_in_the_background_ends(work: Path, src: Path) -> None:
    """A shell without job control starts it with SIGINT and SIGQUIT ignored."""
    dst = work / "dst"
    with Job("sync", src, dst, prefix=("env", "--ignore-signal=INT,QUIT")) as job:
        job.end().verify(0)
    assert_same(src, dst)


def test_sigterm_of_a_proxy_in_the_middle_keeps_the_receipts(
    work: Path, src: Path, dice: random.Random
) -> None:
    db, dst = work / "db", work / "dst"
    transfer = index(src, db)["id"]
    with Proxy(dst, "--processes", 2) as proxy, start_upload(src, db, proxy.url) as job:
        before = met_at(job, proxy, transfer, dice.uniform(0.1, 0.7))
        job.kill()
        proxy.stop()
    with Proxy(dst) as proxy:
        after = proxy.blocks(transfer)
        assert after
        assert after.received >= before.received
        assert after.durable == after.received, "a proxy that ends in peace makes all durable"
        rest = upload(src, db, proxy.url, "-s", BLOCK)
        assert rest["blocks_sent"] == after.total - after.received
    assert_same(src, dst)


def test_a_killed_sync_whose_tree_then_changes_sends_only_what_is_new(
    work: Path, src: Path, dice: random.Random
) -> None:
    dst = work / "dst"
    total = trees.allocated(src)
    share = dice.uniform(0.6, 0.9)
    print(f"kill when {share:.2f} is staged")
    dst.mkdir()
    with Job("sync", src, dst, "-s", "32KiB", "-p", 1) as job:
        wait_for(
            "staged bytes below the destination",
            lambda: trees.allocated(dst) >= share * total,
            unless=job.ended,
        )
        job.kill()
    (src / "new since then").write_bytes(b"another tree now")
    (src / "payload-0/000.bin").write_bytes(b"changed since then")
    rest = sync(src, dst, "-s", "32KiB")
    slack = 4 << 20  # a file that was cut in two, records, small files that fill a page of the disk
    assert rest["bytes_sent"] <= (1 - share) * total + slack, "it sent again what was there"
    assert_same(src, dst)
    assert_tidy(dst)
    for name in ("transfers", "donors"):
        assert list((dst / ".tar_like" / name).iterdir()) == []


def test_blocks_that_are_believed_no_more_when_all_have_arrived_are_sent_again(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asks between the last block and the commit whether all are there."""
    source, dest = work / "src", work / "dst"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(50_000))
    make_index(source, work / "db")
    sendings = list[list[int]]()
    send = LocalDispatcher.send

    def distrusted(
        dispatcher: LocalDispatcher, sending: Sending, progress: Progress
    ) -> Iterator[BlockOutcome]:
        sendings.append(sending.missing)
        yield from send(dispatcher, sending, progress)
        if len(sendings) == 1:
            distrust(Destination(str(dest)))

    monkeypatch.setattr(LocalDispatcher, "send", distrusted)
    with Proxy(dest) as proxy:
        options = UploadOptions(
            source=str(source), index_path=str(work / "db"), urls=(proxy.url,), block_size=4096
        )
        summary = Upload(options, Quiet()).run()
    assert summary.state == "complete" and not summary.errors
    assert sendings == [list(range(13)), list(range(13))]
    assert_same(source, dest)
