"""Whole transfers through haproxy into several receivers of one destination."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import (
    Blocks,
    Job,
    Proxy,
    Watcher,
    assert_tidy,
    index,
    payload,
    run,
    transfer_summary,
    upload,
    wait_for,
)
from tests.haproxy.balancer import Balancer
from tests.processes import free_port
from tests.trees import assert_same, build

BLOCK = 4096
UNHURRIED = ("-s", BLOCK, "-p", 4, "--limit", "3M", "--json")
"""So that a transfer is met half way, however late one looks."""


@pytest.fixture
def src(work: Path) -> Path:
    """A hostile tree with enough payload that a transfer can be met halfway."""
    build(work / "src", 61, files=10)
    payload(work / "src", files=16)
    return work / "src"


def met_at(job: Job, proxy: Proxy, transfer: str, share: float) -> Blocks:
    """The state of the transfer once `share` of its blocks is received."""

    def reached() -> Blocks | None:
        state = proxy.blocks(transfer)
        return state if state and state.received >= share * state.total > 0 else None

    state = wait_for(f"{share:.0%} of the blocks", reached, unless=job.ended)
    assert state
    return state


def frozen(proxy: Proxy, dst: Path, transfer: str) -> bool:
    """Freeze a receiver, but not while it writes a block: the commit would have to wait for it."""
    proxy.freeze()
    end = time.monotonic() + 1
    with (dst / ".tar_like/transfers" / transfer / "plan.lock").open("rb") as lock:
        while time.monotonic() < end:  # others hold it too, now and then
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(0.0005)
    proxy.thaw()
    return False


def writers(dst: Path, transfer: str) -> int:
    """How many processes have written receipts of this transfer."""
    folder = dst / ".tar_like" / "transfers" / transfer / "receipts"
    return sum(1 for one in folder.iterdir() if one.stat().st_size) if folder.exists() else 0


def uploading(src: Path, db: Path, balancer: Balancer) -> Job:
    """An upload through TLS, in small blocks."""
    options = ("-b", src, "-db", db, "-u", balancer.https, *UNHURRIED)
    return Job("upload", *options, env=balancer.trust)


def complete(job: Job) -> dict[str, Any]:
    """The summary of a job that must end well."""
    summary = transfer_summary(job.end().verify(0))
    assert summary["state"] == "complete", summary
    return summary


def test_sync_through_tls(work: Path, src: Path) -> None:
    dst = work / "dst"
    with (
        Proxy(dst, "--processes", 1) as one,
        Proxy(dst, "--processes", 1) as two,
        Balancer(work, [one.port, two.port]) as balancer,
        Watcher(dst, src),
    ):
        result = run("sync", src, balancer.https, "-s", BLOCK, "--json", env=balancer.trust)
        summary = transfer_summary(result)
        assert summary["state"] == "complete"
        assert summary["blocks_sent"] == summary["blocks_total"] > 0
        again = run("sync", src, balancer.https, "--json", env=balancer.trust)
        assert transfer_summary(again)["blocks_sent"] == 0
    assert_same(src, dst)
    assert_tidy(dst)


def test_sync_with_large_blocks(work: Path, src: Path) -> None:
    dst = work / "dst"
    with Proxy(dst) as one, Balancer(work, [one.port]) as balancer:
        run("sync", src, balancer.https, "-s", "1GiB", env=balancer.trust)
    assert_same(src, dst)


def test_a_certificate_is_checked_unless_told_otherwise(work: Path, src: Path) -> None:
    dst = work / "dst"
    with Proxy(dst) as one, Balancer(work, [one.port]) as balancer:
        refused = run("sync", src, balancer.https, codes=(1, 2))
        refused.sentence("certificate")
        assert not [name for name in os.listdir(dst) if name != ".tar_like"]
        run("sync", src, balancer.https, "--ignore-ca")
    assert_same(src, dst)


def test_both_receivers_take_part_and_either_may_commit(work: Path, src: Path) -> None:
    db, dst = work / "db", work / "dst"
    transfer = index(src, db)["id"]
    with (
        Proxy(dst, "--processes", 1) as one,
        Proxy(dst, "--processes", 1) as two,
        Balancer(work, [one.port, two.port]) as balancer,
        uploading(src, db, balancer) as job,
    ):
        wait_for("both to have receipts", lambda: writers(dst, transfer) == 2, unless=job.ended)
        complete(job)
        assert one.blocks(transfer) == two.blocks(transfer)
    assert_same(src, dst)


def test_a_receiver_killed_in_the_middle_is_not_missed(
    work: Path, src: Path, dice: random.Random
) -> None:
    db, dst = work / "db", work / "dst"
    transfer = index(src, db)["id"]
    with (
        Proxy(dst, "--processes", 1) as one,
        Proxy(dst, "--processes", 1) as two,
        Balancer(work, [one.port, two.port]) as balancer,
        Watcher(dst, src),
        uploading(src, db, balancer) as job,
    ):
        before = met_at(job, two, transfer, dice.uniform(0.05, 0.6))
        one.kill()
        after = two.blocks(transfer)
        assert after and after.received >= before.received, "receipts were lost"
        summary = complete(job)
        assert summary["failures"] == []
    assert_same(src, dst)
    assert_tidy(dst)


def test_receivers_restarted_one_after_the_other_are_not_missed(work: Path, src: Path) -> None:
    db, dst = work / "db", work / "dst"
    transfer = index(src, db)["id"]
    ports = [free_port(), free_port()]
    with (
        Proxy(dst, port=ports[0]) as one,
        Proxy(dst, port=ports[1]) as two,
        Balancer(work, ports) as balancer,
        uploading(src, db, balancer) as job,
    ):
        met_at(job, two, transfer, 0.05)
        one.stop()
        met_at(job, two, transfer, 0.15)
        with Proxy(dst, port=ports[0]):
            two.stop()
            with Proxy(dst, port=ports[1]):
                complete(job)
    assert_same(src, dst)


def test_a_receiver_that_hangs_is_left_and_does_no_harm_when_it_wakes(
    work: Path, src: Path, dice: random.Random
) -> None:
    """SIGSTOP: for the others, a host that was cut off; then it comes back."""
    db, dst = work / "db", work / "dst"
    transfer = index(src, db)["id"]
    with (
        Proxy(dst, "--processes", 1) as one,
        Proxy(dst, "--processes", 1) as two,
        Balancer(work, [one.port, two.port]) as balancer,
        uploading(src, db, balancer) as job,
    ):
        met_at(job, two, transfer, dice.uniform(0.05, 0.6))
        wait_for("it to hang between two blocks", lambda: frozen(one, dst, transfer))
        try:
            complete(job)
            assert_same(src, dst)
            wait_for("it to be missed", lambda: "proxy1 is DOWN" in balancer.log())
        finally:
            one.thaw()
        wait_for("it to be up again", lambda: "proxy1 is UP" in balancer.log())
        assert_same(src, dst)
    assert_same(src, dst)


def test_without_any_receiver_the_sender_says_what_is_wrong(work: Path, src: Path) -> None:
    dst = work / "dst"
    with Proxy(dst) as one, Balancer(work, [one.port]) as balancer:
        one.kill()
        balancer.wait_until(503)
        result = run("sync", src, balancer.https, codes=(1,), env=balancer.trust)
        result.sentence("no receiver")


def test_what_is_no_receiver_s_url_is_named_so(work: Path, src: Path) -> None:
    dst = work / "dst"
    with Proxy(dst) as one, Balancer(work, [one.port]) as balancer:
        url = balancer.https.replace("/tar", "/tra")
        result = run("sync", src, url, codes=(1, 2), env=balancer.trust)
        result.sentence("no receiver of tar-like")


def several(dst: Path, how: str) -> Callable[[], list[Proxy]]:
    """Receivers of one destination: processes of one, or several."""
    if how == "processes":
        return lambda: [Proxy(dst, "--processes", 2)]
    return lambda: [Proxy(dst, "--processes", 1), Proxy(dst, "--processes", 1)]


@pytest.mark.parametrize("how", ["processes", "proxies"])
def test_several_receivers_directly(work: Path, src: Path, how: str) -> None:
    db, dst = work / "db", work / "dst"
    transfer = index(src, db)["id"]
    proxies = several(dst, how)()
    try:
        urls = [part for proxy in proxies for part in ("-u", proxy.url)]
        with Job("upload", "-b", src, "-db", db, *urls, *UNHURRIED) as job:
            wait_for(  # which process of one proxy takes a connection is the kernel's choice
                "receipts",
                lambda: writers(dst, transfer) >= len(proxies),
                unless=job.ended,
            )
            complete(job)
        again = upload(src, db, proxies[-1].url, "-s", BLOCK)
        assert again["blocks_sent"] == 0
        for proxy in proxies:
            proxy.stop()
    finally:
        for proxy in proxies:
            proxy.close()
    assert_same(src, dst)
    assert_tidy(dst)


@pytest.mark.parametrize("victim", [0, 1], ids=["first", "second"])
def test_one_of_two_named_receivers_is_killed_and_the_other_goes_on(
    work: Path, src: Path, dice: random.Random, victim: int
) -> None:
    db, dst = work / "db", work / "dst"
    transfer = index(src, db)["id"]
    with Proxy(dst, "--processes", 1) as one, Proxy(dst, "--processes", 1) as two:
        proxies = [one, two]
        urls = ("-u", one.url, "-u", two.url)
        with Job("upload", "-b", src, "-db", db, *urls, *UNHURRIED) as job:
            met_at(job, proxies[1 - victim], transfer, dice.uniform(0.05, 0.6))
            proxies[victim].kill()
            complete(job)
    assert_same(src, dst)
    assert_tidy(dst)
