"""Block ranges through a real Redis to real workers, and what happens when something dies.

The transfers are slowed down with --limit, so that they can be met half way.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from tests.e2e.harness import Job, Proxy, assert_tidy, index, payload, run, wait_for
from tests.fanout.harness import (
    BLOCK,
    MUCH,
    Redis,
    Worker,
    at_work,
    ended_well,
    frozen_at_work,
    left,
    met,
    records,
    redispatched,
    status,
    unleash,
    upload_job,
    workers,
)
from tests.processes import ended, free_port
from tests.trees import assert_same, build

REDISPATCH = 45.0
"""Seconds: an RQ job that nobody takes from its dead worker stays with it for 900."""
STALL = 45.0


@pytest.fixture
def src(work: Path) -> Path:
    """A hostile tree with about 12 MB of payload: some 200 blocks."""
    build(work / "src", 50, files=10)
    payload(work / "src")
    return work / "src"


@pytest.fixture
def db(work: Path, src: Path) -> Path:
    index(src, work / "db")
    return work / "db"


def transfer_of(db: Path) -> str:
    with contextlib.closing(sqlite3.connect(db)) as index_db:
        return str(index_db.execute("SELECT value FROM meta WHERE key = 'id'").fetchone()[0])


def test_workers_share_the_work(work: Path, src: Path, db: Path, redis: Redis) -> None:
    transfer, dst = transfer_of(db), work / "dst"
    with (
        Proxy(dst) as proxy,
        workers(redis, work, 2) as crew,
        upload_job(redis, proxy, src, db, "--limit", "200K") as job,
    ):
        for one in crew:
            wait_for("both workers at work", lambda one=one: at_work(redis, one), unless=job.ended)
        seen = status(redis)
        (row,) = seen["transfers"]
        assert row["id"] == transfer and row["state"] == "receiving" and row["followed"]
        assert row["received"] + row["missing"] == row["blocks"]
        assert len(seen["workers"]) == 2
        watch = follow(redis, job)
        (row,) = run("status", proxy.url, "--json").summary["transfers"]
        assert row["id"] == transfer and row["received"] + row["missing"] == row["blocks"]
        assert 0 < row["received_bytes"] < row["bytes"]
        unleash(redis, transfer)
        summary = ended_well(job)
        assert summary["blocks_sent"] == summary["blocks_total"]
        (row,) = status(redis)["transfers"]
        assert (row["state"], row["durable"]) == ("complete", row["blocks"])
        shown = watch.end().verify(0).out.decode()
        watch.close()
        assert f"{transfer[:16]}  receiving" in shown and f"{transfer[:16]}  complete" in shown
        line = (
            rf"  {re.escape(socket.gethostname())} \d+  sending  {transfer[:16]} blocks \d+ to \d+"
        )
        assert re.search(line + r", \d+ sent; [1-9].*/s", shown), shown
        assert re.search(r"/s, \d+ s to go; limit", shown), shown
    assert_same(src, dst)
    assert_tidy(dst)


def follow(redis: Redis, job: Job) -> Job:
    """`status --watch`, once there are rates to show."""

    def rates() -> bool:
        seen = status(redis)
        rows = seen["workers"] + seen["transfers"]
        return all(row["rate"] > 0 for row in rows) and seen["transfers"][0]["eta"] > 0

    watch = Job("status", "--redis", redis.url, "--watch")
    wait_for("the rates", rates, unless=job.ended)
    wait_for("a look", lambda: watch.out().count(b"workers:") > 1, unless=job.ended)
    return watch


@pytest.mark.parametrize("how", ["kill", "cut-off"])
def test_a_dead_workers_range_goes_to_another(
    work: Path, src: Path, db: Path, redis: Redis, how: str
) -> None:
    transfer, dst = transfer_of(db), work / "dst"
    with (
        Proxy(dst) as proxy,
        workers(redis, work, 2) as crew,
        upload_job(redis, proxy, src, db, "--limit", "400K", "-s", "16K") as job,
    ):
        victim = crew[0]
        held = frozen_at_work(redis, victim, proxy.url, job)
        if how == "kill":
            victim.kill()

        begun: list[str] = []
        """What the other was at once the range had been given out again."""

        def taken_over() -> bool:
            given_out = redispatched(redis, transfer)
            others = [one for one in records(redis) if one["pid"] != held["pid"] and one["job"]]
            begun.extend(one["job"] for one in others if given_out and one["job"] not in begun)
            return any(
                one["job"] != held["job"] and held["first"] <= one["first"] < held["stop"]
                for one in others
            )

        what = "another to have the range"
        wait_for(what, taken_over, seconds=REDISPATCH, unless=job.ended)
        assert len(begun) <= 2, "it had to wait for ranges that were in the queue"
        if how == "cut-off":
            victim.thaw()
        unleash(redis, transfer)
        ended_well(job)
    assert_same(src, dst)
    assert_tidy(dst)


@pytest.mark.parametrize("how", ["kill", "flushall"])
def test_redis_loses_everything(work: Path, src: Path, db: Path, redis: Redis, how: str) -> None:
    transfer, dst = transfer_of(db), work / "dst"
    with (
        Proxy(dst) as proxy,
        workers(redis, work, 2),
        upload_job(redis, proxy, src, db, "--limit", "250K") as job,
    ):
        met(job, proxy, transfer, 0.05)
        if how == "kill":
            redis.kill()
            wait_for("the command to notice", lambda: b"Waiting for it" in job.stderr())
            redis.start()
        else:
            redis.client.flushall()

        def a_new_range() -> bool:
            return any(one["sent"] and one["phase"] == "sending" for one in records(redis))

        wait_for("a range under way again", a_new_range, seconds=STALL, unless=job.ended)
        state = proxy.blocks(transfer)
        before = state.received if state else 0

        def moved() -> bool:
            state = proxy.blocks(transfer)
            return state is None or state.received > before

        wait_for("blocks to arrive again", moved, seconds=STALL, unless=job.ended)
        unleash(redis, transfer)
        summary = ended_well(job)
        assert summary["blocks_sent"] == summary["blocks_total"]
    assert_same(src, dst)


def test_a_killed_uploading_command_goes_on(work: Path, src: Path, db: Path, redis: Redis) -> None:
    transfer, dst = transfer_of(db), work / "dst"
    with Proxy(dst) as proxy, workers(redis, work, 2):
        with upload_job(redis, proxy, src, db, "--limit", "400K") as job:
            met(job, proxy, transfer, 0.1)  # what is queued goes on, for half a minute
            job.kill()
        had = proxy.blocks(transfer)
        assert had and had.received < had.total
        with upload_job(redis, proxy, src, db) as again:
            summary = ended_well(again)
        assert 0 < summary["blocks_sent"] <= had.total - had.received
        assert redis.client.get(f"tar-like:limit:{transfer}") == b"0", "the old limit stayed"
    assert_same(src, dst)


def test_a_killed_receiver_is_waited_for(work: Path, src: Path, db: Path, redis: Redis) -> None:
    transfer, dst = transfer_of(db), work / "dst"
    with (
        workers(redis, work, 2),
        Proxy(dst, port=free_port()) as proxy,
        upload_job(redis, proxy, src, db, "--limit", "400K") as job,
    ):
        met(job, proxy, transfer, 0.1)
        proxy.kill()
        wait_for("a range to fail", lambda: any(one["failure"] for one in records(redis)))
        with Proxy(dst, port=proxy.port) as again:
            state = again.blocks(transfer)
            assert state and 0 < state.received < state.total
            unleash(redis, transfer)
            ended_well(job)
    assert_same(src, dst)


def test_a_killed_receiver_of_two_is_done_without(
    work: Path, src: Path, db: Path, redis: Redis
) -> None:
    transfer, dst = transfer_of(db), work / "dst"
    with Proxy(dst) as one, Proxy(dst) as two, workers(redis, work, 2):
        words = ("--limit", "1M", "-u", two.url)
        with upload_job(redis, one, src, db, *words) as job:
            met(job, two, transfer, 0.2)
            one.kill()
            unleash(redis, transfer)
            ended_well(job)
    assert_same(src, dst)


def test_a_killed_sync_goes_on(work: Path, src: Path, redis: Redis) -> None:
    dst = work / "dst"
    with Proxy(dst) as proxy, workers(redis, work, 2):
        words = ("sync", src, proxy.url, "-s", BLOCK, "--redis", redis.url, "--json")
        with Job(*words, "--limit", "400K") as job:
            wait_for("blocks", lambda: received(redis) > 20, unless=job.ended)
            job.kill()
        summary = run(*words).summary
        assert summary["state"] == "complete"
        assert 0 < summary["blocks_sent"] <= summary["blocks_total"] - 20
    assert_same(src, dst)


def received(redis: Redis) -> int:
    """Blocks of the only transfer, as the uploading command says."""
    rows = status(redis)["transfers"]
    return int(rows[0]["received"]) if rows else 0


def test_detached(work: Path, src: Path, db: Path, redis: Redis) -> None:
    transfer, dst = transfer_of(db), work / "dst"
    env = {"TARLIKE_CACHE": str(work / "cache")}
    with Proxy(dst) as proxy, workers(redis, work, 1):
        started = run(
            "upload", "-b", src, "-db", db, "-u", proxy.url, "-s", BLOCK, "--redis", redis.url,
            "--detach", "--json", env=env,
        ).summary  # fmt: skip
        assert started["transfer"] == transfer
        watched = run("status", "--redis", redis.url, "--watch", "--json")
        lines = watched.out.splitlines()
        assert lines

        def complete() -> bool:
            rows = status(redis)["transfers"]
            return [row["state"] for row in rows if row["id"] == transfer] == ["complete"]

        wait_for("the background to finish", complete)
        wait_for("its end", lambda: ended(started["pid"]))
    assert_same(src, dst)


def test_a_detached_command_that_dies_is_run_again(
    work: Path, src: Path, db: Path, redis: Redis
) -> None:
    """Its host is gone, say: what has arrived stays, and the same command anywhere goes on."""
    transfer, dst = transfer_of(db), work / "dst"
    env = {"TARLIKE_CACHE": str(work / "cache")}
    with Proxy(dst) as proxy, workers(redis, work, 1):
        words = (
            "upload", "-b", src, "-db", db, "-u", proxy.url, "-s", BLOCK, "--redis", redis.url,
            "--json",
        )  # fmt: skip
        started = run(*words, "--detach", "--limit", "400K", env=env).summary
        wait_for("blocks", lambda: (state := proxy.blocks(transfer)) and state.received > 20)
        os.kill(started["pid"], signal.SIGKILL)
        wait_for("its end", lambda: ended(started["pid"]))
        records_of_it = f"tar-like:transfer:{transfer}"
        news = json.loads(redis.client.get(records_of_it))
        redis.client.set(records_of_it, json.dumps(news | {"updated": news["updated"] - 60}))
        (row,) = status(redis)["transfers"]
        assert row["abandoned"] and not row["followed"]
        shown = run("status", "--redis", redis.url, "--watch").out.decode()
        assert "run the same one again" in shown
        summary = run(*words, env=env).summary
        assert summary["state"] == "complete"
        assert summary["blocks_sent"] <= summary["blocks_total"] - 20
        (row,) = status(redis)["transfers"]
        assert row["state"] == "complete" and not row["abandoned"]
    assert_same(src, dst)


def test_a_worker_that_is_asked_to_stop_hands_back_its_range(
    work: Path, src: Path, db: Path, redis: Redis
) -> None:
    transfer, dst = transfer_of(db), work / "dst"
    with Proxy(dst) as proxy, upload_job(redis, proxy, src, db, "--limit", "250K") as job:
        with workers(redis, work, 1) as (worker,):
            held = frozen_at_work(redis, worker, proxy.url, job)
            worker.process.terminate()
            worker.thaw()
            worker.end().verify(0)
        assert left(proxy.url, held) > held["left"] - MUCH, "it went on with its range"
        assert records(redis) == []
        unleash(redis, transfer)
        with workers(redis, work, 1):
            ended_well(job)
        (row,) = status(redis)["transfers"]
        assert row["redispatched"] == 0, "it was handed back, not taken from a dead one"
    assert_same(src, dst)


def test_burst_and_idle_workers_leave(work: Path, redis: Redis) -> None:
    run("worker", "--redis", redis.url, "--cache", work / "cache", "-p", 1, "--burst")
    run("worker", "--redis", redis.url, "--cache", work / "cache", "-p", 1, "--max-idle", 1)
    assert records(redis) == []


def test_a_worker_can_be_stopped_while_redis_is_away(work: Path, redis: Redis) -> None:
    with workers(redis, work, 1, "-p", 2) as crew:
        redis.kill()
        crew[0].stop()  # exit code 0, and no traceback
    redis.start()


def test_a_host_that_does_not_see_the_source_does_no_harm(
    work: Path, src: Path, db: Path, redis: Redis
) -> None:
    dst = work / "dst"
    (work / "unmounted").mkdir()
    with (
        Proxy(dst) as proxy,
        Worker(redis, work, "-p", 1, "-b", work / "unmounted") as blind,
        workers(redis, work, 1),
        upload_job(redis, proxy, src, db, "--limit", "400K") as job,
    ):
        wait_for("its word", lambda: b"mounted" in blind.stderr(), unless=job.ended)
        unleash(redis, transfer_of(db))
        ended_well(job)
    assert_same(src, dst)


def test_a_worker_reads_from_its_own_base(work: Path, src: Path, db: Path, redis: Redis) -> None:
    dst, other = work / "dst", work / "other-mount"
    with Proxy(dst) as proxy:
        src.rename(other)
        src.mkdir()
        with (
            workers(redis, work, 1, "-p", 1, "-b", other),
            upload_job(redis, proxy, src, db) as job,
        ):
            ended_well(job)
    assert_same(other, dst)


def test_the_limit_holds_and_can_be_changed(work: Path, src: Path, db: Path, redis: Redis) -> None:
    transfer, dst = transfer_of(db), work / "dst"
    with (
        Proxy(dst) as proxy,
        workers(redis, work, 2),
        upload_job(redis, proxy, src, db, "--limit", "600K") as job,
    ):
        met(job, proxy, transfer, 0.1)
        begun, first = time.monotonic(), met(job, proxy, transfer, 0.1)
        later = met(job, proxy, transfer, 0.25)
        rate = (later - first) * BLOCK / (time.monotonic() - begun)
        assert rate < 0.9e6, rate
        run("limit", "20K", "--redis", redis.url, "--transfer", transfer[:12])
        run("limit", "0", "--redis", redis.url, "--transfer", transfer[:12])
        ended_well(job)  # long before the minutes are over that it would take


def test_without_redis_the_reason_is_said(work: Path, src: Path, db: Path) -> None:
    with Proxy(work / "dst") as proxy:
        options = ("-b", src, "-db", db, "-u", proxy.url, "--redis", "redis://127.0.0.1:1/0")
        run("upload", *options, codes=(1,)).sentence("does not answer")
    for url in ("nonsense", "redis://127.0.0.1:1/0?nonsense=1", "redis://127.0.0.1:1/0?db=x"):
        run("worker", "--redis", url, codes=(2,)).sentence("Redis URL")
    socket = f"unix://{work / 'nothing'}"
    run("status", "--redis", socket, codes=(1,)).sentence("does not answer")
    run("worker", codes=(2,)).sentence("--redis")


def test_a_local_pool_keeps_to_a_limit(work: Path, src: Path) -> None:
    begun = time.monotonic()
    env = {"TARLIKE_CACHE": "/dev/null"}
    words = ("--limit", "4M", "-p", 2, "--compress", "none")
    run("sync", src, work / "dst", *words, env=env).sentence("limit cannot be changed")
    assert time.monotonic() - begun > 2.5
    assert_same(src, work / "dst")


def test_the_limit_of_a_local_pool_can_be_changed(work: Path, src: Path, db: Path) -> None:
    transfer, dst = transfer_of(db), work / "dst"
    cache, env = work / "cache", {"TARLIKE_CACHE": str(work / "cache")}
    words = ("-b", src, "-db", db, "-s", BLOCK, "-p", 2, "--compress", "none", "--json")
    with Proxy(dst) as proxy:
        run("limit", "0", codes=(2,), env=env).sentence("with a --limit")
        with Job("upload", *words, "-u", proxy.url, "--limit", "50K", env=env) as killed:
            met(killed, proxy, transfer, 0.01)
            killed.kill()
        with Job("upload", *words, "-u", proxy.url, "--limit", "50K", env=env) as job:
            met(job, proxy, transfer, 0.02)
            run("limit", "0", "--transfer", "f" * 8 + transfer[:8], codes=(2,), env=env)
            done = run("limit", "0", "--transfer", transfer[:8], "--json", env=env)
            assert done.summary["transfers"] == [transfer], "the killed one counts no more"
            ended_well(job)  # long before the minutes are over that it would take
    assert list((cache / "limits").iterdir()) == []
    assert_same(src, dst)


def test_interrupting_the_command_leaves_a_transfer_that_goes_on(
    work: Path, src: Path, db: Path, redis: Redis
) -> None:
    transfer, dst = transfer_of(db), work / "dst"
    with Proxy(dst) as proxy, workers(redis, work, 1):
        job: Job
        with upload_job(redis, proxy, src, db, "--limit", "400K") as job:
            met(job, proxy, transfer, 0.1)
            job.interrupt()
            assert job.end().verify(130).summary["interrupted"]
        with upload_job(redis, proxy, src, db) as job:
            ended_well(job)
    assert_same(src, dst)
