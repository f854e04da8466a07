"""Which names a scan takes up.

``-x REGEX`` is searched for in the path relative to the base; ``--exclude`` and ``--include``
are gitignore patterns, in the order given, an include being an exception (pathspec). What is left
out takes everything below with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from tar_like.errors import UsageError


def make_filter(
    regexes: Sequence[str], patterns: Sequence[str]
) -> Callable[[bytes, bool], bool] | None:
    """A function (relative path, is it a directory) -> keep it; None when all is kept.

    ``patterns`` are gitignore lines; an include is one that starts with ``!``.
    Raises UsageError for a pattern that is none.
    """
    if not regexes and not patterns:
        return None
    compiled = [_compile(regex) for regex in regexes]
    ignored = _ignored(patterns)

    def keep(path: bytes, is_directory: bool) -> bool:
        text = os.fsdecode(path)
        if any(regex.search(text) for regex in compiled):
            return False
        return not ignored(text + "/" if is_directory else text)

    return keep


def _compile(regex: str) -> re.Pattern[str]:
    try:
        return re.compile(regex)
    except (re.error, RecursionError) as error:
        raise UsageError(f"-x {regex!r} is no regular expression: {error}.") from None


def _ignored(patterns: Sequence[str]) -> Callable[[str], bool]:
    if not patterns:
        return lambda _: False
    from pathspec import GitIgnoreSpec

    try:
        return GitIgnoreSpec.from_lines(patterns).match_file
    except ValueError as error:
        raise UsageError(f"A pattern is no gitignore pattern: {error}.") from None
