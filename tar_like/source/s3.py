"""A bucket and prefix as a source. The only file that knows boto3.

    scan: list in parallel > rows, sorted outside memory > tree
    read: pieces > ranged GETs of the versions in the index, many at a time

boto3 finds credentials, region and endpoint; the requests themselves are made in ``bucket``, which
takes an eighth of the time. Connections and threads are made when they are needed, by the process
that needs them, so a source may go through a fork.

Not guaranteed: that a bucket that changes meanwhile is listed at one instant; without an ETag in
the index (it was made from a folder), that an object of the right size has the right bytes: the
hashes in the index tell, at the commit. Directory buckets (S3 Express) and access points are not
supported.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast
from urllib.parse import urlsplit

from tar_like import config
from tar_like.errors import SourceUnusable, UsageError
from tar_like.layout import Piece
from tar_like.source import keys
from tar_like.source.bucket import Access, Bucket, Refused
from tar_like.source.contract import Found, Reading, Skipped, Wanted
from tar_like.source.fetch import Fetcher, Token, token_of
from tar_like.source.headers import Kept, kept
from tar_like.source.listing import Lister, Object
from tar_like.source.retry import Passing, retried
from tar_like.source.sigv4 import Keys
from tar_like.source.spill import Sorted

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


class S3Source:
    """The objects below a prefix as a tree (source.contract.Source)."""

    def __init__(self, url: str, settings: config.S3Settings) -> None:
        """Asks nothing of the network. Raises UsageError."""
        self._name, self._prefix = _parsed(url)
        self._settings = settings
        if settings.endpoint:
            _check_endpoint(settings.endpoint)
        self._pid = 0
        self._bucket: Bucket | None = None
        self._fetcher: Fetcher | None = None

    @property
    def url(self) -> str:
        return f"s3://{self._name}/{self._prefix}".rstrip("/")

    def scan(self, wanted: Wanted) -> Iterator[Found | Skipped]:
        bucket = self._own()[0]
        rows = Sorted()
        try:
            with ThreadPoolExecutor(self._settings.connections, "head") as threads:

                def take(objects: list[Object]) -> None:
                    known = self._heads(bucket, objects, threads)
                    rows.add([tuple(self._row(*item)) for item in zip(objects, known, strict=True)])

                Lister(bucket, versions=self._settings.versions).run(self._prefix, take)
            if self._prefix and next(rows.merged(), None) is None:
                raise SourceUnusable(f"There is nothing below {self.url}: is the prefix right?")
            first = next(filter(keys.is_fine, map(keys.Row._make, rows.merged())), None)
            yield from keys.tree(rows.merged(), first, wanted)
        finally:
            rows.close()

    def read(self, pieces: Sequence[Piece], into: memoryview) -> Reading:
        return self._own()[1].read(pieces, into)

    def ahead(self, pieces: Sequence[Piece], into: memoryview) -> None:
        self._own()[1].ahead(pieces, into)

    def part_size(self, path: bytes, token: bytes) -> int | None:
        """Bytes in the first part of a multipart upload; None where the store does not say.

        None too where the ETag is no MD5 since the store encrypts by a key of its own.
        """
        version = token_of(token).version
        query = [("partNumber", "1"), *([("versionId", version)] if version else [])]
        answer = self._head(self._own()[0], self._prefix + path.decode(), query)
        encryption = answer.get("x-amz-server-side-encryption", "AES256")
        if encryption != "AES256" or "x-amz-server-side-encryption-customer-algorithm" in answer:
            return None
        return int(answer["content-length"]) if "content-length" in answer else None

    def close(self) -> None:
        if self._pid == os.getpid():
            if self._fetcher is not None:
                self._fetcher.close()
            if self._bucket is not None:
                self._bucket.close()
        self._bucket = self._fetcher = None

    def _own(self) -> tuple[Bucket, Fetcher]:
        """This process's own connections and threads."""
        if self._bucket is None or self._fetcher is None or self._pid != os.getpid():
            self._pid = os.getpid()
            self._bucket = Bucket(
                _access(self._name, self._settings, self._settings.region),
                lambda region: _access(self._name, self._settings, region),
            )
            self._fetcher = Fetcher(self._bucket, self._prefix, self._settings.connections)
        return self._bucket, self._fetcher

    def _heads(
        self, bucket: Bucket, objects: list[Object], threads: ThreadPoolExecutor
    ) -> list[Kept]:
        if not self._settings.metadata:
            return [Kept()] * len(objects)
        return list(threads.map(lambda one: kept(self._head(bucket, one.key, ())), objects))

    @staticmethod
    def _head(bucket: Bucket, key: str, query: Sequence[tuple[str, str]]) -> dict[str, str]:
        """The headers of an object; none when it cannot be had (its reading will say why)."""

        def ask() -> dict[str, str]:
            with bucket.ask("HEAD", key, query=query) as response:
                response.read()
                return {name.lower(): value for name, value in response.getheaders()}

        try:
            return retried(ask)
        except (Refused, Passing):
            return {}

    def _row(self, one: Object, known: Kept) -> keys.Row:
        frozen = f"its storage class {one.frozen} cannot be read at once: restore it first"
        return keys.row(
            one.key[len(self._prefix) :].encode("utf-8", "surrogateescape"), one.size, one.modified,
            Token(one.etag, one.version).packed(),
            mtime=one.modified if known.mtime is None else known.mtime,
            mode=-1 if known.mode is None else known.mode,
            uid=known.uid or 0, gid=known.gid or 0,
            refusal=frozen if one.frozen else "",
        )  # fmt: skip


def _parsed(url: str) -> tuple[str, str]:
    """Bucket, and prefix with a slash at its end. Raises UsageError."""
    name, _, prefix = url.removeprefix("s3://").partition("/")
    if "@" in name or ":" in name:
        raise UsageError(
            "A bucket's URL is s3://bucket/prefix: credentials, ports and ARNs have no place in it."
        )
    if not _BUCKET.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a bucket: give s3://bucket/prefix.")
    prefix = prefix.removesuffix("/")
    if "" in prefix.split("/") and prefix:
        raise UsageError(
            "A prefix has no empty parts: keys with two slashes in a row, or one in front, cannot "
            "be paths."
        )
    try:
        prefix.encode()
    except UnicodeEncodeError:
        raise UsageError("A prefix is text: this one is not valid UTF-8.") from None
    return name, prefix + "/" if prefix else ""


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise UsageError("The endpoint is no URL: it looks like https://s3.example.org.")
    if parts.username or parts.password:
        raise UsageError("Leave credentials out of the endpoint: they have settings of their own.")


def _access(bucket: str, settings: config.S3Settings, region: str) -> Access:
    """What boto3 says of where the bucket is. Raises UsageError or SourceUnusable."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError
    from botocore.httpsession import get_cert_path
    from botocore.utils import get_environ_proxies

    try:
        session = boto3.Session(
            aws_access_key_id=settings.access_key or None,
            aws_secret_access_key=settings.secret_key or None,
            aws_session_token=settings.session_token or None,
            region_name=region or None,
            profile_name=settings.profile or None,
        )
        style = settings.addressing
        if style == "auto" and settings.endpoint:
            style = "auto" if ".amazonaws.com" in settings.endpoint else "path"
        client = session.client(
            "s3",
            region_name=session.region_name or "us-east-1",
            endpoint_url=settings.endpoint or None,
            config=Config(
                signature_version=UNSIGNED if settings.unsigned else "s3v4",
                s3={"addressing_style": cast(Any, style)},
            ),
        )
        credentials = None if settings.unsigned else session.get_credentials()
        if credentials is None and not settings.unsigned:
            raise UsageError(
                "There are no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "name a profile, or give --unsigned."
            )
        # A URL that boto3 made shows how it addresses the bucket.
        made = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
    except BotoCoreError as error:
        raise UsageError(f"S3 cannot be set up: {error}") from None
    base = made.partition("?")[0].removesuffix("k")

    def current() -> Keys | None:
        if credentials is None:
            return None
        try:
            frozen = credentials.get_frozen_credentials()
        except BotoCoreError as error:
            raise SourceUnusable(f"The credentials cannot be renewed: {error}") from None
        return Keys(frozen.access_key or "", frozen.secret_key or "", frozen.token or "")

    scheme = urlsplit(base).scheme
    return Access(
        bucket=bucket,
        base=base,
        region=client.meta.region_name,
        keys=current,
        tls=_tls(settings, get_cert_path(True)) if scheme == "https" else None,
        requester_pays=settings.requester_pays,
        proxy=get_environ_proxies(base).get(scheme, ""),
    )


def _tls(settings: config.S3Settings, bundled: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_bundle or None)
        if not settings.ca_bundle:
            context.load_verify_locations(bundled)
    except OSError as error:
        raise UsageError(f"The certificates in AWS_CA_BUNDLE cannot be read ({error}).") from None
    if not settings.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
