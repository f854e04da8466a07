"""Errors as problem documents (RFC 9457). None of them names a path of the machine."""

from __future__ import annotations

import json

from starlette.responses import Response

from tar_like.errors import Busy, Forbidden, TarLikeError, Unauthorized
from tar_like.wire import PROBLEM

_HEADERS = {
    Busy.http_status: {"retry-after": "1"},
    Unauthorized.http_status: {"www-authenticate": 'Bearer realm="tar-like"'},
    Forbidden.http_status: {
        "www-authenticate": 'Bearer realm="tar-like", error="insufficient_scope"'
    },
}


def document(slug: str, status: int, detail: str) -> Response:
    """The answer that says what is wrong."""
    body = {"type": f"urn:tar-like:{slug}", "title": slug, "status": status, "detail": detail}
    return Response(json.dumps(body), status, _HEADERS.get(status), media_type=PROBLEM)


def of(error: TarLikeError) -> Response:
    """The answer for an error of our own."""
    return document(error.slug, error.http_status, str(error))
