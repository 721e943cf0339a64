"""Places in the queue: requests that find none are refused, by their head alone and before an ASGI task starts.

Under overload, the cost of a refusal decides how much is answered. A refusal through all layers takes about a third of
the event loop's time for an answer by id. If the head has come as a whole and says nothing out of the ordinary, as
nearly all do, not even uvicorn's parser is asked.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mmn_fast.serving.http.outgoing import HEADERS, whole
from mmn_fast.serving.http.problems import Problem, busy, response_of
from mmn_fast.serving.metrics import Metrics

QUEUED = ("/v1/ground", "/v1/search")
"""Paths whose requests wait for the engine."""
# Requests with a place that begin in one round of the event loop. What begins makes the round long, and refusals wait
# for its end: by id at twice the capacity 99 % of them for 30 ms without this bound, for 12 to 20 with it.
_ROUND = 8
_LINE = (
    rb"(?:connection:[ ]?keep-alive"
    rb"|(?!connection|content-length|expect|transfer-encoding|upgrade)[!#-'*+.^-z|~A-Z0-9-]+:[\t -~\x80-\xff]*)\r\n"
)
# The head of a request whose body has a stated length and after which the connection goes on.
_PLAIN = re.compile(
    rb"POST (/[!->@-~]*)(?:\?[!-~]*)? HTTP/1\.1\r\n(?i:(?:%b)*content-length:[ ]?(\d{1,15})\r\n(?:%b)*)\r\n"
    % (_LINE, _LINE)
)
CLIENT = "mmn_fast.client"
"""In the scope of a request: its `Client`, where the server's protocol is that of `admitting`."""
_PLACE = "mmn_fast.place"  # in the scope of a request that has a place, but whose task has not started


class Client:
    """Whether the client of a request has gone; known without a task that waits for it, which takes 0.015 ms.

    Attributes:
        has_gone: whether its connection is lost.
        work: cancelled when that happens.
    """

    __slots__ = ("has_gone", "work")

    def __init__(self) -> None:
        self.has_gone = False
        self.work: asyncio.Future[Any] | None = None

    def leave(self) -> None:
        """Its connection is lost."""
        self.has_gone = True
        if self.work is not None:
            self.work.cancel()


class Admission:
    """Knows whether a request finds a place in the queue.

    Args:
        waiting: how many requests have a place: they wait for the engine, or their body arrives just now.
        most: how many may have one.
        metrics: counts answers.
    """

    def __init__(self, waiting: Callable[[], int], most: int, metrics: Metrics) -> None:
        self._waiting, self._most, self._metrics = waiting, most, metrics
        self._coming = 0  # requests that have a place, but whose task has not started
        self._later: deque[Callable[[], None]] = deque()  # start the tasks that wait for the next rounds
        self._begun = 0  # tasks that this round has started
        self._answers: dict[str, bytes] = {}  # refusals, per path
        for path in QUEUED:
            response = response_of(self.refusal, path)
            response.raw_headers.extend(HEADERS)
            self._answers[path] = whole(response)

    @property
    def refusal(self) -> Problem:
        """The answer to requests that find no place."""
        return busy("the queue is full: no more requests can wait for the engine")

    def enter(self, scope: Scope) -> bool:
        """Say whether a request whose task starts may go on: it needs no place, or there is one.

        The place that it got by its head is free again; the request counts as waiting as soon as its body is read.
        """
        if scope.pop(_PLACE, False):
            self._coming -= 1
        return scope["method"] != "POST" or scope["path"] not in QUEUED or not self._none_left()

    def refuse(self, scope: Scope) -> bytes | None:
        """The whole answer to a request that needs a place and finds none; None for others, which get theirs.

        Host, origin and key are not looked at: without them a client learns only that the service is busy.
        """
        answer = self._answers.get(scope["path"]) if scope["method"] == "POST" else None
        if answer is None:
            return None
        if self._none_left():
            self._metrics.answered(scope["path"], 503, 0.0)
            return answer
        self._coming += 1
        scope[_PLACE] = True
        return None

    def refuse_bytes(self, data: bytes) -> tuple[bytes, int] | None:
        """As `refuse`, for bytes that begin with a request and hold nothing after it.

        Returns:
            The whole answer, and how many bytes of the request are still to come; None for a request that has a place
            or needs none, and for all that a parser must look at.
        """
        if not self._none_left():
            return None
        plain = _PLAIN.match(data)
        if plain is None:
            return None
        path, to_come = plain[1].decode(), plain.end() + int(plain[2]) - len(data)
        if path not in self._answers or to_come < 0:
            return None
        self._metrics.answered(path, 503, 0.0)
        return self._answers[path], to_come

    def _none_left(self) -> bool:
        return self._waiting() + self._coming >= self._most

    def begin(self, start: Callable[[], None]) -> None:
        """Start the task of a request that has a place: now, or in one of the next rounds of the event loop.

        Args:
            start: starts the task.
        """
        if self._later or self._begun >= _ROUND:
            self._later.append(start)
            return
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._next_round)
        self._begun += 1
        start()

    def _next_round(self) -> None:
        self._begun = min(_ROUND, len(self._later))
        if self._begun:
            asyncio.get_running_loop().call_soon(self._next_round)
        for _ in range(self._begun):
            self._later.popleft()()


def admitting(admission: Admission) -> type[HttpToolsProtocol]:
    """Make uvicorn's protocol for a service: it asks `Admission` before it starts a request's task."""

    class Protocol(_Protocol):
        _admission = admission

    return Protocol


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with refusals before parser and task.

    What is left of a body after its answer must not keep a connection open for ever: in uvicorn's own protocol, the
    first bytes that arrive then end the wait for the next request, and no other wait begins.
    """

    _admission: Admission
    _within = False  # the parser has seen the beginning of a request, but not its end
    _to_come = 0  # bytes of a request that was refused without the parser
    _refused_at = 0.0  # when the latest of those was refused

    def on_message_begin(self) -> None:
        self._within = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._within = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        client = None if self.cycle is None else self.cycle.scope.get(CLIENT)
        if isinstance(client, Client):
            client.leave()

    def data_received(self, data: bytes) -> None:
        if self._to_come:
            skipped, self._to_come = self._to_come, max(self._to_come - len(data), 0)
            data = data[skipped:]
            if not data:
                return
        if not self._within and self._answered() and not self.flow.write_paused:
            refused = self._admission.refuse_bytes(data)
            if refused is not None:
                answer, self._to_come = refused
                self.transport.write(answer)
                self.server_state.total_requests += 1
                self._refused_at = self.loop.time()
                self._wait_for_next()
                return
        super().data_received(data)
        if self.cycle is not None and self._answered():
            self._wait_for_next()

    def _answered(self) -> bool:
        """Whether every request so far has its answer."""
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_next(self) -> None:
        """Close the connection in a while, unless another request comes."""
        if self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def timeout_keep_alive_handler(self) -> None:
        left_s = self._refused_at + self.timeout_keep_alive - self.loop.time()
        if self._refused_at and left_s > 0:  # a refusal leaves the timer as it is, because a new one costs more
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # Otherwise the answer needs another head, or uvicorn is about to start one pipelined request after another.
        plain = cycle.keep_alive and not cycle.waiting_for_100_continue and not self.pipeline
        scope: Scope = cycle.scope  # type: ignore[assignment] # a TypedDict
        answer = self._admission.refuse(scope) if plain else None
        if answer is None:
            scope[CLIENT] = Client()
            start = partial(super()._start_asgi_task, cycle, app)
            if _PLACE in scope:
                self._admission.begin(start)
            else:
                start()
            return
        cycle.response_started = cycle.response_complete = True
        self.transport.write(answer)
        self.on_response_complete()
