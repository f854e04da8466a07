"""Bad input: one sentence, the right exit code, no traceback, nothing lost."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests import trees
from tests.e2e.harness import Proxy, index, payload, request, run, sync, upload
from tests.trees import assert_same, build, look

COMMANDS = ("sync", "index", "proxy", "upload", "check")


@pytest.fixture
def src(work: Path) -> Path:
    (work / "src/sub").mkdir(parents=True)
    (work / "src/a").write_bytes(b"a" * 10_000)
    (work / "src/sub/b").write_bytes(b"b" * 100)
    return work / "src"


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port of loopback on which nobody listens, and nobody else can while the test runs."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


# --- usage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    result = run(command, "--help")
    assert command.encode() in result.out
    assert len(result.out) > 100
    assert result.err == b""


def test_help_of_the_whole_names_every_command() -> None:
    out = run("--help").out.decode()
    assert [command for command in COMMANDS if command not in out] == []


def test_version() -> None:
    assert run("--version").out.strip()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("sink",),
        ("sync",),
        ("sync", "only-one"),
        ("sync", "a", "b", "--no-such-flag"),
        ("sync", "a", "b", "--compress", "zip"),
        ("sync", "a", "b", "-p", "0"),
        ("sync", "a", "b", "-p", "many"),
        ("proxy", "-b", ".", "seventy"),
        ("proxy", "-b", ".", "70000"),
        ("index", "-b", ".", "--hash", "crc7"),
        ("index", "-b", ".", "-j", "0"),
    ],
    ids=" ".join,
)
def test_usage(work: Path, arguments: tuple[str, ...]) -> None:
    (work / "a").mkdir()
    run(*arguments, codes=(2,), cwd=work).sentence()
    assert [p.name for p in work.iterdir()] == ["a"], "a usage error left something behind"


@pytest.mark.parametrize("size", ["0", "abc", "-4096", "12XB", "", "1e99", "999999999TiB"])
def test_bad_block_sizes(work: Path, src: Path, size: str) -> None:
    run("sync", src, work / "dst", "-s", size, codes=(2,)).sentence("size", "-s", "block")
    assert not (work / "dst").exists()


@pytest.mark.parametrize("command", ["sync", "index"])
def test_a_bad_regex(work: Path, src: Path, command: str) -> None:
    places = (src, work / "dst") if command == "sync" else ("-b", src, "-db", work / "db")
    run(command, *places, "-x", "([", codes=(2,)).sentence(r"\(\[", "regex", "expression")
    assert sorted(p.name for p in work.iterdir()) == ["src"]


def test_first_after_last(work: Path, src: Path, free_port: int) -> None:
    index(src, work / "db")
    url = f"http://127.0.0.1:{free_port}/tar"
    common = ("-b", src, "-db", work / "db")
    run("upload", *common, "-u", url, "-f", 5, "-l", 4, codes=(2,)).sentence("-f", "first", "last")
    run("check", *common, "-f", 5, "-l", 4, codes=(2,)).sentence("-f", "first", "last")
    run("upload", *common, "-u", url, "-f", -1, codes=(2,)).sentence()


def test_a_part_beyond_the_last_block(work: Path, src: Path) -> None:
    index(src, work / "db")
    with Proxy(work / "dst") as proxy:
        options = ("-b", src, "-db", work / "db", "-u", proxy.url)
        result = run("upload", *options, "-f", 1000, "-l", 2000, codes=(0, 1, 2))
        if result.code:
            result.sentence("block", "-f", "first")
        assert trees.visible_files(work / "dst") == {}


# --- places --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["sync", "index"])
@pytest.mark.parametrize("base", ["missing", "a-file", "dangling"])
def test_a_base_that_is_no_folder(work: Path, command: str, base: str) -> None:
    (work / "a-file").write_bytes(b"x")
    (work / "dangling").symlink_to("nowhere")
    bad = work / base
    places = (bad, work / "dst") if command == "sync" else ("-b", bad, "-db", work / "db")
    run(command, *places, codes=(1, 2)).sentence(base)
    assert not (work / "dst").exists()
    assert not (work / "db").exists()


@pytest.mark.parametrize("command", ["sync", "index"])
def test_an_unreadable_base(work: Path, src: Path, command: str) -> None:
    src.chmod(0)
    places = (src, work / "dst") if command == "sync" else ("-b", src, "-db", work / "db")
    run(command, *places, codes=(1,), powers=False).sentence("permission", "read", "open")


def test_upload_and_check_of_a_base_that_is_missing(work: Path, src: Path) -> None:
    index(src, work / "db")
    with Proxy(work / "dst") as proxy:
        options = ("-db", work / "db", "-u", proxy.url)
        run("upload", "-b", work / "none", *options, codes=(1, 2)).sentence("none")
        assert trees.visible_files(work / "dst") == {}
    run("check", "-b", work / "none", "-db", work / "db", codes=(1, 2)).sentence("none")


@pytest.mark.parametrize("kind", ["file", "unwritable", "below-a-file"])
def test_a_destination_that_cannot_be(work: Path, src: Path, kind: str) -> None:
    dst = work / "dst"
    if kind == "unwritable":
        dst.mkdir()
        dst.chmod(0o555)
    else:
        dst.write_bytes(b"a file that is here")
    target = dst / "below" if kind == "below-a-file" else dst
    run("sync", src, target, codes=(1, 2), powers=False).sentence("dst")
    run("proxy", "-b", target, 0, codes=(1, 2), powers=False).sentence("dst")
    if kind != "unwritable":
        assert dst.read_bytes() == b"a file that is here"


@pytest.mark.parametrize("target", ["src/sub/dst", "src/sub", "src", "src/../src/sub", "link/x"])
def test_a_destination_inside_the_source(work: Path, src: Path, target: str) -> None:
    (work / "link").symlink_to("src/sub")
    before = look(src, records=True)
    run("sync", src, work / target, codes=(1, 2)).sentence("inside", "within", "same", "itself")
    assert look(src, records=True) == before


def test_a_destination_beside_the_source_with_a_longer_name(work: Path, src: Path) -> None:
    sync(src, work / "src-copy")  # /x/src is no parent of /x/src-copy
    assert_same(src, work / "src-copy")


def test_a_source_inside_the_destination(work: Path) -> None:
    dst, src = work / "dst", work / "dst/inside/src"
    build(src, 70, deep=False, files=3)
    before = look(src)
    result = run("sync", src, dst, codes=(0, 1, 2))
    assert look(src) == before
    if result.code:
        result.sentence("inside", "within")
    else:
        landed = trees.visible_files(dst)
        assert trees.visible_files(src).items() <= landed.items()


# --- databases -----------------------------------------------------------------------------------


def make_database(kind: str, path: Path, src: Path) -> None:
    if kind == "text":
        path.write_text("I am no database, but I am dear to my owner.\n" * 200)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "other-sqlite":
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript("CREATE TABLE tar (recipe TEXT); INSERT INTO tar VALUES('x');")
    elif kind != "missing":
        index(src, path)
    if kind == "other-version":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 987654")
            connection.commit()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "garbled":
        data = bytearray(path.read_bytes())
        data[-3000:] = b"\xa5" * 3000
        path.write_bytes(data)


BAD_DATABASES = ("text", "empty", "missing", "folder", "fifo", "other-sqlite", "other-version")
BROKEN_DATABASES = ("truncated", "garbled")


@pytest.mark.parametrize("kind", BAD_DATABASES + BROKEN_DATABASES)
def test_a_database_that_is_none(work: Path, src: Path, kind: str) -> None:
    bad = work / "bad.db"
    make_database(kind, bad, src)
    before = bad.read_bytes() if bad.is_file() else None
    with Proxy(work / "dst") as proxy:
        options = ("-b", src, "-db", bad, "-u", proxy.url)
        # what is garbled may by chance be a free page
        result = run("upload", *options, codes=(0, 1, 2) if kind == "garbled" else (1, 2))
        if result.code:
            result.sentence(r"bad\.db", "index", "database")
            assert trees.visible_files(work / "dst") == {}
        else:
            assert_same(src, work / "dst")
    codes = (1, 2) if kind in BAD_DATABASES else (0, 1, 2, 4)
    run("check", "-b", src, "-db", bad, codes=codes)
    assert (bad.read_bytes() if bad.is_file() else None) == before
    assert bad.exists() == (kind != "missing")


@pytest.mark.parametrize("kind", ["text", "folder", "fifo", "other-sqlite"])
@pytest.mark.parametrize("option", [(), ("-c",)], ids=["update", "afresh"])
def test_an_index_never_overwrites_what_is_no_index(
    work: Path, src: Path, kind: str, option: tuple[str, ...]
) -> None:
    bad = work / "bad.db"
    make_database(kind, bad, src)
    before = bad.read_bytes() if bad.is_file() else None
    options = ("-b", src, "-db", bad, *option)
    run("index", *options, codes=(1, 2)).sentence(r"bad\.db", "index", "database")
    assert (bad.read_bytes() if bad.is_file() else None) == before


def test_an_index_where_no_file_can_be(work: Path, src: Path) -> None:
    run("index", "-b", src, "-db", work / "no/such/folder/db", codes=(1, 2)).sentence("no/such")


def test_an_index_of_another_tree(work: Path, src: Path) -> None:
    build(work / "other", 71, deep=False, files=2)
    index(work / "other", work / "db")
    with Proxy(work / "dst") as proxy:
        options = ("-b", src, "-db", work / "db", "-u", proxy.url)
        run("upload", *options, codes=(1, 3))


def test_an_index_may_lie_in_its_own_tree(work: Path, src: Path) -> None:
    one = index(src, src / "db.sqlite")
    assert index(src, src / "db.sqlite")["files"] in (one["files"], one["files"] + 1)


# --- the network ---------------------------------------------------------------------------------


def test_a_proxy_that_is_not_there(work: Path, src: Path, free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}/tar"
    run("sync", src, url, codes=(1,)).sentence(str(free_port), "refused", "connect", "reach")
    index(src, work / "db")
    options = ("-b", src, "-db", work / "db", "-u", url)
    run("upload", *options, codes=(1,)).sentence(str(free_port), "refused", "connect", "reach")


class Stranger(http.server.BaseHTTPRequestHandler):
    """A web server that knows nothing of all this."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_error(404)

    do_PUT = do_POST = do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_server_that_is_no_proxy(work: Path, src: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/tar"
            run("sync", src, url, codes=(1,)).sentence()
        finally:
            server.shutdown()
            thread.join()


ESCAPE = "\x1b[2J\n"
ANSWERS = {
    "a list": (200, []),
    "endless": (200, {"token": "t", "index": "x", "newest": float("inf")}),
    "numbers as texts": (200, {"id": "x", "state": "receiving", "blocks": "7"}),
    "transfers of another kind": (200, {"transfers": [{"id": 5, "state": []}]}),
    "escapes": (200, {"transfers": [{"id": ESCAPE, "state": ESCAPE}]}),
    "a problem with escapes": (409, {"title": "conflict", "detail": f"no{ESCAPE}Complete"}),
}


@pytest.mark.parametrize("said", ANSWERS)
def test_a_server_that_says_anything(work: Path, src: Path, said: str) -> None:
    """One sentence, and nothing that a terminal obeys."""
    code, values = ANSWERS[said]

    class Liar(Stranger):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.dumps(values).encode()
            self.send_response(code)
            kind = "application/json" if code == 200 else "application/problem+json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_POST = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/tar"
            asked = run("status", url, codes=(0, 1))
            for result in (run("sync", src, url, codes=(1,)), asked):
                if result.code:
                    result.sentence()
                assert b"\x1b" not in result.out + result.err
                assert not result.err.endswith(b"\nComplete\n")
        finally:
            server.shutdown()
            thread.join()


def test_a_name_that_the_terminal_has_no_letters_for(work: Path, src: Path) -> None:
    (src / "\u2603").touch()
    narrow = {"PYTHONIOENCODING": "latin-1"}
    result = run("sync", src, work / "dst", "--dry-run", env=narrow)
    assert b"send \\u2603 (0 bytes)" in result.out


@pytest.mark.parametrize(
    "url",
    ["htp://127.0.0.1:1/tar", "http//127.0.0.1:1/tar", "http://", "http://127.0.0.1:port/tar"],
)
def test_a_url_with_a_typo(work: Path, src: Path, url: str) -> None:
    index(src, work / "db")
    before = sorted(p.name for p in work.iterdir())
    options = ("-b", src, "-db", work / "db", "-u", url)
    run("upload", *options, codes=(1, 2), cwd=work).sentence("http", "url")
    run("sync", src, url, codes=(1, 2), cwd=work).sentence("http", "url")
    assert sorted(p.name for p in work.iterdir()) == before, "the typo became a folder"


@pytest.mark.parametrize("change", ["no-tar", "slash"])
def test_a_url_that_is_almost_right(work: Path, src: Path, change: str) -> None:
    with Proxy(work / "dst") as proxy:
        url = proxy.url.removesuffix("/tar") if change == "no-tar" else proxy.url + "/"
        result = run("sync", src, url, codes=(0, 1, 2))
    if result.code:
        result.sentence("/tar", "url")
    else:
        assert_same(src, work / "dst")


def test_a_port_in_use(work: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        options = ("-b", work / "dst", "--host", "127.0.0.1", port)
        run("proxy", *options, codes=(1,)).sentence(str(port), "in use")
        run("proxy", *options, "--processes", 2, codes=(1,)).sentence(str(port), "in use")


def test_a_host_that_is_not_ours(work: Path) -> None:
    options = ("-b", work / "dst", "--host", "192.0.2.77", 0)
    run("proxy", *options, codes=(1,)).sentence("192.0.2.77", "address")


def test_a_proxy_answers_nonsense_with_4xx(work: Path, src: Path) -> None:
    transfer = index(src, work / "db")["id"]
    with Proxy(work / "dst") as proxy:
        upload(src, work / "db", proxy.url, "-s", "4096", "-l", 0)
        unknown = "0" * len(transfer)
        requests = [
            ("GET", f"{proxy.url}/{unknown}/blocks", None),
            ("GET", f"{proxy.url}/..%2f..%2fetc/db", None),
            ("GET", f"{proxy.url}/no-id-at-all", None),
            ("POST", f"{proxy.url}/{unknown}/plan", b""),
            ("POST", f"{proxy.url}/{unknown}/commit", b""),
            ("PUT", f"{proxy.url}/{unknown}/4096/0", b"data"),
            ("PUT", f"{proxy.url}/{unknown}/db", b"no index"),
            ("PUT", f"{proxy.url}/{transfer}/db", b"no index"),
            ("PUT", f"{proxy.url}/{transfer}/4096/0", b"data"),
            ("PUT", f"{proxy.url}/{transfer}/4096/1", b""),
            ("PUT", f"{proxy.url}/{transfer}/4096/99999", b"data"),
            ("PUT", f"{proxy.url}/{transfer}/4096/-1", b"data"),
            ("PUT", f"{proxy.url}/{transfer}/4097/0", b"data"),
            ("PUT", f"{proxy.url}/{transfer}/0/0", b"data"),
            ("PUT", f"{proxy.url}/{transfer}/4096/{'9' * 400}", b"data"),
            ("DELETE", f"{proxy.url}/{transfer}", None),
        ]
        for method, url, body in requests:
            status, kind, answer = request(method, url, body)
            assert 400 <= status < 500, (method, url, status, answer)
            assert b"Traceback" not in answer
            if status not in (404, 405):
                assert kind.startswith("application/problem+json"), (method, url, kind, answer)
        upload(src, work / "db", proxy.url, "-s", "4096")
    assert_same(src, work / "dst")


# --- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(work: Path) -> Iterator[Path]:
    """A filesystem with 3 MiB."""
    disk = work / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=755", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small filesystem needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True, timeout=60)


def grow(disk: Path) -> None:
    command = ["mount", "-o", "remount,size=64m", str(disk)]
    subprocess.run(command, check=True, timeout=60)


@pytest.mark.parametrize("target", ["folder", "proxy"])
def test_a_full_disk(work: Path, src: Path, small_disk: Path, target: str) -> None:
    payload(src, files=12)
    dst = small_disk / "dst"
    options = ("-s", "64KiB", "-p", 2)
    if target == "folder":
        run("sync", src, dst, *options, codes=(1,)).sentence("space", "full")
        whole = trees.visible_files(src)
        assert trees.visible_files(dst).items() <= whole.items()
        grow(small_disk)
        summary = sync(src, dst, *options)
    else:
        with Proxy(dst) as proxy:
            run("sync", src, proxy.url, *options, codes=(1,)).sentence("space", "full")
            grow(small_disk)
            summary = sync(src, proxy.url, *options)  # the same proxy goes on
    assert summary["state"] == "complete"
    assert_same(src, dst)


def test_a_full_disk_under_the_index(work: Path, small_disk: Path) -> None:
    src = work / "src"
    src.mkdir()
    for number in range(1000):
        (src / f"{number:04}{'n' * 200}").touch()
    subprocess.run(["fallocate", "-l", "3080192", str(small_disk / "ballast")], check=False)
    run("index", "-b", src, "-db", small_disk / "db", codes=(1,)).sentence("space", "full")
    (small_disk / "ballast").unlink()
    assert index(src, small_disk / "db")["files"] == 1000


@pytest.mark.parametrize("target", ["localhost:8000/tar", "user@host:/data", "host:8000"])
def test_a_target_that_means_another_host_is_no_folder(work: Path, src: Path, target: str) -> None:
    before = sorted(work.iterdir())
    run("sync", src, target, codes=(2,), cwd=work).sentence("URL")
    assert sorted(work.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("", "dst"),
        ("src", ""),
        ("src", "dst", "--snapshot", ""),
        ("src", "dst", "--backup-dir", ""),
    ],
)
def test_what_is_empty_stands_for_nothing_else(work: Path, arguments: tuple[str, ...]) -> None:
    """As of a variable of a shell that is not set."""
    (work / "src").mkdir()
    (work / "src/file").write_bytes(b"x")
    run("sync", *arguments, codes=(2,), cwd=work).sentence("empty")
    assert sorted(one.name for one in work.iterdir()) == ["src"]
