"""Flags of the commands that may read from S3."""

from __future__ import annotations

import argparse

from tar_like import config


def add_s3_arguments(parser: argparse.ArgumentParser) -> None:
    """How to reach a bucket, where the settings do not say it or say it otherwise."""
    group = parser.add_argument_group("S3 (SRC or BASE is s3://bucket/prefix)")
    group.add_argument("--endpoint", metavar="URL", help="of a store that is not AWS")
    group.add_argument("--region", metavar="NAME", help="the bucket's region")
    group.add_argument(
        "--profile", metavar="NAME", help="take credentials from this profile of the AWS tools"
    )
    group.add_argument(
        "--addressing", metavar="HOW", help="path, virtual or auto (default): the bucket in the URL"
    )
    group.add_argument(
        "--requester-pays", action="store_true", help="pay for requests to somebody's bucket"
    )
    group.add_argument("--unsigned", action="store_true", help="no credentials: a public bucket")
    group.add_argument(
        "--s3-metadata", action="store_true",
        help="mtime, mode and owner from the objects' metadata, as rclone and s3cmd keep them "
        "(one more request an object)",
    )  # fmt: skip
    group.add_argument(
        "--s3-versions", action="store_true",
        help="list version ids and read those versions, whatever is written meanwhile",
    )  # fmt: skip


def s3_settings(options: argparse.Namespace, settings: config.Settings) -> config.S3Settings:
    """The settings with what the flags say. Raises UsageError."""
    s3 = settings.s3
    if options.profile:  # a profile that is asked for goes before keys that lie around
        s3 = s3._replace(profile=options.profile, access_key="", secret_key="", session_token="")
    return s3._replace(
        endpoint=options.endpoint or s3.endpoint,
        region=options.region or s3.region,
        addressing=config.addressing(options.addressing or s3.addressing),
        requester_pays=options.requester_pays or s3.requester_pays,
        unsigned=options.unsigned or s3.unsigned,
        metadata=options.s3_metadata or s3.metadata,
        versions=options.s3_versions or s3.versions,
    )
