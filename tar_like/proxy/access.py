"""Whom a receiver lets do what, decided before a body is read.

Authorization: Bearer TOKEN > a shared token, or a signed one > may it do this, here?

401 no token, or one that is not valid here        403 a token for something else
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from tar_like.errors import Forbidden, TarLikeError, Unauthorized, UsageError
from tar_like.proxy import problem
from tar_like.tokens import COMMIT, OFFER, READ, SEND, Grant
from tar_like.wire import ROOT

if TYPE_CHECKING:
    from tar_like.signed import Keyring

OPEN = "/healthz"
"""What anybody may ask."""
SHORTEST = 16
"""Characters that a shared token needs."""


class Access:
    """The tokens that a receiver takes."""

    def __init__(self, shared: tuple[str, ...] = (), keys: Keyring | None = None) -> None:
        """Without any, everybody may do everything. Raises UsageError for a token too short."""
        if any(len(token) < SHORTEST for token in shared):
            raise UsageError(
                f"A shared token needs {SHORTEST} characters: 'tar-like token random' makes one."
            )
        self._shared = [_digest(token) for token in shared]
        self._keys = keys

    @property
    def asks(self) -> bool:
        """Whether a token is needed."""
        return bool(self._shared) or self._keys is not None

    def check(self, authorization: list[bytes], operation: str, transfer: str) -> None:
        """Raises Unauthorized or Forbidden unless these headers allow the operation."""
        if self.asks and not self._grant(_bearer(authorization)).allows(operation, transfer):
            raise Forbidden(f"This token does not allow to {operation} here.")

    def _grant(self, token: str) -> Grant:
        shown = _digest(token)
        # All of them are compared, each in constant time: how long it takes says nothing.
        if sum(hmac.compare_digest(shown, known) for known in self._shared):
            return Grant()
        if self._keys is None:
            raise Unauthorized("The token is not valid here.")
        return self._keys.grant(token)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _bearer(authorization: list[bytes]) -> str:
    if not authorization:
        raise Unauthorized(
            "This receiver asks for a token: set TARLIKE_TOKEN, or use --token-file."
        )
    scheme, _, token = authorization[0].decode("latin-1").partition(" ")
    if len(authorization) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("The receiver takes one bearer token, and nothing else.")
    return token.strip()


def asked(method: str, path: str) -> tuple[str, str]:
    """The operation that a request is, and the transfer it is for (empty: all of them)."""
    transfer = ""
    if path.startswith(f"{ROOT}/"):
        transfer = path[len(ROOT) + 1 :].partition("/")[0]
    last = path.rpartition("/")[2]
    if method in ("GET", "HEAD"):
        return READ, transfer
    if last == "commit":
        return COMMIT, transfer
    negotiates = method != "PUT" or last in ("db", "patch", "answers")
    return (OFFER if negotiates else SEND), transfer


class Guard:
    """ASGI middleware: nothing gets by without a token that allows it."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != OPEN:
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            try:
                self._access.check(given, *asked(scope["method"], scope["path"]))
            except TarLikeError as error:
                await problem.of(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
