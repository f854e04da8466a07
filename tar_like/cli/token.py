"""tar-like token"""

from __future__ import annotations

import argparse

from tar_like import config
from tar_like.cli.output import Output
from tar_like.errors import UsageError

DESCRIPTION = """\
WHAT is one of
  random  a shared token: TARLIKE_TOKEN, or a line of a --token-file, on both sides; may do all
  keys    a key pair, NAME-private.pem and NAME-public.pem, in the folder -d: a receiver with
          --jwt-keys takes the tokens that are signed with the private one
  sign    a token signed with the key -k, that expires, for one transfer or some operations only

Operations: offer (show an index), send (blocks), commit, read (ask what is there). 'sync' and
'upload' need all four, a worker send and read, 'status' read.
"""


def add_arguments(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    parser.add_argument("what", metavar="WHAT", choices=("random", "keys", "sign"))
    parser.add_argument("name", metavar="NAME", nargs="?", default="tar-like", help="of the keys")
    parser.add_argument(
        "-d", dest="folder", metavar="FOLDER", default=settings.jwt_keys or "jwtkeys",
        help="where the keys go (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("-k", dest="key", metavar="FILE", help="the private key to sign with")
    parser.add_argument(
        "--for", dest="duration", metavar="TIME", default="1d",
        help="how long the token is valid: 90s, 15m, 12h, 7d (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--audience", metavar="NAME", default=settings.audience,
        help="the receivers it is for (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--transfer", metavar="ID", default="", help="for this transfer only")
    parser.add_argument(
        "--operations", metavar="LIST", default="offer,send,commit,read",
        help="for these only (default: %(default)s)",
    )  # fmt: skip


def run(options: argparse.Namespace, output: Output) -> int:
    from tar_like.errors import OK
    from tar_like.tokens import random_token

    if options.what == "keys":
        from tar_like.signed import make_keys

        private, public = make_keys(options.folder, options.name)
        output.say(f"Sign with {private}, and give {public} to the receivers.")
        return output.finish({"private": private, "public": public}, OK)
    token = random_token() if options.what == "random" else _signed(options)
    output.result(token)
    return output.finish({"token": token}, OK)


def _signed(options: argparse.Namespace) -> str:
    from tar_like.signed import sign

    if options.key is None:
        raise UsageError("Name the private key to sign with: -k NAME-private.pem.")
    return sign(
        options.key,
        seconds=config.duration(options.duration),
        audience=options.audience,
        transfer=options.transfer,
        operations=[one.strip() for one in options.operations.split(",")],
    )
