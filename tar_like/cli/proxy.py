"""tar-like proxy"""

from __future__ import annotations

import argparse

from tar_like import config
from tar_like.cli.output import Output

DESCRIPTION = """\
Run a receiver. Senders name its URL, http://HOST:PORT/tar. Several may serve one folder, also
from several hosts on shared storage. Ends on SIGTERM or Ctrl-C; senders go on when it is back.

Who may write to DEST shows a token: one that is also in the receiver's settings (TARLIKE_TOKEN), or
one that is signed with a key whose public half lies in a folder (--jwt-keys, see 'tar-like token
--help'). Without either, only this machine may be listened to, unless --no-auth says otherwise.
"""


def add_arguments(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    from tar_like.cli.common import add_durability_argument, add_token_argument

    parser.add_argument(
        "-b", dest="base", metavar="DEST", default=settings.base,
        help="the folder to receive into, made if it is missing (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine only; 0.0.0.0 is all)",
    )  # fmt: skip
    parser.add_argument(
        "port", metavar="PORT", nargs="?", default=str(config.DEFAULT_PORT),
        help=f"default {config.DEFAULT_PORT}; 0 picks a free one",
    )  # fmt: skip
    parser.add_argument(
        "--processes", metavar="N", default=str(settings.processes),
        help="serving processes (default: one a core)",
    )  # fmt: skip
    add_durability_argument(parser, settings)
    add_token_argument(parser, "take the tokens in this file")
    parser.add_argument(
        "--jwt-keys", metavar="FOLDER", default=settings.jwt_keys,
        help="take tokens that are signed for the public keys in here (*-public*.pem)",
    )  # fmt: skip
    parser.add_argument(
        "--audience", metavar="NAME", default=settings.audience,
        help="whom signed tokens must be for (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--no-auth", action="store_true",
        help="ask nobody for a token: whoever reaches the port may write to DEST",
    )  # fmt: skip
    parser.add_argument(
        "--tls-cert", metavar="FILE", default=settings.tls_cert,
        help="speak TLS with this certificate (PEM, with its chain)",
    )  # fmt: skip
    parser.add_argument(
        "--tls-key", metavar="FILE", default=settings.tls_key, help="the certificate's key (PEM)"
    )
    parser.add_argument(
        "--expire", metavar="AGE",
        help="remove what transfers have staged that were not gone on with for so long, as 7d "
        "(default: keep it)",
    )  # fmt: skip


def run(options: argparse.Namespace, output: Output) -> int:
    from tar_like.cli.common import tokens
    from tar_like.errors import OK, UsageError
    from tar_like.proxy import durable
    from tar_like.proxy.server import ServerOptions, serve

    if not options.port.isascii() or not options.port.isdigit() or int(options.port) > 65535:
        raise UsageError(f"{options.port!r} is no port: use 0 to 65535.")
    processes = config.count(options.processes)
    serve(
        ServerOptions(
            destination=options.base,
            host=options.host,
            port=int(options.port),
            processes=processes,
            jobs=processes,
            expire=config.age(options.expire) if options.expire else None,
            durability=durable.BY_NAME[config.durability(options.durability)],
            tokens=tokens(options, config.load()),
            jwt_keys=options.jwt_keys,
            audience=options.audience,
            no_auth=options.no_auth,
            tls=(options.tls_cert, options.tls_key or options.tls_cert)
            if options.tls_cert
            else None,
        ),
        lambda url: output.error(f"listening on {url}"),
    )
    return output.finish({}, OK)
