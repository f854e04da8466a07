"""What haproxy lets through, what it takes away, and what it says itself."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Route

from tar_like.proxy.access import Access
from tar_like.proxy.app import make_app
from tar_like.proxy.place import Destination
from tar_like.proxy.transfers import Transfers
from tests.haproxy.balancer import (
    CONFIGURATION,
    MAKE_CERTIFICATE,
    Answer,
    Balancer,
    Witness,
    environment,
)

ID = "0123456789abcdef" * 4
SAMPLES = {"id": ID, "block_size": str(1 << 30), "block_no": "0"}
FORGED = (
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-User",
    "X-Forwarded-Client-Cert",
    "Forwarded",
    "X-Real-IP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "True-Client-IP",
    "X-Remote-User",
    "Remote-User",
    "X-Auth-Request-User",
    "X-SSL-Client-Verify",
    "X-SSL-Client-DN",
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-HTTP-Method-Override",
    "X_Forwarded_For",
    "X_SSL_Client_DN",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Balancer, Witness]]:
    folder = tmp_path_factory.mktemp("site")
    with Witness() as witness, Balancer(folder, [witness.port]) as balancer:
        yield balancer, witness


@pytest.fixture
def balancer(site: tuple[Balancer, Witness]) -> Balancer:
    return site[0]


@pytest.fixture
def witness(site: tuple[Balancer, Witness]) -> Witness:
    """With nothing seen yet."""
    site[1].seen.clear()
    return site[1]


def is_problem(answer: Answer, status: int) -> None:
    """A problem document with this status."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.body)["status"] == status
    assert json.loads(answer.body)["detail"]


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"PROXY_1": "127.0.0.1:1", "PROXY_2": "127.0.0.1:2"},
        {f"PROXY_{n}": f"127.0.0.1:{n}" for n in range(1, 9)},
        {"PROXY_NAME": "proxy:8000", "PROXY_MAXCONN": "8"},
        {"BIND_HTTP": ":8000", "BIND_HTTPS": "[::]:8443"},
    ],
    ids=["defaults", "two", "eight", "name", "binds"],
)
def test_haproxy_itself_takes_the_file_without_a_warning(work: Path, names: dict[str, str]) -> None:
    subprocess.run([MAKE_CERTIFICATE, work], check=True, timeout=60)
    result = subprocess.run(
        ["haproxy", "-c", "-f", CONFIGURATION],
        env=environment(work / "certificate.pem", []) | names,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    assert b"WARNING" not in result.stdout + result.stderr
    assert b"ALERT" not in result.stdout + result.stderr


def test_every_route_of_the_receiver_comes_through(
    work: Path, balancer: Balancer, witness: Witness
) -> None:
    destination = Destination(str(work / "dst"))
    destination.prepare()
    app = make_app(Transfers(destination, lambda *_: None), Access())
    routes = [route for route in app.routes if isinstance(route, Route)]
    assert len(routes) >= 12
    for route in routes:
        path = route.path
        for name, value in SAMPLES.items():
            path = re.sub(rf"{{{name}(:int)?}}", value, path)
        assert "{" not in path, f"teach haproxy.cfg and this test {route.path}"
        for method in route.methods or ():
            answer = balancer.request(
                method, path, body=b"x" if method in ("PUT", "POST") else None
            )
            assert answer.status == 200, (method, path)
            if path != "/healthz":  # answered by haproxy
                assert (witness.seen[-1].method, witness.seen[-1].path) == (method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/tar/"),
        ("GET", "/tarx"),
        ("GET", "/TAR"),
        ("GET", "//tar"),
        ("GET", "/tar/../metrics"),
        ("GET", "/tar%2f" + ID),
        ("GET", "/%74ar"),
        ("GET", f"/tar/{ID}/"),
        ("GET", f"/tar/{ID[1:]}"),
        ("GET", f"/tar/{ID}0"),
        ("GET", f"/tar/{ID.upper()}"),
        ("GET", f"/tar/{ID}/db/x"),
        ("GET", f"/tar/{ID}/commit"),
        ("GET", f"/tar/{ID}/4096/0"),
        ("GET", f"/tar/{ID}/stage"),
        ("PUT", f"/tar/{ID}/plan"),
        ("PUT", f"/tar/{ID}/4096/-1"),
        ("PUT", f"/tar/{ID}/4096/0/0"),
        ("PUT", f"/tar/{ID}/0x1000/0"),
        ("PUT", f"/tar/{ID}"),
        ("POST", f"/tar/{ID}/db"),
        ("POST", "/"),
        ("DELETE", f"/tar/{ID}"),
        ("PATCH", f"/tar/{ID}/db"),
        ("OPTIONS", "/tar"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/haproxy?stats"),
        ("GET", "/.tar_like/ledger.db"),
        ("GET", "/etc/passwd"),
    ],
)
def test_nothing_else_comes_through(
    balancer: Balancer, witness: Witness, method: str, path: str
) -> None:
    is_problem(balancer.request(method, path), 404)
    assert witness.seen == []


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_forged_identity_is_taken_away_and_the_true_one_put_in(
    balancer: Balancer, witness: Witness, tls: bool
) -> None:
    headers = dict.fromkeys(FORGED, "forged")
    headers |= {"Authorization": "Bearer token", "Repr-Digest": "x=:AA==:", "Accept": "a/b"}
    balancer.request("GET", "/tar", headers=headers, tls=tls)
    (seen,) = witness.seen
    assert "forged" not in seen.headers.values()
    assert not any("_" in name for name in seen.headers)
    assert seen.headers["x-forwarded-for"] == "127.0.0.1"
    assert seen.headers["x-forwarded-proto"] == ("https" if tls else "http")
    assert seen.headers["authorization"] == "Bearer token"
    assert seen.headers["repr-digest"] == "x=:AA==:"
    assert seen.headers["accept"] == "a/b"


def test_no_way_around_by_two_headers_of_one_name(balancer: Balancer, witness: Witness) -> None:
    with socket.create_connection(("127.0.0.1", balancer.http_port), timeout=30) as one:
        one.sendall(
            b"GET /tar HTTP/1.1\r\nHost: h\r\nConnection: close, X-Forwarded-For\r\n"
            b"X-Forwarded-For: forged\r\nx-forwarded-for: forged, forged\r\n"
            b"X-Forwarded-For : forged\r\n\r\n"
        )
        answer = one.recv(4096)
    assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
    assert all("forged" not in one.headers.get("x-forwarded-for", "") for one in witness.seen)


def test_a_body_without_length_is_refused(balancer: Balancer, witness: Witness) -> None:
    headers = {"Transfer-Encoding": "chunked"}
    answer = balancer.request("PUT", f"/tar/{ID}/4096/0", headers=headers)
    is_problem(answer, 411)
    assert witness.seen == []


@pytest.mark.parametrize(
    ("method", "path", "length"),
    [
        ("PUT", f"/tar/{ID}/1073741824/0", (10 << 30) + 1),
        ("PUT", f"/tar/{ID}/db", (64 << 30) + 1),
        ("PUT", f"/tar/{ID}/answers", (64 << 30) + 1),
        ("POST", f"/tar/{ID}/plan", (256 << 10) + 1),
        ("POST", f"/tar/{ID}/commit", (256 << 10) + 1),
    ],
)
def test_a_body_beyond_all_measure_is_refused_before_it_is_sent(
    balancer: Balancer, witness: Witness, method: str, path: str, length: int
) -> None:
    answer = balancer.request(method, path, headers={"Content-Length": str(length)})
    is_problem(answer, 413)
    assert witness.seen == []


def test_a_large_block_comes_through_whole(balancer: Balancer, witness: Witness) -> None:
    body = bytes(range(256)) * (1 << 17)  # 32 MiB: many buffers
    assert balancer.request("PUT", f"/tar/{ID}/33554432/7", body=body).status == 200
    assert witness.seen[0].body == body


def test_a_sender_keeps_its_connection(balancer: Balancer, witness: Witness) -> None:
    with socket.create_connection(("127.0.0.1", balancer.http_port), timeout=30) as one:
        for _ in range(3):
            one.sendall(b"GET /tar HTTP/1.1\r\nHost: h\r\n\r\n")
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += one.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" not in answer.lower()
    assert len(witness.seen) == 3


def test_tls_speaks_http_1_1_and_nothing_older_than_tls_1_2(balancer: Balancer) -> None:
    context = ssl.create_default_context(cafile=str(balancer.ca))
    context.set_alpn_protocols(["h2", "http/1.1"])
    address = ("127.0.0.1", balancer.https_port)
    with (
        socket.create_connection(address, timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        assert tls.selected_alpn_protocol() == "http/1.1"
        assert tls.version() in ("TLSv1.2", "TLSv1.3")
    ciphers = ["-connect", f"127.0.0.1:{balancer.https_port}", "-cipher", "ALL:@SECLEVEL=0"]
    old = subprocess.run(
        ["openssl", "s_client", "-tls1_1", *ciphers],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert old.returncode != 0
    assert b"alert protocol version" in old.stderr


def test_http2_is_not_spoken_without_tls_either(balancer: Balancer, witness: Witness) -> None:
    with socket.create_connection(("127.0.0.1", balancer.http_port), timeout=30) as one:
        one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert one.recv(4096).startswith(b"HTTP/1.1 400")
    assert witness.seen == []


def test_without_a_receiver_it_says_so(work: Path) -> None:
    with contextlib.ExitStack() as stack:
        with Witness() as witness:
            balancer = stack.enter_context(Balancer(work, [witness.port]))
        balancer.wait_until(503)
        answer = balancer.request("GET", "/tar")
        is_problem(answer, 503)
        assert answer.headers["retry-after"] == "1"
