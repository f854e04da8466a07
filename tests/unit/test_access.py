"""Who may do what: tokens, keys, and every endpoint with every bad credential."""

from __future__ import annotations

import base64
import http.client
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jwt
import pytest
from starlette.routing import Route

from tar_like.errors import TarLikeError, Unauthorized, UsageError
from tar_like.proxy.access import Access, asked
from tar_like.proxy.app import make_app
from tar_like.signed import Keyring, make_keys, sign
from tar_like.tokens import COMMIT, OFFER, OPERATIONS, READ, SEND, Grant
from tests import trees
from tests.e2e.harness import PATIENCE, Proxy, index, run

SHARED = "a-shared-token-of-the-tests"
ID, OTHER = "a" * 64, "b" * 64
ENDPOINTS = (
    ("GET", "/", READ),
    ("GET", "/metrics", READ),
    ("GET", "/tar", READ),
    ("HEAD", "/tar", READ),
    ("POST", "/tar", OFFER),
    ("GET", f"/tar/{ID}", READ),
    ("GET", f"/tar/{ID}/db", READ),
    ("GET", f"/tar/{ID}/plan", READ),
    ("GET", f"/tar/{ID}/blocks", READ),
    ("PUT", f"/tar/{ID}/db", OFFER),
    ("POST", f"/tar/{ID}/again", OFFER),
    ("POST", f"/tar/{ID}/plan", OFFER),
    ("GET", f"/tar/{ID}/questions", READ),
    ("PUT", f"/tar/{ID}/answers", OFFER),
    ("GET", f"/tar/{ID}/leaves", READ),
    ("PUT", f"/tar/{ID}/patch", OFFER),
    ("PUT", f"/tar/{ID}/4096/0", SEND),
    ("POST", f"/tar/{ID}/commit", COMMIT),
    ("POST", f"/tar/{ID}/rehearsal", OFFER),
    ("DELETE", f"/tar/{ID}", OFFER),
    ("GET", "/nothing/of/the/kind", READ),
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key pair of the receiver's, and one of somebody else's beside it."""
    folder = tmp_path_factory.mktemp("keys")
    make_keys(str(folder / "jwtkeys"), "ours")
    make_keys(str(folder / "theirs"), "ours")
    return folder


def ours(keys: Path, **options: object) -> str:
    return sign(str(keys / "jwtkeys/ours-private.pem"), seconds=300, **options)  # type: ignore[arg-type]


def forged(keys: Path, *, by: str = "jwtkeys", algorithm: str = "ES256", **claims: object) -> str:
    """A token with these claims, whatever they are."""
    now = int(time.time())
    values = {"aud": "tar-like", "exp": now + 300, **claims}
    key: object = (keys / by / "ours-private.pem").read_bytes()
    if algorithm == "none":
        key = None
    return jwt.encode({k: v for k, v in values.items() if v is not None}, key, algorithm)  # type: ignore[arg-type]


def confused(keys: Path) -> str:
    """Signed by HMAC, with the public key as if it were a shared secret."""

    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    import hashlib
    import hmac

    head = part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    claims = {"aud": "tar-like", "exp": int(time.time()) + 300}
    text = head + b"." + part(json.dumps(claims).encode())
    secret = (keys / "jwtkeys/ours-public.pem").read_bytes()
    return (text + b"." + part(hmac.digest(secret, text, hashlib.sha256))).decode()


def flipped(token: str) -> str:
    """With another byte in its claims."""
    head, claims, signature = token.split(".")
    raw = bytearray(base64.urlsafe_b64decode(claims + "=="))
    raw[-2] ^= 1
    return ".".join((head, base64.urlsafe_b64encode(raw).rstrip(b"=").decode(), signature))


Bad = Callable[[Path], str | None]
BAD: dict[str, Bad] = {
    "nothing": lambda _: None,
    "empty": lambda _: "",
    "no token": lambda _: "Bearer ",
    "another scheme": lambda _: f"Token {SHARED}",
    "basic": lambda _: "Basic " + base64.b64encode(f"user:{SHARED}".encode()).decode(),
    "a wrong token": lambda _: f"Bearer {SHARED[:-1]}x",
    "the start of the token": lambda _: f"Bearer {SHARED[:-1]}",
    "more than the token": lambda _: f"Bearer {SHARED}x",
    "other case": lambda _: f"Bearer {SHARED.upper()}",
    "no text": lambda _: "Bearer \xff\xfe",
    "a long one": lambda _: "Bearer " + 20000 * "x",
    "expired": lambda k: "Bearer " + forged(k, exp=int(time.time()) - 60),
    "never expires": lambda k: "Bearer " + forged(k, exp=None),
    "not yet": lambda k: "Bearer " + forged(k, nbf=int(time.time()) + 300),
    "for others": lambda k: "Bearer " + forged(k, aud="somebody"),
    "for nobody": lambda k: "Bearer " + forged(k, aud=None),
    "by another key": lambda k: "Bearer " + forged(k, by="theirs"),
    "unsigned": lambda k: "Bearer " + forged(k, algorithm="none"),
    "confused": lambda k: "Bearer " + confused(k),
    "flipped": lambda k: "Bearer " + flipped(ours(k)),
    "cut": lambda k: "Bearer " + ours(k)[:-4],
    "operations as text": lambda k: "Bearer " + forged(k, operations="send"),
    "operations of numbers": lambda k: "Bearer " + forged(k, operations=[1]),
    "transfer of a number": lambda k: "Bearer " + forged(k, transfer=5),
    "empty transfer": lambda k: "Bearer " + forged(k, transfer=""),
    "exp of text": lambda k: "Bearer " + forged(k, exp="tomorrow"),
    "exp beyond": lambda k: "Bearer " + forged(k, exp=1e400),
}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[tuple[Proxy, Path]]:
    folder = tmp_path_factory.mktemp("access")
    (folder / "token").write_text(f"{SHARED}\nanother-token-of-the-tests\n")
    options = ("--token-file", folder / "token", "--jwt-keys", keys / "jwtkeys")
    with Proxy(folder / "dst", "--processes", 1, *options) as one:
        yield one, folder
        said = one.stderr()
        assert b"Traceback" not in said and SHARED.encode() not in said


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, *credentials: str
) -> tuple[int, dict[str, str], bytes]:
    """One request that carries a body, with these Authorization headers."""
    connection.putrequest(method, path)
    for value in credentials:
        connection.putheader("Authorization", value)
    body = b"x" * 100 if method in ("PUT", "POST") else b""
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return response.status, headers, response.read()


def test_the_endpoints_are_all_that_there_are() -> None:
    routes = make_app(None, Access()).routes  # type: ignore[arg-type]
    asked = {(method, path) for method, path, _ in ENDPOINTS}
    for route in routes:
        assert isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}:
            path = route.path.format(id=ID, block_size=4096, block_no=0)
            assert path == "/healthz" or (method, path) in asked, (method, path)


@pytest.mark.parametrize("credentials", BAD)
def test_every_endpoint_refuses(proxy: tuple[Proxy, Path], keys: Path, credentials: str) -> None:
    one, folder = proxy
    before = trees.stamps(folder / "dst")
    value = BAD[credentials](keys)
    connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=PATIENCE)
    for method, path, _ in ENDPOINTS:
        status, headers, body = ask(connection, method, path, *([] if value is None else [value]))
        assert status == 401, (method, path, body)
        assert headers["www-authenticate"].startswith("Bearer ")
        if method != "HEAD":
            document = json.loads(body)
            assert (document["title"], document["status"]) == ("unauthorized", 401)
            assert str(folder) not in document["detail"] and str(keys) not in document["detail"]
    connection.close()
    assert trees.stamps(folder / "dst") == before


@pytest.mark.parametrize(("method", "path", "operation"), ENDPOINTS)
def test_narrow_tokens_are_forbidden_what_they_do_not_name(
    proxy: tuple[Proxy, Path], keys: Path, method: str, path: str, operation: str
) -> None:
    one, _ = proxy
    others = [name for name in OPERATIONS if name != operation]
    connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=PATIENCE)
    for narrow in (
        ours(keys, operations=others), ours(keys, transfer=OTHER), forged(keys, operations=[]),
    ):  # fmt: skip
        status, headers, _ = ask(connection, method, path, f"Bearer {narrow}")
        assert status == 403, (method, path)
        assert "insufficient_scope" in headers["www-authenticate"]
    one_transfer = ours(keys, operations=[operation], transfer=ID)
    good = [SHARED, "another-token-of-the-tests", ours(keys, operations=[operation])]
    for token in [*good, *([one_transfer] if ID in path else [])]:
        assert ask(connection, method, path, f"Bearer {token}")[0] not in (401, 403)
    connection.close()


def test_two_tokens_in_one_request_are_none(proxy: tuple[Proxy, Path]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy[0].port, timeout=PATIENCE)
    assert ask(connection, "GET", "/tar", f"Bearer {SHARED}", f"Bearer {SHARED}")[0] == 401
    connection.close()


def test_health_is_for_everybody(proxy: tuple[Proxy, Path]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy[0].port, timeout=PATIENCE)
    assert ask(connection, "GET", "/healthz")[0::2] == (200, b"ok\n")
    connection.close()


def test_refused_before_a_body_is_read(proxy: tuple[Proxy, Path]) -> None:
    """The answer comes although not one byte of the body has been sent."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy[0].port, timeout=PATIENCE)
    connection.putrequest("PUT", f"/tar/{ID}/4096/0")
    connection.putheader("Content-Length", str(1 << 30))
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


def small_tree(folder: Path) -> None:
    (folder / "b").mkdir(parents=True)
    (folder / "a").write_bytes(b"1")
    (folder / "b/c").write_bytes(b"2" * 9000)


@pytest.mark.parametrize("kind", ["shared", "signed"])
def test_a_whole_transfer_with_a_token(work: Path, keys: Path, kind: str) -> None:
    """Index, upload and status show it; nothing of it gets into what they print."""
    small_tree(work / "src")
    token = SHARED if kind == "shared" else ours(keys)
    (work / "receiver").write_text(SHARED)
    (work / "sender").write_text(token)
    options = ("--token-file", work / "receiver", "--jwt-keys", keys / "jwtkeys")
    with Proxy(work / "dst", *options) as one:
        refused = run("sync", work / "src", one.url, "--json", codes=(1,))
        assert refused.sentence("TARLIKE_TOKEN")
        wrong = {"TARLIKE_TOKEN": "not-the-token-of-the-tests"}
        assert run("status", one.url, env=wrong, codes=(1,)).sentence("not valid")
        done = [
            run("sync", work / "src", one.url, "--json", "--token-file", work / "sender"),
            run("status", one.url, env={"TARLIKE_TOKEN": token}),
        ]
        index(work / "src", work / "db")
        environment = {"TARLIKE_TOKEN_FILE": str(work / "sender")}
        done.append(run("upload", "-b", work / "src", "-db", work / "db", "-u", one.url,
                        env=environment))  # fmt: skip
        for result in [refused, *done]:
            assert token.encode() not in result.out + result.err
        assert token.encode() not in one.stderr()
    assert (work / "dst/b/c").read_bytes() == b"2" * 9000


def test_a_token_for_sending_cannot_commit(work: Path, keys: Path) -> None:
    small_tree(work / "src")
    with Proxy(work / "dst", "--jwt-keys", keys / "jwtkeys") as one:
        token = ours(keys, operations=[OFFER, SEND, READ])
        result = run("sync", work / "src", one.url, env={"TARLIKE_TOKEN": token}, codes=(1,))
        assert result.sentence("does not allow to commit")
        assert os.listdir(work / "dst") == [".tar_like"]
        token = ours(keys, operations=[OFFER, READ, COMMIT])
        run("sync", work / "src", one.url, env={"TARLIKE_TOKEN": token})
    assert (work / "dst/a").read_bytes() == b"1"


def test_the_receiver_of_one_run_asks_for_its_own_token(work: Path) -> None:
    from tar_like.proxy.server import Receiver, ServerOptions

    with Receiver(ServerOptions(destination=str(work / "dst"))) as receiver:
        port = int(receiver.urls[0].rpartition(":")[2].partition("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        assert ask(connection, "GET", "/tar")[0] == 401
        assert ask(connection, "GET", "/tar", f"Bearer {receiver.token}")[0] == 200
        connection.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_no_listening_to_others_without_a_token(work: Path, host: str) -> None:
    options = ("-b", work / "dst", "--host", host, 0)
    run("proxy", *options, codes=(2,)).sentence("--no-auth")
    bare = {"TARLIKE_TOKEN": "short"}
    run("proxy", *options, env=bare, codes=(2,)).sentence("16 characters")
    (work / "empty").mkdir()
    run("proxy", *options, "--jwt-keys", work / "empty", codes=(2,)).sentence("no public key")
    assert not (work / "dst").exists(), "a usage error left something behind"
    with Proxy(work / "dst", "--no-auth") as one:
        assert run("status", one.url).code == 0
    with Proxy(work / "dst", "--host", host, "--no-auth"):
        pass


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nothing",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ],
)
def test_a_bad_key_is_refused_at_the_start(work: Path, text: bytes) -> None:
    (work / "x-public.pem").write_bytes(text)
    with pytest.raises(UsageError, match=r"x-public\.pem is no public key"):
        Keyring(str(work))


def test_a_key_of_another_curve_is_refused(work: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (work / "x-public.pem").write_bytes(key.public_bytes(serialization.Encoding.PEM, form))
    with pytest.raises(UsageError):
        Keyring(str(work))


def test_keys_come_and_go(work: Path) -> None:
    folder = str(work / "keys")
    private, public = make_keys(folder, "one")
    ring = Keyring(folder)
    token = sign(private, seconds=60, operations=[READ], transfer=ID)
    assert ring.grant(token) == Grant(frozenset({READ}), ID)
    other = make_keys(folder, "two-2")
    assert ring.grant(sign(other[0], seconds=60)) == Grant()
    os.unlink(public)
    with pytest.raises(Unauthorized):
        ring.grant(token)


def test_what_was_checked_once_still_expires(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, _ = make_keys(str(work), "one")
    ring = Keyring(str(work))
    token = sign(private, seconds=60)
    ring.grant(token)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    with pytest.raises(Unauthorized, match="expired"):
        ring.grant(token)


def test_keys_are_private_and_never_replaced(work: Path) -> None:
    private, public = make_keys(str(work), "one")
    assert (os.stat(private).st_mode & 0o777, os.stat(public).st_mode & 0o044) == (0o600, 0o044)
    with pytest.raises(UsageError, match="there already"):
        make_keys(str(work), "one")
    for name in ("", "../x", ".hidden", "a/b", "a\n"):
        with pytest.raises(UsageError):
            make_keys(str(work), name)


def test_the_command_makes_keys_and_tokens(work: Path) -> None:
    run("token", "keys", "host1", "-d", work / "jwtkeys")
    private = work / "jwtkeys/host1-private.pem"
    options = ("--for", "2h", "--transfer", ID, "--operations", "send,read", "--audience", "us")
    token = run("token", "sign", "-k", private, *options).out.decode().strip()
    granted = Keyring(str(work / "jwtkeys"), "us").grant(token)
    assert granted == Grant(frozenset({SEND, READ}), ID)
    shared = run("token", "random").out.decode().strip()
    Access((shared,)).check([f"Bearer {shared}".encode()], COMMIT, ID)
    for wrong in (
        ("sign",), ("sign", "-k", "/dev/null"), ("sign", "-k", private, "--for", "0"),
        ("sign", "-k", private, "--transfer", "x"), ("sign", "-k", private, "--operations", "fly"),
        ("keys", "host1", "-d", work / "jwtkeys"),
    ):  # fmt: skip
        run("token", *wrong, codes=(2,)).sentence()


@pytest.mark.parametrize(
    ("request_line", "operation"),
    [
        (("GET", f"/tar/{ID}/db"), (READ, ID)),
        (("PUT", f"/tar/{ID}/db"), (OFFER, ID)),
        (("PUT", f"/tar/{ID}/4096/0"), (SEND, ID)),
        (("PUT", f"/tar/{ID}/answers"), (OFFER, ID)),
        (("GET", f"/tar/{ID}/questions"), (READ, ID)),
        (("POST", f"/tar/{ID}/commit"), (COMMIT, ID)),
        (("POST", f"/tar/{ID}/plan"), (OFFER, ID)),
        (("GET", "/tar"), (READ, "")),
        (("GET", "/"), (READ, "")),
        (("PATCH", f"/tar/{ID}/commit/x"), (OFFER, ID)),
    ],
)
def test_what_a_request_asks(request_line: tuple[str, str], operation: tuple[str, str]) -> None:
    assert asked(*request_line) == operation


def test_without_tokens_nobody_is_asked() -> None:
    access = Access()
    assert not access.asks
    access.check([], COMMIT, ID)


def test_a_wrong_token_is_compared_with_all_of_them() -> None:
    access = Access((SHARED, SHARED[::-1]))
    for token in (SHARED, SHARED[::-1]):
        access.check([b"bearer " + token.encode()], COMMIT, ID)
    with pytest.raises(TarLikeError):
        access.check([b"Bearer x"], READ, "")
