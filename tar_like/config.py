"""Settings: an rc file, then the environment, then flags. The only reader of os.environ.

The rc file is the one that TARLIKE_RC names, else ~/.tar_like_rc; it has KEY=VALUE lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tar_like.errors import UsageError
from tar_like.layout import DEFAULT_BLOCK_SIZE, MAX_BLOCK_SIZE, round_up

DEFAULT_PORT = 8000
DEFAULT_DB = "tar_like.db"
_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d{1,18})\s*([KMGT]?)(i?)B?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds where no flag says otherwise."""

    base: str = "."
    db: str = DEFAULT_DB
    url: str = f"http://127.0.0.1:{DEFAULT_PORT}/tar"
    processes: int = 1
    block_size: int = DEFAULT_BLOCK_SIZE
    compress: str = "auto"
    ca_bundle: str | None = None
    redis_url: str = ""
    """The Redis that hands out the work; empty for none."""
    cache: str = ""
    """Where indexes and plans of other hosts' transfers are kept."""


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
        ca_bundle=values.get("TARLIKE_CA_BUNDLE") or None,
        redis_url=values.get("TARLIKE_REDIS_URL", default.redis_url),
        cache=values.get("TARLIKE_CACHE") or _cache(values),
    )


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
        raise UsageError(f"{text!r} is not a number of processes from 1 to 1024.")
    return int(text)


def seconds(text: str) -> int:
    """A positive number of seconds. Raises UsageError."""
    if not re.fullmatch("[0-9]{1,8}", text) or not int(text):
        raise UsageError(f"{text!r} is no number of seconds.")
    return int(text)


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
