"""A real receiver, asked over HTTP by senders that are odd, broken or hostile."""

from __future__ import annotations

import base64
import fcntl
import http.client
import json
import os
import re
import shutil
import socket
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import lz4.frame
import pytest

from tar_like.index import BuildOptions, build_index
from tar_like.plan import Plan
from tar_like.proxy import app
from tar_like.source.folder import FolderSource
from tar_like.upload.block import BlockMaker, Compressor
from tar_like.wire import Status, bits_missing, digest_header
from tests import trees
from tests.e2e.harness import PATIENCE, Proxy, wait_for
from tests.unit import indexes

PAGE = 4096
NOBODY = "0" * 64
DIGEST = digest_header(bytes(32))


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def json(self) -> dict[str, object]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found

    def problem(self, status: int, slug: str | None = None) -> str:
        """Its detail, when it is a problem document as it should be."""
        assert self.status == status, (self.status, self.body[:300])
        assert self.headers["content-type"] == "application/problem+json"
        assert set(self.json) == {"type", "title", "status", "detail"}
        title = self.json["title"]
        assert (self.json["status"], self.json["type"]) == (status, f"urn:tar-like:{title}")
        assert slug in (None, title), title
        detail = self.json["detail"]
        assert isinstance(detail, str) and detail
        assert "Traceback" not in detail
        return detail


def answer(response: http.client.HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


@dataclass(frozen=True)
class Receiver:
    """A running receiver and what may be asked of it."""

    port: int
    dest: Path

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = self.connect()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            return answer(connection.getresponse())
        finally:
            connection.close()

    def raw(self, *parts: bytes, end: bool = False) -> Answer | None:
        """Send bytes as they are; the first answer, or None when there is none."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            for part in parts:
                connection.sendall(part)
            if end:
                connection.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(connection)
            try:
                response.begin()
            except (http.client.BadStatusLine, ConnectionResetError):
                return None
            return answer(response)


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    dest = tmp_path_factory.mktemp("http") / "dst"
    with Proxy(dest, "--processes", "1") as proxy:
        yield Receiver(proxy.port, dest)
        assert b"Traceback" not in proxy.stderr(), proxy.stderr().decode()


@pytest.fixture(autouse=True)
def still_well(receiver: Receiver) -> Iterator[None]:
    """Whatever was asked, the receiver goes on, and nothing is left half done."""
    yield
    assert receiver.ask("GET", "/healthz").body == b"ok\n"
    wait_for("an empty tmp", lambda: not os.listdir(receiver.dest / ".tar_like/tmp"))


class Sender:
    """A tree of its own, offered and negotiated."""

    def __init__(self, receiver: Receiver, work: Path) -> None:
        self.receiver, self.work = receiver, work
        self.source = work / "src"
        self.source.mkdir()
        (self.source / f"large-{work.name}").write_bytes(os.urandom(3 * PAGE))
        for number in range(4):
            (self.source / f"{number}-{work.name}").write_bytes(os.urandom(100))
        self.index = work / "index.db"
        source = FolderSource(str(self.source))
        self.id = build_index(source, str(self.index), BuildOptions()).id
        source.close()
        self.base = f"/tar/{self.id}"

    def offer(self) -> Answer:
        frame = lz4.frame.compress(self.index.read_bytes())
        return self.receiver.ask("PUT", f"{self.base}/db", frame)

    def negotiate(self, block_size: object = PAGE) -> Answer:
        body = json.dumps({"block_size": block_size}).encode()
        return self.receiver.ask("POST", f"{self.base}/plan", body)

    def plan(self) -> Plan:
        found = self.receiver.ask("GET", f"{self.base}/plan")
        assert found.status == 200
        path = self.work / "plan.db"
        path.write_bytes(lz4.frame.decompress(found.body))
        return Plan(str(path), str(self.index))

    def block(self, number: int) -> tuple[str, bytes]:
        """A block's digest header and body."""
        plan = self.plan()
        source = FolderSource(str(self.source))
        maker = BlockMaker(source, plan.block_size)
        made = maker.make(plan.pieces(number), Compressor("none"))
        body = b"".join(bytes(part) for part in made.body)
        plan.close()
        source.close()
        return digest_header(made.digest), body

    def put(self, number: int, digest: str, body: bytes, size: int = PAGE) -> Answer:
        path = f"{self.base}/{size}/{number}"
        return self.receiver.ask("PUT", path, body, Repr_Digest=digest)

    def missing(self) -> list[int]:
        status = Status.from_json(self.receiver.ask("GET", self.base).body)
        bits = self.receiver.ask("GET", f"{self.base}/blocks").body
        assert len(bits) == 2 * ((status.blocks + 7) // 8)
        found = list(bits_missing(bits[: len(bits) // 2], status.blocks))
        assert len(found) == status.blocks - status.received
        return found

    def send(self) -> None:
        for number in self.missing():
            assert self.put(number, *self.block(number)).status == 201

    def commit(self) -> Answer:
        return self.receiver.ask("POST", f"{self.base}/commit")


@pytest.fixture
def sender(receiver: Receiver, work: Path) -> Iterator[Sender]:
    made = Sender(receiver, work)
    assert made.offer().status == 201
    assert made.negotiate().status == 200
    yield made
    shutil.rmtree(receiver.dest / ".tar_like/transfers" / made.id, ignore_errors=True)


def test_a_whole_transfer(receiver: Receiver, work: Path) -> None:
    sender = Sender(receiver, work)
    receiver.ask("GET", sender.base).problem(404, "not-found")
    offered = sender.offer()
    assert offered.status == 201
    assert offered.headers["content-type"] == "application/json"
    assert offered.json["state"] == "open"
    receiver.ask("GET", f"{sender.base}/plan").problem(404)
    receiver.ask("GET", f"{sender.base}/blocks").problem(404)
    assert receiver.ask("GET", f"{sender.base}/blocks", Accept="application/json").status == 200
    assert sender.commit().json["state"] == "open"  # also to who asks again after a plan failed
    negotiated = sender.negotiate()
    assert (negotiated.json["state"], negotiated.json["block_size"]) == ("receiving", PAGE)
    assert sender.negotiate(1 << 20).json["block_size"] == PAGE
    assert lz4.frame.decompress(receiver.ask("GET", f"{sender.base}/db").body) == (
        sender.index.read_bytes()
    )
    assert len(sender.missing()) == negotiated.json["blocks"] == 4
    assert "4 blocks are missing" in sender.commit().problem(409, "conflict")
    digest, body = sender.block(2)
    assert [sender.put(2, digest, body).status for _ in range(3)] == [201, 200, 200]
    assert sender.missing() == [0, 1, 3]
    assert sender.offer().json["received"] == 1
    sender.send()
    done = sender.commit()
    assert (done.status, done.json["state"], done.json["failures"]) == (200, "complete", [])
    for path in sender.source.iterdir():
        assert (receiver.dest / path.name).read_bytes() == path.read_bytes()
    assert sender.commit().json == done.json == receiver.ask("GET", sender.base).json
    assert receiver.ask("GET", f"{sender.base}/blocks").body == b"\x0f\x0f"
    receiver.ask("GET", f"{sender.base}/db").problem(404)
    sender.put(2, digest, body).problem(404)
    assert sender.offer().json["state"] == "open"
    again = sender.negotiate()
    assert (again.json["blocks"], again.json["state"]) == (0, "receiving")
    assert sender.commit().json["state"] == "complete"


def test_other_bytes_for_a_block_are_a_conflict(sender: Sender) -> None:
    number = next(n for n in sender.missing() if b"large" in sender_paths(sender, n))
    first = sender.block(number)
    assert sender.put(number, *first).status == 201
    large = next(sender.source.glob("large*"))
    times = large.stat()
    large.write_bytes(os.urandom(3 * PAGE))
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))
    other = sender.block(number)
    assert "1 source files have changed" in sender.put(number, *other).problem(409, "conflict")
    assert sender.put(number, *first).status == 200
    sender.send()
    done = sender.commit().json
    assert done["failures"] == [{"path": large.name, "reason": "changed", "source": True}]
    assert not (sender.receiver.dest / large.name).exists()


def sender_paths(sender: Sender, number: int) -> bytes:
    plan = sender.plan()
    paths = b" ".join(piece.path for piece in plan.pieces(number))
    plan.close()
    return paths


@pytest.mark.parametrize("compressed", [False, True])
def test_a_block_that_is_not_what_it_claims_is_refused(sender: Sender, compressed: bool) -> None:
    digest, body = sender.block(0)
    wrong = [
        (digest_header(bytes(32)), body),
        (digest, body[:-1] + bytes([body[-1] ^ 1])),
        (digest, body[:-1]),
        (digest, body + b"x"),
        (digest, b""),
        (digest, sender.block(1)[1]),
        ("", body),
        ("blake3-pieces=x", body),
        (f"sha-256=:{base64.b64encode(bytes(32)).decode()}:", body),
    ]
    if compressed:
        bomb = lz4.frame.compress(bytes(64 << 10))
        wrong = [(digest, body[:4] + b"\x01" + body[5:20] + bomb)]
    for claimed, data in wrong:
        sender.put(0, claimed, data).problem(422, "block-invalid")
    assert 0 in sender.missing()
    assert os.listdir(sender.receiver.dest / ".tar_like/transfers" / sender.id / "stage") == []
    assert sender.put(0, digest, body).status == 201


@pytest.mark.parametrize(
    ("size", "number", "status"),
    [
        ("4096", "4", 404),
        ("4096", "9" * 30, 404),
        ("4096", "9" * 5000, 404),
        ("9" * 5000, "0", 404),
        ("4096", "-1", 404),
        ("4096", "0x0", 404),
        ("4096", "0.0", 404),
        ("4096", "", 404),
        ("8192", "0", 409),
        ("0", "0", 409),
        ("9" * 18, "0", 409),
    ],
)  # fmt: skip
def test_a_block_that_is_none_is_refused(
    sender: Sender, size: str, number: str, status: int
) -> None:
    path = f"{sender.base}/{size}/{number}"
    sender.receiver.ask("PUT", path, b"x", Repr_Digest=DIGEST).problem(status)


def head(method: str, path: str, *lines: str) -> bytes:
    text = "\r\n".join((f"{method} {path} HTTP/1.1", "Host: receiver", *lines, "", ""))
    return text.encode("latin-1")


@pytest.mark.parametrize("what", ["db", "plan", "4096/0"])
def test_a_body_needs_its_length(sender: Sender, what: str) -> None:
    method = "POST" if what == "plan" else "PUT"
    path, digest = f"{sender.base}/{what}", f"Repr-Digest: {DIGEST}"
    none = sender.receiver.raw(head(method, path, digest))
    assert none is not None
    none.problem(411, "length-required")
    chunked = head(method, path, digest, "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n"
    found = sender.receiver.raw(chunked)
    assert found is not None
    found.problem(411, "length-required")


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: -1"],
        ["Content-Length: x"],
        ["Content-Length: 1", "Content-Length: 2"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Content-Length: 99999999999999999999999999"],
    ],
)
def test_a_length_that_is_none_is_refused(sender: Sender, lines: list[str]) -> None:
    request = head("PUT", f"{sender.base}/4096/0", f"Repr-Digest: {DIGEST}", *lines)
    found = sender.receiver.raw(request, b"0\r\n\r\n")
    assert found is not None and found.status in (400, 411)
    assert 0 in sender.missing()


@pytest.mark.parametrize("length", [1 << 20, 1 << 50, 10**17])
def test_a_body_too_large_is_refused_before_it_is_sent(sender: Sender, length: int) -> None:
    path, digest = f"{sender.base}/4096/0", f"Repr-Digest: {DIGEST}"
    found = sender.receiver.raw(head("PUT", path, digest, f"Content-Length: {length}"))
    assert found is not None
    found.problem(413, "too-large")
    found = sender.receiver.raw(head("POST", f"{sender.base}/plan", "Content-Length: 300000"))
    assert found is not None
    found.problem(413, "too-large")


@pytest.mark.parametrize("what", ["4096/0", "db", "plan"])
def test_a_body_cut_short_is_no_body(sender: Sender, what: str) -> None:
    digest, body = sender.block(0)
    method = "POST" if what == "plan" else "PUT"
    request = head(
        method, f"{sender.base}/{what}", f"Repr-Digest: {digest}", f"Content-Length: {len(body)}"
    )
    for length in (0, 1, len(body) - 1):
        found = sender.receiver.raw(request, body[:length], end=True)
        assert found is None or found.status in (400, 422)  # 422: an index is seen to be none
    assert 0 in sender.missing()
    assert sender.put(0, digest, body).status == 201


def test_a_body_may_come_in_pieces_and_after_a_question(sender: Sender) -> None:
    digest, body = sender.block(0)
    lines = [f"Repr-Digest: {digest}", f"Content-Length: {len(body)}"]
    request = head("PUT", f"{sender.base}/4096/0", *lines)
    found = sender.receiver.raw(request, *(body[at : at + 7] for at in range(0, len(body), 7)))
    assert found is not None and found.status == 201
    with socket.create_connection(
        ("127.0.0.1", sender.receiver.port), timeout=PATIENCE
    ) as connection:
        for after in (b"", head("GET", "/healthz", "Connection: close")):
            connection.sendall(head("PUT", f"{sender.base}/4096/0", *lines, "Expect: 100-continue"))
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(body[:100])
            connection.sendall(body[100:] + after)
            assert next_answer(connection).startswith(b"HTTP/1.1 200 OK")
        assert until_end(connection).endswith(b"ok\n")


def next_answer(connection: socket.socket) -> bytes:
    """One answer, however it comes in pieces, and nothing of the next."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += some(connection, 1)
    length = re.search(rb"content-length: (\d+)", data.lower())
    stop = len(data) + (int(length[1]) if length else 0)
    while len(data) < stop:
        data += some(connection, stop - len(data))
    return data


def some(connection: socket.socket, most: int) -> bytes:
    part = connection.recv(most)
    assert part, "the connection ended"
    return part


def until_end(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(1 << 16):
        data += part
    return data


def test_requests_in_one_go_are_answered_in_order(sender: Sender) -> None:
    requests = b""
    for number in (0, 1, 0):
        digest, body = sender.block(number)
        lines = [f"Repr-Digest: {digest}", f"Content-Length: {len(body)}"]
        requests += head("PUT", f"{sender.base}/4096/{number}", *lines) + body
    with socket.create_connection(
        ("127.0.0.1", sender.receiver.port), timeout=PATIENCE
    ) as connection:
        connection.sendall(requests + head("GET", "/nowhere", "Connection: close"))
        data = until_end(connection)
    codes = re.findall(rb"^HTTP/1.1 (\d+)", data, re.MULTILINE)
    assert codes == [b"201", b"201", b"200", b"404"]
    assert sender.missing() == [2, 3]


def test_one_connection_outlives_refusals(sender: Sender) -> None:
    digest, body = sender.block(0)
    connection = sender.receiver.connect()
    statuses = []
    for path, claimed, data in (
        (f"{sender.base}/4096/0", DIGEST, body),
        (f"{sender.base}/4096/99", digest, body),
        (f"/tar/{NOBODY}/4096/0", digest, body * 100),
        (f"{sender.base}/4096/0", "", body * 3),
        (f"{sender.base}/4096/0", digest, body),
    ):
        connection.request("PUT", path, data, {"Repr-Digest": claimed})
        statuses.append(answer(connection.getresponse()).status)
    connection.close()
    assert statuses == [422, 404, 404, 422, 201]


def test_one_block_from_many_at_a_time_is_taken_once_or_more_and_right(sender: Sender) -> None:
    blocks = [(number, *sender.block(number)) for number in sender.missing()]
    statuses: list[int] = []

    def send() -> None:
        statuses.extend(sender.put(*block).status for block in blocks)

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 201}
    assert len(statuses) == 24
    assert sender.missing() == []
    assert sender.commit().json["failures"] == []
    for path in sender.source.iterdir():
        assert (sender.receiver.dest / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 4000,
        b"{}",
        b'{"block_size": null}',
        b'{"block_size": true}',
        b'{"block_size": "4096"}',
        b'{"block_size": 4096.0}',
        b'{"block_size": 0}',
        b'{"block_size": -4096}',
        b'{"block_size": 4097}',
        b'{"block_size": 1073745920}',
        b'{"block_size": ' + b"9" * 4000 + b"}",
        b'{"block_size": 4096, "rules": []}',
        b'{"block_size": 4096, "rules": {"obey": true}}',
        b'{"block_size": 4096, "rules": {"delete": 1}}',
        b'{"block_size": 4096, "rules": {"ignore_errors": true}}',
        b'{"block_size": 4096, "rules": {"delete": true, "regexes": "x"}}',
        b'{"block_size": 4096, "rules": {"delete": true, "regexes": ["("]}}',
        b'{"block_size": 4096, "rules": {"delete": true, "patterns": [1]}}',
        b'{"block_size": ' + b"9" * 300000 + b"}",
    ],
)
def test_a_negotiation_that_is_none_is_refused(receiver: Receiver, work: Path, body: bytes) -> None:
    sender = Sender(receiver, work)
    sender.offer()
    found = receiver.ask("POST", f"{sender.base}/plan", body)
    found.problem(413 if len(body) > 300000 else 400)
    assert receiver.ask("GET", sender.base).json["state"] == "open"
    shutil.rmtree(receiver.dest / ".tar_like/transfers" / sender.id)


NO_IDS = [NOBODY[:-1], NOBODY + "0", NOBODY + "%0a", "G" * 64, "%ff" * 64, "a" * 4000]
NO_IDS += ["x", "..", "%2e%2e", "%00", "%0a", "tmp"]


@pytest.mark.parametrize("transfer_id", NO_IDS)
def test_what_is_no_id_is_not_found(receiver: Receiver, transfer_id: str) -> None:
    base = f"/tar/{transfer_id}"
    for method, path in (
        ("GET", base),
        ("GET", f"{base}/db"),
        ("GET", f"{base}/plan"),
        ("GET", f"{base}/blocks"),
        ("PUT", f"{base}/db"),
        ("POST", f"{base}/plan"),
        ("POST", f"{base}/commit"),
        ("PUT", f"{base}/4096/0"),
    ):
        receiver.ask(method, path, b"{}", Repr_Digest=DIGEST).problem(404)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("GET", "/blocks", None),
        ("GET", "/db", None),
        ("GET", "/plan", None),
        ("POST", "/plan", b'{"block_size": 4096}'),
        ("POST", "/commit", None),
        ("PUT", "/4096/0", b"x"),
    ],
)
def test_an_unknown_transfer_is_not_found(
    receiver: Receiver, method: str, path: str, body: bytes | None
) -> None:
    found = receiver.ask(method, f"/tar/{NOBODY}{path}", body, Repr_Digest=DIGEST)
    assert "offer" in found.problem(404, "not-found")
    assert os.listdir(receiver.dest / ".tar_like/transfers").count(NOBODY) == 0


def refuse(receiver: Receiver, transfer_id: str, body: bytes) -> str:
    found = receiver.ask("PUT", f"/tar/{transfer_id}/db", body)
    assert not (receiver.dest / ".tar_like/transfers" / transfer_id).exists()
    return found.problem(422, "index-invalid")


def test_a_body_that_is_no_index_is_refused(receiver: Receiver, work: Path) -> None:
    sender = Sender(receiver, work)
    frame = lz4.frame.compress(sender.index.read_bytes(), content_checksum=True)
    flipped = bytearray(frame)
    flipped[len(frame) // 2] ^= 1
    for body in (
        b"",
        b"plain",
        sender.index.read_bytes(),
        frame[:-1],
        frame[: len(frame) // 2],
        frame + b"x",
        frame + frame,
        bytes(flipped),
        lz4.frame.compress(b""),
        lz4.frame.compress(b"no database" * 1000),
        lz4.frame.compress(bytes(900_000)),
    ):
        refuse(receiver, sender.id, body)
    assert "id" in refuse(receiver, NOBODY, frame)
    with indexes.edit(sender.index) as db:
        db.execute("UPDATE entry SET path = x'2e2e2f70776e6564' WHERE id = 2")
    refuse(receiver, indexes.seal(sender.index), lz4.frame.compress(sender.index.read_bytes()))


def test_a_bomb_of_an_index_is_refused(receiver: Receiver, work: Path) -> None:
    bomb = lz4.frame.compress(bytes(16 << 20))
    bomb = lz4.frame.compress(bytes(250 << 20)) if len(bomb) * 1024 > 16 << 20 else bomb
    found = receiver.ask("PUT", f"/tar/{NOBODY}/db", bomb)
    assert found.status in (413, 422)
    assert trees.allocated(receiver.dest / ".tar_like/tmp") < 1 << 20


NO_PATHS = ["/nowhere", "/tar/x/y", "//", "/tar//", "/tar/", "/TAR", "/healthz/"]
NO_PATHS += [f"/tar/{NOBODY}{end}" for end in ("/", "/db/", "/4096", "/4096/0/1")]


@pytest.mark.parametrize("path", NO_PATHS)
def test_another_path_is_not_found_never_a_redirect(receiver: Receiver, path: str) -> None:
    receiver.ask("GET", path).problem(404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/"),
        ("DELETE", f"/tar/{NOBODY}"),
        ("PUT", f"/tar/{NOBODY}"),
        ("POST", f"/tar/{NOBODY}/db"),
        ("PUT", f"/tar/{NOBODY}/plan"),
        ("GET", f"/tar/{NOBODY}/commit"),
        ("GET", f"/tar/{NOBODY}/4096/0"),
        ("PATCH", "/tar"),
    ],
)
def test_another_method_is_not_allowed(receiver: Receiver, method: str, path: str) -> None:
    found = receiver.ask(method, path)
    found.problem(405)
    assert found.headers["allow"]


def test_head_is_get_without_a_body(sender: Sender) -> None:
    for path in ("/", "/healthz", "/metrics", "/tar", sender.base, f"{sender.base}/blocks"):
        got, headed = sender.receiver.ask("GET", path), sender.receiver.ask("HEAD", path)
        assert (headed.status, headed.body) == (200, b"")
        assert headed.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize(
    "request_",
    [b"\r\n\r\n", b"nonsense\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"\0" * 100, b"\x16\x03\x01"],
)
def test_what_is_no_http_is_refused(receiver: Receiver, request_: bytes) -> None:
    found = receiver.raw(request_, end=True)
    assert found is None or found.status == 400


def test_the_state_for_programs_and_people(sender: Sender) -> None:
    receiver = sender.receiver
    assert sender.put(1, *sender.block(1)).status == 201
    listed = receiver.ask("GET", "/tar")
    assert listed.json["name"] == "tar-like"
    transfers = listed.json["transfers"]
    assert isinstance(transfers, list)
    mine = next(one for one in transfers if one["id"] == sender.id)
    assert (mine["blocks"], mine["received"], mine["state"]) == (4, 1, "receiving")
    metrics = receiver.ask("GET", "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    lines = metrics.body.decode().splitlines()
    assert all(
        re.fullmatch(
            r'# (HELP|TYPE) tar_like_\w+ .+|tar_like_\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? \d+', line
        )
        for line in lines
    ), lines
    assert f'tar_like_received{{transfer="{sender.id}",state="receiving"}} 1' in lines
    page = receiver.ask("GET", "/")
    assert page.headers["content-type"].startswith("text/html")
    assert sender.id[:16] in page.body.decode()


def test_the_page_escapes_what_it_shows() -> None:
    status = Status(id="<script>&'\"", state="<b>")
    text = app._page([status])
    assert "<script>" not in text and "<b>" not in text
    assert "&lt;script&gt;&amp;" in text


def test_health_is_answered_while_all_threads_wait(sender: Sender) -> None:
    """What a balancer asks must not stand in line behind the work."""
    lock = sender.receiver.dest / ".tar_like/transfers" / sender.id / "plan.lock"
    threads = [threading.Thread(target=sender.negotiate) for _ in range(8)]
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for thread in threads:
            thread.start()
        wait_for("every thread to wait", lambda: _waiting_for(lock) >= 4)
        assert sender.receiver.ask("GET", "/healthz").body == b"ok\n"
    for thread in threads:
        thread.join()


def _waiting_for(path: Path) -> int:
    """How many wait for a file's lock (proc(5))."""
    number = f":{path.stat().st_ino} "
    lines = Path("/proc/locks").read_text().splitlines()
    return sum(1 for line in lines if "->" in line and number in line)


def test_a_stranger_among_the_transfers_does_no_harm(receiver: Receiver, work: Path) -> None:
    transfers = receiver.dest / ".tar_like/transfers"
    (transfers / NOBODY).mkdir()
    (transfers / "notes").touch()
    try:
        for path in ("/", "/tar", "/metrics"):
            assert receiver.ask("GET", path).status == 200
        receiver.ask("GET", f"/tar/{NOBODY}").problem(404)
    finally:
        (transfers / NOBODY).rmdir()
        (transfers / "notes").unlink()


def test_a_record_that_rotted_is_an_answer_not_a_crash(sender: Sender) -> None:
    """The receiver's own files: whatever is wrong with them, it says so as a problem."""
    path = sender.receiver.dest / ".tar_like/transfers" / sender.id / "plan.db"
    digest, body = sender.block(0)
    with sqlite3.connect(path) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'extent'").fetchone()
    db.close()
    data = path.read_bytes()
    path.write_bytes(data[: (page - 1) * PAGE] + b"\xff" * PAGE + data[page * PAGE :])
    assert "records" in sender.put(0, digest, body).problem(500, "receiver-failed")


def test_the_rules_stated_last_hold_and_nothing_is_committed_by_others(
    receiver: Receiver, work: Path
) -> None:
    sender = Sender(receiver, work)
    sender.offer()
    deleting: dict[str, object] = {"delete": True, "patterns": ["*"]}
    plain: dict[str, object] = {"delete": False}

    def ask(what: str, rules: dict[str, object]) -> Answer:
        body = json.dumps({"block_size": PAGE, "rules": rules}).encode()
        return receiver.ask("POST", f"{sender.base}/{what}", body)

    for rules in (plain, deleting, plain):
        assert ask("plan", rules).json["rules"]["delete"] == rules["delete"]
        assert receiver.ask("GET", sender.base).json["rules"]["delete"] == rules["delete"]
    sender.send()
    ask("commit", deleting).problem(409, "conflict")
    assert ask("plan", deleting).json["blocks"] > 0
    assert ask("commit", deleting).json["state"] == "complete"
    assert "other options" in ask("commit", plain).problem(409, "conflict")
    assert ask("commit", deleting).json["rules"]["patterns"] == ["*"]


def test_errors_name_no_path_of_the_machine(sender: Sender, work: Path) -> None:
    """Whatever is wrong with the receiver's own files, what it says of them stays inside."""
    folder = sender.receiver.dest / ".tar_like/transfers" / sender.id
    digest, body = sender.block(0)
    asked = [
        ("GET", sender.base, None), ("GET", f"{sender.base}/plan", None),
        ("GET", f"{sender.base}/blocks", None), ("POST", f"{sender.base}/commit", None),
        ("PUT", f"{sender.base}/4096/0", body),
    ]  # fmt: skip
    for name in ("plan.db", "index.db", "receipts", "stage"):
        (folder / name).rename(work / name)
        if name.endswith(".db"):
            (folder / name).write_bytes(b"no database")
        for method, path, data in asked:
            found = sender.receiver.ask(method, path, data, Repr_Digest=digest)
            for text in (
                str(sender.receiver.dest),
                "/proc/",
                "/transfers/",
                ".tar_like",
                work.name,
            ):
                assert text.encode() not in found.body, (name, method, path, found.body)
            assert not {"server", "x-powered-by"} & found.headers.keys()
        if name.endswith(".db"):
            (folder / name).unlink()
        (work / name).rename(folder / name)
