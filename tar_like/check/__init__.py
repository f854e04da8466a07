"""Compare a folder with an index.

    entries > lstat in the folder > type, size > hash in parallel > compare digests
    with --extra: the folder's own names, walked in step with the index

Reads everything; trusts nothing but the index. Not guaranteed: what changes meanwhile.
"""

from tar_like.check.compare import CheckOptions, Difference, check

__all__ = ["CheckOptions", "Difference", "check"]
