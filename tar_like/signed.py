"""Signed tokens: key pairs, tokens made with the private half, and checked with the public one.

A token is a JWT by ES256 with ``exp`` and ``aud``; ``transfer`` and ``operations``, where they are
there, limit it. The public keys lie in a folder, so several hosts may each have a key of their own.

Sources: RFC 7519 (JWT), RFC 7518 (ES256).
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tar_like.errors import Unauthorized, UsageError, cause
from tar_like.tokens import AUDIENCE, OPERATIONS, Grant

_ALGORITHM = "ES256"
_LEEWAY = 30
"""Seconds that the clocks of two hosts may differ."""
_PUBLIC = re.compile(r".*-public.*\.pem")
_MAX_KEY = 1 << 16
_MAX_TOKEN = 8192
_KEPT = 64
"""Tokens whose signature a process remembers to have checked."""


def make_keys(folder: str, name: str) -> tuple[str, str]:
    """A key pair as ``NAME-private.pem`` and ``NAME-public.pem``; returns the two paths.

    Raises UsageError where one of them is there already, OSError.
    """
    if not re.fullmatch(r"[\w.-]{1,100}", name) or name.startswith("."):
        raise UsageError(f"{name!r} is no name for a key: use letters, digits, '.', '_' and '-'.")
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = (os.path.join(folder, f"{name}-{kind}.pem") for kind in _KINDS)
    os.makedirs(folder, exist_ok=True)
    _write_new(
        private, 0o600,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )  # fmt: skip
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    _write_new(public, 0o644, key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return private, public


_KINDS = ("private", "public")


def _write_new(path: str, mode: int, content: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise UsageError(f"{path} is there already: choose another name.") from None
    with open(fd, "wb") as file:
        file.write(content)


def sign(
    key_path: str,
    *,
    seconds: int,
    audience: str = AUDIENCE,
    transfer: str = "",
    operations: Iterable[str] = OPERATIONS,
) -> str:
    """A token signed with a private key, valid from now. Raises UsageError, OSError."""
    wanted = list(dict.fromkeys(operations))
    unknown = [one for one in wanted if one not in OPERATIONS]
    if unknown or not wanted:
        raise UsageError(f"{', '.join(unknown) or 'Nothing'}: choose from {', '.join(OPERATIONS)}.")
    if transfer and not re.fullmatch("[0-9a-f]{64}", transfer):
        raise UsageError(f"{transfer!r} is no id of a transfer: it has 64 hexadecimal digits.")
    now = int(time.time())
    claims: dict[str, Any] = {"aud": audience, "iat": now, "exp": now + seconds}
    claims["operations"] = wanted
    if transfer:
        claims["transfer"] = transfer
    name = os.path.basename(key_path).partition("-private")[0]
    return jwt.encode(claims, _private_key(key_path), _ALGORITHM, headers={"kid": name})


def _private_key(path: str) -> ec.EllipticCurvePrivateKey:
    with open(path, "rb") as file:
        text = file.read(_MAX_KEY)
    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = serialization.load_pem_private_key(text, password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
            return key
    raise UsageError(f"{path} is no private key for ES256: make one with 'tar-like token keys'.")


class Keyring:
    """The public keys in a folder; read again when the folder changes. Not thread-safe."""

    def __init__(self, folder: str, audience: str = AUDIENCE) -> None:
        """Raises UsageError for a folder or a key that cannot be used."""
        self._folder = folder
        self._audience = audience
        self._known: dict[str, tuple[Grant, float]] = {}
        self._changed = -1
        self._keys: list[ec.EllipticCurvePublicKey] = []
        self._load()

    def __len__(self) -> int:
        return len(self._keys)

    def _load(self) -> None:
        try:
            changed = os.stat(self._folder).st_mtime_ns
            if changed != self._changed:
                names = sorted(filter(_PUBLIC.fullmatch, os.listdir(self._folder)))
                self._keys = [_public_key(os.path.join(self._folder, name)) for name in names]
                self._changed = changed
                self._known.clear()
        except OSError as error:
            text = f"The keys in {self._folder} cannot be read: {cause(error)}."
            raise UsageError(text) from None

    def grant(self, token: str) -> Grant:
        """What a signed token allows. Raises Unauthorized for one that is not valid here."""
        try:
            self._load()
        except UsageError:
            raise Unauthorized("The receiver cannot read its keys: see there.") from None
        known = self._known.get(token)
        if known is None:
            known = self._verified(token)
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[token] = known
        if known[1] + _LEEWAY <= time.time():
            raise Unauthorized("The token has expired: have a new one made.")
        return known[0]

    def _verified(self, token: str) -> tuple[Grant, float]:
        if len(token) <= _MAX_TOKEN:
            for key in self._keys:
                try:
                    claims = jwt.decode(
                        token, key, algorithms=[_ALGORITHM], audience=self._audience,
                        leeway=_LEEWAY, options={"require": ["exp", "aud"]},
                    )  # fmt: skip
                except jwt.InvalidSignatureError:
                    continue
                except jwt.ExpiredSignatureError:
                    raise Unauthorized("The token has expired: have a new one made.") from None
                except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError):
                    break
                return _grant(claims), float(claims["exp"])
        raise Unauthorized("The token is not valid here.")


def _public_key(path: str) -> ec.EllipticCurvePublicKey:
    with open(path, "rb") as file:
        text = file.read(_MAX_KEY)
    with contextlib.suppress(ValueError, UnsupportedAlgorithm):
        key = serialization.load_pem_public_key(text)
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            return key
    raise UsageError(f"{path} is no public key for ES256: make one with 'tar-like token keys'.")


def _grant(claims: dict[str, Any]) -> Grant:
    """What the claims of a token say, that its own signer has made. Raises Unauthorized."""
    transfer, operations = claims.get("transfer", ""), claims.get("operations", list(OPERATIONS))
    fits = isinstance(transfer, str) and isinstance(operations, list)
    if not fits or not all(isinstance(one, str) for one in operations):
        raise Unauthorized("The token is not valid here.")
    if "transfer" in claims and not re.fullmatch("[0-9a-f]{64}", transfer):
        raise Unauthorized("The token is not valid here.")
    return Grant(frozenset(operations), transfer)
