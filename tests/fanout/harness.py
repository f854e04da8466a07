"""A real Redis, real workers, and what they say of themselves.

with Redis(work) as redis, Proxy(dst) as proxy, worker(redis, work), worker(redis, work):
    job = upload_job(redis, proxy, src, db)
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import redis as redis_py
from redis.backoff import NoBackoff
from redis.retry import Retry

from tar_like.upload.client import Client
from tests.e2e.harness import Job, Proxy, Result, run, wait_for
from tests.processes import free_port

BLOCK = 64 << 10
MUCH = 4
"""Blocks; a worker that is stopped still sends those on their way, which are fewer."""


class Redis:
    """`redis-server` on loopback that keeps nothing on disk."""

    def __init__(
        self, folder: Path, *, host: str = "127.0.0.1", prefix: tuple[str, ...] = ()
    ) -> None:
        if not shutil.which("redis-server"):
            pytest.skip("needs redis-server")
        self._folder = folder
        self._host = host
        self._prefix = prefix
        self.port = free_port()
        self.url = f"redis://{host}:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis_py.Redis(host=host, port=self.port, retry=Retry(NoBackoff(), 0))

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            *self._prefix, "redis-server", "--port", str(self.port), "--bind", self._host,
            "--save", "", "--appendonly", "no", "--dir", str(self._folder),
            "--protected-mode", "no",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        if not self._prefix:
            wait_for("redis-server to answer", self.answers)

    def answers(self) -> bool:
        with contextlib.suppress(redis_py.RedisError):
            return bool(self.client.ping())
        return False

    def kill(self) -> None:
        """kill -9; all it knew is lost."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(60)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.client.close()
        self.kill()


class Worker(Job):
    """`tar-like worker`; ended with SIGTERM and exit code 0."""

    def __init__(self, redis: Redis, work: Path, *args: object) -> None:
        options = ("--redis", redis.url, "--cache", work / "cache")
        super().__init__("worker", *options, *(args or ("-p", 1)))

    def stop(self) -> None:
        """SIGTERM; it must end with 0 and without a traceback."""
        if self.running:
            self.process.terminate()
        self.end().verify(0)

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if kind is None and self.process.returncode != -signal.SIGKILL:
                self.stop()
            elif kind is not None:
                print(f"--- a worker said\n{self.stderr().decode(errors='backslashreplace')}")
        finally:
            self.close()


@contextlib.contextmanager
def workers(redis: Redis, work: Path, count: int, *args: object) -> Iterator[list[Worker]]:
    """Several worker commands of one process each, all giving signs."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(Worker(redis, work, *args)) for _ in range(count)]
        wait_for("the workers' signs", lambda: len(records(redis)) >= count)
        yield found


def records(redis: Redis) -> list[dict[str, Any]]:
    """What workers say of themselves."""
    try:
        names = redis.client.zrange("tar-like:workers", 0, -1)
        values = redis.client.mget([b"tar-like:worker:" + name for name in names]) if names else []
    except redis_py.RedisError:
        return []
    return [json.loads(value) for value in values if value is not None]


def at_work(redis: Redis, worker: Job) -> dict[str, Any] | None:
    """What a worker command's process is sending just now."""
    members = worker.members()
    for record in records(redis):
        if record["pid"] in members and record["phase"] == "sending" and record["sent"]:
            return record
    return None


def frozen_at_work(redis: Redis, worker: Job, url: str, job: Job) -> dict[str, Any]:
    """Freeze a worker in the midst of a range; what it says of it, and how many blocks are `left`.

    It says how far it is a second late: what is left is asked of the receiver at `url`.
    """

    def frozen() -> dict[str, Any] | None:
        held = at_work(redis, worker)
        if held is None or left(url, held) < 2 * MUCH:
            return None
        worker.freeze()
        count = left(url, held)
        if count >= MUCH:
            return held | {"left": count}
        worker.thaw()
        return None

    return wait_for("a range in its hands", frozen, unless=job.ended) or {}


def left(url: str, held: dict[str, Any]) -> int:
    """How many blocks of a worker's range have not arrived."""
    client = Client(url)
    try:
        bits = client.bitmaps(held["transfer"])
    finally:
        client.close()
    return sum(not bits[n >> 3] >> (n & 7) & 1 for n in range(held["first"], held["stop"]))


def upload_job(redis: Redis, proxy: Proxy, src: Path, db: Path, *args: object) -> Job:
    """`tar-like upload --redis`, running."""
    return Job(
        "upload", "-b", src, "-db", db, "-u", proxy.url, "-s", BLOCK, "--redis", redis.url,
        "--compress", "none", "--json", *args,
    )  # fmt: skip


def status(redis: Redis) -> dict[str, Any]:
    """`tar-like status --redis --json`."""
    return run("status", "--redis", redis.url, "--json").summary


def redispatched(redis: Redis, transfer: str) -> int:
    """How many ranges were taken from workers that gave no sign."""
    news = redis.client.get(f"tar-like:transfer:{transfer}")
    return int(json.loads(news)["redispatched"]) if news else 0


def unleash(redis: Redis, transfer: str) -> None:
    """Take the limit away: the interesting part of a test is over."""
    redis.client.set(f"tar-like:limit:{transfer}", 0)


def met(job: Job, proxy: Proxy, transfer: str, share: float) -> int:
    """Wait until this share of the blocks is received; how many are."""

    def reached() -> int:
        state = proxy.blocks(transfer)
        return state.received if state and state.received >= share * state.total > 0 else 0

    return wait_for(f"{share:.0%} of the blocks", reached, unless=job.ended)


def ended_well(job: Job) -> dict[str, Any]:
    """The summary of an upload that is complete."""
    result: Result = job.end().verify(0)
    summary = result.summary
    assert summary["state"] == "complete", summary
    assert not summary["failures"] and not summary["errors"], summary
    return summary
