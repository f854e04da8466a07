"""The index: an SQLite file that lists every entry of a tree.

    source.scan > number (ids, offsets, hard links) > reuse hashes of the old index
                > hash the rest in parallel > rows, in canonical order > publish by rename

The index's id is a digest over the leaves of its rows, so the same tree gives the same id.
Not guaranteed: a tree that changes meanwhile is not seen at one instant; what differs when it
is read is noticed then.

Modules are imported when a name of theirs is asked for: a scan begins sooner so.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tar_like.index.build import BuildOptions, build_index
    from tar_like.index.inodes import Inodes
    from tar_like.index.numbering import BuildSummary
    from tar_like.index.reader import Index
    from tar_like.index.recorded import Recorded
    from tar_like.index.validation import validate

__all__ = ["BuildOptions", "BuildSummary", "Index", "Inodes", "Recorded", "build_index", "validate"]

_HOMES = {
    "BuildOptions": "build",
    "BuildSummary": "numbering",
    "Index": "reader",
    "Inodes": "inodes",
    "Recorded": "recorded",
    "build_index": "build",
    "validate": "validation",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
