"""The HTTP client of a receiver: the only file that imports requests.

One object a process. Foreign errors are mapped here. What can be tried again is, with
exponential backoff and jitter: every request is idempotent.
"""

from __future__ import annotations

import json
import ssl
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from tar_like import __version__
from tar_like.config import Trust
from tar_like.errors import (
    BlockInvalid,
    Busy,
    Conflict,
    Forbidden,
    NoSpace,
    NotFound,
    ReceiverFailed,
    TarLikeError,
    TooLarge,
    TooSlow,
    Unauthorized,
    Unreachable,
    UsageError,
)
from tar_like.rules import Rules
from tar_like.wire import (
    BITMAP,
    DIGEST_HEADER,
    PLAN_HEADER,
    PROBLEM,
    ROOT,
    Inflater,
    Look,
    Status,
    Told,
    deflate_file,
    digest_header,
)

T = TypeVar("T")
_NO_TRUST = Trust()
Pace = Callable[[int], None]
"""Called before so many bytes of a body go out; returns when they may."""

SLICE = 256 << 10
"""Bytes of a body that go out at once where there is a pace."""
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 120.0
ATTEMPTS = 6
MAX_PLAN = 1 << 40
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_ERRORS: dict[int, type[TarLikeError]] = {
    400: UsageError,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    408: TooSlow,
    409: Conflict,
    413: TooLarge,
    503: Busy,
    507: NoSpace,
}


class Client:
    """Speaks to one receiver; to another one of the same destination when it is gone.

    Not thread-safe.
    """

    def __init__(
        self,
        url: str,
        *,
        others: Iterable[str] = (),
        trust: Trust = _NO_TRUST,
        attempts: int = ATTEMPTS,
        pace: Pace | None = None,
    ) -> None:
        """All are trusted in the same way. Raises UsageError for a URL that cannot be one."""
        self._urls = deque(checked_url(one) for one in (url, *others))
        self._pace = pace
        self.carried = 0
        """Bytes of files (index, plan, questions, answers) that were sent or fetched."""
        self._session = requests.Session()
        self._session.verify = trust.ca_bundle or True if trust.verify else False
        self._session.cert = trust.certificate or None
        self._session.headers["User-Agent"] = f"tar-like/{__version__}"
        self._session.auth = _Bearer(trust.token) if trust.token else None
        self._session.mount("http://", HTTPAdapter(pool_maxsize=1))
        self._session.mount("https://", HTTPAdapter(pool_maxsize=1))
        if all(map(is_here, self._urls)):
            self._session.trust_env = False  # no proxy leads to loopback
        if not trust.verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self._attempts = attempts

    def retried(self, work: Callable[[], T]) -> T:
        """Do something, and do it again for a while as long as it fails by what may pass."""
        try:
            return work()
        except TarLikeError as error:
            if not error.retry:
                raise
            failed = [error]
        import tenacity  # which takes its time, and mostly nothing fails

        def attempt() -> T:
            if failed:
                raise failed.pop()
            return work()

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: getattr(error, "retry", False)),
            wait=tenacity.wait_exponential(multiplier=0.2, max=10) + tenacity.wait_random(0, 0.5),
            stop=tenacity.stop_after_attempt(self._attempts),
            reraise=True,
        )(attempt)

    @property
    def url(self) -> str:
        """Who is spoken to now."""
        return self._urls[0]

    def status(self, transfer_id: str) -> Status | None:
        """A transfer's status; None when the receiver does not know it."""
        try:
            return self._status("GET", transfer_id, "")
        except NotFound:
            return None

    def transfers(self) -> list[Status]:
        """The transfers that are under way."""
        response = self.retried(lambda: self._send("GET", ""))
        try:
            found = response.json()["transfers"]
            return [Status.from_json(json.dumps(one)) for one in found]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise _not_a_receiver(self.url) from None

    def look(self) -> Look:
        """Have the receiver begin to look whether its last tree is in place."""
        response = self.retried(lambda: self._send("POST", "", json={}))
        try:
            return Look.from_json(response.content)
        except (ValueError, TypeError):
            raise _not_a_receiver(self.url) from None

    def again(self, look: Look, rules: Rules) -> Status | None:
        """The tree of the last commit once more; None when that is another one by now."""
        wanted = {"token": look.token, "rules": rules.to_json()}
        try:
            return self._status("POST", look.tree, "/again", json=wanted)
        except NotFound:
            return None

    def offer(self, transfer_id: str, index_path: str) -> Status:
        """Send the index. Raises TarLikeError when the receiver refuses it."""
        return self._put_file(transfer_id, "/db", index_path)

    def leaves(self, tree: str) -> bytes:
        """What the leaves of the last commit's tree are known by. Raises NotFound for another."""
        return self.retried(lambda: self._send("GET", f"/{tree}/leaves").content)

    def patch(self, tree: str, path: str, sent: Callable[[], None]) -> Status:
        """Offer what of a tree is not as it was. Raises Conflict where that is not to be had.

        ``sent`` is called each time that all is on its way, and the receiver begins to work at it.
        """
        return self._put_file(tree, "/patch", path, sent)

    def answer(self, transfer_id: str, path: str) -> Status:
        """Send answers to the receiver's questions."""
        return self._put_file(transfer_id, "/answers", path)

    def _put_file(
        self, transfer_id: str, what: str, path: str, sent: Callable[[], None] = lambda: None
    ) -> Status:
        with tempfile.TemporaryFile() as file:
            for piece in deflate_file(path):
                file.write(piece)
            length = file.tell()

            def send() -> Status:
                self.carried += length
                file.seek(0)
                body = _Body(file, length, sent)
                return self._status_once("PUT", transfer_id, what, data=body)

            return self.retried(send)

    @staticmethod
    def wish(
        block_size: int,
        rules: Rules | None = None,
        *,
        ask: bool = False,
        checksum: bool = False,
        look: str = "",
        told: Told | None = None,
    ) -> dict[str, Any]:
        """What a plan is asked for by."""
        return {
            "block_size": block_size,
            "rules": (rules or Rules()).to_json(),
            "ask": ask,
            "checksum": checksum,
            "look": look,
            **({"told": told.to_json()} if told else {}),
        }

    def negotiate(self, transfer_id: str, wish: dict[str, Any]) -> Status:
        """Have the plan made, and the wish's rules hold; with questions before, if it says so."""
        return self._status("POST", transfer_id, "/plan", json=wish)

    def fetch(self, transfer_id: str, what: str, path: str) -> None:
        """Get the ``plan``, the ``questions`` or the ``db`` into a new file."""

        def get() -> None:
            with open(path, "wb") as file:
                self._fetch(f"/{transfer_id}/{what}", file)

        self.retried(get)

    def _fetch(self, path: str, file: BinaryIO, *, method: str = "GET") -> None:
        response = self._send(method, path, stream=True)
        inflater = Inflater(file, MAX_PLAN)
        try:
            for chunk in response.iter_content(1 << 20):
                self.carried += len(chunk)
                inflater.feed(chunk)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise self._unreachable(error) from None
        finally:
            response.close()
        inflater.finish()

    def still_here(self, transfer_id: str) -> None:
        """Say that a receiver's questions are being worked on. Once; raises TarLikeError."""
        self._send("HEAD", f"/{transfer_id}/questions")

    def bitmaps(self, transfer_id: str) -> bytes:
        """Bits of the received blocks, then of the durable ones."""
        headers = {"Accept": BITMAP}
        return self.retried(
            lambda: self._send("GET", f"/{transfer_id}/blocks", headers=headers).content
        )

    def put_block(
        self,
        transfer_id: str,
        block_size: int,
        block_no: int,
        digest: bytes,
        body: list[Any],
        *,
        plan: str = "",
    ) -> bool:
        """Send one block; False when the receiver had it. Raises Conflict, Unreachable, ..."""
        headers = {
            DIGEST_HEADER: digest_header(digest),
            PLAN_HEADER: plan,
            "Content-Type": BITMAP,
            "Content-Length": str(sum(len(part) for part in body)),
        }
        path = f"/{transfer_id}/{block_size}/{block_no}"

        def put() -> bool:
            response = self._send("PUT", path, data=_Parts(body, self._pace), headers=headers)
            return response.status_code == 201

        return self.retried(put)

    def rehearse(self, transfer_id: str, path: str) -> None:
        """Get what a dry run would do into a new file; the receiver forgets it then."""
        with open(path, "wb") as file:
            self._fetch(f"/{transfer_id}/rehearsal", file, method="POST")

    def commit(self, transfer_id: str, rules: Rules) -> Status:
        """Ask for the commit by these rules; the status says how far it is."""
        return self._status("POST", transfer_id, "/commit", json={"rules": rules.to_json()})

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def _status(self, method: str, transfer_id: str, path: str, **options: Any) -> Status:
        return self.retried(lambda: self._status_once(method, transfer_id, path, **options))

    def _status_once(self, method: str, transfer_id: str, path: str, **options: Any) -> Status:
        response = self._send(method, f"/{transfer_id}{path}", **options)
        try:
            return Status.from_json(response.content)
        except (ValueError, TypeError):
            raise _not_a_receiver(self.url) from None

    def _send(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            response = self._session.request(
                method, self.url + path, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                allow_redirects=False, **options,
            )  # fmt: skip
        except requests.exceptions.InvalidURL:
            raise UsageError(f"{self.url} is not a URL.") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(_root(error), ssl.SSLCertVerificationError):
                raise _untrusted(self.url, error) from None
            if _wants_certificate(_root(error)):
                raise Unauthorized(
                    f"{self.url} does not take this sender's certificate, or asks for one: name "
                    "the right one in TARLIKE_CLIENT_CERT."
                ) from None
            raise self._unreachable(error) from None  # also TLS that ends in mid-body
        if response.status_code >= 300:
            raise _problem(self.url, response)
        return response

    def _unreachable(self, error: Exception) -> Unreachable:
        """What to raise; the next try goes to the next receiver."""
        mapped = _unreachable(self.url, error)
        self._urls.rotate(-1)
        return mapped


class _Body:
    """A file as the body of a request."""

    def __init__(self, file: BinaryIO, length: int, sent: Callable[[], None]) -> None:
        """``sent`` is called when it was read to its end."""
        self._file, self._length, self._sent = file, length, sent

    def __len__(self) -> int:
        return self._length

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if not data:
            self._sent()
        return data


class _Bearer(requests.auth.AuthBase):
    """Shows a token; nothing that ~/.netrc has for this host goes in its place."""

    def __init__(self, token: str) -> None:
        self._value = f"Bearer {token}"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._value
        return request


class _Parts:
    """A body in several parts, sent without joining them. Can be sent again."""

    def __init__(self, parts: list[Any], pace: Pace | None = None) -> None:
        self._parts = parts
        self._pace = pace

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parts) if self._pace is None else self._slices(self._pace)

    def _slices(self, pace: Pace) -> Iterator[Any]:
        for part in self._parts:
            for start in range(0, len(part), SLICE):
                piece = memoryview(part)[start : start + SLICE]
                pace(len(piece))
                yield piece

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)


def is_here(url: str) -> bool:
    """Whether a receiver is on this machine, by its URL."""
    return urlsplit(url).hostname in _LOOPBACK


def checked_url(url: str) -> str:
    """A receiver's base URL without a trailing slash; ``/tar`` is added when the path is empty.

    Raises UsageError.
    """
    try:
        parts = urlsplit(url)
        port_fits = parts.port is None or parts.port > 0
    except ValueError:
        raise UsageError(f"{url} is not a URL.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_fits:
        raise UsageError(f"{url} is not a receiver's URL: it looks like http://host:8000{ROOT}.")
    if "@" in parts.netloc:
        raise UsageError(
            "A receiver's URL has no name and no password in it, since others get to see it: "
            "receivers ask for a token (TARLIKE_TOKEN)."
        )
    if parts.query or parts.fragment:
        raise UsageError(f"{url} is not a receiver's URL: it has no ? and no #.")
    path = parts.path.rstrip("/") or ROOT
    return f"{parts.scheme}://{parts.netloc}{path}"


def _unreachable(url: str, error: Exception) -> Unreachable:
    return Unreachable(
        f"The receiver at {url} does not answer ({_root_cause(error)}): "
        "is 'tar-like proxy' running there?"
    )


def _untrusted(url: str, error: Exception) -> TarLikeError:
    return TarLikeError(
        f"The certificate of {url} is not trusted ({_root_cause(error)}): "
        "name its CA bundle, or use --ignore-ca."
    )


def _wants_certificate(error: BaseException) -> bool:
    """Whether the other side has said that it does not trust ours, or that it saw none."""
    text = str(error)  # urllib3's copy of an SSLError has no reason
    return "ALERT_CERTIFICATE" in text or "_ALERT_UNKNOWN_CA" in text or "ALERT_BAD_CERT" in text


def _root(error: BaseException) -> BaseException:
    while True:
        inner = error.__cause__ or error.__context__ or getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            return error
        error = inner


def _root_cause(error: BaseException) -> str:
    """The innermost reason: what the user can do something about."""
    error = _root(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _problem(url: str, response: requests.Response) -> TarLikeError:
    kind = _ERRORS.get(response.status_code)
    if response.headers.get("content-type", "").startswith(PROBLEM):
        try:
            document = response.json()
            slug, detail = str(document.get("title", "")), str(document["detail"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return _not_a_receiver(url)
        if slug == "http":
            return _not_a_receiver(url)
        if slug == BlockInvalid.slug:
            return BlockInvalid(detail)
        if kind is not None:
            return kind(detail)
        retry = slug == ReceiverFailed.slug or response.status_code in (502, 504)
        return ReceiverFailed(detail) if retry else TarLikeError(detail)
    if kind in (Unauthorized, Forbidden):
        return kind(f"What answers at {url} wants other credentials: see TARLIKE_TOKEN.")
    if response.status_code in (502, 503, 504):
        return Busy(f"Something in front of {url} answers {response.status_code}.")
    return _not_a_receiver(url)


def _not_a_receiver(url: str) -> TarLikeError:
    return TarLikeError(f"What answers at {url} is no receiver of tar-like: check the URL.")
