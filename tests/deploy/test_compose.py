"""compose.yaml as compose itself reads it."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.harness import REPOSITORY

COMPOSE = REPOSITORY / "docker" / "compose.yaml"
DOCKERFILE = REPOSITORY / "docker" / "Dockerfile"
EXAMPLE = REPOSITORY / ".tar_like_rc.example"
TOKEN = "a-shared-token-of-the-tests"
ELSEWHERE = {"AWS_CA_BUNDLE", "AWS_PROFILE"}
"""The first is made of IN_PYCACERT, the second names a file of the host."""


def compose() -> list[str]:
    """`docker compose` where it is there, else `docker-compose`."""
    if shutil.which("docker"):
        plugin = subprocess.run(
            ["docker", "compose", "version"], capture_output=True, timeout=60, check=False
        )
        if plugin.returncode == 0:
            return ["docker", "compose"]
    return ["docker-compose"]


def config(*args: str, **env: str) -> dict[str, Any]:
    """The file with its variables filled in; compose must not have a word to say about it."""
    names = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TARLIKE_TOKEN": TOKEN} | env
    done = subprocess.run(
        [*compose(), "-f", str(COMPOSE), *args, "config"],
        env=names,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert not done.stderr, done.stderr.decode()
    value: dict[str, Any] = yaml.safe_load(done.stdout)
    return value


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Where in the container: what of the host, however this compose writes it."""
    found = {}
    for one in service.get("volumes", ()):
        if isinstance(one, dict):
            found[one["target"]] = one["source"]
        else:
            source, target = one.split(":")[:2]
            found[target] = source
    return found


def ports(service: dict[str, Any]) -> dict[int, str]:
    """Port in the container: where on the host."""
    found = {}
    for one in service.get("ports", ()):
        if isinstance(one, dict):
            found[one["target"]] = ":".join(
                str(part) for part in (one.get("host_ip"), one["published"]) if part
            )
        else:
            host, _, target = one.removesuffix("/tcp").rpartition(":")
            found[int(target)] = host
    return found


def test_what_there_is_without_any_setting() -> None:
    services = config()["services"]
    assert {"proxy", "haproxy", "redis", "worker"} <= services.keys()
    assert services["proxy"]["deploy"]["replicas"] == 2
    assert "ports" not in services["proxy"], "haproxy alone is reached from outside"
    assert "ports" not in services["redis"]
    assert "container_name" not in services["worker"], "--scale worker=8 needs names to be free"
    assert ports(services["haproxy"]) == {8000: "127.0.0.1:8000", 8443: "8443"}
    assert mounts(services["worker"])["/data/ro"] == "source"
    assert mounts(services["proxy"])["/data/rw"] == "copy"


def test_redis_keeps_what_it_has_and_is_out_of_reach_of_the_receivers() -> None:
    found = config()
    redis = found["services"]["redis"]
    words = " ".join(redis["command"])
    assert "--appendonly yes" in words
    assert "--maxmemory-policy noeviction" in words
    assert list(redis["networks"]) == ["queue"]
    assert found["networks"]["queue"]["internal"] is True
    assert "queue" not in found["services"]["proxy"]["networks"]
    assert "queue" not in found["services"]["haproxy"]["networks"]


def test_nothing_starts_without_a_token() -> None:
    services = config("--profile", "send")["services"]
    for service in ("proxy", "worker", "send"):
        assert services[service]["environment"]["TARLIKE_TOKEN"] == TOKEN
    assert "TARLIKE_TOKEN" not in services["haproxy"]["environment"]
    with pytest.raises(AssertionError, match="tar-like token random"):
        config(TARLIKE_TOKEN="")


def test_the_variables_keep_their_meaning() -> None:
    services = config(
        "--profile",
        "send",
        SDIR="/tree",
        DDIR="/copy",
        UDIR="/data/rw/here",
        UPLOAD_URL="https://elsewhere:8443/tar",
        LOCAL_BIND="8001",
        LOCAL_BIND_HTTPS="127.0.0.1:9443",
        IN_PYCACERT="/s3.pem",
        EX_PYCACERT="/proxy.pem",
    )["services"]
    assert mounts(services["proxy"])["/data/rw"] == "/copy"
    assert services["proxy"]["environment"]["UDIR"] == "/data/rw/here"
    assert ports(services["haproxy"]) == {8000: "8001", 8443: "127.0.0.1:9443"}
    for name in ("worker", "send"):
        sender = services[name]
        assert mounts(sender)["/data/ro"] == "/tree"
        names = sender["environment"]
        assert names["UPLOAD_URL"] == "https://elsewhere:8443/tar"
        assert mounts(sender)[names["IN_PYCACERT"]] == "/s3.pem"
        assert mounts(sender)[names["EX_PYCACERT"]] == "/proxy.pem"
    assert services["send"]["command"][-1] == "https://elsewhere:8443/tar"


@pytest.mark.parametrize("service", ["proxy", "worker", "send"])
def test_tar_like_runs_with_no_power(service: str) -> None:
    found = config("--profile", "send")["services"][service]
    assert found["user"] == "10001:10001"
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert not found.get("privileged")


def test_senders_get_the_settings_of_s3_that_the_example_lists() -> None:
    listed = set(re.findall(r"^#((?:TARLIKE_S3|AWS)_\w+)=", EXAMPLE.read_text(), re.MULTILINE))
    assert listed
    services = config("--profile", "send", **dict.fromkeys(listed, "given"))["services"]
    for service in ("worker", "send"):
        names = services[service]["environment"]
        missing = {name for name in listed - ELSEWHERE if names.get(name) != "given"}
        assert not missing, f"compose.yaml does not hand on {sorted(missing)}"


def test_images_are_pinned_and_can_be_pinned_closer() -> None:
    names = {"BASE_IMAGE", "HAPROXY_IMAGE", "REDIS_IMAGE"}
    for name, default in re.findall(r"^#(\w+_IMAGE)=(\S+)$", EXAMPLE.read_text(), re.MULTILINE):
        assert name not in names or re.search(r":\d+\.\d+\.\d+", default), f"{default} moves"
    pinned = dict.fromkeys(names, f"example/image:1.2.3@sha256:{'0' * 64}")
    services = config(**pinned)["services"]
    (one,) = set(pinned.values())
    found = (services["haproxy"]["image"], services["redis"]["image"])
    assert {*found, services["proxy"]["build"]["args"]["BASE"]} == {one}


def test_every_variable_of_compose_is_in_the_example() -> None:
    used = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    listed = set(re.findall(r"^#(\w+)=", EXAMPLE.read_text(), re.MULTILINE))
    assert used <= listed, f"not in .tar_like_rc.example: {sorted(used - listed)}"


def test_what_compose_mounts_and_builds_is_there() -> None:
    services = config()["services"]
    configuration = Path(mounts(services["haproxy"])["/usr/local/etc/haproxy/haproxy.cfg"])
    assert configuration == REPOSITORY / "haproxy" / "haproxy.cfg"
    assert configuration.is_file()
    build = services["proxy"]["build"]
    default = re.search(r"^ARG BASE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert default and build["args"] == {"BASE": default[1]}
    assert (Path(build["context"]) / build["dockerfile"]).is_file()
    assert os.stat(REPOSITORY / "docker" / "entrypoint").st_mode & stat.S_IXOTH
