"""Certificates of both sides: TLS in the receiver itself, and senders' certificates at haproxy."""

from __future__ import annotations

import datetime
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests import trees
from tests.e2e.harness import PATIENCE, Proxy, run
from tests.haproxy.balancer import MAKE_CERTIFICATE, Balancer

TOKEN = "a-shared-token-of-the-tests"


def certify(folder: Path, name: str) -> Path:
    """A CA (NAME-ca.pem) and a sender's certificate and key by it; returns the latter."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    subject = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} {n}")]) for n in (0, 1)]

    def made(of: int, public: ec.EllipticCurvePublicKey, *, ca: bool) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(subject[of])
            .issuer_name(subject[0])
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(ca_key, hashes.SHA256())
        )

    pem = serialization.Encoding.PEM
    ca = made(0, ca_key.public_key(), ca=True)
    (folder / f"{name}-ca.pem").write_bytes(ca.public_bytes(pem))
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / f"{name}.pem"
    path.write_bytes(made(1, key.public_key(), ca=False).public_bytes(pem) + private)
    return path


@pytest.fixture
def src(work: Path) -> Path:
    folder = work / "src"
    folder.mkdir()
    (folder / "file").write_bytes(b"content" * 10000)
    return folder


def test_tls_and_a_token_in_the_receiver_itself(work: Path, src: Path) -> None:
    subprocess.run([MAKE_CERTIFICATE, work], check=True, timeout=60)
    (work / "token").write_text(TOKEN)
    options = ("--tls-cert", work / "certificate.pem", "--token-file", work / "token")
    trusted = {"TARLIKE_CA_BUNDLE": str(work / "ca.pem"), "TARLIKE_TOKEN": TOKEN}
    with Proxy(work / "dst", "--processes", 2, *options) as proxy:
        assert proxy.url.startswith("https://")
        run("sync", src, proxy.url, "-p", 2, env=trusted)
        trees.assert_same(src, work / "dst")
        untrusting = {"TARLIKE_TOKEN": TOKEN}
        run("status", proxy.url, env=untrusting, codes=(1,)).sentence("not trusted")
        run("status", proxy.url, "--ignore-ca", env=untrusting)
        run("status", proxy.url, env=trusted)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as plain,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            old.wrap_socket(plain)


def test_a_certificate_that_cannot_be_is_refused_at_the_start(work: Path) -> None:
    subprocess.run([MAKE_CERTIFICATE, work], check=True, timeout=60)
    for path in (work / "ca.pem", work / "nothing.pem"):
        options = ("-b", work / "dst", "--tls-cert", path, 0)
        run("proxy", *options, codes=(2,)).sentence("cannot be used")


def test_senders_without_a_certificate_do_not_get_past_haproxy(work: Path, src: Path) -> None:
    ours, theirs = certify(work, "ours"), certify(work, "theirs")
    with Proxy(work / "dst") as proxy:
        names = {"CLIENT_CA": str(work / "ours-ca.pem")}
        with Balancer(work, [proxy.port], env=names, tls_check=False) as balancer:
            run(
                "sync", src, balancer.https, env=balancer.trust | {"TARLIKE_CLIENT_CERT": str(ours)}
            )
            trees.assert_same(src, work / "dst")
            for wrong in ({}, {"TARLIKE_CLIENT_CERT": str(theirs)}):
                refused = run("status", balancer.https, env=balancer.trust | wrong, codes=(1,))
                refused.sentence("certificate")
    missing = {"TARLIKE_CLIENT_CERT": str(work / "nothing.pem")}
    run("status", "https://127.0.0.1:1/tar", env=missing, codes=(2,)).sentence("cannot be read")
