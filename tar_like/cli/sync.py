"""tar-like sync"""

from __future__ import annotations

import argparse
import gc
import os
import re
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from tar_like import config
from tar_like.cli.output import Output
from tar_like.errors import OK, SOURCE_TROUBLE, UsageError

if TYPE_CHECKING:
    from tar_like.index import BuildSummary, Recorded
    from tar_like.rules import Rules
    from tar_like.source import Source
    from tar_like.upload.client import Client
    from tar_like.upload.dispatch import UploadOptions
    from tar_like.upload.patch import Patching
    from tar_like.wire import Look

_LOOKS_REMOTE = re.compile(r"https?[:/]|[\w.-]+:\d+(/|$)|[\w.-]+@[\w.-]+:")
"""A target that means another host, but is no URL."""
DESCRIPTION = """\
One command: scan SRC (a folder, or s3://bucket/prefix), send what TARGET lacks, commit. TARGET is
a folder (a receiver runs on loopback meanwhile) or the URL of one, http(s)://host:port/tar. SRC's
content goes into TARGET, as with 'rsync SRC/ TARGET/'. What TARGET has already is not sent:
unchanged files (size, mtime), files under another name, parts of large files. Whatever ends it, the
same command goes on. Nothing is deleted without --delete.
"""


def add_arguments(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    from tar_like.cli.common import (
        add_durability_argument,
        add_scan_arguments,
        add_send_arguments,
    )
    from tar_like.cli.fanout import add_fanout_arguments
    from tar_like.cli.rules import add_rules_arguments
    from tar_like.cli.s3 import add_s3_arguments

    parser.add_argument("source", metavar="SRC", help="a folder, or s3://bucket/prefix")
    parser.add_argument("target", metavar="TARGET", help="a folder, or a receiver's URL")
    parser.add_argument(
        "-db", dest="db", metavar="DB",
        help="keep the index in this file (it has no hashes: check needs one of 'tar-like index')",
    )  # fmt: skip
    add_scan_arguments(parser)
    add_rules_arguments(parser)
    add_send_arguments(parser, settings)
    add_durability_argument(parser, settings)
    add_fanout_arguments(parser, settings)
    add_s3_arguments(parser)


def run(options: argparse.Namespace, output: Output) -> int:
    from tar_like.cli.common import scanning, wanted
    from tar_like.cli.s3 import s3_settings

    if not options.source or not options.target:  # the current folder is not meant
        raise UsageError("SRC or TARGET is empty: '.' is the current folder.")
    settings = config.load()
    what = wanted(options)
    if not _may_record(options):
        with scanning(options.source, s3_settings(options, settings), what) as source:
            return _run(options, settings, source, None, output)
    from tar_like.index import Recorded
    from tar_like.source.folder import FolderSource

    with closing(FolderSource(options.source)) as source, closing(Recorded(source, what)) as rows:
        return _run(options, settings, source, rows, output)


def _run(
    options: argparse.Namespace,
    settings: config.Settings,
    source: Source,
    rows: Recorded | None,
    output: Output,
) -> int:
    from tar_like.cli import fanout
    from tar_like.cli.common import block_size, forbid_inside, is_inside, trust
    from tar_like.cli.rules import rules
    from tar_like.cli.s3 import s3_settings
    from tar_like.upload.client import checked_url
    from tar_like.upload.dispatch import UploadOptions
    from tar_like.upload.looking import begin_look

    upload = UploadOptions(
        source=options.source if "://" in options.source else os.path.abspath(options.source),
        index_path="",
        urls=(),
        block_size=block_size(options, output),
        processes=config.count(options.processes),
        compress=config.compression(options.compress),
        checksum=options.checksum,
        trust=trust(options, settings),
        limit=config.size(options.limit),
        dials=settings.dials,
        rules=rules(options),
        s3=s3_settings(options, settings),
    )
    if "://" in options.target:
        if options.durability != settings.durability:
            raise UsageError("--durability is for a TARGET folder: a proxy has its own.")
        upload = fanout.check(options, upload._replace(urls=(checked_url(options.target),)))
        return _sync(options, upload, source, rows, output, look=begin_look)
    if _LOOKS_REMOTE.match(options.target) and not os.path.exists(options.target):
        raise UsageError(f"{options.target} is not a URL: it looks like http://host:8000/tar.")
    if options.detach or (options.redis and options.redis != settings.redis_url):
        raise UsageError("Workers on other hosts need a receiver: give its URL, not a folder.")
    options.redis = ""
    if "://" not in options.source:
        forbid_inside(options.target, options.source)
    if options.db and options.delete and is_inside(options.db, options.target):
        raise UsageError(f"--delete would delete the index {options.db}: keep it elsewhere.")
    return _sync_to_folder(options, upload, source, rows, output, settings.processes)


def _sync_to_folder(
    options: argparse.Namespace, upload: UploadOptions, source: Source,
    rows: Recorded | None, output: Output, cores: int,
) -> int:  # fmt: skip
    import dataclasses  # and so on: only once there is a scan under way

    from tar_like.proxy import durable
    from tar_like.proxy.server import Receiver, ServerOptions

    # Who limits or compresses asks for something of the wire, though it is a short one.
    over_http = bool(upload.limit) or upload.compress == "lz4"
    serving = ServerOptions(
        destination=options.target,
        processes=min(upload.processes, cores) if over_http else 1,
        jobs=cores,
        durability=durable.BY_NAME[config.durability(options.durability)],
    )
    with ExitStack() as stack:
        if options.dry_run:
            import tempfile

            shadow = stack.enter_context(tempfile.TemporaryDirectory(prefix="tar-like-"))
            serving = dataclasses.replace(serving, shadow=shadow)
        receiver = stack.enter_context(Receiver(serving))
        upload = upload._replace(
            urls=tuple(receiver.urls),
            trust=config.Trust(token=receiver.token),
            direct=None if over_http else receiver.direct,
        )
        told = receiver.supersede, lambda _client: receiver.look()
        code = _sync(options, upload, source, rows, output, *told)
        receiver.close(at_once=code in (OK, SOURCE_TROUBLE))
        return code


def _sync(
    options: argparse.Namespace,
    upload: UploadOptions,
    source: Source,
    rows: Recorded | None,
    output: Output,
    scanned: Callable[[str, str], None] = lambda _source, _id: None,
    look: Callable[[Client], Look | None] = lambda _client: None,
) -> int:
    """``rows`` are those of a scan that has begun, if it has; else the index is built here.

    ``scanned`` is told the source and the index's id before anything is sent.

    With rows, ``look`` has the receiver look meanwhile whether the last tree is in its place.
    """
    import shutil
    import tempfile

    from tar_like.cli import fanout
    from tar_like.cli.common import say_scanned

    folder = tempfile.mkdtemp(prefix="tar-like-")
    code = client = None
    carried = 0
    try:
        index_path = options.db or os.path.join(folder, "index.db")
        if rows is None:
            found = _index(options, source, index_path)
        else:
            client = upload.client(0)
            begun = look(client)
            from tar_like.upload.patch import Patching  # and so on, while others look

            import_module("tar_like.upload.run")
            gc.freeze()  # what was imported holds no garbage that is worth looking for
            if begun is None or not begun.tree:
                rows.finish(index_path, None)
            else:
                patching = Patching(client, upload.rules, begun, upload.block_size)
                rows.finish(index_path, patching, partial(patching.gather, rows))
                code = _if_still_there(rows.summary, client, upload.rules, begun, output)
                if code is not None:
                    return code
                upload = upload._replace(look=begun.token)
                code, carried = _as_patch(
                    options, upload, client, patching, rows, folder, scanned, output
                )
                if code is not None:
                    return code
            found = rows.write()
        scanned(source.url, found.id)
        say_scanned(found, output)
        if options.detach:
            code = fanout.detach(options, found.id, output)
        if code is None:
            upload = upload._replace(index_path=index_path)
            return _upload(options, upload, found, output, client, carried)
        return code
    finally:
        if client is not None:
            client.close()
        if code is None or not options.detach:  # else the background still needs it
            shutil.rmtree(folder, ignore_errors=True)


def _may_record(options: argparse.Namespace) -> bool:
    """Whether a look at names and times is all that this run is asked for.

    A bucket also has ETags, which an index's id does not cover.
    """
    return not (
        "://" in options.source
        or options.dry_run
        or options.snapshot
        or options.db
        or options.detach
        or options.xattrs
        or options.acls
        or options.checksum
    )


def _if_still_there(
    found: BuildSummary, client: Client, rules: Rules, look: Look, output: Output
) -> int | None:
    """The exit code when the tree is where it should be, and all is done; else None."""
    from tar_like.cli.common import report_upload, say_scanned
    from tar_like.upload.looking import still_there
    from tar_like.upload.run import UploadSummary
    from tar_like.wire import COMPLETE

    if found.id != look.tree or found.unreadable:
        return None
    status = still_there(client, rules, look)
    if status is None or status.state != COMPLETE:
        return None
    say_scanned(found, output)
    summary = UploadSummary()
    summary.transfer, summary.state, summary.entries = found.id, COMPLETE, found.entries
    return report_upload(summary, output)


def _as_patch(
    options: argparse.Namespace, upload: UploadOptions, client: Client, patching: Patching,
    rows: Recorded, folder: str, scanned: Callable[[str, str], None], output: Output,
) -> tuple[int | None, int]:  # fmt: skip
    """The exit code where only what differs was offered; None where the whole index is to be.

    Also the bytes of blocks that were sent in vain.
    """
    from tar_like.cli.common import say_scanned
    from tar_like.upload.run import PatchGone

    tree, path = rows.summary, os.path.join(folder, "patch.db")
    offered = None if options.redis else patching.offer(rows, path)
    if offered is None:
        return None, 0
    scanned(rows.url, offered.status.id)
    say_scanned(tree, output)
    try:
        upload = upload._replace(index_path=path, patch=offered)
        return _upload(options, upload, tree, output, client), 0
    except PatchGone as gone:
        return None, gone.carried


def _upload(
    options: argparse.Namespace, upload: UploadOptions, found: BuildSummary, output: Output,
    client: Client | None = None, carried: int = 0,
) -> int:  # fmt: skip
    """Send a tree; ``carried`` are bytes of blocks that went over the wire for it already."""
    from tar_like.cli import fanout
    from tar_like.cli.common import first_interrupt, report_rehearsal, report_upload
    from tar_like.upload.run import Upload

    if options.dry_run:
        with closing(Upload(upload, output).rehearse()) as rehearsal:
            return report_rehearsal(rehearsal, output)
    run = Upload(upload, output, fanout.dispatcher(options, upload), client)
    with first_interrupt(run.stop, output):
        summary = run.run()
    summary.transfer, summary.entries = found.id, found.entries
    summary.wire_bytes += carried
    return report_upload(summary, output)


def _index(options: argparse.Namespace, source: Source, path: str) -> BuildSummary:
    """Make an index without hashes.

    With -db, one that is there is brought up to date, hashes included where it has them.
    """
    from tar_like.cli.common import wanted
    from tar_like.index import BuildOptions, Index, build_index
    from tar_like.index.identity import NO_HASH

    algorithm, fresh = NO_HASH, True
    if os.path.exists(path) and os.path.getsize(path):
        with Index(path) as index:
            algorithm, fresh = index.algorithm, False
    build = BuildOptions(
        algorithm=algorithm, fresh=fresh, wanted=wanted(options), lasting=bool(options.db)
    )
    return build_index(source, path, build)
