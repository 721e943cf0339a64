"""Places in the queue: requests that find none are refused, by their head alone and before an ASGI task starts.

Under overload, the cost of a refusal decides how much is answered. A refusal through all layers takes about a third of
the event loop's time for an answer by id; this one takes 0.04 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mmn_fast.serving.http.outgoing import HEADERS, whole
from mmn_fast.serving.http.problems import Problem, busy, response_of
from mmn_fast.serving.metrics import Metrics

QUEUED = ("/v1/ground", "/v1/search")
"""Paths whose requests wait for the engine."""
# Requests that get a place in one round of the event loop once half of the places are taken. What is admitted makes the
# round long, and refusals wait for its end: 28 ms by id at twice the capacity without this bound, 15 ms with it.
_ROUND = 8
_PLACE = "mmn_fast.place"  # in the scope of a request that has a place, but whose task has not started


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
        self._answers: dict[str, bytes] = {}
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

    def _none_left(self) -> bool:
        taken = self._waiting() + self._coming
        return taken >= self._most or (self._coming >= _ROUND and taken >= self._most // 2)


def admitting(admission: Admission) -> type[HttpToolsProtocol]:
    """Make uvicorn's protocol for a service: it asks `Admission.refuse` before it starts a request's task.

    What is left of a body after its answer must not keep a connection open for ever: in uvicorn's own protocol, the
    first bytes that arrive then end the wait for the next request, and no other wait begins.
    """

    class Protocol(HttpToolsProtocol):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            answered = self.cycle is not None and self.cycle.response_complete
            if answered and self.timeout_keep_alive_task is None and not self.transport.is_closing():
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            # Otherwise the answer needs another head, or uvicorn is about to start one pipelined request after another.
            plain = cycle.keep_alive and not cycle.waiting_for_100_continue and not self.pipeline
            answer = admission.refuse(cycle.scope) if plain else None  # type: ignore[arg-type] # a TypedDict
            if answer is None:
                super()._start_asgi_task(cycle, app)
                return
            cycle.response_started = cycle.response_complete = True
            self.transport.write(answer)
            self.on_response_complete()

    return Protocol
