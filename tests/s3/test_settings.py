"""What the environment and the rc file say of S3."""

from __future__ import annotations

import pytest

from tar_like import config
from tar_like.config import S3Settings
from tar_like.errors import UsageError


def s3(**values: str) -> S3Settings:
    return config.from_mapping(values).s3


def test_nothing_is_set_by_itself() -> None:
    assert s3() == S3Settings()


def test_what_is_set_is_taken() -> None:
    found = s3(
        TARLIKE_S3_BUCKET="bucket",
        TARLIKE_S3_PFX="/some/prefix/",
        TARLIKE_S3_ENDPOINT="https://s3.example.org",
        TARLIKE_S3_TLS_VERIFY="false",
        AWS_CA_BUNDLE="/ca.pem",
        AWS_PROFILE="profile",
        AWS_ACCESS_KEY_ID="AKIA",
        AWS_SECRET_ACCESS_KEY="secret",
        AWS_SESSION_TOKEN="token",
        AWS_DEFAULT_REGION="eu-west-1",
    )
    assert found == S3Settings(
        bucket="bucket", prefix="/some/prefix/", endpoint="https://s3.example.org",
        verify_tls=False, ca_bundle="/ca.pem", profile="profile", access_key="AKIA",
        secret_key="secret", session_token="token", region="eu-west-1",
    )  # fmt: skip
    assert found.url == "s3://bucket/some/prefix"
    assert not {"AKIA", "secret", "token"} & set(repr(found).replace("'", " ").split())


def test_the_more_special_endpoint_goes_first() -> None:
    both = {"AWS_ENDPOINT_URL": "http://all", "AWS_ENDPOINT_URL_S3": "http://s3"}
    assert s3(AWS_ENDPOINT_URL="http://all").endpoint == "http://all"
    assert s3(**both).endpoint == "http://s3"
    assert s3(**both, TARLIKE_S3_ENDPOINT="http://ours").endpoint == "http://ours"


def test_half_a_pair_of_keys_is_none() -> None:
    assert s3(AWS_ACCESS_KEY_ID="AKIA", AWS_SESSION_TOKEN="t") == S3Settings()


def test_hcp_keys_are_made_of_name_and_password() -> None:
    found = s3(TARLIKE_HCP_USER="lgreen", TARLIKE_HCP_PASSWORD="p4ssw0rd")
    assert (found.access_key, found.secret_key) == (
        "bGdyZWVu",
        "2a9d119df47ff993b662a8ef36f9ea20",
    )
    assert s3(TARLIKE_HCP_USER="lgreen").access_key == ""
    explicit = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "s"}
    both = {"TARLIKE_HCP_USER": "u", "TARLIKE_HCP_PASSWORD": "p", **explicit}
    assert s3(**both).access_key == "AKIA"


@pytest.mark.parametrize(
    "values",
    [
        {"TARLIKE_S3_TLS_VERIFY": "maybe"},
        {"TARLIKE_S3_ADDRESSING": "dns"},
        {"TARLIKE_S3_CONNECTIONS": "0"},
        {"TARLIKE_S3_CONNECTIONS": "many"},
    ],
)
def test_what_cannot_be_is_a_usage_error(values: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        s3(**values)


def test_without_a_bucket_there_is_no_url() -> None:
    with pytest.raises(UsageError, match="TARLIKE_S3_BUCKET"):
        assert s3().url
