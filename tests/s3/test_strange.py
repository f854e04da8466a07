"""Stores that answer what no store should: one sentence, and nothing made up of it."""

from __future__ import annotations

import pytest

from tar_like.errors import SourceUnusable
from tar_like.layout import FILE, Piece
from tar_like.source import Found, Skipped, Wanted, listing
from tar_like.source.retry import Kind
from tests.s3.conftest import Store
from tests.s3.faults import Rule

HUGE = 6 << 40
LAUGH = "".join(
    f'<!ENTITY a{number} "{f"&a{number - 1};" * 10 if number else "ha"}">' for number in range(12)
)


def row(key: str, size: object = 3, etag: str = "&quot;e&quot;", time: str = "2026-01-02") -> str:
    return (
        f"<Contents><Key>tree/{key}</Key><LastModified>{time}T03:04:05.000Z</LastModified>"
        f"<ETag>{etag}</ETag><Size>{size}</Size></Contents>"
    )


def page(*rows: str, before: str = "", token: str = "") -> bytes:
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return (
        f"<?xml version='1.0'?>{before}<ListBucketResult><EncodingType>url</EncodingType>"
        f"<IsTruncated>{str(bool(token)).lower()}</IsTruncated>{more}{''.join(rows)}"
        "</ListBucketResult>"
    ).encode()


def listed(s3: Store, status: str, body: bytes) -> list[Found | Skipped]:
    """What is found where every listing is answered so."""
    s3.proxy.rules.append(Rule("say", key="list-type", says=(status, body)))
    source = s3.source()
    try:
        return [one for one in source.scan(Wanted()) if one.path]
    finally:
        source.close()


def code(name: str, more: str = "") -> bytes:
    return f"<Error><Code>{name}</Code>{more}</Error>".encode()


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        ("404 Not Found", code("NoSuchBucket"), "There is no bucket "),
        ("403 Forbidden", code("RequestTimeTooSkewed"), "The clock here and that of the store"),
        ("403 Forbidden", code("SignatureDoesNotMatch"), "refuses the signature"),
        ("400 Bad Request", code("ExpiredToken"), "The credentials have expired"),
        ("301 Moved", code("PermanentRedirect"), "is elsewhere .* name its region"),
        ("307 Moved\r\nx-amz-bucket-region: eu-1", b"", "is elsewhere .* name its region"),
        ("400 Bad", code("AuthorizationHeaderMalformed", "<Region>eu-1</Region>"), "is elsewhere"),
        ("404 Not Found", b"", "cannot be listed: the store answers 404"),
        ("200 OK", page(row("a"), token="again"), "the listing comes to no end"),
        ("200 OK", page(row("a").replace("tree/", "other/")), "not below the prefix"),
    ],
)
def test_a_listing_that_cannot_be_had_is_one_sentence(
    s3: Store, status: str, body: bytes, sentence: str
) -> None:
    with pytest.raises(SourceUnusable, match=sentence):
        listed(s3, status, body)
    assert s3.proxy.count("GET") < 8


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>please log in</html>",
        page(row("a"))[:-9],
        page(row("a"), token="t").replace(b"NextC", b"C"),
        page(row("a", "")),
        page(row("a", -1)),
        page(row("a", 1 << 63)),
        page(row("a", time="3000-01-02")),
        page("<Contents><Key>a</Key></Contents>"),
        page(row("&a11;"), before=f"<!DOCTYPE x [{LAUGH}]>"),
        page(row("&x;"), before="<!DOCTYPE x [<!ENTITY x SYSTEM 'file:///etc/hostname'>]>"),
    ],
)
def test_what_is_no_listing_is_asked_for_again_and_then_told(
    s3: Store, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "SERVER", Kind("hasty", 3, 0.001))
    with pytest.raises(SourceUnusable, match="the answer is no listing as S3 gives it"):
        listed(s3, "200 OK", body)
    assert s3.proxy.count("GET") == 3


def test_empty_pages_are_gone_through(s3: Store) -> None:
    s3.put(b"a", b"abc")
    answers = {
        "continuation-token=t3": page(row("a")),
        "continuation-token=t2": page(token="t3"),
        "continuation-token=t1": page(token="t2"),
        "list-type": page(token="t1"),
    }
    for key, body in answers.items():
        s3.proxy.rules.append(Rule("say", key=key, says=("200 OK", body)))
    source = s3.source()
    assert [one.path for one in source.scan(Wanted())] == [b"", b"a"]
    source.close()


def test_keys_that_are_no_text_are_named_and_stay_apart(s3: Store) -> None:
    rows = [row("a%FF"), row("a%FE"), row("b"), row("d%ED%A0%80/c")]
    found = listed(s3, "200 OK", page(*rows))
    assert {(one.path, getattr(one, "detail", "")) for one in found} == {
        (b"a\xff", "its key is not valid UTF-8"),
        (b"a\xfe", "its key is not valid UTF-8"),
        (b"b", ""),
        (b"d\xed\xa0\x80/c", "its key is not valid UTF-8"),
    }


@pytest.mark.parametrize("etag", ["a b", "e&#10;X-More: 1", "\u00e9", ""])
def test_an_etag_that_no_header_can_hold_is_none(s3: Store, etag: str) -> None:
    s3.put(b"a", b"abc")
    found = listed(s3, "200 OK", page(row("a", etag=etag)))
    assert [one.token for one in found if isinstance(one, Found)] == [b""]


def test_any_range_of_a_very_large_object_is_asked_for(s3: Store) -> None:
    data = bytes(range(256)) * 16
    start = HUGE - 5000
    stop = start + len(data)
    says = f'206 Partial Content\r\nETag: "e"\r\nContent-Range: bytes {start}-{stop - 1}/{HUGE}'
    s3.proxy.rules.append(Rule("say", key="/tree/a", says=(says, data)))
    (found,) = listed(s3, "200 OK", page(row("a", HUGE)))
    assert isinstance(found, Found)
    assert (found.kind, found.size) == (FILE, HUGE)
    source = s3.source()
    room = memoryview(bytearray(len(data)))
    piece = Piece(0, b"a", start, stop, HUGE, found.mtime, found.token)
    assert source.read([piece], room) == (len(data), [])
    assert room == data
    assert s3.proxy.seen[-1].headers["range"] == f"bytes={start}-{stop - 1}"
    source.close()


@pytest.mark.parametrize(
    "name",
    [
        "tab\t", "100%", "a+b c", "x%41", "\u65e5\u672c", "\U0001f600", "q?x=1&y#h", "-rf",
        "'\"\\", "\x7f", "/".join(["d" * 200] * 5)[:1019],
    ],
)  # fmt: skip
def test_every_key_that_can_be_a_path_is_read(s3: Store, name: str) -> None:
    s3.put(name, b"abc")
    source = s3.source()
    (found,) = [one for one in source.scan(Wanted()) if getattr(one, "kind", "") == FILE]
    assert isinstance(found, Found)
    assert found.path == name.encode()
    room = memoryview(bytearray(3))
    piece = Piece(0, found.path, 0, 3, 3, found.mtime, found.token)
    assert source.read([piece], room) == (3, [])
    assert room == b"abc"
    source.close()
