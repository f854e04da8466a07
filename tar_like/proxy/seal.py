"""Seals: the digests of a transfer's own files, to know at the commit that they are what they were.

    index.db > index.db.seal        the others likewise, before they are published

What a disk has changed in an index, say, would else be given to names: SQLite does not notice it.
"""

from __future__ import annotations

import errno
import os

from blake3 import blake3

from tar_like.dirfd import open_file

SEALED = ("index.db", "patch.db", "plan.db", "kept.db")
_END = ".seal"
_NO_FILE = (errno.ENOENT, errno.ELOOP, errno.EINVAL)
"""What opening something else in its place says."""


def seal(path: str, name: str = "") -> str:
    """Write the seal of a new file beside it; returns the seal's path. Raises OSError.

    ``name`` is what the file will be called, if that is something else.
    """
    final = os.path.join(os.path.dirname(path), (name or os.path.basename(path)) + _END)
    with open(open_file(final, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        file.write(_digest(path))
    return final


def broken(folder: str) -> str:
    """The first of a transfer's files that is not what it was; empty for none. Raises OSError.

    A file without a seal is of an earlier version, and passes.
    """
    for name in SEALED:
        path = os.path.join(folder, name)
        try:
            with open(open_file(f"{path}{_END}", os.O_RDONLY), "rb") as file:
                known = file.read()
        except FileNotFoundError:
            continue
        try:
            if known == _digest(path):
                continue
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
        return name
    return ""


def text_of(name: str) -> str:
    """What to say of a file that is not what it was."""
    return (
        f"The disk has changed the records of a transfer ({name}). It is removed: run the same "
        "command again, and all of it is sent."
    )


def _digest(path: str) -> bytes:
    hasher = blake3()
    with open(open_file(path, os.O_RDONLY), "rb", buffering=0) as file:
        while data := file.read(1 << 22):
            hasher.update(data)
    return hasher.digest()
