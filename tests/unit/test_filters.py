"""Which names a scan takes up."""

from __future__ import annotations

import pytest

from tar_like.errors import UsageError
from tar_like.source.filters import make_filter


def kept(paths: list[bytes], regexes: list[str], patterns: list[str]) -> list[bytes]:
    keep = make_filter(regexes, patterns)
    assert keep is not None
    return [path for path in paths if keep(path.rstrip(b"/"), path.endswith(b"/"))]


def test_nothing_asked_nothing_left_out() -> None:
    assert make_filter([], []) is None


def test_a_regex_is_searched_for_in_the_relative_path() -> None:
    paths = [b".git/", b"a/.git/", b"a/.gitignore", b"git", b"b"]
    assert kept(paths, [r"\.git"], []) == [b"git", b"b"]
    assert kept(paths, [r"^\.git$", r"^b$"], []) == [b"a/.git/", b"a/.gitignore", b"git"]


def test_a_regex_sees_names_that_are_no_text() -> None:
    assert kept([b"\xff.tmp", b"new\nline.tmp", b"x"], [r"(?s).\.tmp$"], []) == [b"x"]


def test_patterns_are_those_of_gitignore() -> None:
    paths = [b"build/", b"a/build/", b"build.c", b"x.o", b"a/x.o", b"top", b"a/top"]
    assert kept(paths, [], ["build/", "*.o", "/top"]) == [b"build.c", b"a/top"]


def test_a_folder_pattern_is_for_folders_only() -> None:
    assert kept([b"build", b"build/"], [], ["build/"]) == [b"build"]


def test_a_later_include_is_an_exception() -> None:
    assert kept([b"a.o", b"keep.o"], [], ["*.o", "!keep.o"]) == [b"keep.o"]
    assert kept([b"a.o", b"keep.o"], [], ["!keep.o", "*.o"]) == []


def test_both_kinds_together() -> None:
    assert kept([b"a.o", b"b.c", b"c.h"], ["^b"], ["*.o"]) == [b"c.h"]


@pytest.mark.parametrize("regex", ["(", "[", "*", "(?P<a"])
def test_a_regex_that_is_none_is_a_usage_error(regex: str) -> None:
    with pytest.raises(UsageError, match="no regular expression"):
        make_filter([regex], [])


def test_a_pattern_that_is_none_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no gitignore pattern"):
        make_filter([], ["!"])
