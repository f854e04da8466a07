"""The error tree. The type decides exit code, HTTP status and whether trying again can help.

The text is a sentence that tells the user what to do; ids travel as attributes.
Foreign exceptions (OSError, sqlite3.Error, requests' errors) are mapped once, at the edge.
"""

import os
import string

OK = 0
FAILURE = 1
USAGE = 2
SOURCE_TROUBLE = 3
DIFFERENT = 4
INTERRUPTED = 130


class TarLikeError(Exception):
    """Something went wrong that the user or the other side must know of."""

    exit_code = FAILURE
    http_status = 500
    retry = False
    slug = "failure"


class UsageError(TarLikeError):
    """The command line or the configuration asks for something that cannot be."""

    exit_code = USAGE
    http_status = 400
    slug = "usage"


class Unauthorized(TarLikeError):
    """No token, or one that is not valid here."""

    http_status = 401
    slug = "unauthorized"


class Forbidden(TarLikeError):
    """A token that is valid, for something else."""

    http_status = 403
    slug = "forbidden"


class IndexInvalid(TarLikeError):
    """A database is no index of this version, or its rows break a rule."""

    http_status = 422
    slug = "index-invalid"


class AnswersInvalid(TarLikeError):
    """Answers to a receiver's questions are malformed, or answer other ones."""

    http_status = 422
    slug = "answers-invalid"


class BlockInvalid(TarLikeError):
    """A block's body is malformed, or its bytes do not have the digest it claims."""

    http_status = 422
    retry = True
    """Bits flip on the way; a block that is wrong at its source stays wrong, and is given up."""
    slug = "block-invalid"


class NotFound(TarLikeError):
    """No such transfer, or no such block in it."""

    http_status = 404
    slug = "not-found"


class Conflict(TarLikeError):
    """The request contradicts what this transfer already holds."""

    http_status = 409
    slug = "conflict"


class LengthRequired(TarLikeError):
    """A body came without Content-Length."""

    http_status = 411
    slug = "length-required"


class TooLarge(TarLikeError):
    """A body is larger than anything valid could be."""

    http_status = 413
    slug = "too-large"


class NoRequest(TarLikeError):
    """What came is no HTTP request."""

    http_status = 400
    slug = "http"


class TooSlow(TarLikeError):
    """A request did not arrive in time."""

    http_status = 408
    retry = True
    slug = "slow"


class HeadTooLarge(TarLikeError):
    """The head of a request is larger than any valid one."""

    http_status = 431
    slug = "head-too-large"


class Busy(TarLikeError):
    """The receiver has no room for another request just now."""

    http_status = 503
    retry = True
    slug = "busy"


class NoSpace(TarLikeError):
    """The destination's filesystem is full."""

    http_status = 507
    slug = "no-space"


class ReceiverFailed(TarLikeError):
    """The receiver could not do its part (an I/O error there, say)."""

    retry = True
    slug = "receiver-failed"


class CommitFailed(TarLikeError):
    """The receiver could not make the staged files appear; the transfer can be resumed."""

    slug = "commit-failed"


class Unreachable(TarLikeError):
    """No receiver answers at the URL."""

    retry = True
    slug = "unreachable"


class Interrupted(TarLikeError):
    """The user stopped the run."""

    exit_code = INTERRUPTED
    slug = "interrupted"


class SourceUnusable(TarLikeError):
    """The source as a whole cannot be read."""

    slug = "source"


def shown(path: bytes) -> str:
    """The path as one printable line: bytes that are no text are shown as ``\\xNN``.

    >>> shown(b"a\\nb")
    'a\\\\nb'
    """
    text = path.decode("utf-8", "backslashreplace")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_shown_character, path.decode("utf-8", "surrogateescape")))


def counted(number: int, noun: str) -> str:
    """A number with what it counts.

    >>> counted(1, "block"), counted(2, "entry")
    ('1 block', '2 entries')
    """
    if number != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun}"


def line(text: str) -> str:
    """A text that others may have written, as one line that no terminal obeys.

    >>> line("a\\x1b[2J\\nb")
    'a\\\\x1b[2J\\\\nb'
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else _shown_character(character) for character in text
    )


def _shown_character(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    if character in string.whitespace and character in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[character]
    if "\x80" <= character <= "\xff":
        return f"\\u{ord(character):04x}"  # \xNN stands for a byte that is no text
    return character.encode("unicode_escape").decode("ascii")


def cause(error: OSError) -> str:
    """The operating system's words for an error, without Python's decoration."""
    return os.strerror(error.errno) if error.errno else str(error)
