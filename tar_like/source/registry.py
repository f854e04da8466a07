"""Sources by URL."""

from __future__ import annotations

from tar_like.errors import UsageError
from tar_like.source.contract import Source


def open_source(url: str) -> Source:
    """The source for a folder's path or a URL. Raises UsageError or SourceUnusable."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        from tar_like.source.folder import FolderSource

        return FolderSource(url)
    raise UsageError(f"There is no source for {scheme}:// URLs: give a folder.")
