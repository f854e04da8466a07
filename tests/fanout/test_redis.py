"""What Redis gets to know, and what RQ's own commands do to a worker."""

from __future__ import annotations

import contextlib
import zlib
from pathlib import Path

import pytest
from rq.command import send_shutdown_command, send_stop_job_command

from tests.e2e.harness import Job, Proxy, index, payload, run, wait_for
from tests.fanout.harness import (
    BLOCK,
    MUCH,
    Redis,
    Worker,
    ended_well,
    frozen_at_work,
    records,
    unleash,
    upload_job,
    workers,
)
from tests.trees import assert_same

TOKEN = "a-token-that-nobody-else-knows-0123456789"


@pytest.fixture
def src(work: Path) -> Path:
    """About 12 MB."""
    payload(work / "src")
    return work / "src"


def everything(redis: Redis) -> bytes:
    """Names and values of all keys; RQ's data unpacked."""
    client, found = redis.client, []
    for name in client.scan_iter():
        found.append(name)
        match client.type(name):
            case b"string":
                found.append(client.get(name) or b"")
            case b"hash":
                found += [part for pair in client.hgetall(name).items() for part in pair]
            case b"stream":
                found += [part for _, row in client.xrange(name) for part in row.values()]
            case b"list":
                found += client.lrange(name, 0, -1)
    return b"\n".join(part for raw in found for part in (raw, unpacked(raw)))


def unpacked(raw: bytes) -> bytes:
    """What RQ has packed; empty for anything else."""
    with contextlib.suppress(zlib.error):
        return zlib.decompress(raw)
    return b""


def test_redis_knows_no_token(work: Path, src: Path, redis: Redis) -> None:
    transfer = str(index(src, work / "db")["id"])
    env, dst = {"TARLIKE_TOKEN": TOKEN}, work / "dst"
    (work / "token").write_text(TOKEN)
    with Proxy(dst, "--token-file", work / "token") as proxy:
        crew = ("--redis", redis.url, "--cache", work / "cache", "-p", 1, "-u", proxy.url)
        words = (
            "-b", src, "-db", work / "db", "-u", proxy.url, "-s", BLOCK, "--redis", redis.url,
            "--json", "--limit", "2M",
        )  # fmt: skip
        with Job("worker", *crew, env=env), Job("upload", *words, env=env) as job:

            def under_way() -> bytes:
                """All that Redis has, once a range is on its way."""
                found = everything(redis)
                known = transfer.encode() in found and b"upload_blocks" in found
                return found if known and any(one["sent"] for one in records(redis)) else b""

            seen = wait_for("a range", under_way, unless=job.ended)
            unleash(redis, transfer)
            ended_well(job)
        assert TOKEN.encode() not in seen + everything(redis)
    assert_same(src, dst)


def test_a_url_with_a_password_is_refused(work: Path, src: Path, redis: Redis) -> None:
    index(src, work / "db")
    url = "http://me:secret@127.0.0.1:9/tar"
    words = ("-b", src, "-db", work / "db", "-u", url, "--redis", redis.url)
    refused = run("upload", *words, codes=(2,)).sentence("TARLIKE_TOKEN")
    assert "secret" not in refused.message
    assert b"secret" not in everything(redis)


def test_rqs_commands(work: Path, src: Path, redis: Redis) -> None:
    """stop-job ends a range after its block, and others get the rest; shutdown is SIGTERM."""
    transfer, dst = str(index(src, work / "db")["id"]), work / "dst"
    with (
        Proxy(dst) as proxy,
        workers(redis, work, 2) as crew,
        upload_job(redis, proxy, src, work / "db", "--limit", "400K") as job,
    ):
        first: Worker = crew[0]
        stopped = frozen_at_work(redis, first, proxy.url, job)
        send_stop_job_command(redis.client, stopped["job"], serializer="json")
        first.thaw()

        reached = stopped["stop"] - stopped["left"]

        def given_out() -> bool:
            return any(
                one["job"] != stopped["job"] and reached <= one["first"] < reached + MUCH
                for one in records(redis)
            )

        wait_for("somebody to have the rest", given_out, unless=job.ended)
        send_shutdown_command(redis.client, stopped["name"])
        first.end().verify(0)
        unleash(redis, transfer)
        ended_well(job)
    assert_same(src, dst)
