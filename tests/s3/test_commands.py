"""Whole commands that read from S3."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from pathlib import Path

import pytest

from tests import trees
from tests.e2e.harness import Proxy, run
from tests.s3.conftest import ACCESS_KEY, SECRET_KEY, Store
from tests.s3.faults import Rule

FILES = {b"a.txt": b"content of a", b"dir/b": os.urandom(70_000), b"dir/sub/c": b"", b"z": b"last"}


def fill(s3: Store, files: dict[bytes, bytes] = FILES) -> None:
    for path, data in files.items():
        s3.put(path, data)


def put_tree(s3: Store, root: Path) -> None:
    """A folder as rclone puts it: with metadata, and markers for directories."""
    for path in [root, *sorted(root.rglob("*"))]:
        st = path.stat()
        name = "" if path == root else str(path.relative_to(root))
        metadata = {
            "mtime": f"{st.st_mtime_ns // 10**9}.{st.st_mtime_ns % 10**9:09d}",
            "mode": f"{st.st_mode:o}",
            "uid": str(st.st_uid),
            "gid": str(st.st_gid),
        }
        folder = path.is_dir()
        key = name + "/" if folder and name else name
        s3.put(key, b"" if folder else path.read_bytes(), Metadata=metadata)


def make_tree(root: Path) -> None:
    for number, (path, data) in enumerate(FILES.items()):
        file = root / os.fsdecode(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(0o600 + number)
    (root / "empty").mkdir(mode=0o750)
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        moment = 1_600_000_000_000_000_000 + number * 1_000_000_007
        os.utime(path, ns=(moment, moment))
    os.utime(root, ns=(1_500_000_000_000_000_001,) * 2)


def test_a_tree_with_metadata_comes_back_as_it_was(s3: Store, work: Path) -> None:
    src, dst = work / "src", work / "dst"
    src.mkdir()
    make_tree(src)
    put_tree(s3, src)
    result = run("sync", s3.url, dst, "--s3-metadata", "--json", env=s3.environment())
    assert result.summary["state"] == "complete"
    trees.assert_same(src, dst)


def test_the_etag_tells_what_changed_and_not_the_time(s3: Store, work: Path) -> None:
    def sync() -> int:
        options = ("--s3-metadata", "--json")
        result = run("sync", s3.url, work / "dst", *options, env=s3.environment())
        assert "Looking at" not in result.message
        return int(result.summary["bytes_sent"])

    s3.put("kept", b"k" * 5000, Metadata={"mtime": "1600000000"})
    s3.put("changed", b"c" * 5000, Metadata={"mtime": "1600000000"})
    assert sync() == 10_000
    s3.put("kept", b"k" * 5000, Metadata={"mtime": "1700000000"})
    assert sync() == 0
    assert (work / "dst/kept").stat().st_mtime == 1_700_000_000
    assert sync() == 0


def test_what_keeps_size_and_time_in_a_bucket_is_noticed_by_its_etag(s3: Store, work: Path) -> None:
    metadata = {"mtime": "1600000000"}
    s3.put("changed", b"old", Metadata=metadata)
    command = ("sync", s3.url, work / "dst", "--s3-metadata")
    run(*command, env=s3.environment())
    s3.put("changed", b"new", Metadata=metadata)
    run(*command, env=s3.environment())
    assert (work / "dst/changed").read_bytes() == b"new"


def test_a_tree_without_metadata_has_the_same_bytes_and_ids(s3: Store, work: Path) -> None:
    fill(s3)
    run("sync", s3.url, work / "dst", env=s3.environment())
    for path, data in FILES.items():
        file = work / "dst" / os.fsdecode(path)
        assert file.read_bytes() == data
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
    again = run("sync", s3.url, work / "dst", "--json", env=s3.environment())
    assert again.summary["bytes_sent"] == 0
    ids = {
        run("index", "-b", s3.url, "-db", work / name, env=s3.environment()).out
        for name in ("one.db", "two.db")
    }
    assert len(ids) == 1


def test_blocks_are_read_by_several_processes(s3: Store, work: Path) -> None:
    large = os.urandom(9 << 20)
    fill(s3, {b"large": large, **FILES})
    run("sync", s3.url, work / "dst", "-p", 3, "-s", "1MiB", env=s3.environment())
    assert (work / "dst" / "large").read_bytes() == large


def test_an_index_has_hashes_where_they_are_asked_for(s3: Store, work: Path) -> None:
    fill(s3)
    db = work / "index.db"
    env = s3.environment()

    def index(*more: str) -> dict[str, object]:
        return run("index", "-b", s3.url, "-db", db, "--json", *more, env=env).summary

    assert index()["hashed"] == 0
    assert s3.proxy.count("GET", "/tree/") == 0
    assert index("--hash", "sha256", "-j", "2")["hashed"] == 4
    assert index()["reused"] == 4
    s3.put(b"z", b"else")
    summary = index("--hash", "sha256")
    assert (summary["reused"], summary["hashed"]) == (3, 1)
    run("sync", s3.url, work / "dst", env=env)
    run("check", "-b", work / "dst", "-db", db)


def test_an_index_of_a_folder_is_sent_from_a_bucket(s3: Store, work: Path) -> None:
    src, dst, db = work / "src", work / "dst", work / "index.db"
    src.mkdir()
    make_tree(src)
    fill(s3)
    run("index", "-b", src, "-db", db)
    env = {**s3.environment(), "TARLIKE_S3_BUCKET": s3.name, "TARLIKE_S3_PFX": "tree"}
    with Proxy(dst) as proxy:
        run("upload", "--use-s3", "-db", db, "-u", proxy.url, env=env)
    trees.assert_same(src, dst)
    assert s3.proxy.count("GET", "/tree/") == 3


def test_other_bytes_in_the_bucket_than_in_the_folder_are_found_at_the_commit(
    s3: Store, work: Path
) -> None:
    src, dst, db = work / "src", work / "dst", work / "index.db"
    src.mkdir()
    make_tree(src)
    fill(s3)
    s3.put(b"a.txt", b"CONTENT OF A")  # of the same size
    run("index", "-b", src, "-db", db)
    with Proxy(dst) as proxy:
        more = ("-b", s3.url, "-db", db, "-u", proxy.url, "--json")
        result = run("upload", *more, codes=(1, 3), env=s3.environment())
    assert "a.txt" in json.dumps(result.summary)
    assert not (dst / "a.txt").exists()
    assert (dst / "dir" / "b").read_bytes() == FILES[b"dir/b"]


def test_an_index_of_a_bucket_is_sent_from_a_folder(s3: Store, work: Path) -> None:
    src, dst, db = work / "src", work / "dst", work / "index.db"
    src.mkdir()
    make_tree(src)
    fill(s3)
    run("index", "-b", s3.url, "-db", db, env=s3.environment())
    before = len(s3.proxy.seen)
    with Proxy(dst) as proxy:
        run("upload", "-b", src, "-db", db, "-u", proxy.url)
    assert len(s3.proxy.seen) == before
    for path, data in FILES.items():
        assert (dst / os.fsdecode(path)).read_bytes() == data


def test_what_cannot_be_had_is_named_and_the_rest_arrives(s3: Store, work: Path) -> None:
    fill(s3)
    s3.put("dir//twice", b"x")
    s3.put("cold", b"x", StorageClass="GLACIER")
    s3.put("denied", b"x")
    s3.put("changing", b"x")

    def change() -> None:
        s3.put("changing", b"y")

    s3.proxy.rules.append(Rule("denied", key="/tree/denied"))
    s3.proxy.rules.append(Rule("pass", key="/tree/changing", call=change))
    result = run("sync", s3.url, work / "dst", "--json", codes=(3,), env=s3.environment())
    failures = {one["path"]: one["reason"] for one in result.summary["failures"]}
    assert set(failures) == {"dir//twice", "cold", "denied", "changing"}
    assert "GLACIER" in failures["cold"]
    assert "changed" in failures["changing"]
    for path, data in FILES.items():
        assert (work / "dst" / os.fsdecode(path)).read_bytes() == data
    assert not (work / "dst" / "denied").exists()
    assert not (work / "dst" / "changing").exists()


def test_a_store_that_goes_away_is_an_error_and_no_omission(s3: Store, work: Path) -> None:
    fill(s3)
    db = work / "index.db"
    run("index", "-b", s3.url, "-db", db, env=s3.environment())
    env = {**s3.environment(), "TARLIKE_S3_ENDPOINT": "http://127.0.0.1:1"}
    with Proxy(work / "dst") as proxy:
        more = ("-b", s3.url, "-db", db, "-u", proxy.url)
        run("upload", *more, codes=(1,), env=env).sentence("cannot be reached")
        run("upload", *more, env=s3.environment())
    assert (work / "dst" / "a.txt").read_bytes() == FILES[b"a.txt"]


def test_credentials_are_nowhere(s3: Store, work: Path) -> None:
    fill(s3)
    s3.put("denied", b"x")
    s3.proxy.rules.append(Rule("denied", key="/tree/denied"))
    db = work / "index.db"
    env = s3.environment()
    results = [
        run("index", "-b", s3.url, "-db", db, env=env),
        run("sync", s3.url, work / "dst", "--json", codes=(3,), env=env),
        run("sync", "s3://no-such-bucket", work / "dst", codes=(1,), env=env),
    ]
    for result in results:
        for secret in (ACCESS_KEY, SECRET_KEY):
            assert secret.encode() not in result.out + result.err
    with sqlite3.connect(db) as index:
        assert dict(index.execute("SELECT key, value FROM meta"))["source"] == s3.url
    for path in [db, *(work / "dst").rglob("*")]:
        if path.is_file():
            data = path.read_bytes()
            assert ACCESS_KEY.encode() not in data, path
            assert SECRET_KEY.encode() not in data, path


def test_flags_lead_to_the_store(s3: Store, work: Path) -> None:
    fill(s3)
    (work / "config").write_text(
        f"[profile bench]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n"
    )
    env = {"AWS_CONFIG_FILE": str(work / "config")}
    for name in s3.environment():
        env[name] = ""
    flags = ("--endpoint", s3.proxy.url, "--region", "eu-central-1", "--profile", "bench")
    run("sync", s3.url, work / "dst", *flags, "--addressing", "path", env=env)
    sent = s3.proxy.seen[-1].headers["authorization"]
    assert f"Credential={ACCESS_KEY}/" in sent
    assert "/eu-central-1/s3/" in sent


def check(s3: Store, dst: Path, *more: str, code: int) -> dict[str, object]:
    args = ("check", "-b", dst, "--against", s3.url, "--json", *more)
    return run(*args, codes=(code,), env=s3.environment()).summary


def test_a_folder_is_checked_against_a_bucket(s3: Store, work: Path) -> None:
    fill(s3)
    dst = work / "dst"
    run("sync", s3.url, dst, env=s3.environment())
    fine = check(s3, dst, "--extra", code=0)
    assert (fine["differences"], fine["unverified"], fine["checked"]) == ([], [], 7)
    (dst / "a.txt").write_bytes(b"CONTENT OF A")
    (dst / "dir" / "b").write_bytes(b"short")
    (dst / "z").unlink()
    (dst / "more").write_bytes(b"")
    assert check(s3, dst, "--extra", code=4)["differences"] == [
        {"path": "a.txt", "kind": "content", "detail": "its ETag is of other bytes"},
        {"path": "dir/b", "kind": "size", "detail": "5 instead of 70000 bytes"},
        {"path": "more", "kind": "extra", "detail": ""},
        {"path": "z", "kind": "missing", "detail": "file"},
    ]


@pytest.mark.parametrize("encrypted", [False, True])
def test_an_object_of_several_parts_is_checked(s3: Store, work: Path, encrypted: bool) -> None:
    size = 5 << 20
    data = os.urandom(2 * size + 777)
    more = {"ServerSideEncryption": "aws:kms"} if encrypted else {}
    key = {"Bucket": s3.name, "Key": "tree/parts"}
    upload = s3.client.create_multipart_upload(**key, **more)["UploadId"]
    parts = []
    for number, start in enumerate(range(0, len(data), size), 1):
        body = data[start : start + size]
        sent = s3.client.upload_part(**key, UploadId=upload, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": sent["ETag"]})
    s3.client.complete_multipart_upload(**key, UploadId=upload, MultipartUpload={"Parts": parts})
    dst = work / "dst"
    run("sync", s3.url, dst, env=s3.environment())
    unverified = ["parts"] if encrypted else []
    assert check(s3, dst, code=0)["unverified"] == unverified
    (dst / "parts").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert check(s3, dst, code=0 if encrypted else 4)["unverified"] == unverified
