"""TLS that goes wrong: what will not be better the next time, and what may be."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tar_like.config import Trust
from tar_like.errors import TarLikeError, Unreachable
from tar_like.upload.client import Client
from tests.haproxy.balancer import MAKE_CERTIFICATE

ID = "ab" * 32
ANSWER = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def reset(connection: ssl.SSLSocket) -> None:
    """Go without a word."""


def refuse(connection: ssl.SSLSocket) -> None:
    """Answer before the body is there, as something in front of a dead receiver does."""
    connection.sendall(ANSWER)
    connection.shutdown(socket.SHUT_RDWR)


def part(connection: ssl.SSLSocket) -> None:
    """Take leave in due form."""
    connection.recv(1 << 16)
    connection.settimeout(0)
    try:
        connection.unwrap()
    except OSError:
        connection.close()


@contextmanager
def server(certificate: Path, leave: Callable[[ssl.SSLSocket], None]) -> Iterator[str]:
    """Somebody with a certificate who reads the head of a request and then leaves."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            plain.settimeout(60)
            try:
                with context.wrap_socket(plain, server_side=True) as connection:
                    connection.recv(4096)
                    leave(connection)
            except OSError:
                continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}/tar"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.fixture
def folder(work: Path) -> Path:
    """With certificate.pem and ca.pem."""
    subprocess.run([MAKE_CERTIFICATE, work], check=True, timeout=60)
    return work


@pytest.mark.parametrize("leave", [reset, refuse, part])
def test_a_connection_that_ends_in_mid_body_may_be_tried_again(
    folder: Path, leave: Callable[[ssl.SSLSocket], None]
) -> None:
    body = bytes(32 << 20)
    with server(folder / "certificate.pem", leave) as url:
        for _ in range(5):
            client = Client(url, trust=Trust(ca_bundle=str(folder / "ca.pem")), attempts=1)
            with pytest.raises(TarLikeError) as caught:
                client.put_block(ID, len(body), 0, bytes(32), [body])
            client.close()
            assert caught.value.retry, caught.value
            assert "certificate" not in str(caught.value)


def test_a_certificate_of_somebody_else_is_not_tried_again(folder: Path) -> None:
    with server(folder / "certificate.pem", reset) as url:
        client = Client(url, attempts=2)
        with pytest.raises(
            TarLikeError, match=r"certificate .* not trusted .*--ignore-ca"
        ) as caught:
            client.status(ID)
        client.close()
        assert not caught.value.retry


def test_tls_where_there_is_none_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            one, _ = listener.accept()
            with one:
                one.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                one.recv(4096)

        thread = threading.Thread(target=answer)
        thread.start()
        client = Client(f"https://127.0.0.1:{listener.getsockname()[1]}/tar", attempts=1)
        with pytest.raises(Unreachable, match=r"(?i)ssl|tls"):
            client.status(ID)
        client.close()
        thread.join()
