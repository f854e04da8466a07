"""Rules: what a transfer may do with names that are at the destination already.

The sender states them when it negotiates; they are kept with the transfer, and hold until another
run of it states others. A rule that the receiver does not know is refused, never passed over.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from tar_like.errors import UsageError

RULES = "rules.json"
CURRENT = "current"
"""The symlink to the newest snapshot."""
MAX_TEXT = 4096


class Rules(NamedTuple):
    """The rules of one transfer."""

    delete: bool = False
    """Remove what the index does not list, once everything else is in place."""
    ignore_errors: bool = False
    """Delete although parts of the source could not be read (never below those)."""
    regexes: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    """What the scan left out (source.filters): it is not deleted either."""
    backup_dir: str = ""
    """Where, relative to the destination, what is replaced or deleted is kept."""

    def to_json(self) -> dict[str, Any]:
        """As the wire and the transfer's folder hold it."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in self.canonical._asdict().items()
        }

    update: bool = False
    """Pass over files that are newer at the destination."""
    existing: bool = False
    """Pass over what is not at the destination."""
    ignore_existing: bool = False
    """Pass over what is at the destination."""
    size_only: bool = False
    """A file of the same size is the same file."""

    dry_run: bool = False
    """Only say what would be done."""

    snapshot: str = ""
    """The name of a folder of the destination, to be made for this tree alone."""

    @property
    def planning(self) -> tuple[bool | str, ...]:
        """Those that a plan depends on."""
        return (
            self.update,
            self.existing,
            self.ignore_existing,
            self.size_only,
            self.dry_run,
            self.snapshot,
        )

    def write(self, folder: str) -> None:
        """Keep them in a folder."""
        import json  # which a scan need not wait for

        with open(os.path.join(folder, RULES), "w", encoding="ascii") as file:
            json.dump(self.to_json(), file)

    @classmethod
    def read(cls, folder: str) -> Rules:
        """Those that are kept in a folder. Raises FileNotFoundError."""
        import json

        with open(os.path.join(folder, RULES), "rb") as file:
            return cls.from_json(json.loads(file.read()))

    @classmethod
    def from_json(cls, values: object) -> Rules:
        """Raises UsageError for what are no rules, or none of this version."""
        if not isinstance(values, dict):
            raise UsageError("The rules of a transfer are a JSON object.")
        defaults = cls._field_defaults
        unknown = sorted(values.keys() - defaults.keys())
        if unknown:
            raise UsageError(f"The receiver does not know the rule {unknown[0]!r}.")
        return cls(**{key: _checked(key, value, defaults[key]) for key, value in values.items()})

    def checked(self) -> Rules:
        """Itself, if it can be. Raises UsageError."""
        if self.ignore_errors and not self.delete:
            raise UsageError("--ignore-errors goes with --delete.")
        names = self.backup_dir.split("/")
        if self.backup_dir and (names[0] == ".tar_like" or not {"", ".", ".."}.isdisjoint(names)):
            raise UsageError(
                f"--backup-dir {self.backup_dir}: it must be a folder inside the destination, "
                "given relative to it."
            )
        if self.snapshot:
            self._check_snapshot()
        return self

    def _check_snapshot(self) -> None:
        name = self.snapshot
        if "/" in name or name in (".", "..", CURRENT) or name.startswith(".tar_like"):
            raise UsageError(f"--snapshot {name}: that cannot be the name of a snapshot.")
        if len(os.fsencode(name)) > 255 or not name.isprintable():
            raise UsageError("--snapshot: the name is too long, or cannot be printed.")
        others = (self.delete, self.backup_dir, self.update, self.existing, self.ignore_existing)
        if any(others) or self.size_only:
            raise UsageError("--snapshot begins with an empty folder: no other rule goes with it.")

    @property
    def canonical(self) -> Rules:
        """Without what makes no difference: what a scan left out matters to deleting only."""
        return self if self.delete else self._replace(regexes=(), patterns=())


PATCHED = (Rules(), Rules(delete=True))
"""Those that a transfer can have of which only what differs is offered."""


def _checked(key: str, value: object, default: object) -> Any:
    if isinstance(default, bool) and isinstance(value, bool):
        return value
    if isinstance(default, str) and _is_text(value):
        return value
    if isinstance(default, tuple) and isinstance(value, list) and all(map(_is_text, value)):
        return tuple(value)
    raise UsageError(f"The rule {key!r} cannot be {value!r}.")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and "\0" not in value
