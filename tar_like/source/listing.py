"""Listing a bucket's keys below a prefix.

    first page > (more?) probe with a delimiter for points to split at > ranges of keys in parallel
    page > objects > the caller's hands, in no order over all ranges

A page has 1,000 keys, so a small prefix costs one request, and a million keys a thousand and a
few. Not guaranteed: that a bucket that changes meanwhile is seen at one instant.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from tar_like.errors import SourceUnusable
from tar_like.source.bucket import Bucket, Refused
from tar_like.source.fetch import bare
from tar_like.source.retry import SERVER, Passing, retried

LISTERS = 8
RANGES = 4 * LISTERS
_FROZEN = ("GLACIER", "DEEP_ARCHIVE")
_DEPTH = 6
MAX = (1 << 63) - 1
Query = list[tuple[str, str]]


class Object(NamedTuple):
    """A key and what a listing says of it."""

    key: str
    size: int
    modified: int
    """Nanoseconds since 1970."""
    etag: str
    version: str
    """Empty where no versions were asked for."""
    frozen: str
    """The storage class, where that cannot be read at once."""


class Page(NamedTuple):
    """One answer to a listing."""

    objects: list[Object]
    prefixes: list[str]
    following: Query
    """What to ask for next; empty at the end."""


class Unordered(Exception):
    """It cannot be told whether the range of keys between two others is complete."""


class Lister:
    """Lists one bucket."""

    def __init__(self, bucket: Bucket, *, versions: bool) -> None:
        self._bucket = bucket
        self._versions = versions

    def run(self, prefix: str, take: Callable[[list[Object]], None]) -> None:
        """Give every object below a prefix to ``take``, once or more often, from any thread.

        Raises SourceUnusable when a page cannot be had.
        """
        first = self.page(prefix)
        take(first.objects)
        if not first.following:
            return
        try:
            self._list_ranges(prefix, first, take)
        except Unordered:
            for page in self._pages(prefix, first.following):
                take(page.objects)

    def _list_ranges(self, prefix: str, first: Page, take: Callable[[list[Object]], None]) -> None:
        if self._versions or not first.objects:
            # A key-marker that is no key: not every store goes on with the very next key.
            raise Unordered
        start = first.objects[-1].key
        with ThreadPoolExecutor(LISTERS, "list") as threads:
            points = [point for point in self._points(prefix, threads) if point > start]
            step = max(1, -(-len(points) // RANGES))
            bounds = [start, *points[step - 1 :: step]]
            stops: list[str | None] = [*bounds[1:], None]
            ranges = [
                threads.submit(self._list_range, prefix, low, high, take)
                for low, high in zip(bounds, stops, strict=True)
            ]
            for one in ranges:
                one.result()

    def _points(self, prefix: str, threads: ThreadPoolExecutor) -> list[str]:
        """Keys to split at, ascending: prefixes of up to two levels that are there."""
        for _ in range(_DEPTH):
            found = self.page(prefix, delimited=True).prefixes
            if len(found) != 1:
                break
            prefix = found[0]
        if len(found) >= RANGES:
            return found
        below = threads.map(lambda one: self.page(one, delimited=True).prefixes, found)
        return sorted({*found, *(point for points in below for point in points)})

    def _list_range(
        self, prefix: str, low: str, high: str | None, take: Callable[[list[Object]], None]
    ) -> None:
        """Objects with keys above ``low``, up to ``high``."""
        last = low
        for page in self._pages(prefix, [("start-after", low)]):
            for one in page.objects:
                if one.key <= last:
                    raise Unordered
                last = one.key
            if high is not None and last > high:
                take([one for one in page.objects if one.key <= high])
                return
            take(page.objects)

    def _pages(self, prefix: str, following: Query) -> Iterator[Page]:
        """A page and all that follow it. Raises SourceUnusable where they turn in a circle."""
        seen = set()
        while following:
            if (mark := hash(tuple(following))) in seen:
                raise SourceUnusable("The bucket cannot be listed: the listing comes to no end.")
            seen.add(mark)
            page = self.page(prefix, following)
            yield page
            following = page.following

    def page(self, prefix: str, following: Query | None = None, *, delimited: bool = False) -> Page:
        """One page. Raises SourceUnusable."""
        query = [("versions", "")] if self._versions else [("list-type", "2")]
        query += [("prefix", prefix), ("encoding-type", "url"), *(following or [])]
        if delimited:
            query.append(("delimiter", "/"))
        try:
            page = retried(lambda: self._ask(query))
        except Refused as refusal:
            raise SourceUnusable(f"The bucket cannot be listed: {_lowered(refusal)}") from None
        except Passing as failure:
            raise SourceUnusable(f"The bucket cannot be listed: {_lowered(failure)}") from None
        if not all(one.key.startswith(prefix) for one in page.objects):
            raise SourceUnusable(
                "The bucket cannot be listed: the store gives keys that are not below the prefix."
            )
        return page

    def _ask(self, query: Query) -> Page:
        headers = {"x-amz-optional-object-attributes": "RestoreStatus"}
        with self._bucket.ask("GET", "", query=query, headers=headers) as response:
            text = response.read()
        try:
            return _parsed(ElementTree.fromstring(text), versions=self._versions)
        except (ElementTree.ParseError, ValueError, KeyError):
            raise Passing(SERVER, "The answer is no listing as S3 gives it.") from None


def _lowered(error: Exception) -> str:
    text = str(error)
    return text[:1].lower() + text[1:]


def _parsed(root: ElementTree.Element, *, versions: bool) -> Page:
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    if root.tag[len(space) :] not in ("ListBucketResult", "ListVersionsResult"):
        raise ValueError("no listing")

    def text(element: ElementTree.Element, name: str) -> str:
        return element.findtext(space + name) or ""

    encoded = text(root, "EncodingType") == "url"
    decode: Callable[[str], str] = _unquoted if encoded else str
    objects = []
    for element in root.iter(space + ("Version" if versions else "Contents")):
        fields = {child.tag[len(space) :]: child.text or "" for child in element}
        if fields.get("IsLatest", "true") != "true":
            continue
        frozen = fields.get("StorageClass", "")
        if frozen not in _FROZEN or element.find(f".//{space}RestoreExpiryDate") is not None:
            frozen = ""
        objects.append(
            Object(
                decode(fields["Key"]), _size(fields["Size"]), nanoseconds(fields["LastModified"]),
                _tag(fields.get("ETag", "")), fields.get("VersionId", ""), frozen,
            )
        )  # fmt: skip
    prefixes = [decode(text(one, "Prefix")) for one in root.iter(space + "CommonPrefixes")]
    following: Query = []
    if text(root, "IsTruncated") == "true":
        following = list(_following(root, text, decode, versions=versions))
    return Page(objects, prefixes, following)


def _following(
    root: ElementTree.Element, text: Callable[[ElementTree.Element, str], str],
    decode: Callable[[str], str], *, versions: bool,
) -> Iterator[tuple[str, str]]:  # fmt: skip
    if not versions:
        token = text(root, "NextContinuationToken")
        if not token:
            raise ValueError("no continuation")
        yield "continuation-token", token
        return
    yield "key-marker", decode(text(root, "NextKeyMarker"))
    if version := text(root, "NextVersionIdMarker"):
        yield "version-id-marker", version


def _unquoted(text: str) -> str:
    """A key; bytes that are no UTF-8 become what ``keys.trouble`` refuses, and stay apart."""
    return unquote_plus(text, errors="surrogateescape")


def _tag(text: str) -> str:
    """An ETag; none, where it cannot be asked for by a header."""
    tag = bare(text)
    return tag if tag.isascii() and tag.isprintable() and " " not in tag else ""


def _size(text: str) -> int:
    return _checked(int(text), 0)


def _checked(number: int, low: int) -> int:
    """Raises ValueError for a number that no index can hold."""
    if not low <= number <= MAX:
        raise ValueError(f"{number} is out of range")
    return number


def nanoseconds(text: str) -> int:
    """A time such as ``2026-01-02T03:04:05.678Z``. Raises ValueError."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    return _checked(_seconds(whole) * 10**9 + int(f"{fraction:0<9.9}"), -MAX)


@lru_cache(1024)
def _seconds(text: str) -> int:
    date, separator, clock = text.partition("T")
    numbers = [*map(int, date.split("-")), *map(int, clock.split(":"))]
    if not separator or len(numbers) != 6:
        raise ValueError(f"{text!r} is no time")
    return calendar.timegm((*numbers, 0, 0, 0))
