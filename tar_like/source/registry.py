"""Sources by URL."""

from __future__ import annotations

from tar_like import config
from tar_like.errors import UsageError
from tar_like.source.contract import Source


def open_source(url: str, s3: config.S3Settings | None = None) -> Source:
    """The source for a folder's path or a URL. Raises UsageError or SourceUnusable.

    Without settings for S3, those of this machine hold.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        from tar_like.source.folder import FolderSource

        return FolderSource(url)
    if scheme == "s3":
        from tar_like.source.s3 import S3Source

        return S3Source(url, config.load().s3 if s3 is None else s3)
    raise UsageError(f"There is no source for {scheme}:// URLs: give a folder or s3://….")
