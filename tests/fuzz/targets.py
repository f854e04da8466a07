"""What a hostile sender's bytes go into first: nothing but our own errors may come out.

``index``: the first byte says how the rest is used: as the file itself; as bytes put into a good
index; as values put into the rows of one, with its id made right again. What is taken for valid
must also be usable.
``block``: the shape of a block, and its body.
"""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tar_like import codec, digest
from tar_like.errors import BlockInvalid, IndexInvalid, TarLikeError, TooLarge
from tar_like.index import Index, validate
from tar_like.layout import FILE
from tar_like.plan import Plan, build_plan
from tar_like.wire import Inflater, parse_digest
from tests.unit import indexes

Target = Callable[[bytes], None]

COLUMNS = (
    "id", "path", "kind", "size", "offset", "mode", "mtime", "uid", "gid", "target", "link",
    "hash", "ctime", "ino", "token",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 511, 4095, 4096, 4097, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
    (1 << 62) - 1, 1 << 62, (1 << 63) - 1, -(1 << 63), -(1 << 31),
)  # fmt: skip
TEXTS = (
    b"", b".", b"..", b"/", b"a/", b"/a", b"a//b", b"a/../b", b"../x", b"\0", b"a\0b", b"\xff",
    b".tar_like", b".tar_like/x", 256 * b"n", 4096 * b"t", b"a" + 40 * b"/a", b"\x1b[2J", b"\n",
)  # fmt: skip


class IndexTarget:
    """Validation of an index, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._good = folder / "good.db"
        self._try = folder / "try.db"
        entries = [
            indexes.root(), indexes.file(b"a", 5000), indexes.folder(b"b"),
            indexes.file(b"b/c", 100), indexes.file(b"b/d"), indexes.symlink(b"b/e"),
            indexes.hardlink(b"b/f", 1), indexes.file(b"g", 1 << 20),
        ]  # fmt: skip
        segments = [(7, 0, 4096), (7, 8192, 1 << 20)]
        indexes.write(self._good, entries, segments=segments, xattrs=[(1, b"user.x", b"value")])
        self._bytes = self._good.read_bytes()
        self.accepted = 0

    def __call__(self, data: bytes) -> None:
        way, data = data[:1], data[1:]
        if way < b"\x40":
            self._try.write_bytes(data)
        elif way < b"\x80":
            self._try.write_bytes(self._spoilt(data))
        else:
            self._edited(data)
        with suppress(IndexInvalid):
            validate(str(self._try), self._id())
            self._use()
            self.accepted += 1

    def _spoilt(self, data: bytes) -> bytes:
        """The good file with bytes put into it: (position, length, the bytes)*."""
        raw = bytearray(self._bytes)
        while len(data) > 3:
            start = int.from_bytes(data[:3], "big") % len(raw)
            length = 1 + data[3] % 16
            raw[start : start + length] = data[4 : 4 + length]
            data = data[4 + length :]
        return bytes(raw)

    def _edited(self, data: bytes) -> None:
        shutil.copyfile(self._good, self._try)
        with indexes.edit(self._try) as db:
            while len(data) > 3:
                column, row, kind, rest = COLUMNS[data[0] % 15], data[1] % 9, data[2], data[3:]
                value, data = _value(kind, rest)
                with suppress(sqlite3.Error):  # a NOT NULL, or an id twice
                    db.execute(f"UPDATE entry SET {column} = ? WHERE id = ?", (value, row))
                if kind & 32:
                    with suppress(sqlite3.Error):
                        row_of = (row, data[:1] and data[0] * 4096, value)
                        db.execute("INSERT OR REPLACE INTO segment VALUES (?, ?, ?)", row_of)
        with suppress(sqlite3.Error, UnicodeEncodeError):
            indexes.seal(self._try)

    def _id(self) -> str:
        """The id that the index itself names, as a sender would offer it."""
        try:
            with Index(str(self._try)) as index:
                found = index.id
        except IndexInvalid:
            return "0" * 64
        return found if isinstance(found, str) else "0" * 64

    def _use(self) -> None:
        """Make a plan of it and look at its blocks, as a receiver does."""
        plan_path = self._folder / "plan.db"
        plan_path.unlink(missing_ok=True)
        with Index(str(self._try)) as index:
            build_plan(index, index.of_kind(FILE), str(plan_path), 4096)
        plan = Plan(str(plan_path), str(self._try))
        try:
            for number in {0, plan.block_count // 2, plan.block_count - 1}:
                if 0 <= number < plan.block_count:
                    assert plan.extents(number), "a block without pieces"
        finally:
            plan.close()


def _value(kind: int, data: bytes) -> tuple[object, bytes]:
    """A value for a column, and the bytes that are left."""
    if kind & 3 == 0:
        return NUMBERS[kind >> 3 & 15], data
    if kind & 3 == 1:
        return TEXTS[kind >> 2 & 15], data
    if kind & 3 == 2:
        return int.from_bytes(data[:8], "big", signed=True), data[8:]
    length = data[0] if data else 0
    raw = data[1 : 1 + length]
    return (raw.decode("latin-1") if kind & 4 else raw), data[1 + length :]


def block(data: bytes) -> None:
    """Decode a body, inflate a frame, read a digest's header."""
    count = data[0] % 8 if data else 0
    lengths = [int.from_bytes(data[1 + 2 * n : 3 + 2 * n], "big") for n in range(count)]
    body = data[1 + 2 * count :]
    with suppress(BlockInvalid):
        found = codec.decode(memoryview(body), lengths)
        omitted = {omission.piece for omission in found.omissions}
        present = [length for number, length in enumerate(lengths) if number not in omitted]
        assert len(found.raw) == sum(present)
        digest.of_block([digest.of_piece(found.raw)])
    with suppress(IndexInvalid, TooLarge):
        file = io.BytesIO()
        inflater = Inflater(file, 1 << 16)
        for start in range(0, len(body), 7):
            inflater.feed(body[start : start + 7])
        inflater.finish()
        assert file.tell() <= 1 << 16
    with suppress(TarLikeError):
        assert len(parse_digest(body.decode("latin-1"))) == 32


@contextmanager
def targets() -> Iterator[dict[str, Target]]:
    """The targets by name."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="tar-like-fuzz-", dir=shm) as folder:
        yield {"index": IndexTarget(Path(folder)), "block": block}


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with."""
    if name == "index":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index.db"
            indexes.write(path, [indexes.root(), indexes.file(b"a", 10)])
            raw = path.read_bytes()
        edits = [bytes([200, *pair, 9, 1, 1, 1]) for pair in ((1, 2), (3, 1), (9, 5), (10, 6))]
        greedy = bytes.fromhex(
            "4100 0c09" + 15 * "ff" + "3f" + 23 * "ff" + "01 0004 10 ff df ff ff"
        )
        return [b"\x00" + raw, b"\x41\x00\x00\x10\x04\xff\xff\xff\xff", greedy, *edits]
    shape = bytes([2, 0, 100, 0, 5])
    good = [
        b"".join(bytes(part) for part in codec.encode(raw, omissions, compress=compress))
        for compress in (False, True)
        for raw, omissions in ((bytes(105), []), (bytes(5), [codec.Omission(0, codec.CHANGED)]))
    ]
    header = b"\x00blake3-pieces=:" + 43 * b"A" + b"=:"
    return [shape + one for one in good] + [header]
