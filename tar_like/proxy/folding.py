"""Names that the destination's filesystem takes for one: ``Readme`` and ``README``, say.

Some filesystems fold case, or forms of Unicode; a tree with two such names cannot arrive there
whole, so it is refused. Which ones do so is tried out, in a folder of the receiver's own.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable

from tar_like.errors import IndexInvalid, shown
from tar_like.index import Index
from tar_like.proxy.place import HOME

Fold = Callable[[bytes], bytes]

_CASE = (b"Fold", b"fOLD")
_FORM = ("\u00e9".encode(), "e\u0301".encode())


def folding(folder: str) -> Fold | None:
    """What a folder's filesystem makes of a name; None where names are bytes. Raises OSError."""
    case, form = (_one(folder, *pair) for pair in (_CASE, _FORM))
    if not case and not form:
        return None

    def fold(name: bytes) -> bytes:
        text = unicodedata.normalize("NFD", name.decode("utf-8", "surrogateescape"))
        if case:
            text = unicodedata.normalize("NFD", text.casefold())
        return text.encode("utf-8", "surrogateescape")

    return fold


def _one(folder: str, name: bytes, other: bytes) -> bool:
    """Whether two names are one here."""
    path, same = (os.path.join(os.fsencode(folder), one) for one in (name, other))
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except (UnicodeError, FileNotFoundError):
        return True
    try:
        return os.path.lexists(same)
    finally:
        os.unlink(path)


def check_names(index: Index, fold: Fold) -> None:
    """Raises IndexInvalid where two names of one directory are one, or one is the receiver's own.

    Keeps the names of the directories on the way to one entry.
    """
    parents: list[bytes] = [b""]
    seen: list[dict[bytes, bytes]] = [{fold(os.fsencode(HOME)): os.fsencode(HOME)}]
    for entry in index.entries(1):
        parent, _, name = entry.path.rpartition(b"/")
        while parents[-1] != parent and not parent.startswith(
            parents[-1] + b"/" * bool(parents[-1])
        ):
            parents.pop()
            seen.pop()
        if parents[-1] != parent:
            parents.append(parent)
            seen.append({})
        other = seen[-1].setdefault(fold(name), name)
        if other is not name:
            raise IndexInvalid(
                f"{shown(other)[:200]} and {shown(name)[:200]} are one name where they are to go."
            )
