"""What other tools keep of a file in an object's user metadata.

    rclone       mtime: 1700000000.123456789        mode: 100644 (octal)   uid, gid
    s3fs         mtime: 1700000000                  mode: 33188            uid, gid
    s3cmd        s3cmd-attrs: mtime:1700000000/mode:33188/uid:0/gid:0/…

Sources: rclone's "S3 backend" page, s3fs-fuse's FAQ, s3cmd's S3/S3.py. What cannot be read is
taken as not there.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass

_SECONDS = re.compile(r"(-?)(\d{1,11})(?:\.(\d{1,18}))?")


@dataclass(frozen=True, slots=True)
class Kept:
    """Of a file; None for what is not known."""

    mtime: int | None = None
    """Nanoseconds since 1970."""
    mode: int | None = None
    """Permission bits."""
    uid: int | None = None
    gid: int | None = None


def kept(headers: Mapping[str, str]) -> Kept:
    """From the headers of an answer, with names in lower case."""
    found = {
        name.removeprefix("x-amz-meta-"): value
        for name, value in headers.items()
        if name.startswith("x-amz-meta-")
    }
    for item in found.get("s3cmd-attrs", "").split("/"):
        name, _, value = item.partition(":")
        found.setdefault(name, value)
    return Kept(
        mtime=_nanoseconds(found.get("mtime", "")),
        mode=_mode(found.get("mode", "")),
        uid=_owner(found.get("uid", "")),
        gid=_owner(found.get("gid", "")),
    )


def _nanoseconds(text: str) -> int | None:
    match = _SECONDS.fullmatch(text.strip())
    if match is None or int(match[2]) > 9_000_000_000:  # SQLite's integers hold no more
        return None
    number = int(match[2]) * 10**9 + int(f"{match[3] or '':0<9.9}")
    return -number if match[1] else number


def _mode(text: str) -> int | None:
    """rclone writes octal, the others decimal: the type bits of a file tell which it is."""
    if not re.fullmatch(r"\d{1,7}", text):
        return None
    octal = int(text, 8) if not set(text) & set("89") else -1
    for number in (octal, int(text)):
        if stat.S_ISREG(max(number, 0)) or stat.S_ISDIR(max(number, 0)):
            return stat.S_IMODE(number)
    return octal if 0 <= octal <= 0o7777 else None


def _owner(text: str) -> int | None:
    if not re.fullmatch(r"\d{1,10}", text) or int(text) >= 1 << 32:
        return None
    return int(text)
