"""Settings and the texts of flags."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tar_like import config
from tar_like.config import Settings
from tar_like.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("100000", 100_000),
        ("30M", 30_000_000),
        ("30MB", 30_000_000),
        ("16MiB", 16 << 20),
        ("16 MiB", 16 << 20),
        (" 16mib ", 16 << 20),
        ("4k", 4000),
        ("4Ki", 4096),
        ("2G", 2_000_000_000),
        ("1TiB", 1 << 40),
        ("5B", 5),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert config.size(text) == size


NO_SIZES = (
    *("", " ", "M", "MiB", "-1", "+1", "1.5M", "1e6", "5i", "5iB", "1X", "1 2", "1MM", "0x1"),
    *("1_0", "9" * 19, "1M\n1"),
)


@pytest.mark.parametrize(
    "text",
    NO_SIZES,
)
def test_no_other_text_is_a_size(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        config.size(text)


@given(st.text(max_size=12))
def test_no_text_raises_anything_but_a_usage_error(text: str) -> None:
    readers = (config.size, config.block_size, config.count, config.compression, config.durability)
    for read in readers:
        try:
            assert read(text) is not None
        except UsageError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", (4096, True)),
        ("4096", (4096, False)),
        ("4097", (8192, True)),
        ("100000", (102_400, True)),
        ("8MiB", (8 << 20, False)),
        ("1GiB", (1 << 30, False)),
    ],
)
def test_a_block_size_is_whole_pages(text: str, expected: tuple[int, bool]) -> None:
    assert config.block_size(text) == expected


@pytest.mark.parametrize("text", ["0", "1073741825", "2GiB", "9" * 18])
def test_a_block_size_has_bounds(text: str) -> None:
    with pytest.raises(UsageError, match="4KiB to 1GiB"):
        config.block_size(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.0", "1025", "²", "٣", "9" * 5000, " 1"])
def test_a_count_is_a_small_positive_number(text: str) -> None:
    assert config.count("1024") == 1024
    with pytest.raises(UsageError):
        config.count(text)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (None, None, (None, None)),
        ("0", None, (0, None)),
        ("3", "3", (3, 3)),
        (None, "9", (None, 9)),
    ],
)
def test_a_block_range_is_read(
    first: str | None, last: str | None, expected: tuple[int | None, int | None]
) -> None:
    assert config.block_range(first, last) == expected


@pytest.mark.parametrize(
    ("first", "last"), [("4", "3"), ("x", None), (None, "-1"), ("", None), ("9" * 19, None)]
)
def test_no_other_block_range(first: str | None, last: str | None) -> None:
    with pytest.raises(UsageError):
        config.block_range(first, last)


def test_settings_have_defaults() -> None:
    found = config.from_mapping({})
    default = Settings()
    assert found.processes >= 1
    assert (found.base, found.db, found.url) == (default.base, default.db, default.url)
    assert found.block_size == default.block_size


def test_the_environment_goes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rc = tmp_path / "rc"
    rc.write_text("TARLIKE_DB=file.db\nTARLIKE_PROCESSES=3\nTARLIKE_CA_BUNDLE=\n")
    monkeypatch.setenv("TARLIKE_RC", str(rc))
    monkeypatch.setenv("TARLIKE_PROCESSES", "5")
    found = config.load()
    assert (found.db, found.processes, found.ca_bundle) == ("file.db", 5, "")


def test_a_file_in_the_home_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TARLIKE_RC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.load().url == Settings().url
    (tmp_path / ".tar_like_rc").write_text("TARLIKE_URL=http://elsewhere:1/tar\n")
    assert config.load().url == "http://elsewhere:1/tar"


def test_a_named_file_must_be_there_and_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rc = tmp_path / "rc"
    monkeypatch.setenv("TARLIKE_RC", str(rc))
    with pytest.raises(UsageError, match="does not exist"):
        config.load()
    rc.write_bytes(b"TARLIKE_DB=\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        config.load()
    rc.unlink()
    rc.mkdir()
    with pytest.raises(UsageError):
        config.load()


@pytest.mark.parametrize("values", [{"TARLIKE_PROCESSES": "0"}, {"TARLIKE_BLOCK_SIZE": "big"}])
def test_a_setting_that_cannot_be_is_a_usage_error(values: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        config.from_mapping(values)
