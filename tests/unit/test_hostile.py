"""Hundreds of hostile indexes and requests: each is refused, and nothing has changed."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lz4.frame
import pytest

from tests import trees
from tests.e2e.harness import PATIENCE, Proxy, request, wait_for
from tests.unit import hostile
from tests.unit.receiver import Job

INDEXES = 300
REQUESTS = 100


@dataclass(frozen=True)
class Target:
    """A receiver with a transfer under way, and all that is around its destination."""

    proxy: Proxy
    job: Job
    around: Path

    def look(self) -> tuple[dict[bytes, trees.Node], object]:
        """Every name, its content and its times, the destination's own records included."""
        wait_for("an empty tmp", lambda: not any((self.job.dest / ".tar_like/tmp").iterdir()))
        names = trees.look(self.around, records=True)
        del names[b"dst/.tar_like/tmp"]  # its time changes
        return names, trees.stamps(self.around / "outside")

    def unchanged(self, before: tuple[dict[bytes, trees.Node], object]) -> bool:
        after = self.look()
        assert not trees.differences(before[0], after[0])
        return before == after


@pytest.fixture
def target(work: Path) -> Iterator[Target]:
    around = work / "around"
    (around / "outside").mkdir(parents=True)
    (around / "outside/file").write_bytes(b"not yours")
    (around / "dst").mkdir()
    (around / "dst/mine").write_bytes(b"was here before")
    (work / "src").mkdir()
    (work / "src/file").write_bytes(b"0123456789" * 1500)
    job = Job(work / "src", around / "dst", compress="none")
    with Proxy(around / "dst", "--processes", 1) as proxy:
        yield Target(proxy, job, around)
        assert b"Traceback" not in proxy.stderr(), proxy.stderr().decode()
        assert str(work).encode() not in proxy.stderr()
    job.close()


def test_every_hostile_index_is_refused(target: Target, work: Path) -> None:
    good = work / "good.db"
    seen: set[bytes] = set()
    names: list[str] = []
    taken = []
    before = target.look()
    for name, raw, index_id in hostile.offers(work):
        if raw in seen:
            continue
        seen.add(raw)
        names.append(name)
        url = f"{target.proxy.url}/{index_id}/db"
        status, kind, answer = request("PUT", url, lz4.frame.compress(raw))
        if status != 422:
            taken.append((name, status))
            continue
        assert kind == "application/problem+json", (name, answer)
        detail = json.loads(answer)["detail"]
        assert json.loads(answer)["title"] == "index-invalid", name
        assert detail.endswith(".") and len(detail) < 400, (name, detail)
        assert detail.isprintable() and "***" not in detail, (name, detail)
        assert str(work) not in detail, (name, detail)
    assert not taken
    assert target.unchanged(before)
    assert len(names) >= INDEXES, len(names)
    found = hostile.good(good)
    status, _, answer = request(
        "PUT", f"{target.proxy.url}/{found}/db", lz4.frame.compress(good.read_bytes())
    )
    assert status == 201, answer


def test_every_hostile_request_is_refused(target: Target, work: Path) -> None:
    digest, body = target.job.block(0)
    from tar_like.wire import digest_header

    before = target.look()
    seen, taken = set(), []
    for name, data in hostile.requests(f"/tar/{target.job.id}", digest_header(digest), body):
        seen.add(data)
        status, kind, answer = ask(target.proxy.port, data)
        if not 400 <= status < 500:
            taken.append((name, status))
            continue
        assert kind == "application/problem+json", (name, answer)
        detail = json.loads(answer)["detail"]
        assert str(work) not in detail and "Traceback" not in detail, (name, detail)
    assert not taken
    assert target.unchanged(before)
    assert len(seen) >= REQUESTS, len(seen)
    assert target.job.put(0) and target.job.missing == [1, 2, 3]


def ask(port: int, data: bytes) -> tuple[int, str, bytes]:
    """Send bytes as they are; the first answer's status, kind and body."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        with contextlib.suppress(ConnectionError):  # answered before all of it was sent
            connection.sendall(data)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.headers["content-type"], response.read()
