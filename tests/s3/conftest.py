"""A store for all tests of a process, a bucket for each, and settings that lead there."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tar_like.config import S3Settings
from tar_like.source.s3 import S3Source
from tests.e2e.harness import wait_for
from tests.processes import free_port
from tests.s3.faults import FaultProxy

ACCESS_KEY, SECRET_KEY = "AKIAEXAMPLETARLIKE00", "do-not-show-this-secret"
_numbers = itertools.count()


@pytest.fixture(scope="session")
def store() -> Iterator[int]:
    """The port of an S3 server."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for("the S3 server", lambda: _answers(port), unless=process.poll)
        yield port
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


@dataclass
class Store:
    """A bucket of its own, and how to put things into it past the proxy."""

    name: str
    client: Any
    proxy: FaultProxy
    settings: S3Settings

    @property
    def url(self) -> str:
        return f"s3://{self.name}/tree"

    def put(self, path: bytes | str, data: bytes, **more: Any) -> None:
        """Put an object below the prefix."""
        name = path.decode() if isinstance(path, bytes) else path
        self.client.put_object(Bucket=self.name, Key=f"tree/{name}", Body=data, **more)

    def remove(self, path: bytes) -> None:
        self.client.delete_object(Bucket=self.name, Key=f"tree/{path.decode()}")

    def source(self, url: str = "", **changes: Any) -> S3Source:
        return S3Source(url or self.url, self.settings._replace(**changes))

    def environment(self) -> dict[str, str]:
        """What leads a command here."""
        return {
            "TARLIKE_S3_ENDPOINT": self.proxy.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@pytest.fixture
def s3(store: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """An empty bucket that is reached through a proxy that can break things."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "TARLIKE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{store}",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        config=Config(request_checksum_calculation="when_required"),
    )
    name = f"bucket-{os.getpid()}-{next(_numbers)}"
    client.create_bucket(Bucket=name)
    with FaultProxy(store) as proxy:
        settings = S3Settings(
            endpoint=proxy.url, region="us-east-1", access_key=ACCESS_KEY, secret_key=SECRET_KEY
        )
        made = Store(name, client, proxy, settings)
        for key, value in made.environment().items():
            monkeypatch.setenv(key, value)
        yield made
    client.close()
