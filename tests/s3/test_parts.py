"""Signatures, metadata, retries and times: the pure parts of reading from S3."""

from __future__ import annotations

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from tar_like.source import retry
from tar_like.source.headers import Kept, kept
from tar_like.source.listing import nanoseconds
from tar_like.source.retry import BROKEN, SERVER, THROTTLED, Passing, retried
from tar_like.source.sigv4 import Keys, Signer, query_text, quoted

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    TEXT, st.dictionaries(TEXT, TEXT, max_size=3), st.sampled_from(["", "a session's token"]),
    st.sampled_from(["GET", "HEAD"]),
)  # fmt: skip
def test_a_signature_is_what_botocore_makes_of_it(
    key: str, query: dict[str, str], token: str, method: str
) -> None:
    path, text = "/bucket/" + quoted(key), query_text(query.items())
    headers = {"range": "bytes=0-1", "x-amz-request-payer": "requester"}
    Signer("eu-central-1").sign(
        method, "s3.example.org", path, text, headers, Keys("AKIA", "secret", token)
    )
    url = f"https://s3.example.org{path}" + (f"?{text}" if text else "")
    request = AWSRequest(method, url, headers={"x-amz-request-payer": "requester"})
    signer = S3SigV4Auth(Credentials("AKIA", "secret", token or None), "s3", "eu-central-1")
    request.context["timestamp"] = headers["x-amz-date"]
    request.headers["X-Amz-Date"] = headers["x-amz-date"]
    request.headers["X-Amz-Content-SHA256"] = headers["x-amz-content-sha256"]
    if token:
        request.headers["X-Amz-Security-Token"] = token
    canonical = signer.canonical_request(request)
    signature = signer.signature(signer.string_to_sign(request, canonical), request)
    assert headers["authorization"].endswith(f"Signature={signature}")


def test_keys_do_not_show_themselves() -> None:
    assert "secret" not in repr(Keys("AKIA", "secret", "token"))
    assert "AKIA" not in str(Keys("AKIA", "secret", "token"))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, Kept()),
        ({"x-amz-meta-mtime": "1700000000.123456789"}, Kept(mtime=1700000000123456789)),
        ({"x-amz-meta-mtime": "1700000000"}, Kept(mtime=1700000000 * 10**9)),
        ({"x-amz-meta-mtime": "-1.5"}, Kept(mtime=-1_500_000_000)),
        ({"x-amz-meta-mtime": "yesterday"}, Kept()),
        ({"x-amz-meta-mtime": "99999999999"}, Kept()),
        ({"x-amz-meta-mode": "100640"}, Kept(mode=0o640)),
        ({"x-amz-meta-mode": "0100755"}, Kept(mode=0o755)),
        ({"x-amz-meta-mode": "33188"}, Kept(mode=0o644)),
        ({"x-amz-meta-mode": "33206"}, Kept(mode=0o666)),
        ({"x-amz-meta-mode": "644"}, Kept(mode=0o644)),
        ({"x-amz-meta-mode": "-rw"}, Kept()),
        ({"x-amz-meta-uid": "1000", "x-amz-meta-gid": "100"}, Kept(uid=1000, gid=100)),
        ({"x-amz-meta-uid": "4294967296"}, Kept()),
        (
            {"x-amz-meta-s3cmd-attrs": "atime:1/ctime:2/gid:5/mode:33152/mtime:7/uid:6/uname:x"},
            Kept(mtime=7 * 10**9, mode=0o600, uid=6, gid=5),
        ),
    ],
)
def test_what_other_tools_keep_is_read(headers: dict[str, str], expected: Kept) -> None:
    assert kept(headers) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00.000Z", 0),
        ("2026-01-02T03:04:05.678Z", 1767323045_678000000),
        ("2026-01-02T03:04:05Z", 1767323045 * 10**9),
        ("2026-01-02T03:04:05.123456789Z", 1767323045_123456789),
    ],
)
def test_a_time_is_read(text: str, expected: int) -> None:
    assert nanoseconds(text) == expected


@pytest.mark.parametrize("text", ["", "2026", "2026-01-02", "now", "2026-01-02T03:04"])
def test_no_other_text_is_a_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"time|int"):
        nanoseconds(text)


class Flaky:
    """Fails as it is told, then succeeds."""

    def __init__(self, *failures: Passing) -> None:
        self.failures = list(failures)

    def __call__(self) -> str:
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def test_pauses_grow_with_a_random_part_and_have_a_cap() -> None:
    pauses: list[float] = []
    kind = retry.Kind("slow", 20, 0.4, cap=20)
    assert retried(Flaky(*[Passing(kind, "")] * 19), pauses.append) == "done"
    assert len(pauses) == len(set(pauses)) == 19
    assert all(0 <= pause <= min(20, 0.4 * 2 ** (n + 1)) for n, pause in enumerate(pauses))
    assert max(pauses) > 2


@pytest.mark.parametrize("kind", [THROTTLED, SERVER, BROKEN])
def test_attempts_are_counted_by_kind(kind: retry.Kind) -> None:
    pauses: list[float] = []
    with pytest.raises(Passing):
        retried(Flaky(*[Passing(kind, "")] * kind.attempts), pauses.append)
    assert len(pauses) == kind.attempts - 1


def test_progress_counts_anew() -> None:
    failures = [Passing(BROKEN, "", progress=True)] * 100
    assert retried(Flaky(*failures), lambda _: None) == "done"
