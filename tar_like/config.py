"""Settings: an rc file, then the environment, then flags. The only reader of os.environ.

The rc file is the one that TARLIKE_RC names, else ~/.tar_like_rc; it has KEY=VALUE lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from tar_like.errors import UsageError, cause
from tar_like.layout import DEFAULT_BLOCK_SIZE, MAX_BLOCK_SIZE, round_up

DEFAULT_PORT = 8000
DEFAULT_DB = "tar_like.db"
_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,8192}=*")
"""Source: RFC 6750, section 2.1."""
_SIZE = re.compile(r"(\d{1,18})\s*([KMGT]?)(i?)B?", re.IGNORECASE)


class S3Settings(NamedTuple):
    """How to reach a bucket. Credentials that boto3 finds by itself are not in here."""

    bucket: str = ""
    prefix: str = ""
    endpoint: str = ""
    """Empty for AWS, or for what the profile says."""
    region: str = ""
    profile: str = ""
    access_key: str = ""
    secret_key: str = ""
    session_token: str = ""
    verify_tls: bool = True
    ca_bundle: str = ""
    addressing: str = "auto"
    """``path``, ``virtual`` or ``auto``: virtual on AWS, path elsewhere."""
    requester_pays: bool = False
    unsigned: bool = False
    metadata: bool = False
    """Ask for each object's metadata: mtime, mode and owner as rclone and s3cmd keep them."""
    versions: bool = False
    """List version ids, and read those versions."""
    connections: int = 32
    """Requests that one process has under way at a time."""

    def __repr__(self) -> str:
        """No secret."""
        return f"S3Settings(endpoint={self.endpoint!r}, bucket={self.bucket!r})"

    @property
    def url(self) -> str:
        """The bucket and prefix of the settings. Raises UsageError when there are none."""
        if not self.bucket:
            raise UsageError("Which bucket? Set TARLIKE_S3_BUCKET, or give s3://bucket/prefix.")
        return f"s3://{self.bucket}/{self.prefix.removeprefix('/')}".removesuffix("/")


class Trust(NamedTuple):
    """How a sender knows its receivers, and how they know the sender."""

    ca_bundle: str = ""
    """A file with the CAs that sign the receivers' certificates; empty for the system's."""
    verify: bool = True
    """Whether their certificates are checked."""
    token: str = ""
    """What they are shown; empty for nothing."""
    certificate: str = ""
    """A file with the sender's own certificate and its key; empty for none."""

    def __repr__(self) -> str:
        """No secret."""
        return f"Trust(ca_bundle={self.ca_bundle!r}, verify={self.verify!r})"


class Settings(NamedTuple):
    """What holds where no flag says otherwise."""

    base: str = "."
    db: str = DEFAULT_DB
    url: str = f"http://127.0.0.1:{DEFAULT_PORT}/tar"
    processes: int = 1
    block_size: int = DEFAULT_BLOCK_SIZE
    compress: str = "auto"
    ca_bundle: str = ""
    client_cert: str = ""
    redis_url: str = ""
    """The Redis that hands out the work; empty for none."""
    durability: str = "full"
    """What an acknowledgement of a receiver survives: ``full`` or ``process``."""
    tokens: tuple[str, ...] = ()
    """A sender shows the first one; a receiver takes each of them."""
    jwt_keys: str = ""
    """A folder with public keys: a receiver takes tokens that are signed with theirs."""
    audience: str = "tar-like"
    """Whom signed tokens are for."""
    tls_cert: str = ""
    tls_key: str = ""
    cache: str = ""
    """Where indexes and plans of other hosts' transfers are kept."""
    s3: S3Settings = S3Settings()

    def __repr__(self) -> str:
        """No secret."""
        return f"Settings(base={self.base!r}, url={self.url!r}, s3={self.s3!r})"

    @property
    def dials(self) -> str:
        """Where the limits of runs on this machine are found, to be changed."""
        return os.path.join(self.cache, "limits")


def load() -> Settings:
    """The settings of this user on this machine. Raises UsageError."""
    return from_mapping({**_rc(os.environ), **os.environ})


def from_mapping(values: Mapping[str, str]) -> Settings:
    """Settings from names and texts. Raises UsageError for a value that cannot be."""
    default = Settings()
    return Settings(
        base=values.get("TARLIKE_BASE", default.base),
        db=values.get("TARLIKE_DB", default.db),
        url=values.get("TARLIKE_URL", default.url),
        processes=count(values.get("TARLIKE_PROCESSES", str(_cores()))),
        block_size=block_size(values.get("TARLIKE_BLOCK_SIZE", str(default.block_size)))[0],
        compress=values.get("TARLIKE_COMPRESS", default.compress),
        ca_bundle=values.get("TARLIKE_CA_BUNDLE", default.ca_bundle),
        client_cert=values.get("TARLIKE_CLIENT_CERT", default.client_cert),
        redis_url=values.get("TARLIKE_REDIS_URL", default.redis_url),
        durability=durability(values.get("TARLIKE_DURABILITY", default.durability)),
        tokens=tokens(values.get("TARLIKE_TOKEN", ""))
        or token_file(values.get("TARLIKE_TOKEN_FILE", "")),
        jwt_keys=os.path.expanduser(values.get("TARLIKE_JWT_KEYS", default.jwt_keys)),
        audience=values.get("TARLIKE_AUDIENCE", default.audience),
        tls_cert=values.get("TARLIKE_TLS_CERT", default.tls_cert),
        tls_key=values.get("TARLIKE_TLS_KEY", default.tls_key),
        cache=os.path.expanduser(values.get("TARLIKE_CACHE") or _cache(values)),
        s3=_s3(values),
    )


def _s3(values: Mapping[str, str]) -> S3Settings:
    default = S3Settings()
    access_key, secret_key = _keys(values)
    return S3Settings(
        bucket=values.get("TARLIKE_S3_BUCKET", ""),
        prefix=values.get("TARLIKE_S3_PFX", ""),
        endpoint=_first(values, "TARLIKE_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        region=_first(values, "AWS_REGION", "AWS_DEFAULT_REGION"),
        profile=values.get("AWS_PROFILE", ""),
        access_key=access_key,
        secret_key=secret_key,
        session_token=values.get("AWS_SESSION_TOKEN", "") if access_key else "",
        verify_tls=switch(values.get("TARLIKE_S3_TLS_VERIFY", "true")),
        ca_bundle=values.get("AWS_CA_BUNDLE", ""),
        addressing=addressing(values.get("TARLIKE_S3_ADDRESSING", default.addressing)),
        requester_pays=switch(values.get("TARLIKE_S3_REQUESTER_PAYS", "false")),
        unsigned=switch(values.get("TARLIKE_S3_UNSIGNED", "false")),
        metadata=switch(values.get("TARLIKE_S3_METADATA", "false")),
        versions=switch(values.get("TARLIKE_S3_VERSIONS", "false")),
        connections=count(values.get("TARLIKE_S3_CONNECTIONS", str(default.connections))),
    )


def _first(values: Mapping[str, str], *names: str) -> str:
    return next((values[name] for name in names if values.get(name)), "")


def _keys(values: Mapping[str, str]) -> tuple[str, str]:
    """Access key and secret key, both or none."""
    keys = values.get("AWS_ACCESS_KEY_ID", ""), values.get("AWS_SECRET_ACCESS_KEY", "")
    if all(keys):
        return keys
    user, password = values.get("TARLIKE_HCP_USER", ""), values.get("TARLIKE_HCP_PASSWORD", "")
    return hcp_keys(user, password) if user and password else ("", "")


def hcp_keys(user: str, password: str) -> tuple[str, str]:
    """Access key and secret key of a Hitachi Content Platform account.

    Source: "Using the Hitachi API for Amazon S3", Authentication: the Base64 of the user's name
    and the MD5 of the password.

    >>> hcp_keys("lgreen", "p4ssw0rd")
    ('bGdyZWVu', '2a9d119df47ff993b662a8ef36f9ea20')
    """
    import base64
    import hashlib

    secret = hashlib.md5(password.encode(), usedforsecurity=False).hexdigest()
    return base64.b64encode(user.encode()).decode(), secret


def tokens(text: str) -> tuple[str, ...]:
    """Tokens with spaces or lines between them. Raises UsageError, which shows none of them."""
    found = tuple(text.split())
    if not all(_TOKEN.fullmatch(one) for one in found):
        raise UsageError("The token has a character that no token has: 'tar-like token random'.")
    return found


def token_file(path: str) -> tuple[str, ...]:
    """The tokens in a file; none for no path. Raises UsageError."""
    if not path:
        return ()
    try:
        with open(os.path.expanduser(path), encoding="ascii") as file:
            found = tokens(file.read(1 << 16))
    except (OSError, UnicodeDecodeError) as error:
        text = cause(error) if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"The token file {path} cannot be read: {text}.") from None
    if not found:
        raise UsageError(f"The token file {path} is empty.")
    return found


def switch(text: str) -> bool:
    """Yes or no. Raises UsageError."""
    known = {"true": True, "yes": True, "on": True, "1": True}
    known |= {"false": False, "no": False, "off": False, "0": False, "": False}
    if text.strip().lower() not in known:
        raise UsageError(f"{text!r} is neither true nor false.")
    return known[text.strip().lower()]


def addressing(text: str) -> str:
    """Where a bucket's name goes in the URL. Raises UsageError."""
    if text not in ("auto", "path", "virtual"):
        raise UsageError(f"{text!r} is no way to address a bucket: use auto, path or virtual.")
    return text


def _rc(environ: Mapping[str, str]) -> dict[str, str]:
    named = environ.get("TARLIKE_RC")
    path = named or os.path.expanduser("~/.tar_like_rc")
    if not os.path.exists(path):
        if named:
            raise UsageError(f"The settings file {named} (TARLIKE_RC) does not exist.")
        return {}
    if os.path.isdir(path):
        raise UsageError(f"The settings file {path} is a folder.")
    from dotenv import dotenv_values

    try:
        found = dotenv_values(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The settings file {path} cannot be read ({error}).") from None
    return {key: value for key, value in found.items() if value is not None}


def _cache(values: Mapping[str, str]) -> str:
    """A folder of this user's. Source: the XDG Base Directory Specification."""
    home = values.get("XDG_CACHE_HOME") or os.path.join(values.get("HOME") or "~", ".cache")
    return os.path.join(os.path.expanduser(home), "tar-like")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def count(text: str) -> int:
    """A positive whole number. Raises UsageError."""
    if not re.fullmatch("[0-9]{1,4}", text) or not 0 < int(text) <= 1024:
        raise UsageError(f"{text!r} is not a number from 1 to 1024.")
    return int(text)


def seconds(text: str) -> int:
    """A positive number of seconds. Raises UsageError."""
    if not re.fullmatch("[0-9]{1,8}", text) or not int(text):
        raise UsageError(f"{text!r} is no number of seconds.")
    return int(text)


def duration(text: str) -> int:
    """Seconds from a text such as ``90``, ``12h`` or ``7d``. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,8})([smhd]?)", text.strip())
    if match is None or not int(match[1]):
        raise UsageError(f"{text!r} is no length of time: write 90s, 15m, 12h or 7d.")
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def age(text: str) -> int:
    """Seconds after which something is old. Raises UsageError."""
    found = duration(text)
    if found < 60:
        raise UsageError(f"{text!r} is no age: a minute is the least.")
    return found


def size(text: str) -> int:
    """Bytes from a text such as ``16MiB``, ``30M`` or ``100000``. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise UsageError(f"{text!r} is no size: write bytes, or 30M, or 16MiB.")
    unit = match[2].upper()
    return int(match[1]) * (_BINARY[unit] if match[3] else _UNITS[unit])


def block_size(text: str) -> tuple[int, bool]:
    """A block size, rounded up to whole pages, and whether it was. Raises UsageError."""
    wanted = size(text)
    rounded = round_up(wanted)
    if not 0 < rounded <= MAX_BLOCK_SIZE:
        raise UsageError(f"{text!r} is no block size: use 4KiB to 1GiB.")
    return rounded, rounded != wanted


def compression(text: str) -> str:
    """How to compress. Raises UsageError."""
    if text not in ("auto", "lz4", "none"):
        raise UsageError(f"{text!r} is no way to compress: use auto, lz4 or none.")
    return text


def durability(text: str) -> str:
    """What an acknowledgement survives. Raises UsageError."""
    if text not in ("full", "process"):
        raise UsageError(f"{text!r} is no durability: use full or process.")
    return text


def block_range(first: str | None, last: str | None) -> tuple[int | None, int | None]:
    """The blocks that -f and -l name, both included. Raises UsageError."""
    numbers = []
    for flag, text in (("-f", first), ("-l", last)):
        if text is not None and not (text.isascii() and text.isdigit() and len(text) < 19):
            raise UsageError(f"{flag} {text!r} is no block: blocks are numbered from 0.")
        numbers.append(None if text is None else int(text))
    if numbers[0] is not None and numbers[1] is not None and numbers[0] > numbers[1]:
        raise UsageError(f"-f {first} is after -l {last}.")
    return numbers[0], numbers[1]
