"""Pieces of objects into a buffer.

    pieces > parts of at most 4 MiB > many at a time: ranged GET of the very version > compact

A part that breaks off goes on where it broke, or a little before. Nothing is padded: what cannot be
had in full takes no room and is named, with a reason.
"""

from __future__ import annotations

import http.client
import re
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from tar_like.codec import CHANGED, UNREADABLE, VANISHED, Omission
from tar_like.errors import SourceUnusable, TarLikeError
from tar_like.layout import Piece
from tar_like.source.bucket import Bucket, NoConnection, Refused, Response
from tar_like.source.contract import Reading
from tar_like.source.retry import BROKEN, SERVER, Passing, retried

PART = 4 << 20
PINS = 4096
GAIN = 64 << 10
"""So many bytes of a part are worth counting its attempts anew."""
STRETCH = 512 << 10
"""Bytes of a part that count as had, should it break off after them."""
GATHER = 256 << 10
"""Bytes to wait for before they are read."""
SLOW = 1 << 20
"""Bytes a second. What comes slower is read as it comes: a wait for more could last too long."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Token(NamedTuple):
    """What a version of an object is known by; an index keeps it."""

    etag: str
    version: str

    def packed(self) -> bytes:
        """As ``layout.Entry.token``."""
        return f"{self.etag} {self.version}".rstrip().encode()


def token_of(packed: bytes) -> Token:
    """The token in an entry; an empty one, where the index was made of something else."""
    etag, _, version = packed.decode("utf-8", "replace").partition(" ")
    return Token(etag, version)


def bare(etag: str) -> str:
    """An ETag without its quotes, which not every store sends."""
    return etag.removeprefix("W/").strip('"')


class _Part:
    """A byte range of one object, on its way to its place in the buffer."""

    __slots__ = ("into", "key", "number", "piece", "start", "stop", "token")

    def __init__(
        self, number: int, piece: Piece, key: str, start: int, stop: int, into: memoryview
    ) -> None:
        self.number = number
        self.piece = piece
        self.key = key
        self.token = token_of(piece.token)
        self.start = start
        self.stop = stop
        self.into = into


class _Fetching(NamedTuple):
    """Pieces that threads are fetching."""

    pieces: tuple[Piece, ...]
    into: memoryview
    parts: deque[_Part]
    """Those that no thread has begun with."""
    reasons: dict[int, int]
    """Why pieces are omitted, by their number."""
    running: list[Future[None]]

    def wait(self) -> None:
        """Until all is there. Raises SourceUnusable."""
        failures = [failure for one in self.running if (failure := one.exception()) is not None]
        if failures:
            raise failures[0]

    def drop(self) -> None:
        """Let what has begun end, and begin with no more."""
        self.parts.clear()
        wait(self.running)


class Fetcher:
    """Reads pieces of one bucket. One a process; called by one thread."""

    def __init__(self, bucket: Bucket, prefix: str, connections: int) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._connections = connections
        self._threads: ThreadPoolExecutor | None = None
        self._pins: dict[bytes, str] = {}
        self._coming: list[_Fetching] = []
        """What was begun ahead, each in a buffer of its own."""

    def read(self, pieces: Sequence[Piece], into: memoryview) -> Reading:
        """See Source.read."""
        fetching = self._begun(into)
        if fetching is None or fetching.pieces != tuple(pieces):
            self._drop(fetching)
            fetching = self._begin(pieces, into)
        fetching.wait()
        return _compacted(pieces, into, fetching.reasons)

    def ahead(self, pieces: Sequence[Piece], into: memoryview) -> None:
        """See ReadsAhead.ahead."""
        fetching = self._begun(into)
        if fetching is None or fetching.pieces != tuple(pieces):
            self._drop(fetching)
            fetching = self._begin(pieces, into)
        self._coming.append(fetching)

    def _begun(self, into: memoryview) -> _Fetching | None:
        """What is on its way into a buffer, which it no more is counted among."""
        for number, one in enumerate(self._coming):
            if one.into.obj is into.obj:
                return self._coming.pop(number)
        return None

    @staticmethod
    def _drop(fetching: _Fetching | None) -> None:
        if fetching is not None:
            fetching.drop()

    def close(self) -> None:
        """End the threads."""
        while self._coming:
            self._coming.pop().drop()
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    def _parts(
        self, pieces: Sequence[Piece], into: memoryview, reasons: dict[int, int]
    ) -> list[_Part]:
        parts = []
        position = 0
        for number, piece in enumerate(pieces):
            length = piece.stop - piece.start
            try:
                key = self._prefix + piece.path.decode()
            except UnicodeDecodeError:  # no key is like that
                reasons[number] = VANISHED
            else:
                for shift in range(0, max(length, 1), PART):
                    start = piece.start + shift
                    stop = min(start + PART, piece.stop)
                    view = into[position + shift : position + stop - piece.start]
                    parts.append(_Part(number, piece, key, start, stop, view))
            position += length
        return parts

    def _begin(self, pieces: Sequence[Piece], into: memoryview) -> _Fetching:
        """Have the pieces fetched by the threads."""
        reasons: dict[int, int] = {}
        parts = deque(self._parts(pieces, into, reasons))
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._connections, "fetch")
        count = min(len(parts), self._connections)
        running = [self._threads.submit(self._drain, parts, reasons) for _ in range(count)]
        return _Fetching(tuple(pieces), into, parts, reasons, running)

    def _drain(self, parts: deque[_Part], reasons: dict[int, int]) -> None:
        """Fetch until no part is left. Runs in several threads."""
        while parts:
            try:
                part = parts.popleft()
            except IndexError:
                return
            if part.number in reasons:
                continue
            try:
                self._fetch(part)
            except Refused as refusal:
                reasons[part.number] = refusal.reason
            except NoConnection as failure:
                parts.clear()
                raise SourceUnusable(str(failure)) from None
            except Passing:
                reasons[part.number] = UNREADABLE
            except TarLikeError:
                parts.clear()
                raise

    def _fetch(self, part: _Part) -> None:
        """Raises Refused, Passing or SourceUnusable."""
        if part.start == part.stop:
            retried(lambda: self._look(part))
        else:
            retried(lambda: self._get(part))

    def _look(self, part: _Part) -> None:
        """Nothing is to be read, but the object must be what the index says."""
        query, headers = self._condition(part)
        with self._bucket.ask("HEAD", part.key, query=query, headers=headers) as response:
            self._check_version(part, response)
            if response.getheader("content-length") != str(part.piece.size):
                raise _changed()
            response.read()

    def _get(self, part: _Part) -> None:
        """Read, and move the part's start on by what has arrived."""
        query, headers = self._condition(part)
        headers["range"] = f"bytes={part.start}-{part.stop - 1}"
        before = part.start
        with self._bucket.ask("GET", part.key, query=query, headers=headers) as response:
            self._check_version(part, response)
            _check_range(part, response)
            try:
                _take(part, response)
                if not response.isclosed() and not part.into and response.read(1):
                    raise Passing(BROKEN, "The answer is longer than it says.")
            except (OSError, http.client.HTTPException):
                pass  # what has arrived is good; the rest is asked for again
            if part.into:
                gained = part.start - before >= GAIN
                raise Passing(BROKEN, "The answer broke off.", progress=gained)

    def _condition(self, part: _Part) -> tuple[list[tuple[str, str]], dict[str, str]]:
        """What makes the store give this version or none: query and headers."""
        etag = part.token.etag or self._pins.get(part.piece.path, "")
        version = part.token.version
        return (
            [("versionId", version)] if version else [],
            {"if-match": f'"{etag}"'} if etag else {},
        )

    def _check_version(self, part: _Part, response: http.client.HTTPResponse) -> None:
        """Not every store heeds If-Match."""
        found = bare(response.getheader("etag") or "")
        piece = part.piece
        wanted = part.token.etag or self._pins.get(piece.path, "")
        if wanted and found and found != wanted:
            raise _changed()
        if found and not wanted and piece.size > PART:
            # The index knows no ETag: at least all parts shall be of one version.
            while len(self._pins) >= PINS:
                self._pins.pop(next(iter(self._pins)), None)
            if self._pins.setdefault(piece.path, found) != found:
                raise _changed()


def _take(part: _Part, response: Response) -> None:
    """Read a body to its end, or to the part's; in few large reads as long as it comes fast."""
    fast = False
    while part.into:
        gather = fast and len(part.into) > STRETCH + 2 * GATHER
        response.gather(GATHER if gather else 1)
        began = time.monotonic()
        got = response.readinto(part.into[:STRETCH] if gather or not fast else part.into)
        if not got:
            return
        part.start += got
        part.into = part.into[got:]
        fast = (time.monotonic() - began) * SLOW < got


def _changed() -> Refused:
    refusal = Refused(412, "")
    refusal.reason = CHANGED
    return refusal


def _check_range(part: _Part, response: http.client.HTTPResponse) -> None:
    """That the answer is the range that was asked for, of an object of the right size."""
    length = response.getheader("content-length")
    if response.status == 206:
        found = _RANGE.fullmatch(response.getheader("content-range") or "")
        if found is None:
            raise Passing(SERVER, "The store does not say which range it sends.")
        start, last, size = map(int, found.groups())
    else:
        start, size = 0, int(length or -1)
        last = size - 1
    if size != part.piece.size:
        raise _changed()
    if (start, last + 1) != (part.start, part.stop):
        raise Passing(SERVER, "The store sends another range than was asked for.")
    if length is not None and length != str(part.stop - part.start):
        raise Passing(BROKEN, "The answer has a wrong length.")


def _compacted(pieces: Sequence[Piece], into: memoryview, reasons: dict[int, int]) -> Reading:
    """Close the gaps that omitted pieces leave."""
    if not reasons:
        return Reading(sum(piece.stop - piece.start for piece in pieces), [])
    position = filled = 0
    for number, piece in enumerate(pieces):
        length = piece.stop - piece.start
        if number not in reasons:
            if position != filled:
                into[filled : filled + length] = into[position : position + length]
            filled += length
        position += length
    return Reading(filled, [Omission(*item) for item in sorted(reasons.items())])
