"""Around the application: the API key, hosts and origins, a bound on requests, headers, and counting."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import lru_cache
from time import perf_counter
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmn_fast.serving.http.admission import QUEUED, Admission
from mmn_fast.serving.http.outgoing import HEADERS
from mmn_fast.serving.http.problems import REFUSALS, ClientGoneError, Problem, answer_error, busy, response_of
from mmn_fast.serving.metrics import Metrics

_LOG = logging.getLogger(__name__)
_OPEN = ("/", "/healthz", "/readyz")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine for itself."""


ShortCut = Callable[[Request], Awaitable[Response]]
"""A route's function."""


class Guard:
    """ASGI middleware, the outermost layer.

    Args:
        app: the application.
        metrics: counts answers.
        max_active: most requests that do work at one time; a further one is refused before its body is read.
        key: API key that requests must bring; None asks for none.
        hosts: names in the Host header that are accepted; None accepts all. Keeps other sites' names for this machine
            (DNS rebinding) away from a service without a key.
        draining: whether the service is about to end.
        admission: says whether a request finds a place in the queue; one without is refused before its body is read,
            because reading costs more than refusing.
        short_cuts: path -> the function that answers POST there. They are called from here: the layers of FastAPI and
            Starlette in between cost more processor time than all else that such a request needs in Python.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        max_active: int,
        key: str | None,
        hosts: Collection[str] | None,
        draining: Callable[[], bool],
        admission: Admission,
        short_cuts: Mapping[str, ShortCut],
    ) -> None:
        self._app, self._metrics, self._max_active, self._hosts = app, metrics, max_active, hosts
        self._key, self._draining, self._admission = None if key is None else key.encode(), draining, admission
        self._short_cuts, self._active = short_cuts, 0
        metrics.gauge("active_requests", "Requests that are being worked on.", lambda: self._active)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = perf_counter(), 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        works = scope["method"] in ("POST", "DELETE")
        self._active += works
        try:
            refused = self._refusal(scope, works)
            if refused is not None:
                await response_of(refused, scope["path"])(scope, receive, send_on)
            elif scope["method"] == "POST" and scope["path"] in self._short_cuts:
                await self._answer(Request(scope, receive), send_on)
            else:
                await self._app(scope, receive, send_on)
        except ClientGoneError:
            status = 499
        except Exception as error:
            if status not in (0, 500):  # the answer has begun; Starlette answers 500 and raises the error once more
                raise
            _LOG.exception("%s %s failed", scope["method"], scope["path"])
            if not status:
                await (await answer_error(Request(scope, receive), error))(scope, receive, send_on)
        finally:
            self._active -= works
            path = str(scope["path"])
            route = str(getattr(scope.get("route"), "path", path if path in QUEUED else "other"))
            self._metrics.answered(route, status or 500, perf_counter() - started)

    async def _answer(self, request: Request, send: Send) -> None:
        """Answer a request without the application's other layers."""
        try:
            response = await self._short_cuts[request.scope["path"]](request)
        except REFUSALS as error:
            response = await answer_error(request, error)
        await response(request.scope, request.receive, send)

    def _refusal(self, scope: Scope, works: bool) -> Problem | None:
        entered = self._admission.enter(scope)
        headers = {name: value.decode("latin-1") for name, value in reversed(scope["headers"])}  # of two, the first
        host = headers.get(b"host", "")
        name, address = _name_and_address(f"//{host[:300]}")
        if self._hosts is not None and name not in self._hosts:
            return Problem(403, f"Host: expected {', '.join(self._hosts)}, got {host[:100]!r}")
        origin = headers.get(b"origin")
        if origin is not None and _name_and_address(origin[:300])[1] != address:
            return Problem(403, f"Origin: expected a page of this service, got {origin[:100]!r}")
        if self._key is not None and scope["path"] not in _OPEN and not scope["path"].startswith("/static/"):
            kind, _, given = headers.get(b"authorization", "").partition(" ")
            given = given.strip() if kind.lower() == "bearer" else headers.get(b"x-api-key", "")
            if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._key):
                wanted = "Authorization: expected Bearer and the service's API key"
                return Problem(
                    401, f"{wanted}, got {'another one' if given else 'none'}", {"WWW-Authenticate": "Bearer"}
                )
        if works and self._draining():
            return busy("the service is about to end")
        if not entered:
            return self._admission.refusal
        if works and self._active > self._max_active:
            return busy(f"{self._max_active} requests are being answered already")
        return None


@lru_cache(256)  # most requests name the same few
def _name_and_address(url: str) -> tuple[str | None, str | None]:
    """The host's name, and its name with the port, of a URL; None for what is no URL."""
    try:
        parts = urlsplit(url)
        return parts.hostname, parts.netloc
    except ValueError:
        return None, None
