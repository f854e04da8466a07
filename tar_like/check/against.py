"""What differs between a folder and a bucket.

    both trees walked in step > missing, type, size > MD5 of the file against the ETag

Not guaranteed: an ETag is the MD5 of an object, or of its parts' MD5s, only where the store says so
(not with encryption by its own keys, say). Objects whose ETag tells nothing are compared by size,
and named as ``unverified``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from tar_like.check.compare import CheckOptions, Difference
from tar_like.codec import REASONS
from tar_like.layout import DIRECTORY, FILE, Piece, sort_key
from tar_like.source import Found, Skipped, Source, Wanted
from tar_like.source.fetch import token_of
from tar_like.source.hashing import Hashed, hash_files

_WHOLE = re.compile("[0-9a-f]{32}")
_PARTS = re.compile("[0-9a-f]{32}-([0-9]{1,5})")
_NAMES = {FILE: "file", DIRECTORY: "directory"}
STEP = 4 << 20


class Remote(Source, Protocol):
    """A source whose tokens hold ETags."""

    def part_size(self, path: bytes, token: bytes) -> int | None:
        """Bytes in the first part of an object that the ETag is made of; None if unknown."""


@dataclass(frozen=True, slots=True)
class Compared:
    """An entry that is as the bucket says, as far as can be told."""

    path: bytes
    verified: bool
    """False where nothing but the size could be compared."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A path in either tree, or in one of them."""

    path: bytes
    remote: Found | Skipped | None
    local: Found | Skipped | None


def check_against(
    remote: Remote, local: Source, options: CheckOptions
) -> Iterator[Difference | Compared]:
    """Differences in canonical order, and what could be compared."""
    pairs = _in_step(remote.scan(Wanted()), local.scan(Wanted()))
    for pair, hashed in hash_files(local, "md5", pairs, _to_hash, jobs=options.jobs):
        if pair.remote is None:
            if options.extra:
                yield Difference(pair.path, "extra", "")
            continue
        difference = _difference(pair)
        if difference is not None:
            yield difference
            continue
        verdict = _same_bytes(remote, local, pair, hashed)
        if verdict is False:
            yield Difference(pair.path, "content", "its ETag is of other bytes")
        else:
            yield Compared(pair.path, verdict is True)


def _in_step(
    remote: Iterator[Found | Skipped], local: Iterator[Found | Skipped]
) -> Iterator[_Pair]:
    mine, theirs = next(local, None), next(remote, None)
    while mine is not None or theirs is not None:
        ours = None if mine is None else sort_key(mine.path)
        other = None if theirs is None else sort_key(theirs.path)
        if isinstance(theirs, Skipped) or ours is None or (other is not None and other < ours):
            assert theirs is not None
            yield _Pair(theirs.path, theirs, None)
            theirs = next(remote, None)
        elif other is None or ours < other:
            assert mine is not None
            yield _Pair(mine.path, None, mine)
            mine = next(local, None)
        else:
            assert mine is not None and theirs is not None
            yield _Pair(mine.path, theirs, mine)
            mine, theirs = next(local, None), next(remote, None)


def _difference(pair: _Pair) -> Difference | None:
    """What differs without a look at the bytes."""
    theirs, mine = pair.remote, pair.local
    if isinstance(theirs, Skipped):
        return Difference(pair.path, "unreadable", theirs.detail)
    assert theirs is not None
    if mine is None:
        return Difference(pair.path, "missing", _NAMES[theirs.kind])
    if isinstance(mine, Skipped) or mine.kind != theirs.kind:
        return Difference(pair.path, "type", f"is no {_NAMES[theirs.kind]}")
    if mine.size != theirs.size:
        return Difference(pair.path, "size", f"{mine.size} instead of {theirs.size} bytes")
    return None


def _to_hash(pair: _Pair) -> Piece | None:
    """The file, where the ETag looks like the MD5 of the whole."""
    if not isinstance(pair.remote, Found) or _difference(pair) is not None:
        return None
    if pair.remote.kind != FILE or not _WHOLE.fullmatch(token_of(pair.remote.token).etag):
        return None
    return _piece(pair)


def _piece(pair: _Pair) -> Piece:
    assert isinstance(pair.local, Found)
    return Piece(0, pair.path, 0, pair.local.size, pair.local.size, pair.local.mtime, b"")


def _same_bytes(remote: Remote, local: Source, pair: _Pair, hashed: Hashed | None) -> bool | None:
    """Whether the bytes are the same; None where that cannot be told."""
    assert isinstance(pair.remote, Found)
    if pair.remote.kind == DIRECTORY:
        return True
    etag = token_of(pair.remote.token).etag
    parts = _PARTS.fullmatch(etag)
    if hashed is None and parts is None:
        return None
    if hashed is not None and hashed.digest.hex() == etag:
        return True
    if hashed is not None and not hashed.digest:
        return None  # it could not be read
    size = remote.part_size(pair.path, pair.remote.token)
    if not size:
        return None
    if parts is None:
        return False
    if -(-pair.remote.size // size) != int(parts[1]):
        return None  # its parts are not all of this size
    return _etag(local, _piece(pair), size) == etag


def _etag(local: Source, piece: Piece, part_size: int) -> str:
    """The ETag that an upload of the file in such parts would have, or why it cannot be read."""
    buffer = memoryview(bytearray(min(STEP, part_size)))
    digests = []
    for start in range(0, piece.size, part_size):
        stop = min(start + part_size, piece.size)
        hasher = hashlib.md5(usedforsecurity=False)
        for step in range(start, stop, len(buffer)):
            part = piece._replace(start=step, stop=min(step + len(buffer), stop))
            reading = local.read([part], buffer)
            if reading.omissions:
                return REASONS[reading.omissions[0].reason]
            hasher.update(buffer[: reading.length])
        digests.append(hasher.digest())
    whole = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
    return f"{whole}-{len(digests)}"
