"""The HTTP face of the receiver (docs/protocol.md).

    request > may it? > route > (body into a kept buffer) > a thread does the work > answer

Errors are RFC 9457 problem documents; a body needs Content-Length. The number of bodies in
flight is bounded; beyond it the answer is 503 with Retry-After.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import os
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tar_like import __version__
from tar_like.database import trouble
from tar_like.errors import (
    Busy,
    LengthRequired,
    NotFound,
    ReceiverFailed,
    TarLikeError,
    TooLarge,
    UsageError,
)
from tar_like.proxy import intake, problem
from tar_like.proxy.access import Access, Guard
from tar_like.proxy.intake import map_write_error
from tar_like.proxy.offer import offer
from tar_like.proxy.patching import BODY
from tar_like.proxy.planning import Wish
from tar_like.proxy.staging import mapped
from tar_like.proxy.transfer import Transfer
from tar_like.proxy.transfers import Transfers
from tar_like.rules import Rules
from tar_like.wire import (
    BITMAP,
    DIGEST_HEADER,
    LOOKING,
    OPEN,
    PLAN_HEADER,
    ROOT,
    Inflater,
    Status,
    deflate_file,
    parse_digest,
)

T = TypeVar("T")

BODY_EXTENSION = "tar_like.body"
"""In the ASGI scope: a Body, where the server has them (serving.BodyProtocol)."""
MAX_INDEX, MAX_PATCH = 1 << 40, 256 << 20
"""Bytes that an offered index and a patch may have, uncompressed."""
MAX_JSON = 256 << 10
"""Bytes; rules may hold many patterns."""
BODIES_IN_FLIGHT = 8
"""Blocks that one process takes in at a time."""
SLOW_AFTER = 5.0
"""Seconds after which a body lets others have its turn."""
ASIDE = 256 << 20
"""Bytes of the buffers of all bodies of one process that do so."""
BUSY_AFTER = 10.0
"""Seconds that a request waits for its turn before it is told to come back."""


def make_app(transfers: Transfers, access: Access, *, threads: int = 4) -> Starlette:
    """The application that one serving process runs."""
    service = _Service(transfers, threads)
    one = f"{ROOT}/{{id}}"
    routes = [  # in the order in which they are tried: what is asked for most stands first
        Route(f"{one}/{{block_size}}/{{block_no}}", service.block, methods=["PUT"]),
        Route("/", service.page),
        Route("/healthz", service.health),
        Route("/metrics", service.metrics),
        Route(ROOT, service.index),
        Route(ROOT, service.look, methods=["POST"]),
        Route(f"{one}/db", service.offer, methods=["PUT"]),
        Route(f"{one}/db", service.send_index),
        Route(f"{one}/again", service.again, methods=["POST"]),
        Route(f"{one}/leaves", service.leaves),
        Route(f"{one}/patch", service.patch, methods=["PUT"]),
        Route(f"{one}/plan", service.negotiate, methods=["POST"]),
        Route(f"{one}/plan", service.send_plan),
        Route(f"{one}/questions", service.send_questions),
        Route(f"{one}/answers", service.answer, methods=["PUT"]),
        Route(f"{one}/blocks", service.blocks),
        Route(f"{one}/commit", service.commit, methods=["POST"]),
        Route(f"{one}/rehearsal", service.rehearse, methods=["POST"]),
        Route(one, service.status),
    ]
    handlers = {
        TarLikeError: _problem,
        HTTPException: _http_problem,
        OSError: _os_problem,
        sqlite3.Error: _records_problem,
        ClientDisconnect: _gone,
        Exception: _unexpected,
    }
    app = Starlette(
        routes=routes,
        exception_handlers=handlers,
        lifespan=service.lifespan,
        middleware=[Middleware(Guard, access)],
    )
    app.router.redirect_slashes = False
    return app


class _Service:
    def __init__(self, transfers: Transfers, threads: int) -> None:
        self._transfers = transfers
        self._executor = ThreadPoolExecutor(threads, "receive")
        self._healths = ThreadPoolExecutor(1, "health")
        """Apart: who is busy is not ill, and a balancer must not hear otherwise."""
        self._buffers = _Buffers(BODIES_IN_FLIGHT)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self._checkpoints())
        try:
            yield
        finally:
            task.cancel()
            await self._run(self._transfers.close)
            self._executor.shutdown()
            self._healths.shutdown(wait=False)  # it may hang where the destination does

    async def _checkpoints(self) -> None:
        while True:
            await asyncio.sleep(intake.CHECKPOINT_POLL)
            try:
                await self._run(self._transfers.checkpoint_due)
            except TarLikeError as error:  # nothing is called durable then
                sys.stderr.write(f"tar-like: {error}\n")

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def health(self, _: Request) -> Response:
        home = self._transfers.destination.home
        loop = asyncio.get_running_loop()
        writable = await loop.run_in_executor(self._healths, os.access, home, os.W_OK)
        return PlainTextResponse("ok\n" if writable else "not writable\n", 200 if writable else 503)

    async def index(self, _: Request) -> Response:
        body = {
            "name": "tar-like",
            "version": __version__,
            "transfers": [
                json.loads(status.to_json()) for status in await self._run(self._transfers.all)
            ],
        }
        return Response(json.dumps(body), media_type="application/json")

    async def page(self, _: Request) -> Response:
        return HTMLResponse(_page(await self._run(self._transfers.all)))

    async def metrics(self, _: Request) -> Response:
        return PlainTextResponse(_metrics(await self._run(self._transfers.all)))

    async def status(self, request: Request) -> Response:
        transfer_id = request.path_params["id"]
        return _answer(await self._run(lambda: self._transfers.status(transfer_id)))

    async def offer(self, request: Request) -> Response:
        transfer_id = request.path_params["id"]
        destination = self._transfers.destination
        async with self._offered(request, "index.db", MAX_INDEX) as folder:
            await self._run(lambda: offer(destination, transfer_id, folder))
        return _answer(await self._run(lambda: self._transfers.get(transfer_id).status()), 201)

    @contextlib.asynccontextmanager
    async def _offered(self, request: Request, name: str, most: int) -> AsyncIterator[str]:
        """A folder, for so long, with an index or a patch in a file of this name."""
        destination = self._transfers.destination
        destination.transfer(request.path_params["id"])  # is it an id at all?
        length = _content_length(request)
        folder = await self._run(destination.temporary)
        try:
            limit = min(most, 1024 * length + (1 << 20))
            await self._store(request, os.path.join(folder, name), limit)
            yield folder
        finally:
            await self._run(lambda: destination.discard(folder))

    async def _store(self, request: Request, path: str, limit: int) -> None:
        """Inflate a body into a new file of no more than ``limit`` bytes, and sync it."""
        with open(path, "wb") as file:
            inflater = Inflater(file, limit)
            try:
                async for chunk in request.stream():
                    if chunk:
                        await self._run(lambda data=chunk: inflater.feed(data))  # type: ignore[misc]
                inflater.finish()
            except OSError as error:
                raise map_write_error(error) from None

    async def look(self, _: Request) -> Response:
        found = await self._run(self._transfers.look)
        return Response(found.to_json(), media_type="application/json")

    async def again(self, request: Request) -> Response:
        transfer_id = request.path_params["id"]
        self._transfers.destination.transfer(transfer_id)  # is it an id at all?
        wanted = await _json(request)
        token, rules = wanted.get("token"), Rules.from_json(wanted.get("rules", {}))
        if not isinstance(token, str):
            raise UsageError("Which look? Its token is a text.")
        rules = rules.checked().canonical
        status = await _long(lambda: self._transfers.again(transfer_id, token, rules))
        return _answer(status, 202 if status.state == LOOKING else 200)

    async def leaves(self, request: Request) -> Response:
        transfer_id = request.path_params["id"]
        found = await self._run(lambda: self._transfers.leaves(transfer_id))
        return Response(found, media_type=BITMAP)

    async def patch(self, request: Request) -> Response:
        transfer_id = request.path_params["id"]
        async with self._offered(request, BODY, MAX_PATCH) as folder:
            status = await _long(lambda: self._transfers.patch(transfer_id, folder))
        return _answer(status, 201)

    async def negotiate(self, request: Request) -> Response:
        transfer_id = request.path_params["id"]
        await self._run(lambda: self._transfers.get(transfer_id))
        wanted = await _json(request)
        wish, rules = Wish.from_json(wanted), Rules.from_json(wanted.get("rules", {}))
        status = await _long(lambda: self._transfers.negotiate(transfer_id, wish, rules))
        return _answer(status, 202 if status.state == OPEN else 200)

    async def send_questions(self, request: Request) -> Response:
        transfer_id = request.path_params["id"]
        transfer = await self._run(lambda: self._transfers.get(transfer_id))
        path = await self._run(lambda: transfer.questions_path)
        await self._run(lambda: self._transfers.destination.mark(transfer_id))
        if request.method == "HEAD":
            return Response(media_type=BITMAP)
        return StreamingResponse(deflate_file(path), media_type=BITMAP)

    async def answer(self, request: Request) -> Response:
        transfer_id = request.path_params["id"]
        transfer = await self._run(lambda: self._transfers.get(transfer_id))
        limit = await self._run(lambda: transfer.longest_answer)
        if _content_length(request) > limit:
            raise TooLarge("The body is larger than answers to these questions can be.")
        destination = self._transfers.destination
        folder = await self._run(destination.temporary)
        path = os.path.join(folder, "answers.db")
        try:
            await self._store(request, path, limit)
            await self._run(lambda: transfer.answer(path))
        finally:
            await self._run(lambda: destination.discard(folder))
        return _answer(await self._run(transfer.status))

    async def send_index(self, request: Request) -> Response:
        transfer = await self._run(lambda: self._transfers.get(request.path_params["id"]))
        return StreamingResponse(deflate_file(transfer.index_path), media_type=BITMAP)

    async def send_plan(self, request: Request) -> Response:
        transfer = await self._run(lambda: self._transfers.get(request.path_params["id"]))
        await self._run(transfer.plan)
        return StreamingResponse(deflate_file(transfer.plan_path), media_type=BITMAP)

    async def blocks(self, request: Request) -> Response:
        transfer_id = request.path_params["id"]
        if "application/json" in request.headers.get("accept", ""):
            return _answer(await self._run(lambda: self._transfers.status(transfer_id)))
        bitmaps = await self._run(lambda: self._transfers.bitmaps(transfer_id))
        return Response(bitmaps, media_type=BITMAP)

    async def block(self, request: Request) -> Response:
        params = request.path_params
        block_size, block_no = _number(params["block_size"]), _number(params["block_no"])
        length = _content_length(request)
        claimed = parse_digest(request.headers.get(DIGEST_HEADER, ""))
        plan_id = request.headers.get(PLAN_HEADER, "")

        def opened() -> Transfer:
            found = self._transfers.get(params["id"])
            found.check_plan(plan_id)
            found.check_length(block_size, block_no, length)
            return found

        transfer = await self._run(opened)
        body: Body | None = request.scope.get("extensions", {}).get(BODY_EXTENSION)
        if body is not None:
            await body.begin()
        async with self._buffers.one(length) as buffer:
            await _read_body(body or request, buffer)

            def work() -> bool:
                try:
                    return transfer.receive(block_no, buffer, claimed)
                except OSError as error:
                    raise map_write_error(error) from None

            new = await self._run(work)
        return Response(status_code=201 if new else 200)

    async def rehearse(self, request: Request) -> Response:
        destination = self._transfers.destination
        transfer = await self._run(lambda: self._transfers.get(request.path_params["id"]))
        folder = await self._run(destination.temporary)
        path = os.path.join(folder, "rehearsal.db")
        try:
            await asyncio.to_thread(transfer.rehearse, path)
        except BaseException:
            await self._run(lambda: destination.discard(folder))
            raise
        tidy = BackgroundTask(destination.discard, folder)
        return StreamingResponse(deflate_file(path), media_type=BITMAP, background=tidy)

    async def commit(self, request: Request) -> Response:
        transfer_id = request.path_params["id"]
        wanted = await _json(request) if request.headers.get("content-length", "0") != "0" else {}
        rules = Rules.from_json(wanted["rules"]) if "rules" in wanted else None
        status = await _long(lambda: self._transfers.commit(transfer_id, rules))
        return _answer(status, 202 if status.state == "committing" else 200)


async def _long(work: Callable[[], T]) -> T:
    """What waits for a process: not on the threads that take in blocks.

    Raises Busy when the receiver is being stopped meanwhile.
    """
    try:
        return await asyncio.to_thread(work)
    except asyncio.CancelledError:
        raise Busy("The receiver is being stopped: try again.") from None


class Body(Protocol):
    """What BODY_EXTENSION stands for."""

    async def begin(self) -> None:
        """Wait until the body is coming in earnest, or there. Raises ClientDisconnect."""

    async def into(self, buffer: memoryview) -> int:
        """Put it into a buffer of its length; returns less if the sender is gone."""


class _Buffers:
    """Buffers for bodies: kept, so that their pages are not made anew for each block.

    There are ``count`` turns. A body that takes long steps aside: it keeps its buffer, and another
    gets its turn, as long as those that stand aside do not need more than ASIDE bytes together.
    """

    def __init__(self, count: int) -> None:
        self._turns = asyncio.Semaphore(count)
        self._free: list[bytearray] = []
        self._room = ASIDE

    @contextlib.asynccontextmanager
    async def one(self, length: int) -> AsyncIterator[memoryview]:
        """A buffer of ``length`` bytes. Raises Busy when there is none for too long."""
        try:
            await asyncio.wait_for(self._turns.acquire(), BUSY_AFTER)
        except TimeoutError:
            raise Busy("The receiver takes in as many blocks as it can: try again.") from None
        aside = asyncio.Event()
        timer = asyncio.get_running_loop().call_later(SLOW_AFTER, self._step_aside, length, aside)
        buffer = self._free.pop() if self._free else bytearray()
        try:
            if len(buffer) < length:
                buffer = bytearray(length)
            yield memoryview(buffer)[:length]
        finally:
            timer.cancel()
            if aside.is_set():
                self._room += length
            else:
                self._free.append(buffer)
                self._turns.release()

    def _step_aside(self, length: int, aside: asyncio.Event) -> None:
        if length <= self._room:
            self._room -= length
            aside.set()
            self._turns.release()


async def _read_body(body: Body | Request, buffer: memoryview) -> None:
    """Fill the buffer with the body. Raises UsageError when it is shorter or longer."""
    length = await (_stream(body, buffer) if isinstance(body, Request) else body.into(buffer))
    if length != len(buffer):
        raise UsageError(f"The body is not as long as its Content-Length ({length} bytes came).")


async def _stream(request: Request, buffer: memoryview) -> int:
    """The body by ASGI's own means, on a server without the extension."""
    position = 0
    async for chunk in request.stream():
        end = position + len(chunk)
        if end <= len(buffer):
            buffer[position:end] = chunk
        position = end
    return position


def _content_length(request: Request) -> int:
    text = request.headers.get("content-length")
    if text is None or "transfer-encoding" in request.headers:
        raise LengthRequired("The body needs a Content-Length.")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UsageError("The Content-Length is not a number.")
    return int(text)


def _number(text: str) -> int:
    """A block size or number in a path. Raises NotFound."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise NotFound("That is not the number of a block.")
    return int(text)


async def _json(request: Request) -> dict[str, object]:
    length = _content_length(request)
    if length > MAX_JSON:
        raise TooLarge("The body is larger than such a request is.")
    try:
        found = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise UsageError("The body is not JSON.") from None
    if not isinstance(found, dict):
        raise UsageError("The body is not a JSON object.")
    return found


def _answer(status: Status, code: int = 200) -> Response:
    return Response(status.to_json(), code, media_type="application/json")


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, TarLikeError)
    return problem.of(error)


async def _http_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = problem.document("http", error.status_code, error.detail)
    response.headers.update(error.headers or {})
    return response


async def _os_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    known = map_write_error(error)
    assert isinstance(known, TarLikeError)
    return problem.of(known)


async def _records_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, sqlite3.Error)
    known = mapped(error)
    if isinstance(known, TarLikeError):
        return problem.of(known)
    return problem.document(
        ReceiverFailed.slug,
        ReceiverFailed.http_status,
        f"The receiver's records cannot be read or written ({trouble(error)}).",
    )


async def _unexpected(_: Request, __: Exception) -> Response:
    text = "The receiver failed unexpectedly: its log says more."
    return problem.document(TarLikeError.slug, TarLikeError.http_status, text)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it: the sender has closed the connection


def _page(statuses: list[Status]) -> str:
    rows = "".join(
        f"<tr><td><code>{html.escape(one.id[:16])}</code></td><td>{html.escape(one.state)}</td>"
        f"<td>{one.received} of {one.blocks}</td><td>{one.durable}</td><td>{one.bytes}</td></tr>"
        for one in statuses
    )
    return (
        "<!doctype html><meta charset=utf-8><title>tar-like</title>"
        "<h1>tar-like receiver</h1><table border=1 cellpadding=6><tr><th>transfer</th>"
        "<th>state</th><th>blocks received</th><th>durable</th><th>bytes to send</th></tr>"
        f"{rows}</table><p>{len(statuses)} transfers under way.</p>"
    )


_GAUGES = {
    "blocks": "Blocks in the plan.",
    "received": "Blocks received and verified.",
    "durable": "Blocks that survive a power cut.",
    "bytes": "Bytes in the plan.",
}


def _metrics(statuses: list[Status]) -> str:
    lines = []
    for name, text in _GAUGES.items():
        lines += [f"# HELP tar_like_{name} {text}", f"# TYPE tar_like_{name} gauge"]
        lines += [
            f'tar_like_{name}{{transfer="{one.id}",state="{one.state}"}} {getattr(one, name)}'
            for one in statuses
        ]
    return "\n".join(lines) + "\n"
