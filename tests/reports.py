"""A pytest plugin: reports of tests that fail over names that are not UTF-8 reach the screen.

os.fsdecode makes lone surrogates of such names' bytes; a report with one in it can be neither
sent by a test process to its parent nor printed. Here they are written as escapes.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, dict[str, Any] | None, Any]:
    return printable((yield))


def printable(value: Any) -> Any:
    """The same value, each lone surrogate in its texts escaped."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {printable(key): printable(part) for key, part in value.items()}
        case list():
            return [printable(part) for part in value]
        case tuple():
            return tuple(printable(part) for part in value)
    return value
