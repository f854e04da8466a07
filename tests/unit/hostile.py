"""Hostile offers and requests by the hundred, each with a name."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from tar_like.index import schema
from tar_like.layout import Entry
from tests.unit import indexes
from tests.unit.indexes import file, folder, hardlink, root, symlink

Made = tuple[str, bytes, str]
"""Name, the index file's bytes, the id it is offered under."""
Request = tuple[str, bytes]

NUMBERS = (-1, -(1 << 63), 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1)


def good(path: Path) -> str:
    """The index that the others are made from; it is accepted."""
    entries = [
        root(), file(b"a", 5000), folder(b"b"), file(b"b/c", 100), file(b"b/d"),
        symlink(b"b/e"), hardlink(b"b/f", 1), file(b"g", 3 << 20),
    ]  # fmt: skip
    segments, xattrs = [(7, 0, 4096), (7, 8192, 3 << 20)], [(1, b"user.x", b"value")]
    return indexes.write(path, entries, segments=segments, xattrs=xattrs)


def offers(work: Path) -> Iterator[Made]:
    """Every hostile index."""
    path = work / "hostile.db"
    first = good(path)
    raw = path.read_bytes()

    def made(name: str, change: Callable[[sqlite3.Connection], None], *, seal: bool = True) -> Made:
        path.write_bytes(raw)
        found = first
        with indexes.edit(path) as db:
            change(db)
        if seal:
            with contextlib.suppress(TypeError):  # there is no algorithm to do it by
                found = indexes.seal(path)
        return name, path.read_bytes(), found

    for name, sql in values():
        yield made(name, lambda db, sql=sql: _run(db, *sql))  # type: ignore[misc]
    for name, statement in schemas():
        yield made(name, lambda db, statement=statement: _script(db, statement), seal=False)  # type: ignore[misc]
    for name, entries in trees():
        path.unlink(missing_ok=True)
        found = indexes.write(path, entries)
        yield name, path.read_bytes(), found
    for name, damaged in files(raw):
        yield name, damaged, first


def _run(db: sqlite3.Connection, sql: str, *values: object) -> None:
    db.execute(sql, values)


def _script(db: sqlite3.Connection, statement: str) -> None:
    db.execute("PRAGMA writable_schema=ON")
    db.executescript(statement)


def values() -> Iterator[tuple[str, tuple[object, ...]]]:
    """Values that no row may have."""
    for column in ("id", "size", "offset", "mode", "uid", "gid", "link"):
        for number in NUMBERS:
            if column == "id" and number >= 0:
                continue
            fits = (column, number) in (("uid", 1 << 31), ("gid", 1 << 31), ("link", -1))
            if not fits:
                name = f"{column} {number}"
                yield name, (f"UPDATE entry SET {column} = ? WHERE id = 3", number)
    for column in schema.TABLES[1].split("(\n")[1].split("\n")[:-1]:
        name, kind = column.strip().split(" ")[:2]
        if name == "id":
            continue
        others = {"INTEGER": ("text", b"blob"), "BLOB": (5, "text"), "TEXT": (5, b"f")}[kind]
        for value in others:
            if (kind, value) != ("TEXT", 5):  # becomes a text by itself
                yield f"{name} is {value!r}", (f"UPDATE entry SET {name} = ? WHERE id = 3", value)
    for path in BAD_PATHS:
        yield f"path {path[:20]!r}", ("UPDATE entry SET path = ? WHERE id = 3", path)
    for kind in ("", "x", "ff", "F", "d", "l", "h", "\0", "p", "b", "c", "s", "\u00e9"):
        yield f"kind {kind!r}", ("UPDATE entry SET kind = ? WHERE id = 3", kind)
    for target in (b"", b"\0", b"a\0b", bytes(5000), b"x" * 4096):
        yield f"target {target[:9]!r}", ("UPDATE entry SET target = ? WHERE id = 5", target)
    for entry_id in (0, 1, 2, 4, 6):
        yield f"target of {entry_id}", ("UPDATE entry SET target = ? WHERE id = ?", b"x", entry_id)
    for link in (0, 2, 5 + 1, 6, 7, 99, -2):
        yield f"hard link to {link}", ("UPDATE entry SET link = ? WHERE id = 6", link)
    for entry_id in (0, 1, 2, 3, 5):
        yield f"link of {entry_id}", ("UPDATE entry SET link = 1 WHERE id = ?", entry_id)
    for hash_ in (b"x", bytes(31), bytes(33), bytes(64)):
        yield f"hash of {len(hash_)}", ("UPDATE entry SET hash = ? WHERE id = 3", hash_)
    for entry_id in (0, 2, 5, 6):
        yield f"size of {entry_id}", ("UPDATE entry SET size = 1 WHERE id = ?", entry_id)
        yield f"hash of {entry_id}", ("UPDATE entry SET hash = ? WHERE id = ?", bytes(32), entry_id)
    for row in SEGMENTS:
        yield f"segment {row}", ("INSERT OR REPLACE INTO segment VALUES (?, ?, ?)", *row)
    for xattr in XATTRS:
        name = f"xattr {str(xattr)[:40]}"
        yield name, ("INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", *xattr)
    for key in ("id", "hash", "entries", "bytes", "length"):
        yield f"no {key}", ("DELETE FROM meta WHERE key = ?", key)
    for algorithm in ("", "sha1", "BLAKE3", "md5", "sha512", "none "):
        yield f"algorithm {algorithm}", ("UPDATE meta SET value = ? WHERE key = 'hash'", algorithm)
    yield "no root", ("DELETE FROM entry WHERE id = 0",)
    for entry_id in range(1, 7):
        yield f"without {entry_id}", ("DELETE FROM entry WHERE id = ?", entry_id)
    yield "nothing", ("DELETE FROM entry",)


BAD_PATHS = (
    b"", b".", b"..", b"/", b"/etc/passwd", b"b/", b"b//c", b"b/.", b"b/..", b"b/../../x", b"../x",
    b"b/c\0", b"\0", b"b/\0", b"b/c/", b"./c", b"b/./c", b".tar_like", b".tar_like/ledger.db",
    b".tar_like/../x", b"b/" + 256 * b"n", 256 * b"n", b"b" + 200 * b"/x", b"nowhere/c", b"a/c",
    b"b/d/c", b"b/e/c", b"b/d", b"b/e", b"b", b"a", b"g", b"zz", b"B/c", b"\xff/\xff",
    b"b/../a", b"b/c/../d", b"//", b"///", b"b/c\0.txt",
)  # fmt: skip
SEGMENTS = (
    (99, 0, 4096), (-1, 0, 4096), (0, 0, 4096), (2, 0, 4096), (1, 1, 4096), (1, 0, 4095),
    (1, 0, 8192), (1, 4096, 4096), (1, 8192, 4096), (1, -4096, 4096), (1, 0, 1 << 62),
    (1, 0, -1), (1, -(1 << 63), 0), (7, 4096, 8192), (7, 0, 0), (7, 8192, 4 << 20),
    (7, 1 << 62, (1 << 63) - 1), (1, "text", 4096), (1, 0, "text"), (5, 0, 4096), (6, 0, 4096),
    (7, 2048, 3000), (3, 0, 101), (3, 0, 99), (4, 0, 4096), (7, 0, 12288), (7, 4096, 4097),
)  # fmt: skip
XATTRS = (
    (99, b"user.y", b""), (-1, b"user.y", b""), (1, b"", b""), (1, b"user", b""),
    (1, b"user.\0", b""), (1, b"u." + 254 * b"x", b""), (1, b"user.y", bytes(65537)),
    (1, "user.y", b""), (1, b"user.y", "text"), (1, b"user.y", 5), (1, 5, b""),
    ("x", b"user.y", b""),
)  # fmt: skip


def schemas() -> Iterator[tuple[str, str]]:
    """Another schema than ours."""
    tables = ("meta", "entry", "segment", "xattr", "skipped")
    for table in tables:
        for event in ("INSERT", "UPDATE", "DELETE"):
            yield (
                f"trigger on {event} of {table}",
                (f"CREATE TRIGGER t AFTER {event} ON {table} BEGIN SELECT 1; END"),
            )
        yield f"index on {table}", f"CREATE INDEX i ON {table} ({_FIRST[table]})"
        yield f"without {table}", f"DROP VIEW tar; DROP TABLE {table}"
        yield f"{table} renamed", f"DROP VIEW tar; ALTER TABLE {table} RENAME TO other"
        yield f"{table} has a column more", f"ALTER TABLE {table} ADD COLUMN more"
        yield (
            f"view in place of {table}",
            (
                f"DROP VIEW tar; DROP TABLE {table}; "
                f"CREATE VIEW {table} AS SELECT 1 AS {_FIRST[table]}"
            ),
        )
        yield (
            f"{table} in capitals",
            (
                f"UPDATE sqlite_schema SET sql = replace(sql, 'TABLE {table}', "
                f"'TABLE {table.upper()}') WHERE name = '{table}'"
            ),
        )
        yield (
            f"no type for {table}",
            (
                "UPDATE sqlite_schema SET sql = replace(sql, ' NOT NULL', '') "
                f"WHERE name = '{table}'"
            ),
        )
        yield (
            f"{table} at no page",
            (f"UPDATE sqlite_schema SET rootpage = 99999 WHERE name = '{table}'"),
        )
        yield (
            f"{table} at the first page",
            (f"UPDATE sqlite_schema SET rootpage = 1 WHERE name = '{table}'"),
        )
        yield f"{table} is no SQL", f"UPDATE sqlite_schema SET sql = 'x' WHERE name = '{table}'"
        yield f"{table} without SQL", f"UPDATE sqlite_schema SET sql = NULL WHERE name = '{table}'"
        yield (
            f"{table} by another name",
            (f"UPDATE sqlite_schema SET name = char(27) || '[2J' WHERE name = '{table}'"),
        )
    yield "a table more", "CREATE TABLE more (x)"
    yield "a view more", "CREATE VIEW more AS SELECT * FROM entry"
    yield "no view", "DROP VIEW tar"
    yield "another view", "DROP VIEW tar; CREATE VIEW tar AS SELECT load_extension('x')"
    yield "a virtual table", "CREATE VIRTUAL TABLE more USING fts5(x)"
    yield "statistics", "ANALYZE"
    yield "a sequence", "CREATE TABLE more (x INTEGER PRIMARY KEY AUTOINCREMENT)"
    yield "a generated column", "CREATE TABLE more (x, y AS (x + 1))"
    yield "a check", "CREATE TABLE more (x CHECK (x > randomblob(9)))"
    for number in (0, 1, 0x544C504C, 0x7FFFFFFF):
        yield f"application id {number}", f"PRAGMA application_id = {number}"
    for number in (0, 99, 1000, -1):
        yield f"version {number}", f"PRAGMA user_version = {number}"


_FIRST = {"meta": "key", "entry": "id", "segment": "entry_id", "xattr": "name", "skipped": "id"}


def trees() -> Iterator[tuple[str, list[Entry]]]:
    """Rows that are right one by one, and no tree together."""
    yield "root is a file", [file(b"", 1)]
    yield "root is a symlink", [symlink(b"")]
    yield "two roots", [root(), root()]
    yield "a name twice", [root(), file(b"a"), file(b"a")]
    yield "a folder twice", [root(), folder(b"a"), folder(b"a")]
    yield "file and folder of one name", [root(), file(b"a"), folder(b"a")]
    yield "below a file", [root(), file(b"a"), file(b"a/b")]
    yield "below a symlink", [root(), symlink(b"a", b"/etc"), file(b"a/passwd")]
    yield "below a hard link", [root(), file(b"a"), hardlink(b"b", 1), file(b"b/c")]
    yield "backwards", [root(), file(b"b"), file(b"a")]
    yield "parent after child", [root(), file(b"a/b"), folder(b"a")]
    yield "a cousin between", [root(), folder(b"a"), file(b"b"), file(b"a/c")]
    yield "dots sort before", [root(), folder(b"a"), file(b"a.b"), file(b"a/b")]
    yield "link to a folder", [root(), folder(b"a"), hardlink(b"b", 1)]
    yield "link to a link", [root(), file(b"a"), hardlink(b"b", 1), hardlink(b"c", 2)]
    yield "link to the root", [root(), hardlink(b"a", 0)]
    yield "link to itself", [root(), hardlink(b"a", 1)]
    yield "offsets overlap", [root(), file(b"a", 5000), file(b"b", 5000)._replace(offset=4096)]
    yield "offset within a page", [root(), file(b"a", 5000)._replace(offset=100)]
    yield "offset negative", [root(), file(b"a", 5000)._replace(offset=-4096)]
    yield "a gap", [root(), file(b"a", 5000)._replace(offset=1 << 30)]
    yield "too much together", [root(), *(file(b"%03d" % n, (1 << 61) - 1) for n in range(3))]
    yield "2^62 bytes", [root(), file(b"a", 1 << 62)]
    yield "ids from 1", [root()._replace(id=1), file(b"a")._replace(id=2)]
    yield "ids with a gap", [root(), file(b"a")._replace(id=7)]
    yield "ids negative", [root()._replace(id=-3), file(b"a")._replace(id=-2)]
    yield "mode of a folder", [root()._replace(mode=0o40755)]


def files(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Files that are no SQLite file of ours, or a damaged one."""
    yield "empty", b""
    yield "text", b"no database at all\n" * 400
    yield "header alone", raw[:100]
    yield "zeros", bytes(len(raw))
    yield "an ELF", b"\x7fELF" + bytes(8192)
    yield "twice", raw[:16] + raw
    for place, what in (
        (0, "magic"), (16, "page size"), (18, "write version"), (19, "read version"),
        (20, "reserved"), (21, "payload"), (44, "schema format"), (56, "encoding"),
        (59, "encoding"), (68, "application"), (100, "page type"), (103, "cells"),
    ):  # fmt: skip
        for byte in (0x00, 0x7F, 0xFF):
            if raw[place] != byte:
                yield (
                    f"{what} {byte:02x} at {place}",
                    raw[:place] + bytes([byte]) + raw[place + 1 :],
                )
    size = 4096
    pages = len(raw) // size
    for page in range(pages):
        start = page * size
        yield f"cut before page {page}", raw[:start] or b"\0"
        yield f"cut within page {page}", raw[: start + 2000]
        rest = raw[start + size :]
        head = start + (100 if page == 0 else 0)
        if raw[head] not in (2, 5, 10, 13):
            continue  # no page of a table
        for name, noise in (
            ("zeros", bytes(size)), ("ones", b"\xff" * size),
            ("noise", random.Random(page).randbytes(size)),
        ):  # fmt: skip
            yield f"page {page} of {name}", raw[:start] + noise + rest
        if raw[head + 3 : head + 5] == b"\0\0":
            continue  # an empty table has no cells to spoil
        for name, bytes_ in (
            ("type", b"\x99"), ("type of another", b"\x02" if raw[head] != 2 else b"\x0d"),
            ("free block", raw[head : head + 1] + b"\x0f\xff"),
            ("cells", raw[head : head + 3] + b"\xff\xff"),
            ("content", raw[head : head + 5] + b"\x00\x01"),
            ("pointers", raw[head : head + 8] + b"\xff\xf0" * 4),
        ):  # fmt: skip
            yield f"page {page}: {name}", raw[:head] + bytes_ + raw[head + len(bytes_) :]


def requests(base: str, digest: str, body: bytes) -> Iterator[Request]:
    """Every hostile request, as bytes; ``base`` is a transfer's path, the block its first one."""

    def request(method: str, path: str, *lines: str, data: bytes = b"") -> bytes:
        text = "\r\n".join((f"{method} {path} HTTP/1.1", "Host: x", *lines, "", ""))
        return text.encode("latin-1") + data

    block = f"{base}/4096/0"
    named = f"Repr-Digest: {digest}"
    length = f"Content-Length: {len(body)}"
    for number in ("-1", "x", "0x0", "1e3", "+0", "00000000000000000000", "9" * 30, "4", "%30%00"):
        yield f"block {number}", request("PUT", f"{base}/4096/{number}", named, length, data=body)
    for size in ("0", "-4096", "x", "4097", "8192", "9" * 19, ""):
        yield f"size {size}", request("PUT", f"{base}/{size}/0", named, length, data=body)
    for transfer in ("", "x", "..", "%2e%2e", "0" * 63, "0" * 65, "G" * 64, "0" * 64, "%00" * 64):
        path = f"/tar/{transfer}/4096/0"
        yield f"transfer {transfer[:9]}", request("PUT", path, named, length, data=body)
        yield (
            f"commit of {transfer[:9]}",
            request("POST", f"/tar/{transfer}/commit", "Content-Length: 0"),
        )
    for value in (
        "", "x", "-1", "+5", "0x10", "1e3", " ", "5,5", "99999999999999999999", str(1 << 62),
    ):  # fmt: skip
        yield (
            f"length {value!r}",
            request("PUT", block, named, f"Content-Length: {value}", data=body),
        )
    yield "no length", request("PUT", block, named)
    yield "two lengths", request("PUT", block, named, length, "Content-Length: 1", data=body)
    for coding in ("chunked", "gzip", "chunked, chunked", "identity", "gzip, chunked", "\tchunked"):
        data = b"5\r\nhello\r\n0\r\n\r\n"
        for what in ("4096/0", "db"):
            lines = (named, f"Transfer-Encoding: {coding}")
            yield f"{coding} {what}", request("PUT", f"{base}/{what}", *lines, data=data)
        lines = (named, length, f"Transfer-Encoding: {coding}")
        yield f"length and {coding}", request("PUT", block, *lines, data=data)
    for value in (
        "", "x", "sha-256=:AA==:", "blake3-pieces", "blake3-pieces=", "blake3-pieces=::",
        "blake3-pieces=:AA==:", "blake3-pieces=:!!!!:", f"{digest}, {digest}", f"{digest};a=b",
        digest[:-1], digest + "x", digest.upper(), "blake3-pieces=:" + "A" * 3000 + ":",
    ):  # fmt: skip
        yield (
            f"digest {value[:24]!r}",
            request("PUT", block, f"Repr-Digest: {value}", length, data=body),
        )
    for name, data in _bodies(body):
        lines = (named, f"Content-Length: {len(data)}")
        yield f"body {name}", request("PUT", block, *lines, data=data)
    for name, data in (
        ("nothing", b""), ("no JSON", b"{"), ("a list", b"[]"), ("deep", b"[" * 4000),
        ("a text", b'{"block_size": "4096"}'), ("huge", b'{"block_size": ' + b"9" * 4000 + b"}"),
        ("negative", b'{"block_size": -4096}'), ("odd", b'{"block_size": 4097}'),
        ("long", b" " * 5000), ("true", b'{"block_size": true}'),
    ):  # fmt: skip
        lines = (f"Content-Length: {len(data)}",)
        yield f"plan of {name}", request("POST", f"{base}/plan", *lines, data=data)
        if name != "long":
            yield f"index of {name}", request("PUT", f"{base}/db", *lines, data=data)
    for path in (
        "/../etc/passwd", "/tar/../../etc/passwd", "//etc/passwd", "/tar//db", "/%2e%2e/%2e%2e",
        f"{base}/../../lock", f"{base}/stage", f"{base}/index.db", f"{base}/receipts", "*",
        "/.tar_like", "http://other/no", "/" + "x" * 20000, "/\x00", f"{base}%2Fdb%00",
    ):  # fmt: skip
        yield f"path {path[-30:]}", request("GET", path)
    for method in ("DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "MKCOL", "PROPFIND", "BREW"):
        yield method, request(method, base)
    yield "a header without end", b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000
    yield "many headers", request("GET", "/nowhere", *(f"X{n}: x" for n in range(2000)))
    yield "a header with NUL", b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n"
    yield "folded header", b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n 5\r\n\r\nhello"
    yield "space before colon", b"PUT / HTTP/1.1\r\nHost : x\r\n\r\n"
    yield "another version", b"GET / HTTP/3.0\r\n\r\n"
    yield "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield "upgrade", request("PUT", block, "Upgrade: h2c", "Connection: Upgrade", named)


def _bodies(body: bytes) -> Iterator[tuple[str, bytes]]:
    import lz4.frame

    yield "empty", b""
    for end in (1, 4, 19, 20, len(body) - 1):
        yield f"of {end} bytes", body[:end]
    yield "with a byte more", body + b"x"
    yield "twice", body + body
    for place in (0, 4, 5, 7, 8, 11, 12, 19, 20, len(body) // 2, len(body) - 1):
        yield f"flipped at {place}", body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
    compressed = body[:4] + b"\x01" + body[5:20]
    yield "no frame", compressed + body[20:]
    yield "a bomb", compressed + lz4.frame.compress(bytes(1 << 20))
    yield "another size", compressed + lz4.frame.compress(bytes(len(body) - 21))
    yield "two frames", compressed + 2 * lz4.frame.compress(bytes(len(body) - 20))
    yield "omits all", body[:8] + b"\xff\xff\xff\xff" + body[12:]
    yield "omits what is none", body[:8] + b"\1\0\0\0" + bytes(8) + b"\xff\0\0\0\1\0\0\0"
