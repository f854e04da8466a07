"""Signed requests to one bucket.

    request > idle or new connection > sign > send > answer, or an error by its kind

Many threads may ask at a time, each on a connection of its own. Nothing is tried again here
(retry.retried does that), and no body is read that is not asked for.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

from tar_like.codec import CHANGED, UNREADABLE, VANISHED
from tar_like.errors import SourceUnusable, TarLikeError
from tar_like.source.retry import BROKEN, SERVER, THROTTLED, Passing
from tar_like.source.sigv4 import Keys, Signer, query_text, quoted

TIMEOUT = 60.0
"""Seconds without a byte, and for connecting."""
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")
_REGION = re.compile(rb"<Region>([a-z0-9-]{1,32})</Region>")
_THROTTLES = (
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
)
_HOPELESS = {
    "NoSuchBucket": "There is no bucket {bucket}.",
    "InvalidAccessKeyId": "The store does not know the access key.",
    "SignatureDoesNotMatch": "The store refuses the signature: is the secret key right?",
    "ExpiredToken": "The credentials have expired.",
    "InvalidToken": "The store refuses the session token.",
    "TokenRefreshRequired": "The credentials have expired.",
    "RequestTimeTooSkewed": "The clock here and that of the store differ too much.",
    "AllAccessDisabled": "The bucket {bucket} is disabled.",
    "InvalidBucketName": "{bucket} is no name for a bucket.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where a bucket is, and how to be let in."""

    bucket: str
    base: str
    """URL of the bucket, with a slash at its end."""
    region: str
    keys: Callable[[], Keys | None] = field(repr=False)
    """The credentials of this moment; None to send unsigned requests."""
    tls: ssl.SSLContext | None
    requester_pays: bool
    proxy: str = field(default="", repr=False)
    """URL of an HTTP proxy."""


class Refused(TarLikeError):
    """The store does not give this object. ``reason`` is one of codec.REASONS."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"The store answers {status} {code}".rstrip() + ".")
        self.status = status
        self.code = code
        self.reason = {404: VANISHED, 405: VANISHED, 412: CHANGED, 416: CHANGED}.get(
            status, UNREADABLE
        )


class NoConnection(Passing):
    """The store cannot be reached."""


class Response(http.client.HTTPResponse):
    """An answer."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self._socket = sock

    def gather(self, count: int) -> None:
        """Have every read wait until so many bytes are there: fewer reads of more.

        They must be still to come. 1 is as usual; so it stays where TLS cuts them into records.
        """
        if not isinstance(self._socket, ssl.SSLSocket):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)


class Bucket:
    """One bucket, for this process alone."""

    def __init__(self, access: Access, elsewhere: Callable[[str], Access]) -> None:
        """``elsewhere`` gives the access when the bucket turns out to be in another region."""
        self._elsewhere = elsewhere
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._settle(access)

    def _settle(self, access: Access) -> None:
        parts = urlsplit(access.base)
        self._access = access
        self._host = parts.netloc
        self._path = parts.path
        self._tls = parts.scheme == "https"
        self._address = parts.hostname or "", parts.port or (443 if self._tls else 80)
        self._signer = Signer(access.region)

    @contextmanager
    def ask(
        self, method: str, key: str, *, query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[Response]:  # fmt: skip
        """A good answer (2xx), whose body may be read within the context.

        Raises Passing, Refused (for this request) or SourceUnusable (for all).
        """
        connection, response = self._send(method, key, query, dict(headers or {}))
        usable = False
        try:
            if response.status >= 300:
                self._raise(response)
            yield response
            usable = response.isclosed() and not response.will_close
        except (OSError, http.client.HTTPException) as error:
            raise Passing(BROKEN, f"The connection broke ({_name(error)}).") from None
        finally:
            if usable:
                self._idle.append(connection)
            else:
                response.close()
                connection.close()

    def _send(
        self, method: str, key: str, query: Sequence[tuple[str, str]], headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, Response]:
        path, text = self._path + quoted(key), query_text(query)
        if self._access.requester_pays:
            headers["x-amz-request-payer"] = "requester"
        keys = self._access.keys()
        if keys is not None:
            self._signer.sign(method, self._host, path, text, headers, keys)
        headers["host"] = self._host
        target = path + ("?" + text if text else "")
        if self._access.proxy and not self._tls:
            target = f"http://{self._host}{target}"
        while True:
            connection, used = self._connection()
            try:
                connection.request(method, target, headers=headers)
                return connection, cast(Response, connection.getresponse())
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if not used:  # an idle connection may have been closed by the store meanwhile
                    raise Passing(BROKEN, f"The connection broke ({_name(error)}).") from None

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        try:
            return self._idle.pop(), True
        except IndexError:
            return self._connect(), False

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._address
        proxy = urlsplit(self._access.proxy) if self._access.proxy else None
        to = (proxy.hostname or "", proxy.port or 3128) if proxy else (host, port)
        connection: http.client.HTTPConnection
        if self._tls:
            connection = http.client.HTTPSConnection(*to, timeout=TIMEOUT, context=self._access.tls)
            if proxy:
                connection.set_tunnel(host, port)
        else:
            connection = http.client.HTTPConnection(*to, timeout=TIMEOUT)
        connection.response_class = Response
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            raise SourceUnusable(
                f"The certificate of {self._host} is not trusted ({error.verify_message}): "
                "name the right one in AWS_CA_BUNDLE."
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise NoConnection(
                BROKEN, f"{self._host} cannot be reached ({_name(error)})."
            ) from None
        return connection

    def _raise(self, response: http.client.HTTPResponse) -> None:
        """The error that an answer stands for."""
        status, text = response.status, response.read(65536)
        found = _CODE.search(text)
        code = found[1].decode() if found else ""
        region = _REGION.search(text)
        self._follow(
            status, code,
            response.getheader("x-amz-bucket-region") or (region[1].decode() if region else ""),
        )  # fmt: skip
        if code in _HOPELESS:
            raise SourceUnusable(_HOPELESS[code].format(bucket=self._access.bucket))
        if status == 429 or code in _THROTTLES or (status == 503 and not code):
            raise Passing(THROTTLED, f"The store answers {status} {code}".rstrip() + ".")
        if status >= 500 or code == "RequestTimeout":
            raise Passing(SERVER, f"The store answers {status} {code}".rstrip() + ".")
        raise Refused(status, code)

    def _follow(self, status: int, code: str, region: str) -> None:
        """Go to the bucket's own region, if the answer says that it is another."""
        moved = status in (301, 307) or code == "AuthorizationHeaderMalformed"
        if not moved:
            return
        with self._lock:
            if not region or region == self._access.region:
                raise SourceUnusable(
                    f"The bucket {self._access.bucket} is elsewhere ({status} {code}): "
                    "name its region or endpoint."
                )
            self._settle(self._elsewhere(region))
            self._idle.clear()
        raise Passing(SERVER, f"The bucket is in {region}.")

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()


def _name(error: Exception) -> str:
    """What went wrong, without anything that a header could hold."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
