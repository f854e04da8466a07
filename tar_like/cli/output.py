"""What the user sees: progress and sentences on stderr, a summary on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from tar_like.errors import line

MAX_LISTED = 100


class Output:
    """One command's output."""

    def __init__(self, *, json: bool, quiet: bool) -> None:
        self.command = ""
        self._json = json
        self._quiet = quiet
        self._started = time.monotonic()
        self._bar: Any = None

    def say(self, text: str) -> None:
        """Something the user may want to know."""
        if not self._quiet:
            self._write(f"tar-like: {text}")

    def error(self, text: str) -> None:
        """Something the user must know."""
        self._write(f"tar-like: {text}")

    def listed(self, lines: list[str]) -> None:
        """Names with reasons, on stderr; a long list is cut, and says so."""
        for each in lines[:MAX_LISTED]:
            self._write(f"  {each}")
        if len(lines) > MAX_LISTED:
            self._write(f"  and {len(lines) - MAX_LISTED} more (--json lists all)")

    def result(self, text: str) -> None:
        """A line of the result, on stdout; not with --json."""
        if not self._json:
            self.end_progress()
            print(line(text))

    def blocks(self, total: int, done: int) -> None:
        """Start a progress bar, where somebody is looking."""
        self.end_progress()
        if self._quiet or not sys.stderr.isatty():
            return
        from tqdm import tqdm

        self._bar = tqdm(
            total=total, initial=done, unit="B", unit_scale=True, desc="sent", file=sys.stderr
        )

    def advance(self, raw: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(raw)

    def end_progress(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def interim(self, summary: dict[str, Any]) -> None:
        """One of several summaries, as a line of JSON if that was asked for."""
        if self._json:
            import json

            print(json.dumps({"command": self.command, "seconds": self.seconds, **summary}))
            sys.stdout.flush()

    def finish(self, summary: dict[str, Any], exit_code: int) -> int:
        """The end: the summary as JSON if that was asked for. Returns the exit code.

        A value that is an iterator becomes an array, written as it is gone over.
        """
        self.end_progress()
        if self._json:
            head = {"command": self.command, "exit_code": exit_code, "seconds": self.seconds}
            for part in _json({**head, **summary}):
                sys.stdout.write(part)
        return exit_code

    @property
    def seconds(self) -> float:
        """Since the command began."""
        return round(time.monotonic() - self._started, 3)

    def _write(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        print(line(text), file=sys.stderr, flush=True)  # others may have had a word in it


def _json(values: dict[str, Any]) -> Iterator[str]:
    """An object as a line of JSON, in parts."""
    import json

    before = "{"
    for key, value in values.items():
        yield f"{before}{json.dumps(key)}: "
        if isinstance(value, Iterator):
            comma = "["
            for one in value:
                yield comma + json.dumps(one)
                comma = ", "
            yield "[]" if comma == "[" else "]"
        else:
            yield json.dumps(value)
        before = ", "
    yield "}\n"


def size(count: int) -> str:
    """Bytes for people.

    >>> size(1500), size(3 << 20)
    ('1500 B', '3.0 MiB')
    """
    if count < 10240:
        return f"{count} B"
    value, units = count / 1024, ["TiB", "GiB", "MiB", "KiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop()
    return f"{value:.1f} {units[-1]}"
