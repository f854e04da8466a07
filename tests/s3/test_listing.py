"""Listing through the S3 interface: pages, ranges in parallel, orders, metadata, classes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tar_like.errors import SourceUnusable, UsageError
from tar_like.layout import FILE, sort_key
from tar_like.source import Found, Skipped, Wanted, listing, spill
from tests.s3.conftest import Store
from tests.s3.faults import Rule

NAMES = [
    *(f"{top}/{number:02d}/{name}" for top in "abcd" for number in range(3) for name in "xyz"),
    *("a", "a.b", "a-1", "b b/x", "ü/ö", "e/f/g/h/i", "q%20+&<>\x01"),
]
FILES = {name.encode() for name in NAMES} - {b"a"}


@pytest.fixture
def small_pages(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of seven keys, so that a small bucket is a large one."""
    page = listing.Lister.page

    def small(
        self: listing.Lister, prefix: str, following: listing.Query | None = None, *,
        delimited: bool = False,
    ) -> listing.Page:  # fmt: skip
        return page(self, prefix, [("max-keys", "7"), *(following or [])], delimited=delimited)

    monkeypatch.setattr(listing.Lister, "page", small)
    monkeypatch.setattr(spill, "RUN", 10)


def scan(s3: Store, **settings: object) -> list[Found | Skipped]:
    source = s3.source(**settings)
    try:
        return list(source.scan(Wanted()))
    finally:
        source.close()


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("versions", [False, True])
def test_many_pages_make_one_tree(s3: Store, versions: bool) -> None:
    names = [name for name in NAMES if not versions or name.isprintable()]
    for name in names:  # the server's listing of versions is no XML with what cannot be printed
        s3.put(name, name.encode())
    s3.client.put_object(Bucket=s3.name, Key="tree.x", Body=b"beside")
    s3.client.put_object(Bucket=s3.name, Key="tree", Body=b"beside")
    found = scan(s3, versions=versions)
    files = [one for one in found if isinstance(one, Found) and one.kind == FILE]
    assert [one.path.decode() for one in files] == sorted(
        {*names} - {"a"}, key=lambda name: sort_key(name.encode())
    )
    assert all(one.size == len(one.path) for one in files)
    paths = [sort_key(one.path) for one in found if isinstance(one, Found)]
    assert all(one < other for one, other in pairwise(paths))
    assert [one for one in found if isinstance(one, Skipped)] == [
        Skipped(b"a", "unreadable", "its key is also the prefix of other keys")
    ]
    assert (s3.proxy.count("GET", "start-after") > 3) is not versions  # it was split
    assert s3.proxy.count("GET") < 22  # no range goes on into the next
    assert scan(s3, versions=versions) == found


class OwnOrder(listing.Lister):
    """Lists keys as a store does that knows no difference between large and small letters."""

    def __init__(self, keys: list[str]) -> None:
        self._versions = False
        self.keys = sorted(keys, key=str.casefold)

    def page(
        self, prefix: str, following: listing.Query | None = None, *, delimited: bool = False
    ) -> listing.Page:
        if delimited:
            below = {key.partition("/")[0] + "/" for key in self.keys if "/" in key}
            return listing.Page([], sorted(below) if not prefix else [], [])
        after = following[0][1] if following else ""
        rest = [key for key in self.keys if key.casefold() > after.casefold()]
        objects = [listing.Object(key, 1, 1, "etag", "", "") for key in rest[:7]]
        return listing.Page(objects, [], [("start-after", rest[6])] if len(rest) > 7 else [])


TEXTS = st.lists(
    st.text("abAB/", min_size=1, max_size=4), min_size=8, max_size=60, unique_by=str.casefold
)


@settings(max_examples=500)
@given(TEXTS)
def test_a_store_with_an_order_of_its_own_is_listed_whole(keys: list[str]) -> None:
    lister = OwnOrder(keys)
    found: list[str] = []
    lister.run("", lambda objects: found.extend(one.key for one in objects))
    assert sorted(set(found)) == sorted(keys)


def test_a_small_prefix_costs_one_request(s3: Store) -> None:
    for name in NAMES:
        s3.put(name, b"")
    scan(s3)
    assert len(s3.proxy.seen) == 1


def test_listing_goes_on_after_what_passes(s3: Store) -> None:
    s3.put("a", b"")
    s3.proxy.rules += [Rule(kind, key="list-type", times=1) for kind in ("slow_down", "broken")]
    s3.proxy.rules += [Rule("truncate", key="list-type", after=30, times=2)]
    assert [one.path for one in scan(s3)] == [b"", b"a"]
    assert sum(rule.hits for rule in s3.proxy.rules) == 4


def test_a_bucket_that_may_not_be_listed_is_unusable(s3: Store) -> None:
    s3.proxy.rules.append(Rule("denied", key="list-type"))
    with pytest.raises(
        SourceUnusable, match="cannot be listed: the store answers 403 AccessDenied"
    ):
        scan(s3)


def test_a_prefix_with_nothing_below_it_is_unusable(s3: Store) -> None:
    with pytest.raises(SourceUnusable, match="nothing below"):
        scan(s3)


def test_an_empty_bucket_is_an_empty_tree(s3: Store) -> None:
    source = s3.source(f"s3://{s3.name}")
    assert [one.path for one in source.scan(Wanted())] == [b""]
    source.close()


def test_frozen_objects_are_named(s3: Store) -> None:
    for name in ("GLACIER", "DEEP_ARCHIVE", "GLACIER_IR", "STANDARD_IA"):
        s3.put(name.lower(), b"x", StorageClass=name)
    found = scan(s3)
    assert [one.path for one in found if isinstance(one, Found)] == [
        b"", b"glacier_ir", b"standard_ia",
    ]  # fmt: skip
    skipped = {one.path: one.detail for one in found if isinstance(one, Skipped)}
    assert set(skipped) == {b"glacier", b"deep_archive"}
    assert "GLACIER cannot be read at once" in skipped[b"glacier"]


def test_metadata_is_asked_for_where_it_is_wanted(s3: Store) -> None:
    s3.put("a", b"x", Metadata={"mtime": "1700000000.5", "mode": "100600", "uid": "7", "gid": "8"})
    s3.put("b", b"x")
    plain = {one.path: one for one in scan(s3) if isinstance(one, Found)}
    assert (plain[b"a"].mode, plain[b"a"].uid) == (0o644, 0)
    assert s3.proxy.count("HEAD") == 0
    found = {one.path: one for one in scan(s3, metadata=True) if isinstance(one, Found)}
    assert found[b"a"][3:7] == (0o600, 1_700_000_000_500_000_000, 7, 8)
    assert found[b"b"] == plain[b"b"]
    assert found[b"a"].ctime == plain[b"a"].ctime == plain[b"a"].mtime
    assert s3.proxy.count("HEAD") == 2


def test_requester_pays_says_so(s3: Store) -> None:
    s3.put("a", b"x")
    scan(s3, requester_pays=True)
    assert s3.proxy.seen[-1].headers["x-amz-request-payer"] == "requester"


def test_unsigned_requests_carry_no_credentials(s3: Store) -> None:
    s3.put("a", b"x")
    s3.client.put_bucket_acl(Bucket=s3.name, ACL="public-read")
    scan(s3, unsigned=True)
    assert "authorization" not in s3.proxy.seen[-1].headers


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/prefix",
        "s3://",
        "s3:///prefix",
        "s3://arn:aws:s3:us-east-1:1:accesspoint/x",
        "s3://b\udcff/x",
        "s3://bucket/\udcff",
        "s3://bucket//prefix",
        "s3://bucket/prefix//",
        "s3://bucket/a//b",
    ],
)
def test_what_is_no_url_of_a_bucket_is_a_usage_error(s3: Store, url: str) -> None:
    with pytest.raises(UsageError) as caught:
        s3.source(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["store", "ftp://x", "http://", "https://u:secret@host"])
def test_what_is_no_endpoint_is_a_usage_error(s3: Store, endpoint: str) -> None:
    with pytest.raises(UsageError) as caught:
        s3.source(endpoint=endpoint)
    assert "secret" not in str(caught.value)


def test_without_credentials_it_says_what_to_do(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UsageError, match="AWS_ACCESS_KEY_ID"):
        scan(s3, access_key="", secret_key="")
