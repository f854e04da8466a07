"""Flags that say what may be done with names that are at the destination already."""

from __future__ import annotations

import argparse
import posixpath

from tar_like.errors import UsageError
from tar_like.rules import Rules


def add_rules_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be replaced, and what is deleted; named as rsync names it."""
    group = parser.add_argument_group("what is at TARGET already")
    group.add_argument(
        "--delete", action="store_true",
        help="remove what SRC no longer has, at the end, if all else went well; what -x and "
        "--exclude leave out stays",
    )  # fmt: skip
    group.add_argument(
        "-n", "--dry-run", action="store_true",
        help="only say what would be sent, made, linked, set and deleted",
    )  # fmt: skip
    group.add_argument(
        "--snapshot", metavar="NAME",
        help="make the folder NAME in TARGET, sharing with the snapshot before it, and let "
        "'current' lead to it",
    )  # fmt: skip
    group.add_argument(
        "--ignore-errors", action="store_true",
        help="delete although parts of SRC could not be read (never below those)",
    )  # fmt: skip
    group.add_argument(
        "--backup-dir", metavar="DIR",
        help="keep what is replaced or deleted in this folder of TARGET",
    )  # fmt: skip
    group.add_argument(
        "-u", "--update", action="store_true", help="leave files alone that are newer at TARGET"
    )
    group.add_argument(
        "--existing", action="store_true", help="make nothing that is not at TARGET already"
    )
    group.add_argument(
        "--ignore-existing", action="store_true", help="leave alone what is at TARGET already"
    )
    group.add_argument(
        "--size-only", action="store_true", help="take files of the same size for the same"
    )


def rules(options: argparse.Namespace) -> Rules:
    """The rules that the flags ask for. Raises UsageError for what does not go together."""
    for flag, name in (("--snapshot", options.snapshot), ("--backup-dir", options.backup_dir)):
        if name == "":  # of a variable that is not set, say: something else would be done
            raise UsageError(f"{flag} has an empty name.")
    return Rules(
        delete=options.delete,
        ignore_errors=options.ignore_errors,
        regexes=tuple(options.regexes),
        patterns=tuple(options.patterns),
        snapshot=options.snapshot or "",
        update=options.update,
        dry_run=options.dry_run,
        existing=options.existing,
        ignore_existing=options.ignore_existing,
        size_only=options.size_only,
        backup_dir=posixpath.normpath(options.backup_dir) if options.backup_dir else "",
    ).checked()
