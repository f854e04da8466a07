"""An S3 server for the benchmark: the objects are the files below a folder, read only.

    python -m bench.store FOLDER PORT            folder/bucket/key
    python -m bench.store --keys 1000000 made PORT      a bucket of so many keys that are nowhere
    python -m bench.store --delay 0.02 UPSTREAM_PORT PORT

It does what clients that copy need (ListObjectsV2, HEAD, ranged GET) and as little as possible
beyond, so that the clients are measured and not the store. Signatures are not looked at; ETags
come of size and time. With --delay it is a relay that holds back what clients send.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import fcntl
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, quote, unquote
from xml.sax.saxutils import escape

PAGE = 1000
SMALL = 256 << 10
PIPE = 1 << 20
PER_FOLDER = 1000
SMALL_EVERY = 10
MADE = 1_700_000_000 * 10**9
_RANGE = re.compile(rb"(?i)\r\nrange: bytes=(\d+)-(\d*)\r\n")


class Stored(NamedTuple):
    """An object."""

    size: int
    modified: int
    """Nanoseconds since 1970."""

    @property
    def etag(self) -> str:
        """Not an MD5, and not taken for one: it has a part count."""
        return f"{self.modified & (1 << 64) - 1:016x}{self.size:016x}-9"


class Objects(Protocol):
    """What a store has."""

    buckets: Mapping[str, Sequence[str]]
    """Their keys, sorted."""

    def find(self, path: str) -> Stored | None:
        """The object at /bucket/key."""

    def open(self, path: str) -> int:
        """A readable fd of it."""


class Folder:
    """Files below a folder, looked at once."""

    def __init__(self, folder: str) -> None:
        self.buckets: dict[str, Sequence[str]] = {}
        self._found: dict[str, Stored] = {}
        self._folder = folder
        for bucket in os.listdir(folder):
            root = os.path.join(folder, bucket)
            keys = []
            for parent, _, names in os.walk(root):
                for name in names:
                    path = os.path.join(parent, name)
                    key, st = os.path.relpath(path, root), os.stat(path)
                    self._found[f"/{bucket}/{key}"] = Stored(st.st_size, st.st_mtime_ns)
                    keys.append(key)
            self.buckets[bucket] = sorted(keys)

    def find(self, path: str) -> Stored | None:
        return self._found.get(path)

    def open(self, path: str) -> int:
        return os.open(self._folder + path, os.O_RDONLY)


class Keys(Sequence[str]):
    """As many keys as are wanted, in folders of a thousand, without any memory for them."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < self._count:
            raise IndexError(number)
        return f"{number // PER_FOLDER:05d}/entry-{number:08d}"


class Made:
    """A bucket of keys that are nowhere: one object in ten has 16 bytes, the others none."""

    def __init__(self, bucket: str, count: int) -> None:
        self.buckets = {bucket: Keys(count)}
        self._root = f"/{bucket}/"
        self._content = os.memfd_create("content")
        os.write(self._content, b"16 bytes of text")

    def find(self, path: str) -> Stored | None:
        number = path[-8:]
        if not path.startswith(self._root) or not number.isdigit():
            return None
        return Stored(0 if int(number) % SMALL_EVERY else 16, MADE)

    def open(self, path: str) -> int:
        return os.dup(self._content)


def page(objects: Objects, bucket: str, query: dict[str, list[str]]) -> bytes:
    """A page of ListObjectsV2."""
    prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
    markers = ("continuation-token", "start-after", "marker")  # the last is of ListObjects
    after = next((query[name][0] for name in markers if name in query), "")
    keys = objects.buckets[bucket]
    position = max(bisect.bisect_right(keys, after), bisect.bisect_left(keys, prefix))
    rows: list[str] = []
    last, more = "", False
    while position < len(keys) and keys[position].startswith(prefix):
        if len(rows) >= int(query.get("max-keys", [str(PAGE)])[0]):
            more = True
            break
        key = keys[position]
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        if cut >= 0:
            last = key[: cut + 1] + "\U0010ffff"
            position = bisect.bisect_right(keys, last)
            text = quote(key[: cut + 1], safe="/")
            rows.append(f"<CommonPrefixes><Prefix>{text}</Prefix></CommonPrefixes>")
        else:
            last = key
            position += 1
            rows.append(row(key, objects.find(f"/{bucket}/{key}")))
    names = ("NextContinuationToken", "NextMarker") if more else ()
    token = "".join(f"<{name}>{quote(last, safe='/')}</{name}>" for name in names)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name><Prefix>{escape(quote(prefix, safe='/'))}</Prefix>"
        f"<KeyCount>{len(rows)}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
        f"<EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>"
        f"{token}{''.join(rows)}</ListBucketResult>"
    ).encode()


def row(key: str, found: Stored | None) -> str:
    assert found is not None
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(found.modified // 10**9))
    return (
        f"<Contents><Key>{quote(key, safe='/')}</Key><LastModified>{stamp}</LastModified>"
        f"<ETag>&quot;{found.etag}&quot;</ETag><Size>{found.size}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )


class Server(asyncio.Protocol):
    """One connection."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._received = b""
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            self._answer(head + b"\r\n")

    def _answer(self, head: bytes) -> None:
        method, _, rest = head.partition(b" ")
        target, _, query = rest.partition(b" ")[0].decode().partition("?")
        path = unquote(target)
        bucket, _, key = path[1:].partition("/")
        if bucket in self._objects.buckets and not key:
            body = page(self._objects, bucket, parse_qs(query))
            self._head(200, len(body), b"Content-Type: application/xml\r\n")
            self._transport.write(body)
        elif found := self._objects.find(path):
            self._object(method, path, found, head)
        else:
            self._head(404, 0, b"")

    def _object(self, method: bytes, path: str, stored: Stored, head: bytes) -> None:
        start, stop, status, more = 0, stored.size, 200, b""
        if found := _RANGE.search(head):
            start = int(found[1])
            stop = min(int(found[2]) + 1 if found[2] else stop, stored.size)
            status = 206
            more = b"Content-Range: bytes %d-%d/%d\r\n" % (start, stop - 1, stored.size)
        stamp = formatdate(stored.modified / 1e9, usegmt=True).encode()
        more += b'ETag: "%s"\r\nLast-Modified: %s\r\n' % (stored.etag.encode(), stamp)
        self._head(status, stop - start, more + b"Accept-Ranges: bytes\r\n")
        if method == b"HEAD":
            return
        file = self._objects.open(path)
        if stop - start <= SMALL:
            self._transport.write(os.pread(file, stop - start, start))
            os.close(file)
        else:
            task = asyncio.ensure_future(self._send(file, start, stop - start))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, file: int, start: int, count: int) -> None:
        with open(file, "rb") as handle:
            try:
                await asyncio.get_running_loop().sendfile(self._transport, handle, start, count)
            except OSError:
                self._transport.abort()

    def _head(self, status: int, length: int, more: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nx-amz-request-id: 1\r\n%s\r\n"
            % (status, length, more)
        )


class Relay:
    """A client's connection to a store, on which what the client sends is held back for a while.

    Answers go from socket to socket within the kernel (splice), so that the relay, which takes its
    time of the same cores as the clients, takes little.
    """

    def __init__(self, client: socket.socket, upstream: socket.socket, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._client, self._upstream = client, upstream
        self._seconds = seconds
        self._held = 0
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK)
        fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, PIPE)
        self._loop.add_reader(client, self._hold_back)
        self._loop.add_reader(upstream, self._take)

    def _hold_back(self) -> None:
        try:
            data = self._client.recv(1 << 16)
        except OSError:
            data = b""
        if data:
            self._loop.call_later(self._seconds, self._pass_on, data)
        else:
            self._close()

    def _pass_on(self, data: bytes) -> None:
        if self._upstream.fileno() >= 0:
            self._upstream.send(data)  # a request: there is always room for it

    def _take(self) -> None:
        """The store has something to say."""
        try:
            got = os.splice(self._upstream.fileno(), self._writer, PIPE)
        except BlockingIOError:
            return
        except OSError:
            got = 0
        if not got:
            self._close()
            return
        self._held += got
        self._give()

    def _give(self) -> None:
        """To the client; while it takes nothing, nothing is taken from the store."""
        try:
            while self._held:
                self._held -= os.splice(self._reader, self._client.fileno(), self._held)
        except BlockingIOError:
            self._loop.remove_reader(self._upstream)
            self._loop.add_writer(self._client, self._give)
            return
        except OSError:
            self._close()
            return
        if self._loop.remove_writer(self._client):
            self._loop.add_reader(self._upstream, self._take)

    def _close(self) -> None:
        if self._client.fileno() < 0:
            return
        for one in (self._client, self._upstream):
            self._loop.remove_reader(one)
            self._loop.remove_writer(one)
            one.close()
        os.close(self._reader)
        os.close(self._writer)


async def relay(port: int, upstream: int, seconds: float) -> None:
    """Take connections in, each with one of its own to the store."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listener:
        listener.setblocking(False)
        while True:
            client, _ = await loop.sock_accept(listener)
            store = socket.socket()
            store.setblocking(False)
            await loop.sock_connect(store, ("127.0.0.1", upstream))
            for one in (client, store):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Relay(client, store, seconds)


async def serve(options: argparse.Namespace) -> None:
    if options.delay is not None:
        await relay(options.port, int(options.upstream), options.delay)
    else:
        name = options.upstream
        objects = Made(name, options.keys) if options.keys else Folder(name)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Server(objects), "127.0.0.1", options.port)
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, help="be a relay that adds so many seconds")
    parser.add_argument("--keys", type=int, help="keys of a bucket that is made of nothing")
    parser.add_argument(
        "upstream", help="folder with a folder for each bucket, a bucket's name, or a port"
    )
    parser.add_argument("port", type=int)
    asyncio.run(serve(parser.parse_args()))
