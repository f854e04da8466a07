"""The error tree, and how paths are shown."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tar_like import errors
from tar_like.errors import TarLikeError, cause, counted, line, shown

PATHS = st.one_of(
    st.binary(max_size=12),
    st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")),
)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"", ""),
        (b"plain/name.txt", "plain/name.txt"),
        ("caf\u00e9/\u2603".encode(), "caf\u00e9/\u2603"),
        (b"a\nb", "a\\nb"),
        (b"\r\t", "\\r\\t"),
        (b"a\\nb", "a\\\\nb"),
        (b"\xff", "\\xff"),
        (b"\x1b[31m", "\\x1b[31m"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
    ],
)
def test_a_path_is_shown(path: bytes, text: str) -> None:
    assert shown(path) == text


@given(PATHS)
def test_a_shown_path_is_one_printable_line(path: bytes) -> None:
    text = shown(path)
    assert text.isprintable()
    text.encode("utf-8")


@given(PATHS, PATHS)
@example(b"\x85", b"\xc2\x85")
@example(b"\xa0", "\u00a0".encode())
@example(b"\n", b"\\n")
@example(b"\xff", b"\\xff")
@example("\u2028".encode(), b"\\u2028")
def test_two_paths_are_shown_in_two_ways(one: bytes, other: bytes) -> None:
    assert (shown(one) == shown(other)) == (one == other)


@given(st.text(max_size=12))
@example("a\x1b[2J\n\udcff\ud800\u2028")
def test_what_others_wrote_is_one_printable_line(text: str) -> None:
    found = line(text)
    assert found.isprintable()
    found.encode("utf-8")
    assert not text.isprintable() or found == text


def tree(kind: type[TarLikeError]) -> Iterator[type[TarLikeError]]:
    """The tree of errors.py; rooms may have kinds of their own, seen once they are imported."""
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from tree(below)


def test_each_error_knows_its_exit_code_status_and_name() -> None:
    kinds = list(tree(TarLikeError))
    assert len({kind.slug for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert kind.exit_code in (1, 2, 3, 130)
        assert 400 <= kind.http_status < 600


def test_what_may_pass_is_tried_again_and_nothing_else() -> None:
    again = {kind.__name__ for kind in tree(TarLikeError) if kind.retry}
    assert again == {"BlockInvalid", "Busy", "ReceiverFailed", "TooSlow", "Unreachable"}


def test_the_exit_codes_are_those_of_the_design() -> None:
    codes = (errors.OK, errors.FAILURE, errors.USAGE, errors.SOURCE_TROUBLE, errors.DIFFERENT)
    assert (*codes, errors.INTERRUPTED) == (0, 1, 2, 3, 4, 130)


def test_a_cause_is_the_operating_systems_words() -> None:
    assert cause(OSError(errno.ENOSPC, "whatever", "name")) == "No space left on device"
    assert cause(OSError("only a text")) == "only a text"


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(0, "block", "0 blocks"), (1, "entry", "1 entry"), (2, "entry", "2 entries")],
)
def test_what_is_counted(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text
