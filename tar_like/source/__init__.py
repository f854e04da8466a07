"""Where file bytes are read from: a folder, later an S3 bucket and prefix.

    source = open_source("folder or URL")
    for found in source.scan(wanted): ...        names, in canonical order
    reading = source.read(pieces, into)          bytes, laid end to end

One contract (``contract.Source``), one implementation a file, chosen by URL here.
Not guaranteed: that a tree that changes while it is scanned is seen at one instant.
"""

from tar_like.source.contract import (
    Begins,
    Found,
    Reading,
    ReadsAhead,
    Recognizes,
    Remembers,
    Skipped,
    Source,
    Wanted,
    WasRead,
)
from tar_like.source.registry import open_source

__all__ = [
    "Begins",
    "Found",
    "Reading",
    "ReadsAhead",
    "Recognizes",
    "Remembers",
    "Skipped",
    "Source",
    "Wanted",
    "WasRead",
    "open_source",
]
