"""AWS Signature Version 4 for requests without a body.

    canonical request > string to sign > signature by a key of the day

Source: "Authenticating Requests (AWS Signature Version 4)", Amazon S3 API Reference.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote

EMPTY = hashlib.sha256(b"").hexdigest()


class Keys(NamedTuple):
    """Credentials, which never are to be shown."""

    access_key: str
    secret_key: str
    token: str = ""

    def __repr__(self) -> str:
        return "Keys(…)"


class Signer:
    """Signs for one region; thread-safe."""

    def __init__(self, region: str, service: str = "s3") -> None:
        self._scope = f"{region}/{service}/aws4_request"
        self._cached: tuple[str, str, bytes] = ("", "", b"")

    def sign(
        self, method: str, host: str, path: str, query: str, headers: dict[str, str], keys: Keys,
        now: float | None = None,
    ) -> None:  # fmt: skip
        """Add the headers that sign a request.

        ``path`` and ``query`` are as they will be sent (see ``quoted``, ``query_text``). Of
        ``headers``, which have lower-case names, those that begin with x-amz- are signed too.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        headers["x-amz-date"] = stamp
        headers["x-amz-content-sha256"] = EMPTY
        if keys.token:
            headers["x-amz-security-token"] = keys.token
        signed = {name: value for name, value in headers.items() if name.startswith("x-amz-")}
        signed["host"] = host
        names = sorted(signed)
        lines = [method, path, query, *(f"{name}:{signed[name].strip()}" for name in names), ""]
        canonical = "\n".join([*lines, ";".join(names), EMPTY])
        scope = f"{stamp[:8]}/{self._scope}"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
        key = self._key(stamp[:8], keys.secret_key)
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, "
            f"SignedHeaders={';'.join(names)}, Signature={signature}"
        )

    def _key(self, day: str, secret: str) -> bytes:
        cached_day, cached_secret, key = self._cached
        if (cached_day, cached_secret) != (day, secret):
            key = f"AWS4{secret}".encode()
            for part in (day, *self._scope.split("/")):
                key = hmac.digest(key, part.encode(), "sha256")
            self._cached = day, secret, key
        return key


def quoted(key: str) -> str:
    """An object's key as it stands in a request's path."""
    return quote(key, safe="/~", errors="surrogateescape")


def query_text(pairs: Iterable[tuple[str, str]]) -> str:
    """Query parameters in the one order and form that can be signed."""

    def one(text: str) -> str:
        return quote(text, safe="", errors="surrogateescape")

    return "&".join(sorted(f"{one(name)}={one(value)}" for name, value in pairs))
