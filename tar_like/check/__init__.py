"""Compare a folder with an index.

    entries > lstat in the folder > type, size > hash in parallel > compare digests
    with --extra: the folder's own names, walked in step with the index
    or, against a bucket: both trees walked in step > type, size > MD5 against ETag

Reads everything; trusts nothing but the index. Not guaranteed: what changes meanwhile.
"""

from tar_like.check.against import Compared, check_against
from tar_like.check.compare import CheckOptions, Difference, check

__all__ = ["CheckOptions", "Compared", "Difference", "check", "check_against"]
