"""tar-like status"""

from __future__ import annotations

import argparse

from tar_like import config
from tar_like.cli.output import Output, size

HELP = "show the transfers of a receiver"
DESCRIPTION = "Ask a receiver which transfers are under way, and how far they are."


def add_arguments(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    parser.add_argument("url", metavar="URL", nargs="?", default=settings.url, help="the receiver")
    parser.add_argument(
        "--ignore-ca", action="store_true", help="do not verify the receiver's certificate"
    )


def run(options: argparse.Namespace, output: Output) -> int:
    from dataclasses import asdict

    from tar_like.errors import OK
    from tar_like.upload.client import Client

    settings = config.load()
    client = Client(options.url, ca_bundle=settings.ca_bundle, verify=not options.ignore_ca)
    transfers = client.transfers()
    client.close()
    for one in transfers:
        output.result(
            f"{one.id[:16]}  {one.state}  {one.received} of {one.blocks} blocks received, "
            f"{one.durable} durable; {size(one.bytes)} in {one.files} files"
        )
    if not transfers:
        output.result("No transfers are under way.")
    return output.finish({"transfers": [asdict(one) for one in transfers]}, OK)
