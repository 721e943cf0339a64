"""Responses: the headers of all, and bodies of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: only what the service itself gives, and what the page makes, may load."""
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""Headers of every response, as ASGI has them."""


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None, media_type: str = "application/json"
) -> Response:
    """A response with a value of JSON's types."""
    try:
        body = orjson.dumps(content)
    except TypeError:  # half of a surrogate pair, which JSON can escape and UTF-8 cannot hold
        body = json.dumps(content, ensure_ascii=True).encode("ascii")
    return Response(body, status, headers, media_type)


def whole(response: Response) -> bytes:
    """A response with its head, as HTTP/1.1 has it."""
    lines = [b"HTTP/1.1 %d %s" % (response.status_code, HTTPStatus(response.status_code).phrase.encode())]
    lines += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(response.body)])
