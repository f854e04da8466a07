"""Several hosts, each behind a slow link of its own: network namespaces on a bridge. Needs root.

The short form; `make fanout` measures up to eight hosts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.hosts import Hosts
from tests.e2e.harness import Job, index, payload, wait_for
from tests.fanout.harness import Redis, ended_well, frozen_at_work, records, unleash
from tests.trees import assert_same

MBIT = 100
BLOCK = 256 << 10
REDISPATCH = 45.0

pytestmark = pytest.mark.skipif(not Hosts.possible(), reason="network namespaces need root")


@dataclass(frozen=True, slots=True)
class Net:
    """A hub with Redis and a proxy, and hosts with a worker each."""

    hosts: Hosts
    redis: Redis
    work: Path
    crew: list[Job]

    @property
    def url(self) -> str:
        return f"http://{self.hosts.address}:8000/tar"

    def upload(self, src: Path, *args: object) -> Job:
        return Job(
            "upload", "-b", src, "-db", self.work / "db", "-s", BLOCK, "--compress", "none",
            "-u", self.url, "--redis", self.redis.url, "--json",
            *args, prefix=self.hosts.hub(),
        )  # fmt: skip

    def signs(self, number: int) -> dict[str, Any] | None:
        """What a host's worker says of itself."""
        members = self.crew[number].members()
        return next((row for row in records(self.redis) if row["pid"] in members), None)

    def busy(self, number: int) -> dict[str, Any] | None:
        """What a host's worker is sending."""
        row = self.signs(number)
        return row if row and row["phase"] == "sending" else None


@contextlib.contextmanager
def net(work: Path, count: int) -> Iterator[Net]:
    """Everything up, and every worker known."""
    (work / "redis").mkdir()
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(Hosts(count, mbit=MBIT))
        redis = stack.enter_context(Redis(work / "redis", host=hosts.address, prefix=hosts.hub()))
        options = ("-b", work / "dst", "--host", hosts.address, "--no-auth", 8000)
        proxy = stack.enter_context(Job("proxy", *options, prefix=hosts.hub()))
        wait_for("the proxy", lambda: b"listening" in proxy.stderr(), unless=proxy.ended)
        found = Net(hosts, redis, work, [])
        with hosts.inside():
            wait_for("redis-server", redis.answers)  # the connection made here stays on the hub
        for number in range(count):
            words = ("--redis", redis.url, "--cache", work / f"cache-{number}", "-p", 1)
            job = Job("worker", *words, prefix=hosts.host(number))
            found.crew.append(stack.enter_context(job))
        wait_for("the workers", lambda: len(records(redis)) == count)
        yield found


def test_two_hosts_send_over_links_of_their_own(work: Path) -> None:
    """bench.fanout measures how much faster that is; here only that both take their part."""
    size = payload(work / "src", files=24, size=4 << 20)
    index(work / "src", work / "db")
    with net(work, 2) as hosts, hosts.upload(work / "src") as job:
        seconds = ended_well(job)["seconds"]

        def both() -> bool:
            moved = [(hosts.signs(number) or {}).get("moved", 0) for number in range(2)]
            return min(moved) > size / 10

        wait_for("the signs of two that had their part", both)
        assert size * 8 / seconds / 1e6 < MBIT * 2, "the links are not what was asked for"
    assert_same(work / "src", work / "dst")


def test_a_host_whose_link_is_cut(work: Path) -> None:
    payload(work / "src", files=24, size=4 << 20)
    transfer = index(work / "src", work / "db")["id"]
    with net(work, 2) as hosts, hosts.upload(work / "src", "--limit", "3M") as job:
        with hosts.hosts.inside():
            held = frozen_at_work(hosts.redis, hosts.crew[0], hosts.url, job)
        hosts.hosts.cut(0)
        hosts.crew[0].thaw()

        def taken_over() -> bool:
            row = hosts.busy(1)
            return row is not None and held["first"] <= row["first"] < held["stop"]

        what = "the other to have the range"
        wait_for(what, taken_over, seconds=REDISPATCH, unless=job.ended)
        hosts.hosts.mend(0)
        unleash(hosts.redis, transfer)
        ended_well(job)
    assert_same(work / "src", work / "dst")
