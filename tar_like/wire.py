"""What sender and receiver agree on: names of headers, states, and the shape of answers.

The protocol itself is written down in docs/protocol.md.
"""

from __future__ import annotations

import base64
import builtins
import json
import os
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import lz4.frame

from tar_like.errors import BlockInvalid, IndexInvalid, TooLarge

ROOT = "/tar"
DIGEST_HEADER = "repr-digest"
PLAN_HEADER = "tar-like-plan"
DIGEST_NAME = "blake3-pieces"
PROBLEM = "application/problem+json"
BITMAP = "application/octet-stream"

LOOKING = "looking"
"""Not of a transfer: whether there has to be one is being found out."""
OPEN = "open"
RECEIVING = "receiving"
COMMITTING = "committing"
COMPLETE = "complete"
STATES = (OPEN, RECEIVING, COMMITTING, COMPLETE)

_CHUNK = 1 << 20
_PIECE = 64 << 10
"""Bytes of a file that are deflated at a time: so much waits for who does not read it."""


class Failure(NamedTuple):
    """An entry that did not arrive, and why."""

    path: str
    """Printable (errors.shown)."""
    reason: str
    source: bool
    """Whether the source is at fault (exit code 3) rather than the receiver (1)."""


class Look(NamedTuple):
    """A look at a destination that has begun."""

    token: str
    """Names it."""
    tree: str
    """The id of the one that was committed last; empty when there is no use in looking."""
    newest: int | None = None
    """The last mtime in that tree, in ns; None where it is not known."""
    changed: int | None = None
    """The last ctime that its sender has seen of it, in ns; None where it is not known."""

    def to_json(self) -> builtins.bytes:
        values = self._asdict()
        return json.dumps({"index": values.pop("tree"), **values}).encode()

    @classmethod
    def from_json(cls, text: builtins.bytes | str) -> Look:
        """Raises ValueError or TypeError for what is none."""
        values = _object(text)
        times = values.get("newest"), values.get("changed")
        if any(type(one) not in (int, type(None)) for one in times):
            raise TypeError("A time is a whole number of nanoseconds.")
        return cls(
            token=_of_kind(values.get("token"), str),
            tree=_of_kind(values.get("index"), str),
            newest=values.get("newest"),
            changed=values.get("changed"),
        )


SEGMENT = struct.Struct("<Iqq")
"""In a patch: the position of a file in its leaf, and a range of it that holds data."""
REVISED = struct.Struct("<III")
"""The start of a leaf that is given as another one with some names revised: the number of that one
in the base, how many names, how many segments."""
REVISION = struct.Struct("<HIqqIIqq")
"""What each of them is now: its position; mode, size, mtime, uid, gid; ctime, inode."""
MOST_PATCHED = 100_000
"""Names that a patch may have, and what is gone by it besides: they are held in memory."""
MOST_TOLD = 2000
"""Digests that a sender may tell unasked."""
_TOLD = 32
"""Bytes of such a digest."""


class PatchHead(NamedTuple):
    """The start of a patch: what of a tree is in another one."""

    base: str
    """The id of that other tree, which was committed last."""
    look: str
    """The token of the look that saw that it is in its place."""
    source: str
    """Where the tree lies, as text."""
    order: tuple[tuple[int, int] | int, ...]
    """The tree's leaves in order: ``[first, stop)`` of the base's, or so many that follow here."""
    plan: dict[str, Any] = {}  # noqa: RUF012 nobody changes it
    """What the plan will be asked for by: a receiver may begin to make it."""

    def to_json(self) -> builtins.bytes:
        return json.dumps(self._asdict()).encode()

    @classmethod
    def from_json(cls, text: builtins.bytes | str) -> PatchHead:
        """Raises ValueError or TypeError for what is none."""
        values = _object(text)
        return cls(
            base=_of_kind(values.get("base"), str),
            look=_of_kind(values.get("look"), str),
            source=_of_kind(values.get("source"), str),
            order=tuple(map(_step, _of_kind(values.get("order"), list))),
            plan=_of_kind(values.get("plan", {}), dict),
        )


def _step(value: Any) -> tuple[int, int] | int:
    """Raises TypeError, ValueError."""
    if type(value) is int:
        if not 0 < value < 1 << 32:
            raise ValueError("So many leaves there cannot be.")
        return value
    first, stop = (_of_kind(one, int) for one in _of_kind(value, list))
    if not 0 <= first < stop < 1 << 32:
        raise ValueError("So many leaves there cannot be.")
    return first, stop


class Status(NamedTuple):
    """A transfer as the receiver sees it."""

    id: str
    state: str
    block_size: int = 0
    blocks: int = 0
    received: int = 0
    durable: int = 0
    bytes: int = 0
    files: int = 0
    entries: int = 0
    committed: int = 0
    """Entries that are in their place; meaningful while committing and when complete."""
    revoked: int = 0
    """Blocks whose staged bytes failed verification in the last commit: they are missing again."""
    rules: dict[str, Any] = {}  # noqa: RUF012 nobody changes it
    """The rules it is transferred by (rules.Rules)."""
    passed: int = 0
    """Entries that the rules leave as they are at the destination; when ``complete``."""
    deleted: int = 0
    """Names that were removed because the index does not list them."""
    held: str = ""
    """Why nothing was deleted although the rules say so."""
    again: int = 0
    """Failures that the same run once more is to mend; when ``complete``."""
    questions: int = 0
    """How many questions the receiver has before it makes the plan; while ``open``."""
    failures: tuple[Failure, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "failures": [one._asdict() for one in self.failures]}

    def to_json(self) -> builtins.bytes:
        return json.dumps(self.to_dict()).encode()

    @classmethod
    def from_json(cls, text: builtins.bytes | str) -> Status:
        """Raises ValueError or TypeError for what is no status."""
        values = _object(text)
        failures = tuple(map(_failure, _of_kind(values.pop("failures", []), list)))
        names = values.keys() & set(cls._fields)
        default = cls._field_defaults  # of the kind that the field is; those without are texts
        known = {one: _of_kind(values[one], type(default.get(one, ""))) for one in names}
        return cls(**known, failures=failures)


def _object(text: bytes | str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = _of_kind(json.loads(text), dict)
    except RecursionError:
        raise ValueError("It is nested too deep.") from None
    return found


def _of_kind(value: Any, kind: type[Any]) -> Any:
    """The value itself, if it is just of this kind. Raises TypeError."""
    if type(value) is not kind:
        raise TypeError(f"{value!r:.40} is no {kind.__name__}.")
    return value


def _failure(values: Any) -> Failure:
    """Raises TypeError."""
    found = Failure(**_of_kind(values, dict))
    for value, kind in ((found.path, str), (found.reason, str), (found.source, bool)):
        _of_kind(value, kind)
    return found


class Told(NamedTuple):
    """Digests that a sender tells unasked, by ``digest.DEFAULT``."""

    digests: Mapping[int, builtins.bytes]
    """By entry."""

    def to_json(self) -> dict[str, Any]:
        return {
            "entries": [*self.digests],
            "digests": b"".join(self.digests.values()).hex(),
        }

    @classmethod
    def from_json(cls, values: Any) -> Told:
        """Raises ValueError or TypeError for what is none."""
        values = _of_kind(values, dict)
        entries = [_of_kind(one, int) for one in _of_kind(values.get("entries"), list)]
        data = builtins.bytes.fromhex(_of_kind(values.get("digests"), str))
        if len(entries) > MOST_TOLD or len(data) != _TOLD * len(entries):
            raise ValueError("There cannot be so many digests.")
        ends = range(0, len(data), _TOLD)
        return cls(digests=dict(zip(entries, (data[at : at + _TOLD] for at in ends), strict=True)))


def digest_header(digest: bytes) -> str:
    """A digest as a structured field (RFC 9530)."""
    return f"{DIGEST_NAME}=:{base64.b64encode(digest).decode()}:"


def parse_digest(text: str) -> bytes:
    """The digest in a field's value. Raises BlockInvalid."""
    name, _, value = text.partition("=")
    if name != DIGEST_NAME or len(value) < 2 or value[0] != ":" or value[-1] != ":":
        raise BlockInvalid(f"The block needs a {DIGEST_HEADER} header with {DIGEST_NAME}.")
    try:
        digest = base64.b64decode(value[1:-1], validate=True)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise BlockInvalid(f"The {DIGEST_HEADER} header does not hold 32 bytes.")
    return digest


def deflate_file(path: str) -> Iterator[bytes]:
    """A file as one LZ4 frame, piece by piece."""
    # Flushed at once: a compressor that may wait has buffers of three blocks.
    with (
        open(path, "rb") as file,
        lz4.frame.LZ4FrameCompressor(content_checksum=True, auto_flush=True) as deflater,
    ):
        yield deflater.begin(os.fstat(file.fileno()).st_size)
        yield from map(deflater.compress, iter(lambda: file.read(_PIECE), b""))
        yield deflater.flush()


class Inflater:
    """One LZ4 frame, arriving in pieces, written to a file; bounded."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file = file
        self._room = limit
        self._inflater = lz4.frame.LZ4FrameDecompressor()

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises IndexInvalid or TooLarge; OSError from the file."""
        pending = data
        while pending or not self._inflater.needs_input:
            if self._inflater.eof:
                raise IndexInvalid("There are bytes after the end of the LZ4 frame.")
            try:
                raw = self._inflater.decompress(pending, max_length=_CHUNK)
            except (RuntimeError, EOFError, ValueError) as error:
                raise IndexInvalid(f"The body is no valid LZ4 frame ({error}).") from None
            pending = b""
            self._room -= len(raw)
            if self._room < 0:
                raise TooLarge("The LZ4 frame holds more than is allowed.")
            self._file.write(raw)
            if self._inflater.eof:
                break
        if self._inflater.eof and self._inflater.unused_data:
            raise IndexInvalid("There are bytes after the end of the LZ4 frame.")

    def finish(self) -> None:
        """Raises IndexInvalid when the frame did not end."""
        if not self._inflater.eof:
            raise IndexInvalid("The LZ4 frame is cut short.")


def bitmap(numbers: Iterator[int], count: int) -> bytes:
    """Numbers in ``[0, count)`` as bits, least significant first."""
    bits = bytearray((count + 7) // 8)
    for number in numbers:
        bits[number >> 3] |= 1 << (number & 7)
    return bytes(bits)


def bits_missing(bits: bytes, count: int) -> Iterator[int]:
    """The numbers in ``[0, count)`` whose bit is not set, ascending."""
    for index, byte in enumerate(bits):
        if byte == 0xFF:
            continue
        for bit in range(8):
            number = index * 8 + bit
            if number < count and not byte >> bit & 1:
                yield number
