"""The image, really built from docker/Dockerfile, and tar-like really run from it.

`make test-image` runs this: it needs root, buildah and debootstrap, and minutes the first time.
There is no daemon: buildah builds and runs in a chroot, on the network of this machine. The
user, the entrypoint, the command and the environment are those that the image itself names.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.e2e.harness import PATIENCE, REPOSITORY, payload, run, wait_for
from tests.trees import assert_same, build

BASE = REPOSITORY / "dist" / "image" / "base.tar"
MINUTES = 60
UID = 10001
LIBRARIES = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux_2_5", "manylinux1")
CHECK = "import urllib.request"


class Images:
    """A store of images of its own, and the programs that fill it."""

    def __init__(self, folder: Path) -> None:
        self._store = ["--root", str(folder / "root"), "--runroot", str(folder / "run")]

    def command(self, *args: object) -> list[str]:
        """A buildah command line."""
        return ["buildah", *self._store, *(str(arg) for arg in args)]

    def buildah(self, *args: object) -> str:
        """Run buildah to its end; what it printed on stdout."""
        done = subprocess.run(
            self.command(*args),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=15 * MINUTES,
            check=False,
        )
        assert done.returncode == 0, (done.stdout[-3000:] + done.stderr[-6000:]).decode()
        return done.stdout.decode()

    def build(self, dockerfile: Path, context: Path, name: str, *args: object) -> None:
        """`docker build`, in a chroot."""
        options = ("--isolation", "chroot", "--format", "docker", "--pull-never", "--layers=false")
        self.buildah("bud", *options, "-f", dockerfile, "-t", name, *args, context)


@pytest.fixture(scope="session")
def images() -> Iterator[Images]:
    folder = Path(tempfile.mkdtemp(prefix="tar-like-image-"))
    yield Images(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def base(images: Images, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image that has a Debian with python3, and nothing else."""
    context = tmp_path_factory.mktemp("base")
    shutil.copy(BASE, context / "base.tar")
    (context / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
    images.build(context / "Dockerfile", context, "localhost/base:test")
    return "localhost/base:test"


@pytest.fixture(scope="session")
def wheels(images: Images, base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` needs in the image, got by this machine's pip as it is set up."""
    folder = tmp_path_factory.mktemp("wheels")
    container = images.buildah("from", "--pull-never", base).strip()
    asking = ("python3", "-c", "import platform as p; print(p.python_version())")
    version = images.buildah("run", "--isolation", "chroot", container, "--", *asking).strip()
    images.buildah("rm", container)
    _pip("wheel", "--no-deps", "--wheel-dir", folder, ".")
    (project,) = folder.glob("tar_like-*.whl")
    config = (REPOSITORY / "pyproject.toml").read_text()
    wanted = [str(project), *re.findall(r'^requires = \["(.+)"\]$', config, re.MULTILINE)]
    while wanted:
        _download(wanted, folder, version)
        wanted = list(_wanted_elsewhere(folder, version))
    project.unlink()  # the image builds its own
    return folder


def _pip(*args: object) -> None:
    command = [sys.executable, "-m", "pip", args[0], "--quiet", *args[1:]]
    subprocess.run(
        [str(part) for part in command], cwd=REPOSITORY, check=True, timeout=10 * MINUTES
    )


def _download(wanted: list[str], folder: Path, version: str) -> None:
    minor = ".".join(version.split(".")[:2])
    options = ["--only-binary", ":all:", "--python-version", minor, "--implementation", "cp"]
    for abi in (f"cp{minor.replace('.', '')}", "abi3", "none"):
        options += ["--abi", abi]
    for libraries in LIBRARIES:
        options += ["--platform", f"{libraries}_{platform.machine()}"]
    _pip("download", *options, "--dest", folder, *wanted)


def _wanted_elsewhere(folder: Path, version: str) -> Iterator[str]:
    """What the wheels need under that Python, and pip, which looks at its own, has not got."""
    there = {canonicalize_name(one.name.split("-")[0]) for one in folder.glob("*.whl")}
    python = {"python_full_version": version, "extra": ""}
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            lines = archive.read(name).decode().split("\n\n")[0].splitlines()
        for line in lines:
            if line.startswith("Requires-Dist: "):
                need = Requirement(line.removeprefix("Requires-Dist: "))
                here = need.marker is None or need.marker.evaluate(python)
                if here and canonicalize_name(need.name) not in there:
                    yield f"{need.name}{need.specifier}"


@pytest.fixture(scope="session")
def image(images: Images, base: str, wheels: Path) -> str:
    """The image's name, once it is built."""
    arguments = {"BASE": base, "PIP_NO_INDEX": 1, "PIP_FIND_LINKS": "/wheels"}
    images.build(
        REPOSITORY / "docker" / "Dockerfile",
        REPOSITORY,
        "localhost/tar-like:test",
        *("--volume", f"{wheels}:/wheels:ro"),
        *(part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")),
    )
    return "localhost/tar-like:test"


@pytest.fixture(scope="session")
def config(images: Images, image: str) -> dict[str, Any]:
    """What the image says of itself."""
    described: dict[str, Any] = json.loads(images.buildah("inspect", "--type", "image", image))
    config: dict[str, Any] = described["Docker"]["config"]
    return config


@pytest.fixture
def container(images: Images, image: str) -> Iterator[str]:
    name = images.buildah("from", "--pull-never", image).strip()
    yield name
    images.buildah("rm", name)


class Running:
    """What the container's entrypoint makes of these arguments; its group dies with it."""

    def __init__(
        self,
        images: Images,
        container: str,
        config: dict[str, Any],
        *args: object,
        mounts: dict[Path, str] | None = None,
        env: dict[str, object] | None = None,
    ) -> None:
        options = ["run", "--isolation", "chroot"]
        for source, place in (mounts or {}).items():
            options += ["--volume", f"{source}:{place}"]
        for name, value in (env or {}).items():
            options += ["--env", f"{name}={value}"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by end)
        command = [*options, container, "--", *config["Entrypoint"], *map(str, args)]
        self.process = subprocess.Popen(
            images.command(*command),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def said(self) -> str:
        """What it has printed so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "backslashreplace")

    def ended(self) -> str:
        """A true value once it is over."""
        return "" if self.process.poll() is None else f"it ended:\n{self.said()}"

    def end(self, seconds: float = PATIENCE) -> tuple[int, str]:
        """Wait for it: exit code and words."""
        code = self.process.wait(seconds)
        text = self.said()
        self._log.close()
        return code, text

    def kill(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(PATIENCE)


def test_the_image_is_small_and_says_how_to_run_it(
    images: Images, image: str, config: dict[str, Any]
) -> None:
    assert config["User"] == f"{UID}:{UID}"
    assert config["Entrypoint"] == ["tar-like-entrypoint"]
    assert config["Cmd"][0] == "proxy"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert not [name for name in config["Env"] if name.startswith("PIP_")]
    (listed,) = json.loads(images.buildah("images", "--json", image))
    size, unit = re.fullmatch(r"([\d.]+) (\w+)", listed["size"]).groups()  # type: ignore[union-attr]
    assert unit == "MB", listed
    assert float(size) < BASE.stat().st_size / 1e6 + 120, "more than 120 MB on top of its base"


def test_nothing_of_the_making_is_left(
    images: Images, container: str, config: dict[str, Any]
) -> None:
    script = (
        "set -ex; test $(id -u) = 10001; test -w /data/rw; test ! -e /src;"
        'test -z "$(ls -A /wheels)";'  # buildah leaves the place of a mount behind
        "for one in / /data/ro /opt/tar-like; do test ! -w $one; done; tar-like --help >/dev/null;"
        "! /opt/tar-like/bin/python -m pip --version 2>/dev/null"
    )
    images.buildah("run", "--isolation", "chroot", container, "--", "sh", "-c", script)


def test_the_proxy_receives_from_inside_the_container(
    work: Path, images: Images, container: str, config: dict[str, Any]
) -> None:
    src, data = work / "src", work / "data"
    build(src, 71, files=10)
    payload(src, files=6)
    _own(src, UID)
    data.mkdir()
    os.chown(data, UID, UID)
    port = _free_port()
    proxy = Running(
        images, container, config, "proxy", "--host", "127.0.0.1", port,
        mounts={data: "/data/rw"}, env={"UDIR": "/data/rw/copy"},
    )  # fmt: skip
    try:
        wait_for("the proxy to listen", lambda: f":{port}/tar" in proxy.said(), unless=proxy.ended)
        assert _get(port, "/healthz") == 200
        _healthcheck(images, container, config, port)
        run("sync", src, f"http://127.0.0.1:{port}/tar", seconds=120)
        pid = _listener(port)
        assert os.stat(f"/proc/{pid}").st_uid == UID
        os.kill(_top(pid, proxy.process.pid), signal.SIGTERM)
        code, text = proxy.end()
        assert code == 0, text
    finally:
        proxy.kill()
    assert_same(src, data / "copy")


def test_a_whole_transfer_inside_the_container(
    work: Path, images: Images, container: str, config: dict[str, Any]
) -> None:
    src, data = work / "src", work / "data"
    payload(src, files=4)
    _own(src, UID)
    data.mkdir()
    os.chown(data, UID, UID)
    sync = Running(
        images, container, config, "sync", "/data/ro", "/data/rw",
        mounts={src: "/data/ro", data: "/data/rw"},
    )  # fmt: skip
    try:
        code, text = sync.end(120)
    finally:
        sync.kill()
    assert code == 0, text
    assert_same(src, data)


def test_the_names_of_the_environment_reach_tar_like(
    work: Path, images: Images, container: str, config: dict[str, Any]
) -> None:
    bundle, empty = work / "ca.pem", work / "empty"
    bundle.write_text("a certificate")
    empty.touch()
    env = {"UPLOAD_URL": "http://h:1/tar", "EX_PYCACERT": "/ca", "IN_PYCACERT": "/none"}
    fake = work / "tar-like"
    fake.write_text('#!/bin/sh\nenv\necho "words: $*"\n')
    fake.chmod(0o755)
    mounts = {bundle: "/ca", empty: "/none", fake: "/opt/tar-like/bin/tar-like"}
    seen = {}
    for command in ("upload", "proxy"):
        running = Running(images, container, config, command, "a b", mounts=mounts, env=env)
        try:
            code, text = running.end()
        finally:
            running.kill()
        assert code == 0, text
        assert f"words: {command} a b" in text
        seen[command] = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    assert seen["upload"]["TARLIKE_BASE"] == "/data/ro"
    assert seen["upload"]["TARLIKE_URL"] == "http://h:1/tar"
    assert seen["upload"]["TARLIKE_CA_BUNDLE"] == "/ca"
    assert "AWS_CA_BUNDLE" not in seen["upload"], "an empty file is no CA bundle"
    assert seen["proxy"]["TARLIKE_BASE"] == "/data/rw"


def _own(folder: Path, uid: int) -> None:
    """Give it away: who is not root makes nothing that is another's."""
    for _, folders, files, fd in os.fwalk(os.fsencode(folder)):
        for name in (b".", *folders, *files):
            os.chown(name, uid, uid, dir_fd=fd, follow_symlinks=False)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def _healthcheck(images: Images, container: str, config: dict[str, Any], port: int) -> None:
    """The image's own check, at this port: well here, and not well where nobody listens."""
    check = config["Healthcheck"]["Test"][1:]
    assert any(CHECK in word and ":8000/" in word for word in check), check
    for where, well in ((port, True), (_free_port(), False)):
        command = [word.replace(":8000/", f":{where}/") for word in check]
        done = subprocess.run(
            images.command("run", "--isolation", "chroot", container, "--", *command),
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (done.returncode == 0) is well, done.stderr.decode()


def _listener(port: int) -> int:
    """The process that listens on a port of this machine."""
    text = subprocess.run(
        ["ss", "-Hltnp", f"sport = :{port}"],
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    ).stdout.decode()
    return min(int(pid) for pid in re.findall(r"pid=(\d+)", text))


def _top(pid: int, above: int) -> int:
    """The first of pid's ancestors, below `above`, that runs the same program as pid."""
    program = os.readlink(f"/proc/{pid}/exe")
    while True:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if parent in (0, 1, above) or os.readlink(f"/proc/{parent}/exe") != program:
            return pid
        pid = parent
